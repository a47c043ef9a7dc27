# What losses on points add to a step: the model as its own student on 50 draws per position, alone and with three feature or
# relation losses on fields of the same stream. Batches of 4 sequences, in one micro-batch.
# shellcheck shell=bash disable=SC2034,SC2154
about_losses=240
run_losses() {
    local steps tap taps=()
    steps=$(sized 40 3)
    for tap in hidden attention q k v; do taps+=(--tap "$tap:last"); done
    rill teacher-infer -q -j "$THREADS" -m "$(model_as bf16)" --encode sample:50 "${taps[@]}" -o "$WORK/fields.rill" --force \
        "$(tokens $((4 * CONTEXT * 7)))" || return
    title "$steps steps of 4 x $CONTEXT"
    ours 'kl' losses_step "$steps" --loss kl
    ours 'kl, hidden, sp, minilm2' losses_step "$steps" --loss kl --loss hidden:map=last,projector=linear --loss sp --loss minilm2
    ours 'kl, at, rkd, minilm' losses_step "$steps" --loss kl --loss at:map=last --loss rkd --loss minilm
    ours 'kl, nst, cc, crd' losses_step "$steps" --loss kl --loss nst --loss cc --loss crd
    contest tokens/s
}
losses_step() { # STEPS LOSSES...: of the steps only
    timed rill distill -q -j "$THREADS" -m "$(model_as bf16)" --steps "$1" --epochs 100 --batch-tokens $((4 * CONTEXT)) \
        --micro-tokens $((4 * CONTEXT)) "${@:2}" --report "$WORK/report" "$WORK/fields.rill" --force -o /dev/null || return 1
    amount=$(report_field tokens_per_second "$WORK/report") seconds=1
}
