#!/usr/bin/env bats
# rill distill --plan against the run that it is of: memory and bytes within 20%, whoever teaches and whatever is kept. Times
# are no test's business: `make bench BENCH=plan` compares them.
load common

setup_file() {
    export INPUTS="$BATS_FILE_TMPDIR/inputs"
    mkdir -p "$INPUTS" && cd "$INPUTS" || return 1
    cp "$ROOT/examples/data/model.rill" teacher.rill
    rill quantize -q --type f32 teacher.rill -o student.rill
    rill tokenize -q -m teacher.rill --context 128 --max-tokens 1200 "$ROOT/examples/data/heldout.txt" -o tokens.rill
    # passes of one long sequence among shorter ones
    head -c 200 "$ROOT/examples/data/heldout.txt" | rill tokenize -q -m teacher.rill --context 16 -o short.rill
    rill tokenize -q -m teacher.rill --context 256 --max-tokens 256 "$ROOT/examples/data/heldout.txt" -o long.rill
    rill cat short.rill short.rill long.rill -o mixed.rill
}
setup() { enter_inputs; }
value() { grep -oE "\"$2\":[^,}]*" "$1" | tail -1 | cut -d: -f2; }
within() { awk -v a="$1" -v b="$2" 'BEGIN { exit !(a > b / 1.2 && a < b * 1.2) }' || fail "$3: $1, planned $2"; }

compare() { # NAME ARGUMENT...
    local name=$1 d="rill distill -q -m student.rill --precision f32 ${how:---steps 2 --batch-tokens 512 --micro-tokens 256}"
    shift
    rm -f run.rill
    $d "$@" --plan >plan.json
    $d "$@" --checkpoint run.rill --report report.json >out.rill
    within "$(value report.json peak_memory_bytes)" "$(value plan.json peak_memory_bytes)" "$name: memory"
    within "$(file_size out.rill)" "$(value plan.json model_bytes)" "$name: model"
    within "$(file_size run.rill)" "$(value plan.json checkpoint_bytes)" "$name: checkpoint"
    # what it says of the parts is most of the whole, and not more
    tr , '\n' <plan.json | sed -n 's/.*"\(weights\|gradients\|optimizer\|activations\|scratch\|best\|teacher\|evaluation\)_bytes"://p' |
        awk -v all="$(value plan.json peak_memory_bytes)" '{ s += $1 } END { exit !(s > all / 2 && s <= all) }' || fail "$name: parts: $(cat plan.json)"
}

@test "a plain run, its averages, its longest sequence" {
    compare plain tokens.rill
    compare ema --ema 0.9 --optimizer-state bf16 tokens.rill
    how="--micro-tokens 32 --batch-tokens 64 --steps 20" compare mixed mixed.rill
}

@test "a teacher beside the student, in memory or read layer by layer, and exits" {
    compare none tokens.rill
    less=$(value plan.json peak_memory_bytes)
    compare live --teacher teacher.rill tokens.rill
    [ "$(value plan.json peak_memory_bytes)" -gt "$less" ]
    resident=$(value plan.json teacher_bytes)
    awk -v a="$resident" 'BEGIN { exit !(a > 6e6) }' # 3 M parameters in 16 bits or more
    compare stream --teacher teacher.rill --teacher-weights stream tokens.rill
    awk -v a="$resident" -v b="$(value plan.json teacher_bytes)" 'BEGIN { exit !(b < a) }'
    compare exits --teacher teacher.rill --exit 1,2 --loss kl --loss kl:at=exits,label=exits tokens.rill
}

@test "losses on points, whose gradients take memory" {
    rill teacher-infer -q -m teacher.rill --encode sample:20 --tap hidden:all --tap q:all --tap k:all --tap v:all tokens.rill -o tapped.rill
    compare points --loss kl --loss hidden:map=last,projector=linear --loss minilm2 tapped.rill
}

@test "packs, and a streamed teacher that is read once for a step of them" {
    rill tokenize -q -m teacher.rill --lines --pack 64 --max-tokens 1500 "$ROOT/examples/data/heldout.txt" -o packs.rill
    compare packs packs.rill
    compare streamed --teacher teacher.rill --teacher-weights stream packs.rill
}

@test "evaluations: how many, their memory, and the best state" {
    compare measured --eval tokens.rill --eval-every 1 tokens.rill
    assert_equal "$(value plan.json evaluations)" 2
    assert_equal "$(value plan.json best_bytes)" 0
    grep -qE '"evaluation_seconds":0\.?[0-9]*[1-9]' plan.json
    one=$(value plan.json checkpoint_bytes)
    compare kept --eval tokens.rill --eval-every 3 --keep-best tokens.rill
    assert_equal "$(value plan.json evaluations)" 1 # at the end
    awk -v a="$one" -v b="$(value plan.json checkpoint_bytes)" -v c="$(value plan.json best_bytes)" 'BEGIN { exit !(b == a + c && c > 12e6) }'
    compare all --teacher teacher.rill --exit 2 --loss kl --loss kl:at=exits,label=exits --eval mixed.rill --keep-best --ema 0.9 tokens.rill
}

@test "the best state counts for --max-memory" {
    rill distill -q -m student.rill --precision f32 --steps 2 --batch-tokens 256 --eval tokens.rill --keep-best --plan tokens.rill >plan.json
    least=$(value plan.json peak_memory_bytes)
    check_exit 1 rill distill -q -m student.rill --precision f32 --steps 2 --batch-tokens 256 --eval tokens.rill --keep-best \
        --max-memory "$((least / 3 / 1000000))M" tokens.rill
    assert_stderr "*out of memory*"
}
