#!/usr/bin/env bats
# make install into a folder of its own: what is there works, and uninstall leaves nothing.
load common

@test "install, run, uninstall" {
    [ -n "${FAULTS:-}" ] || skip "only for the plain build"
    make -s -C "$ROOT" install DESTDIR="$T/root" prefix=/usr
    [ -x root/usr/bin/rill ]
    [ -x root/usr/libexec/rill/rill-recipe ]
    [ -s root/usr/share/man/man1/rill-recipe.1 ]
    [ -s root/usr/share/man/man1/rill.1 ]
    bash -n root/usr/share/bash-completion/completions/rill
    PATH=/usr/bin:/bin check_exit 0 root/usr/bin/rill recipe --version
    PATH=/usr/bin:/bin check_exit 0 root/usr/bin/rill
    for p in "$RILL_BIN"/rill-*; do assert_stdout "*  $(basename "$p" | sed s/rill-//) *"; done
    make -s -C "$ROOT" uninstall DESTDIR="$T/root" prefix=/usr
    assert_equal "$(find root -type f)" ""
}
