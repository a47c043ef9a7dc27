#!/usr/bin/env bats
# rill realign from the outside: streams, texts that differ, and that a student learns from what it makes.
load common

setup_file() { make_inputs; }
setup() {
    enter_inputs
    rill import -q "$ROOT/tests/golden/tiny-llama" >llama.rill
    cp "$INPUTS/text.txt" .
    rill tokenize -q -m teacher.rill --lines text.txt >lines.tok.rill
    rill teacher-infer -q -m teacher.rill lines.tok.rill >lines.kd.rill
}
realign() { rill realign -q --no-provenance "$@"; }

@test "equal tokenizers: the answers are the teacher's" {
    realign -m student.rill --teacher teacher.rill --entries 20 --report r.json dense.kd.rill >same
    assert_json r.json aligned_share 1
    assert_json r.json mass 0.99999 || assert_json r.json mass 1
    rill logit-dump -q --encode ghost:20 dense.kd.rill >want
    for x in same want; do rill logit-dump --tsv --positions 0:1000 $x >$x.tsv; done
    assert_same same.tsv want.tsv
    realign -m student.rill --teacher teacher.rill --entries 20 <want >again
    rill logit-dump --tsv --positions 0:1000 again >again.tsv
    assert_same again.tsv want.tsv
}

@test "threads, pipes and given tokens change nothing" {
    realign -j 1 -m llama.rill --teacher teacher.rill lines.kd.rill >a
    realign -j 2 -m llama.rill --teacher teacher.rill lines.kd.rill >b
    cat lines.kd.rill | realign -m llama.rill --teacher teacher.rill >c
    assert_same a b
    assert_same a c
    rill tokenize -q -m llama.rill --lines --bos never --eos never text.txt >own.tok.rill
    realign -m llama.rill --teacher teacher.rill --tokens own.tok.rill lines.kd.rill >d
    for x in a d; do rill logit-dump --tsv --positions 0:1000 $x >$x.tsv; done
    assert_same a.tsv d.tsv
}

@test "what is aligned is said" {
    check_exit 0 rill realign -m llama.rill --teacher teacher.rill --report r.json lines.kd.rill -o out
    assert_stderr_line "*% of * positions aligned; there *% of the probability has a token of the student, and *% of the labels are known"
    for key in teacher_tokens mapped_tokens positions aligned aligned_share mass labels labels_known labels_chained; do
        grep -q "\"$key\":[0-9]" r.json || fail "no $key"
    done
}

@test "a student with another tokenizer learns from it" {
    rill init -q --layers 1 --hidden 32 --heads 2 --kv-heads 1 --ffn 64 llama.rill >small.rill
    realign -m small.rill --teacher teacher.rill lines.kd.rill >small.kd.rill
    rill distill -q -m small.rill --epochs 60 --batch-tokens 64 --lr 0.01 --loss kl small.kd.rill >trained.rill
    before=$(rill eval -q -m small.rill --reference small.kd.rill | grep -o '"kld_lower_bound":[0-9.]*' | cut -d: -f2)
    after=$(rill eval -q -m trained.rill --reference small.kd.rill | grep -o '"kld_lower_bound":[0-9.]*' | cut -d: -f2)
    awk "BEGIN { exit !($after < 0.7 * $before) }" || fail "divergence $before, then $after"
    # losses on the order of probabilities too, which refuse the stream as it was
    rill distill -q -m small.rill --steps 2 --batch-tokens 64 --loss uld small.kd.rill >/dev/null
    check_exit 3 rill distill -m small.rill --steps 2 --loss uld lines.kd.rill
    assert_stderr_line "*vocabulary*"
}

@test "texts that differ are refused, by sequence and byte" {
    sed 's/e/i/' text.txt | rill tokenize -q -m llama.rill --lines >other.tok.rill
    check_exit 3 rill realign -m llama.rill --teacher teacher.rill --tokens other.tok.rill lines.kd.rill -o out
    assert_stderr_line "lines.kd.rill: sequence *: the texts differ from byte *"
    head -n 1 text.txt | rill tokenize -q -m llama.rill --lines >fewer.tok.rill
    check_exit 3 rill realign -m llama.rill --teacher teacher.rill --tokens fewer.tok.rill lines.kd.rill -o out
    assert_stderr_line "lines.kd.rill has more sequences than fewer.tok.rill"
    assert_no_file out
}

@test "what cannot be aligned is refused" {
    check_exit 3 rill realign -m llama.rill --teacher llama.rill lines.kd.rill -o out
    assert_stderr_line "*disagree: vocabulary xxh3:* against xxh3:*"
    check_exit 3 rill realign -m llama.rill --teacher teacher.rill corpus.kd.rill -o out
    assert_stderr_line "corpus.kd.rill: sample:50 does not tell how much probability is left: *"
    check_exit 3 rill realign -m llama.rill --teacher teacher.rill --tokens tokens.rill lines.kd.rill -o out
    check_exit 3 rill realign -m llama.rill --teacher teacher.rill tokens.rill -o out
    check_exit 2 rill realign -m llama.rill lines.kd.rill
    check_exit 2 rill realign -m llama.rill --teacher teacher.rill --entries 0 lines.kd.rill
    flip_byte lines.kd.rill 9000
    check_exit 3 rill realign -m llama.rill --teacher teacher.rill lines.kd.rill -o out
    assert_no_file out
}

@test "the recipe names models and knowledge" {
    rill realign -q -m llama.rill --teacher teacher.rill lines.kd.rill -o out.rill
    check_exit 0 rill recipe out.rill
    assert_stdout "*out.rill: *realign -m llama.rill --teacher teacher.rill*"
}
