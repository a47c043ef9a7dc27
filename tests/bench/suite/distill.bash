# A distillation step: 50 draws a position from the teacher, batches of 4 sequences, AdamW. Steps only: neither side's loading and
# writing is counted; ours has the first step in it, PyTorch's is warm. PyTorch's loss is on as many entries a position, not densified.
# shellcheck shell=bash disable=SC2034,SC2154
about_distill=220
run_distill() {
    local precision steps entries
    entries=$(entries_a_position)
    for precision in bf16 f32; do
        steps=$(sized 2 6)
        [ $precision = bf16 ] || steps=$(sized 2 3)
        title "$precision, $steps steps of 4 x $CONTEXT, sample:50 ($entries entries a position)"
        ours "rill distill$(or_f32 distill $precision)" distill_ours "$steps" "$(precision distill $precision)"
        python_peer 'torch safetensors' PyTorch torch_train --model "$(hf_folder)" --dtype $precision --batch 4 --context "$CONTEXT" \
            --entries "$entries"
        arithmetic_limit $precision $((3 * $(operations "$CONTEXT")))
        contest tokens/s
    done
}
entries_a_position() { # distinct draws, rounded
    local n=$((4 * CONTEXT * 6))
    rill ls "$(knowledge $n)" | awk -v n=$n '$NF == "teacher.ids" { gsub(/[^0-9]/, "", $2); e += $2 } END { printf "%d", e / n + 0.5 }'
}
distill_ours() { # STEPS OPTIONS
    # shellcheck disable=SC2086
    timed rill distill -q -j "$THREADS" $2 -m "$(model_as bf16)" --steps "$1" --batch-tokens $((4 * CONTEXT)) --micro-tokens $((4 * CONTEXT)) \
        --report "$WORK/report" "$(knowledge $((4 * CONTEXT * 6)))" --force -o /dev/null || return 1
    amount=$(report_field tokens_per_second "$WORK/report") seconds=1
}
