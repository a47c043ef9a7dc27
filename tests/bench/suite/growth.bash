# Does speed hold from 10 thousand to a million tokens (within 10%)? On the small model of examples/data.
# shellcheck shell=bash disable=SC2034,SC2154
about_growth=100
run_growth() {
    local n
    title "teacher-infer | logit-dump on the embedded model"
    for n in $(sized '1000 4000' '10000 100000 1000000'); do ours "$n tokens" infer_small "$n"; done
    ROUNDS=$((REPS > 2 ? 2 : REPS)) contest tokens/s
}
infer_small() {
    amount=$1
    timed_pipe "rill teacher-infer -q -j $THREADS -m '$SMALL' '$(small_tokens "$1")' | rill logit-dump -q -j $THREADS --encode sample:50 >/dev/null"
}
