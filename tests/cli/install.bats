#!/usr/bin/env bats
# make install into a folder of its own: what is there works, and uninstall leaves nothing.
load common

@test "install, run, uninstall" {
    [ -n "${FAULTS:-}" ] || skip "only for the plain build"
    check_exit 0 make -s -C "$ROOT" install DESTDIR="$T/root" prefix=/usr
    assert_stdout "installed: $T/root/usr/bin/rill, its programs in $T/root/usr/libexec/rill, *"
    [ -x root/usr/bin/rill ]
    [ -x root/usr/libexec/rill/rill-recipe ]
    [ -s root/usr/share/man/man1/rill-recipe.1 ]
    [ -s root/usr/share/man/man1/rill.1 ]
    [ -s root/usr/share/man/man5/rill-format.5 ]
    [ -s root/usr/share/man/man7/rill.7 ]
    [ -s root/usr/share/doc/rill/formats/rill.md ]
    bash -n root/usr/share/bash-completion/completions/rill
    [ -s root/usr/share/zsh/site-functions/_rill ]
    [ -s root/usr/share/fish/vendor_completions.d/rill.fish ]
    PATH=/usr/bin:/bin check_exit 0 root/usr/bin/rill recipe --version
    PATH=/usr/bin:/bin check_exit 0 root/usr/bin/rill
    for p in "$RILL_BIN"/rill-*; do assert_stdout "*  $(basename "$p" | sed s/rill-//) *"; done
    make -s -C "$ROOT" uninstall DESTDIR="$T/root" prefix=/usr
    assert_equal "$(find root -type f)" ""
}

@test "PREFIX is taken as prefix is, and two that disagree are refused" {
    [ -n "${FAULTS:-}" ] || skip "only for the plain build"
    check_exit 0 make -s -C "$ROOT" install PREFIX="$T/there"
    assert_stdout "installed: $T/there/bin/rill, *"
    check_exit 0 there/bin/rill ls --version
    check_exit 2 make -s -C "$ROOT" install prefix="$T/here" PREFIX="$T/there"
    assert_stderr "*prefix=$T/here and PREFIX=$T/there disagree*"
    [ ! -e here ]
    check_exit 0 make -s -C "$ROOT" uninstall PREFIX="$T/there"
    assert_equal "$(find there -type f)" ""
}
