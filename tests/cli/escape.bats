#!/usr/bin/env bats
# What a file or a command line says is escaped wherever it is shown: a terminal's cursor does not move, lines stay lines.
load common

setup_file() { make_inputs; }
setup() {
    enter_temp
    cp -r "$INPUTS/." .
    # right-to-left override, CSI as one character, DEL; and a byte that is not UTF-8
    evil=$(printf 'te\xe2\x80\xaext\xc2\x9b\x7f') byte=$(printf 'no\x9bsuch')
}

# Of FILE: no control characters but line ends and tabs, no C1, no bidirectional controls, nothing that is not UTF-8.
assert_tame() {
    if LC_ALL=C.UTF-8 grep -qavxP '[^\x00-\x08\x0b-\x1f\x7f-\x9f\x{202a}-\x{202e}\x{2066}-\x{2069}\x{2028}\x{2029}]*' "$1"; then
        fail "$1 is not tame: $(grep -v '^$' "$1" | head -c 400 | od -c | head -20)"
    fi
}
# CODE CMD...: both of its outputs are tame
check_tame() {
    check_exit "$@" || return 1
    assert_tame "$T/.stdout" && assert_tame "$T/.stderr" || fail "in: ${*:2}"
}

@test "descriptions and provenance" {
    need script
    rill export --to gguf --name "$evil" model.rill -o evil.gguf
    rill import evil.gguf -o evil.rill
    check_tame 0 rill show --meta evil.rill
    assert_stdout '*"name":"te\\u202ext\\u009b\\u007f"*'
    check_tame 0 rill ls --json evil.rill
    assert_stdout '*te\\u202ext\\u009b\\u007f*'
    check_tame 0 rill ls evil.rill
    check_tame 4 rill diff evil.rill model.rill
    printf '{"%s":"once upon"}\n' "$evil" >evil.jsonl
    rill tokenize -m model.rill --jsonl "$evil" evil.jsonl -o tokens2.rill --report report.json
    assert_tame report.json
    check_tame 0 rill show --prov tokens2.rill
    check_tame 0 rill recipe tokens2.rill
    # the same JSON, and the recipe still says the same
    rill recipe tokens2.rill >Makefile && mv tokens2.rill first.rill
    make -s tokens2.rill && assert_same first.rill tokens2.rill
    on_terminal rill show --meta evil.rill
    [[ $out == *'te\u202ext\u009b\u007f'* ]] || fail "$out"
}

@test "names of tensors" {
    # a name has no control characters, but it may have others
    rill fixture -n 1 --kind stats --prefix "$(printf 'a\xe2\x80\xaeb')" >a.rill
    check_tame 0 rill ls a.rill
    assert_stdout '*a\\u202eb.0*'
    check_tame 0 rill ls --json a.rill
    check_tame 0 rill show a.rill
    assert_stdout 'a\\u202eb.0 f32*'
    check_tame 0 rill show --json a.rill
    check_tame 4 rill diff a.rill noise.rill
    check_tame 2 rill export --to npy --tensor "$(printf 'x\xe2\x80\xaey')" a.rill
}

@test "file names and words of the command line in messages and results" {
    for p in "$RILL_BIN"/rill-*; do
        p=$(basename "$p" | sed s/rill-//)
        check_tame 2 rill "$p" "--$byte"
        check_tame 2 rill "$p" "--$evil"
    done
    check_tame 2 rill "$byte"
    assert_stderr_line "there is no program 'no\\\\x9bsuch'*"
    check_tame 1 rill ls "$byte"
    assert_stderr_line 'no\\x9bsuch: No such file or directory'
    cp model.rill "$byte" && cp model.rill "$evil"
    check_tame 0 rill check "$byte" "$evil"
    assert_stdout 'no\\x9bsuch: OK*te\\u202ext\\u009b\\u007f: OK*'
    check_tame 2 rill prune --ffn 64 model.rill -o "$byte"
    check_tame 3 rill ls <(printf 'x\x9b\x1b[2J')
    cp pairs.jsonl "$evil.jsonl"
    check_tame 0 rill eval -m model.rill --task "$evil.jsonl"
    check_tame 0 rill eval -m model.rill --task "$evil.jsonl" --table
}

@test "a text is written as it is, except to a terminal" {
    need script
    printf 'a\x1b[2J\tb\n' >evil.txt
    rill tokenize -m model.rill evil.txt -o evil.rill
    rill tokenize -m model.rill --decode evil.rill >text
    assert_same text evil.txt
    on_terminal rill tokenize -m model.rill --decode evil.rill
    assert_equal "$out" "$(printf 'a\\u001b[2J\tb')"
    on_terminal rill generate -m model.rill --text --max-new 1 evil.rill
    [[ $out == 'a\u001b[2J'* ]] || fail "$out"
}
