# Does the speed hold from 10 thousand to a million tokens (within 10%)? Measured on the small model of examples/data, where 10
# thousand tokens take a quarter of a second and start-up shows, and up to 100 thousand on the model itself, where it does not.
# shellcheck shell=bash disable=SC2034,SC2154
about_growth=330
run_growth() {
    local n
    title "teacher-infer | logit-dump on the embedded model"
    for n in $(sized '1000 4000' '10000 100000 1000000'); do ours "$n tokens" know "$n" "$SMALL" "$(small_tokens "$n")"; done
    ROUNDS=$((REPS > 2 ? 2 : REPS)) contest tokens/s
    title "teacher-infer | logit-dump on the model"
    for n in $(sized '256 1000' '10000 100000'); do ours "$n tokens" know "$n" "$(model_as bf16)" "$(tokens "$n")"; done
    ROUNDS=$((REPS > 2 ? 2 : REPS)) contest tokens/s
}
know() { # TOKENS MODEL STREAM
    amount=$1
    timed_pipe "rill teacher-infer -q -j $THREADS -m '$2' '$3' | rill logit-dump -q -j $THREADS --encode sample:50 >/dev/null"
}
