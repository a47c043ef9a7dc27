#!/usr/bin/env bats
# rill fidelity from the outside; its numbers are the unit tests' business.
load common

setup_file() { make_inputs; }
setup() {
    enter_inputs
    for e in topk:5 ghost:5 sample:20; do rill logit-dump -q --encode $e dense.kd.rill -o "${e%:*}.kd.rill"; done
}
fidelity() { rill fidelity -q -m student.rill "$@"; }

@test "a line for each encoding, the dense one first, the same on any number of threads and from a pipe" {
    fidelity -j 1 dense.kd.rill topk.kd.rill sample.kd.rill >a
    fidelity -j 2 dense.kd.rill topk.kd.rill sample.kd.rill >b
    cat dense.kd.rill | fidelity - topk.kd.rill sample.kd.rill >c
    assert_same a b
    assert_same a c
    assert_equal "$(wc -l <a)" 3
    sed -n 1p a | grep -q '"encoding":"dense".*"angle":0,"norm_ratio":1,"position_angle":0,'
    sed -n 2p a | grep -q '"encoding":"topk:5"'
    sed -n 3p a | grep -q '"encoding":"sample:20"'
}

@test "tables" {
    check_exit 0 fidelity --table dense.kd.rill ghost.kd.rill
    assert_stdout "encoding *angle *bytes_zstd*dense *ghost:5 *"
    check_exit 0 fidelity --tsv dense.kd.rill ghost.kd.rill
    [ "$(wc -l <"$T/.stdout")" -eq 3 ]
    awk -F'\t' 'NF != 11 { exit 1 }' "$T/.stdout"
    check_exit 2 fidelity --tsv --table dense.kd.rill ghost.kd.rill
}

@test "bytes are those of the stream, and speed is in the report" {
    rill logit-dump -q --encode sample:20 --report dump.json dense.kd.rill >/dev/null
    fidelity --report r.json dense.kd.rill sample.kd.rill >out
    bytes=$(grep -o '"teacher_bytes_per_token":[0-9.]*' dump.json | cut -d: -f2)
    grep -qF "\"bytes\":$bytes," out
    grep -q '"tokens_per_second":[1-9]' r.json
    if grep -q tokens_per_second out; then fail "a result depends on the clock"; fi
    check_exit 0 fidelity --speed dense.kd.rill sample.kd.rill
    assert_stdout '*"tokens_per_second":*'
}

@test "what cannot be compared is refused" {
    check_exit 3 rill fidelity -m student.rill topk.kd.rill dense.kd.rill
    assert_stderr_line "topk.kd.rill: the first input must be dense knowledge, which the others are compared with"
    check_exit 3 rill fidelity -m student.rill dense.kd.rill tokens.rill
    assert_stderr_line "tokens.rill: this is a tokens stream, expected a knowledge stream"
    rill logit-dump -q --encode topk:5 --temperature 2 dense.kd.rill -o warm.kd.rill
    check_exit 0 fidelity dense.kd.rill warm.kd.rill
    assert_stdout '*"temperature":2,*'
    check_exit 3 rill fidelity -m student.rill dense.kd.rill topk.kd.rill warm.kd.rill
    assert_stderr_line "warm.kd.rill: temperature 2: an encoding before it has 1"
    head -c 60 "$ROOT/tests/golden/tiny-qwen2/text.txt" | rill tokenize -q -m model.rill --context 32 |
        rill teacher-infer -q -m teacher.rill --encode topk:5 >short.kd.rill
    check_exit 3 rill fidelity -m student.rill dense.kd.rill short.kd.rill
    rill import -q "$ROOT/tests/golden/tiny-llama" >llama.rill
    check_exit 3 rill fidelity -m llama.rill dense.kd.rill topk.kd.rill
    assert_stderr_line "*vocabulary*"
    check_exit 2 rill fidelity -m student.rill dense.kd.rill
    flip_byte topk.kd.rill 900
    check_exit 3 rill fidelity -m student.rill dense.kd.rill topk.kd.rill -o out
    assert_no_file out
}
