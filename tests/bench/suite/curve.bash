# Does a student learn in bf16 as in f32? The losses of a pruned small model that recovers, step by step, agree within 1%.
# shellcheck shell=bash disable=SC2034,SC2154
about_curve=100
run_curve() {
    local steps form
    steps=$(sized 4 200)
    title "$steps distillation steps of the embedded model at half its width"
    rill prune -q --ffn 50% -o "$WORK/half.rill" --force "$SMALL"
    curve_teach
    for form in 'f32 f32' 'bf16 f32' 'bf16 bf16'; do
        ours "precision ${form% *}, optimizer state ${form#* }" curve_of "$steps" "${form% *}" "${form#* }"
    done
    ROUNDS=1 contest tokens/s
    for form in 'bf16 f32' 'bf16 bf16'; do
        note "$form: KL within $(curve_distance "${form// /.}") of f32's at every step"
    done
}
curve_teach() {
    # dense: draws give no KL
    rill teacher-infer -q -j "$THREADS" -m "$SMALL" "$(small_tokens "$(sized 2000 27000)")" >"$WORK/curve.kd.rill"
}
curve_of() { # STEPS PRECISION STATE
    timed rill distill -q -j "$THREADS" -m "$WORK/half.rill" --precision "$2" --optimizer-state "$3" --lr 1e-3 --batch-tokens 1024 \
        --epochs 20 --steps "$1" --log "$WORK/curve.$2.$3" --report "$WORK/report" "$WORK/curve.kd.rill" --force -o /dev/null || return 1
    amount=$(report_field tokens_per_second "$WORK/report") seconds=1
}
curve_distance() { # PRECISION.STATE
    paste "$WORK/curve.f32.f32" "$WORK/curve.$1" |
        awk 'NR > 1 { d = $8 / $2 - 1; d = d < 0 ? -d : d; if (d > most) most = d } END { printf "%.2f%%", 100 * most }'
}
