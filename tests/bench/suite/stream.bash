# A stand-in for a teacher larger than memory: 1.3 GB in bf16, read layer by layer, from a file and from a pipe, against the
# same model held in memory. The peak should stay below 400 MB plus the hidden states (4 bytes per channel and token).
# shellcheck shell=bash disable=SC2034,SC2154
about_stream=150
run_stream() {
    local n model
    n=$(sized 256 4096)
    model=$(kept large.bf16.rill make_large)
    title "$n tokens through $(($(stat -c %s "$model") / 1000000)) MB of weights; hidden states $((n * large_hidden * 4 / 1000000)) MB"
    ours '--weights stream, from a file' infer_large "$n" "--weights stream -m '$model'"
    ours '--weights stream, from a pipe' infer_large "$n" "--weights stream -m -" "cat '$model' | "
    ours 'resident' infer_large "$n" "-m '$model'"
    ROUNDS=$((REPS > 2 ? 2 : REPS)) contest tokens/s
}
large_hidden=$((smoke ? 64 : 1536))
make_large() { # -o PATH
    # shellcheck disable=SC2046
    rill init -q --layers $(sized 2 15) --hidden $large_hidden --heads $(sized 2 24) --ffn $((4 * large_hidden)) "$INPUTS/model.rill" |
        rill quantize -q --type bf16 "$@"
}
infer_large() { # TOKENS OPTIONS [FROM]
    amount=$1
    timed_pipe "${3:-}rill teacher-infer -q -j $THREADS $2 --encode sample:50 '$(tokens "$1")' >/dev/null"
}
