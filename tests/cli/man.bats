#!/usr/bin/env bats
# Manual pages and completion come from the option table: they render, and they say what --help says.
load common

programs() { for p in "$RILL_BIN"/rill-*; do basename "$p" | sed s/rill-//; done; }
options_of() { "rill-$1" --help-options | grep -oE '^(-[a-zA-Z] )?--[a-z0-9-]+' | grep -oE -- '--[a-z0-9-]+' | sort -u; }

@test "every manual page is clean mdoc" {
    need mandoc
    mkdir man
    rill --help-man >man/rill.1
    for p in $(programs) fixture; do "rill-$p" --help-man >"man/rill-$p.1"; done
    cp "$ROOT"/docs/*.[57] man
    # references to pages that are not installed are right all the same
    mandoc -Tlint -W style man/*.[157] >lint || [ $? -le 2 ]
    lint=$(grep -vE 'referenced manual not found|line longer than 80 bytes' lint || true)
    [ -z "$lint" ] || fail "$lint"
}

@test "every option is in the manual page, with its default" {
    need mandoc
    for p in $(programs) fixture; do
        page=$(rill-"$p" --help-man | mandoc -Tutf8 | col -b)
        for o in $(options_of "$p"); do
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
ask rill quantize --type q4_k_
EOS
    check_exit 0 bash ask.bash
    assert_equal "$out" $'recipe\n--target\nalways\nnever\nrecipe\nq4_k_m q4_k_s'
}

@test "the completion is valid zsh and says of each option what it takes" {
    need zsh
    rill --help-zsh >_rill
    zsh -n _rill
    # compinit takes functions from files whose first line says what for; there is no terminal here, so what zsh's own
    # _arguments is told is looked at
    assert_equal "$(head -n 1 _rill)" "#compdef rill"
    cat >ask.zsh <<'EOS'
compdef() { :; }
_arguments() { print -rl -- "$@"; }
source ./_rill
_rill_recipe
_rill_distill
words=(x) state=program _rill
EOS
    check_exit 0 zsh -f ask.zsh
    for spec in "--target=[name of the file in the Makefile]:NAME:" "*:file:_files" "1:program:->program"; do
        grep -qF -- "$spec" <<<"$out" || fail "no $spec"
    done
    grep -qF -- "--report=[write a report to FILE as JSON]:FILE:_files" <<<"$out"
    grep -qE -- '--loss=\[.*\]:.*:\(kl rkl .*minilm2\)$' <<<"$out"
    grep -qE -- '-o\+\[write to FILE' <<<"$out"
    for p in $(programs); do
        assert_equal "$(comm -23 <(options_of "$p") <(rill "$p" --help-zsh | grep -oE -- '--[a-z0-9-]+' | sort -u))" ""
    done
}

@test "the completion is valid fish and completes programs, options and choices" {
    need fish
    mkdir home
    export HOME=$PWD/home
    rill --help-fish >rill.fish
    fish -n rill.fish
    ask() { fish -c "source rill.fish; complete -C '$1'" | cut -f 1 | tr '\n' ' '; }
    assert_equal "$(ask 'rill reci')" "recipe "
    assert_equal "$(ask 'rill recipe --tar')" "--target "
    assert_equal "$(ask 'rill recipe --progress al')" "always "
    assert_equal "$(ask 'rill distill --loss minilm')" "minilm minilm2 "
    assert_equal "$(ask 'rill help archi')" "architectures "
    for p in $(programs); do
        completed=$(grep -F "_from $p'" rill.fish | grep -oE -- ' -l [a-z0-9-]+' | sed 's/ -l /--/' | sort -u)
        assert_equal "$(options_of "$p")" "$completed"
    done
}
