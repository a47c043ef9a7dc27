#!/usr/bin/env bats
# Manual pages and completion come from the option table: they render, and they say what --help says.
load common

programs() { for p in "$RILL_BIN"/rill-*; do basename "$p" | sed s/rill-//; done; }

@test "every manual page is clean mdoc" {
    need mandoc
    mkdir man
    rill --help-man >man/rill.1
    for p in $(programs) fixture; do "rill-$p" --help-man >"man/rill-$p.1"; done
    # references to pages that are not installed are right all the same
    lint=$(mandoc -Tlint -W style man/*.1 | grep -vE 'referenced manual not found|line longer than 80 bytes' || true)
    [ -z "$lint" ] || fail "$lint"
}

@test "every option is in the manual page, with its default" {
    need mandoc
    for p in $(programs) fixture; do
        page=$(rill-"$p" --help-man | mandoc -Tutf8 | col -b)
        for o in $("rill-$p" --help | grep -oE '^ +(-[a-zA-Z], )?--[a-z-]+' | grep -oE -- '--[a-z-]+'); do
            [[ $page == *"$o"* ]] || fail "$p: $o is not in its manual page"
        done
    done
    rill-fixture --help-man | mandoc -Tascii | col -b | grep -q 'default: stats'
}

@test "no text is lost or changed on the way to the page" {
    need mandoc
    page=$(rill-fixture --help-man | mandoc -Tascii | col -b)
    [[ $page == *"indented - text, as it is"* ]]
    [[ $page == *"rill fixture > a.rill"* ]]
}

@test "the completion is valid bash and completes programs, options and choices" {
    rill --help-bash >rill.bash
    bash -n rill.bash
    cat >ask.bash <<'EOS'
. ./rill.bash
ask() { COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=(); _rill; echo "${COMPREPLY[*]}"; }
ask rill reci
ask rill recipe --tar
ask rill recipe --progress al
ask rill recipe --progress = ne
ask rill help reci
EOS
    check_exit 0 bash ask.bash
    assert_equal "$out" $'recipe\n--target\nalways\nnever\nrecipe'
}
