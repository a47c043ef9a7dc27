# The estimate of distill --plan against the run: seconds of training and of evaluations, without a teacher, with one in
# memory, with one that is read layer by layer, and with evaluations. Both lines should agree within 20%.
# shellcheck shell=bash disable=SC2034,SC2154
about_plan=300
run_plan() {
    local n=$((4 * CONTEXT)) live
    live="--teacher '$(model_as bf16)'"
    plan_case alone "'$(knowledge $((n * 7)))'"
    plan_case 'teacher in memory' "$live '$(tokens $((n * 7)))'"
    plan_case 'teacher layer by layer' "$live --teacher-weights stream '$(tokens $((n * 7)))'"
    plan_case 'evaluated every second step' "--eval '$(tokens "$n")' --eval-every 2 '$(knowledge $((n * 7)))'"
}
plan_case() { # NAME ARGUMENTS
    title "$1, $(sized 2 6) steps of 4 x $CONTEXT"
    ours 'as it was' plan_run "$2" "--report '$WORK/report' --force -o /dev/null"
    ours 'as planned' plan_run "$2" "--plan --force -o '$WORK/report'"
    ROUNDS=$((REPS > 2 ? 2 : REPS)) contest tokens/s
}
plan_run() { # ARGUMENTS HOW
    amount=$(($(sized 2 6) * 4 * CONTEXT))
    timed_pipe "rill distill -q -j $THREADS -m '$(model_as bf16)' --steps $(sized 2 6) --epochs 9 --batch-tokens $((4 * CONTEXT)) $2 $1" || return 1
    seconds=$(awk -v a="$(report_field training_seconds "$WORK/report")" -v b="$(report_field evaluation_seconds "$WORK/report")" 'BEGIN { print a + b }')
}
