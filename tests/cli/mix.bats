#!/usr/bin/env bats
# rill mix from the outside: what it makes of each encoding, what it refuses, what it records. Numbers are the unit tests' business.
load common

setup_file() { make_inputs; }
setup() { enter_inputs; }
mix() { rill mix -q --no-provenance "$@"; }
dump() { rill logit-dump -q --no-provenance "$@"; }

@test "threads and pipes change nothing" {
    mix -j 1 dense.kd.rill dense2.kd.rill >a
    mix -j 2 dense.kd.rill dense2.kd.rill >b
    cat dense2.kd.rill | mix dense.kd.rill - | cat >c
    assert_same a b
    assert_same a c
}

@test "a teacher mixed with itself is itself, as far as f16 goes" {
    mix dense.kd.rill dense.kd.rill >same
    rill logit-dump --tsv --positions 0:1000 --top 1 dense.kd.rill | cut -f 1-4,8 >want
    rill logit-dump --tsv --positions 0:1000 --top 1 same | cut -f 1-4,8 >got
    paste want got | awk -F'\t' 'NR > 1 { split($5, a, ":"); split($10, b, ":"); d = a[2] / b[2] - 1
        if (a[1] != b[1] || d > 0.005 || d < -0.005) { print; exit 1 } } END { exit !(NR > 100) }'
}

@test "weights are ratios, and each has its teacher" {
    mix --weights 2,1 dense.kd.rill dense2.kd.rill >a
    mix --weights 4,2 dense.kd.rill dense2.kd.rill >b
    mix --weights 1,2 dense.kd.rill dense2.kd.rill >c
    mix --weights 1,2 dense2.kd.rill dense.kd.rill >d
    assert_same a b
    assert_differ a c
    # the same sums in another order
    rill diff --max-abs 0.01 a d
}

@test "draws are pooled and go on as draws" {
    dump --encode sample:20 dense.kd.rill >one
    dump --encode sample:10 dense2.kd.rill >two
    check_exit 0 rill mix --report r.json one two -o pooled
    assert_json r.json encoding '"sample:30"'
    assert_json r.json teachers 2
    rill distill -q -m student.rill --steps 2 --batch-tokens 64 pooled >/dev/null
    check_exit 2 rill mix --weights 2,1 one two
    assert_stderr_line "one: draws are pooled, so a teacher's weight is its number of draws *"
}

@test "positions without a common token are counted" {
    for t in dense dense2; do dump --encode ghost:2 $t.kd.rill >$t.ghost; done
    check_exit 0 rill mix --report r.json dense.ghost dense2.ghost -o mixed
    assert_stderr_line "* of 146 positions have no token that all teachers name, and teach nothing"
    rill eval -q -m student.rill --reference mixed >/dev/null
}

@test "top entries of several teachers train, and are not judged by" {
    for t in dense dense2; do dump --encode topk:5 $t.kd.rill >$t.top; done
    mix dense.top dense2.top >mixed
    rill distill -q -m student.rill --steps 2 --batch-tokens 64 mixed >/dev/null
    check_exit 3 rill eval -m student.rill --reference mixed
    assert_stderr_line "mixed: top entries of several teachers are lower bounds*"
    check_exit 3 rill logit-dump --encode ghost:3 mixed
    assert_stderr_line "topk:10 of several teachers cannot become ghost:3: *"
    check_exit 0 rill logit-dump --encode topk:3 mixed -o fewer
    check_exit 3 rill eval -m student.rill --reference fewer
}

@test "inputs that do not fit are refused, and leave nothing" {
    dump --encode topk:5 dense.kd.rill >top
    dump --encode sample:5 dense.kd.rill >drawn
    check_exit 3 rill mix top drawn -o out
    assert_stderr_line "drawn: different encodings cannot be mixed: first topk:5, here sample:5*"
    dump --encode topk:5 --temperature 2 dense.kd.rill >warm
    check_exit 3 rill mix top warm -o out
    assert_stderr_line "warm: temperatures differ: first 1, here 2"
    check_exit 3 rill mix --mean geometric top top -o out
    assert_stderr_line "top: a geometric mean needs the probabilities of all tokens: topk:5 is not dense"
    check_exit 3 rill mix --temperature 2 top top -o out
    check_exit 3 rill mix drawn tokens.rill -o out
    assert_stderr_line "tokens.rill: this is a tokens stream, expected a knowledge stream"
    check_exit 3 rill mix tapped.kd.rill drawn -o out
    assert_stderr_line "tapped.kd.rill: tapped fields cannot be mixed: hidden.0 *"
    rill import -q "$ROOT/tests/golden/tiny-llama" >llama.rill
    rill tokenize -q -m llama.rill --context 32 "$ROOT/tests/golden/tiny-qwen2/text.txt" | rill teacher-infer -q -m llama.rill >llama.kd.rill
    check_exit 3 rill mix dense.kd.rill llama.kd.rill -o out
    assert_stderr_line "llama.kd.rill: vocabularies differ: first xxh3:*, here xxh3:*"
    head -c 60 "$ROOT/tests/golden/tiny-qwen2/text.txt" | rill tokenize -q -m model.rill --context 32 | rill teacher-infer -q -m teacher.rill >short
    check_exit 3 rill mix dense.kd.rill short -o out
    assert_stderr_line "short*position*"
    assert_no_file out
}

@test "options that make no sense are refused" {
    for w in 1 1,2,3 1,0 1,-1 1,x '' 1,,2; do check_exit 2 rill mix --weights "$w" dense.kd.rill dense2.kd.rill; done
    check_exit 2 rill mix dense.kd.rill
    check_exit 2 rill mix --temperature 0 dense.kd.rill dense2.kd.rill
    check_exit_in 2 dense.kd.rill rill mix - -
}

@test "a flipped bit is noticed" {
    flip_byte dense2.kd.rill 9000
    check_exit 3 rill mix dense.kd.rill dense2.kd.rill -o out
    assert_stderr_line "dense2.kd.rill: *"
    assert_no_file out
}

@test "memory does not grow with the streams" {
    for size in 20000 200000; do
        for i in $(seq 4000); do echo "line $i: the quick brown fox jumps over the lazy dog, and then some."; done |
            cat - /dev/null >text
        for _ in 1 2 3; do cat text; done | rill tokenize -q -m student.rill --context 64 --max-tokens $size >$size.tok
        for t in student teacher; do rill teacher-infer -q -m $t.rill $size.tok >$t.$size.kd; done
        rill mix -q --report $size.json student.$size.kd teacher.$size.kd >/dev/null
    done
    a=$(grep -o '"peak_memory_bytes":[0-9]*' 20000.json | cut -d: -f2) b=$(grep -o '"peak_memory_bytes":[0-9]*' 200000.json | cut -d: -f2)
    [ "$b" -le $((a + a / 20 + 2097152)) ] || fail "$a bytes on the short input, $b on the long one"
}

@test "the provenance names both teachers, and the recipe runs" {
    rill mix dense.kd.rill dense2.kd.rill -o mixed.rill
    check_exit 0 rill recipe mixed.rill
    assert_stdout "*mixed.rill: dense.kd.rill dense2.kd.rill*dense.kd.rill: teacher.rill*dense2.kd.rill: student.rill*"
}
