# A distillation step: 50 draws per position from the teacher, batches of 4 sequences, AdamW. Only warm steps count on both
# sides: ours are the seconds of a run minus its first step. PyTorch's loss uses as many entries per position, not densified.
# shellcheck shell=bash disable=SC2034,SC2154
about_distill=540
run_distill() {
    local precision steps entries
    entries=$(entries_a_position)
    for precision in bf16 f32; do
        steps=$(sized 40 6)
        [ $precision = bf16 ] || steps=$(sized 40 3)
        title "$precision, $steps steps of 4 x $CONTEXT, sample:50 ($entries entries a position)"
        ours "rill distill$(or_f32 distill $precision)" distill_ours "$steps" "$(precision distill $precision)"
        [ $precision = f32 ] || ours 'rill distill --optimizer-state bf16' distill_ours "$steps" \
            "$(precision distill $precision) --optimizer-state bf16"
        python_peer 'torch safetensors' PyTorch torch_train --model "$(hf_folder)" --dtype $precision --batch 4 --context "$CONTEXT" \
            --entries "$entries"
        arithmetic_limit $precision $((3 * $(operations "$CONTEXT")))
        contest tokens/s
    done
}
entries_a_position() { # distinct draws, rounded
    local n=$((4 * CONTEXT * 7))
    rill logit-dump --tsv --top 1000 --positions 0:$n "$(knowledge $n)" |
        awk -F '\t' 'NR > 1 { e += split($NF, all, " ") } END { if (NR > 1) printf "%d", e / (NR - 1) + 0.5 }'
}
distill_ours() { # STEPS OPTIONS
    local first all
    first=$(distill_seconds 1 "$2") && all=$(distill_seconds $(($1 + 1)) "$2") || return 1
    amount=$(($1 * 4 * CONTEXT)) seconds=$(awk -v a="$all" -v b="$first" 'BEGIN { print a - b }')
    read -r _ _ memory <"$WORK/time"
}
distill_seconds() { # STEPS OPTIONS: of the steps only
    # shellcheck disable=SC2086
    timed rill distill -q -j "$THREADS" $2 -m "$(model_as bf16)" --steps "$1" --epochs 100 --batch-tokens $((4 * CONTEXT)) \
        --report "$WORK/report" "$(knowledge $((4 * CONTEXT * 7)))" --force -o /dev/null || return 1
    awk -v n=$(($1 * 4 * CONTEXT)) -v v="$(report_field tokens_per_second "$WORK/report")" 'BEGIN { print n / v }'
}
