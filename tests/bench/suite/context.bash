# Time for a token against the length of its sequence: a constant part, and attention's, which grows with the context.
# shellcheck shell=bash disable=SC2034,SC2154
about_context=45
run_context() {
    local n context
    n=$(sized 256 4096)
    title "milliseconds for 1000 of $n tokens, teacher-infer alone"
    for context in $(sized '16 64 256' '128 512 2048 4096'); do
        [ "$context" -gt "$shape_context" ] || ours "context $context: $(($(operations "$context") / 1000)) kFLOP a token" infer_context "$n" "$context"
    done
    contest ms
}
infer_context() {
    amount=$(awk -v n="$1" 'BEGIN { print n / 1000 }')
    timed_pipe "rill teacher-infer -q -j $THREADS -m '$(model_as bf16)' '$(tokens "$1" "$2")' >/dev/null"
}
