#!/usr/bin/env bats
# rill distill --quantize: a student that is trained for the grid it is stored on.
load common

setup_file() { make_inputs; }
setup() { enter_inputs; }
json() { grep -o "\"$2\":[-+0-9.e]*" "$1" | head -n 1 | cut -d: -f2; }
train() { rill distill -q --no-provenance -m student.rill --precision f32 --batch-tokens 32 --lr 0.01 --epochs "${epochs:-6}" "$@"; }
types_of() { rill ls "$1" | awk '$2 ~ /^\[/ { print $NF, $1 }'; }

@test "what is written is quantized as quantize would, and quantize leaves it alone" {
    train --quantize q4_0 corpus.kd.rill >aware.rill
    rill quantize -q --type q4_0 student.rill -o nearest.rill
    assert_same <(types_of aware.rill) <(types_of nearest.rill)
    types_of aware.rill | grep -q '^layers.0.attn.q.weight q4_0$'
    rill quantize -q --type q4_0 <aware.rill >through.rill
    check_exit 0 rill diff aware.rill through.rill
    check_exit 4 rill diff aware.rill nearest.rill
    rill export -q --to gguf aware.rill -o aware.gguf
}

@test "--eval judges what is written" {
    for how in "" "--ema 0.5" "--keep-best --ema 0.5"; do
        # shellcheck disable=SC2086
        train $how --quantize q4_0 --eval tokens.rill --eval-every 2 --report r.json corpus.kd.rill >aware.rill
        rill eval -q -m aware.rill --precision f32 --protocol sequences tokens.rill >eval.json
        awk -v a="$(json r.json "$([[ $how == *best* ]] && echo best || echo eval_ce)")" -v b="$(json eval.json nll)" \
            'BEGIN { print a, b; exit !(b > 0 && a - b < 1e-5 && b - a < 1e-5) }'
    done
}

@test "a plan gives what its type gives" {
    rill quantize --type q4_0 --tensor-type attn=q8_0 --dry-run student.rill -o plan.txt
    train --quantize-plan plan.txt corpus.kd.rill >planned
    train --quantize q4_0 --tensor-type attn=q8_0 corpus.kd.rill >typed
    assert_same planned typed
}

@test "what falls back and what is searched at each step is said" {
    rill distill -m student.rill --steps 1 --quantize q4_k_m corpus.kd.rill -o k.rill 2>err
    grep -q "^rill distill: [0-9]* tensors fall back to a larger type because their rows are not a whole number of blocks: first 'embed.weight', q8_0 instead of q6_k$" err
    grep -q '^rill distill: [0-9.]* bits per weight$' err
    rill distill -m student.rill --steps 1 --quantize mxfp4 corpus.kd.rill -o m.rill 2>err
    grep -q '^rill distill: mxfp4 has no scales apart from its codes: its matrices are searched after every step' err
}

@test "--plan counts the bytes of the quantized model" {
    rill distill --plan -m student.rill --quantize q4_0 corpus.kd.rill >plan.json
    rill distill --plan -m student.rill corpus.kd.rill >plain.json
    awk -v a="$(json plan.json model_bytes)" -v b="$(json plain.json model_bytes)" 'BEGIN { print a, b; exit !(a < 0.4 * b) }'
}

@test "what cannot be is refused before the first step" {
    check_exit 2 train --quantize q9_0 corpus.kd.rill -o no.rill
    assert_stderr_line "*q9_0*"
    check_exit 2 train --quantize q4_0 --lora 2 corpus.kd.rill -o no.rill
    check_exit 2 train --quantize-refit 2 corpus.kd.rill -o no.rill
    check_exit 2 train --quantize q4_0 --tensor-type nothing=q8_0 corpus.kd.rill -o no.rill
    check_exit 2 train --quantize q4_0 --quantize-plan plan.txt corpus.kd.rill -o no.rill
    check_exit 1 train --quantize-plan missing.txt corpus.kd.rill -o no.rill
    rill quantize --type q4_0 --dry-run model.rill -o plan.txt
    check_exit 3 train --quantize-plan plan.txt corpus.kd.rill -o no.rill
    assert_stderr_line "*plan.txt: line *"
    train --quantize q4_0 --checkpoint run.rill corpus.kd.rill >whole
    check_exit 3 train --resume run.rill corpus.kd.rill
    assert_stderr_line "run.rill: the checkpoint was made with quantize xxh3:*, this run has none"
    check_exit 3 train --quantize q4_1 --resume run.rill corpus.kd.rill
    check_exit 3 train --quantize q4_0 --quantize-refit 2 --resume run.rill corpus.kd.rill
    assert_no_file no.rill
}
