#!/usr/bin/env bats
# rill fold, beyond what every program must do (every.bats) and what the library's tests say (tests/unit/test_fold.c).
load common

setup_file() { make_inputs; }
setup() {
    enter_temp
    cp -r "$INPUTS/." .
    rill quantize -q --type f32 model.rill -o f32.rill
}

# same_function MODEL: does it give the logits of f32.rill?
same_function() {
    rill teacher-infer -q --precision f32 -m "$1" tokens.rill |
        rill eval -q -m f32.rill --precision f32 --reference - --table >kld.txt
    awk '$1 == "kld" { found = $2 < 2e-6 } END { exit !found }' kld.txt # logits are stored in f16
}

@test "each method leaves the logits as they are, by file and pipe, with one thread and four" {
    local how
    for how in "awq --type q4_0 --stats model.stats.rill" "awq --type q4_0 --data tokens.rill --precision f32" \
        "smooth --data tokens.rill --precision f32" r1 "r2 --seed 3"; do
        # shellcheck disable=SC2086
        check_exit 0 rill fold -q --no-provenance --method $how f32.rill -o a.rill -j 1 --force
        # shellcheck disable=SC2086
        cat f32.rill | rill fold -q --no-provenance --method $how -j 4 >b.rill
        assert_same a.rill b.rill
        check_exit 4 rill diff f32.rill a.rill
        same_function a.rill
    done
}

@test "methods follow one another, and quantize takes what comes out" {
    check_exit 0 sh -c 'rill fold -q --method r1 f32.rill | rill fold -q --method r2 | rill fold -q --method awq --type q4_0 --data tokens.rill --precision f32 >all.rill'
    same_function all.rill
    check_exit 0 rill quantize -q --type q4_0 --method gptq --data tokens.rill --precision f32 all.rill -o q.rill
    check_exit 0 rill export --to gguf q.rill -o q.gguf
}

@test "r1 gives a tied model a head of its own, and norms without gains" {
    check_exit 0 rill fold --method r1 f32.rill -o r1.rill
    check_exit 0 rill ls r1.rill
    assert_stdout "*head.weight*"
    check_exit 0 rill show r1.rill --tensor norm.weight --stats
    assert_stdout "*min*1*max*1*"
}

@test "what cannot be folded is left out and said" {
    rill import -q "$ROOT/tests/golden/arch/olmo2" -o olmo2.rill
    rill import -q "$ROOT/tests/golden/arch/gpt2" -o gpt2.rill
    rill import -q "$ROOT/tests/golden/arch/bilstm" -o lstm.rill
    check_exit 3 rill fold --method r1 gpt2.rill -o no.rill
    assert_stderr_line "the residual stream of this model cannot be rotated: its norms subtract the mean or have a bias, which does not turn with it"
    check_exit 3 rill fold --method r1 olmo2.rill -o no.rill
    check_exit 3 rill fold --method r2 lstm.rill -o no.rill
    [ ! -e no.rill ]
    check_exit 0 rill fold --method r2 olmo2.rill -o r2.rill
}

@test "bad input" {
    check_exit 2 rill fold model.rill
    check_exit 2 rill fold --method awq --stats model.stats.rill model.rill
    assert_stderr_line "--method awq needs --type"
    check_exit 2 rill fold --method awq --type q4_0 model.rill
    assert_stderr_line "--method awq needs --stats or --data"
    check_exit 2 rill fold --method smooth model.rill
    assert_stderr_line "--method smooth needs --data"
    check_exit 2 rill fold --method awq --type q4_7 --stats model.stats.rill model.rill
    check_exit 2 rill fold --method awq --type f16 --stats model.stats.rill model.rill
    assert_stderr_line "awq: no matrix of the layers is to be quantized"
    rill prune -q --ffn 64 model.rill -o narrow.rill
    check_exit 3 rill fold --method awq --type q4_0 --stats model.stats.rill narrow.rill -o no.rill
    check_exit 3 sh -c 'head -c 20000 f32.rill | rill fold --method r2 -o no.rill'
    [ ! -e no.rill ]
}

@test "an importance matrix of llama.cpp has no mean activations for awq" {
    rill export --to imatrix model.stats.rill -o m.gguf
    check_exit 3 rill fold --method awq --type q4_0 --stats m.gguf model.rill -o no.rill
    assert_stderr_line "m.gguf: an importance matrix of llama.cpp has mean squares of inputs alone, not mean absolute values, which --method awq needs: give statistics of rill calibrate"
    assert_no_file no.rill
}
