# Knowledge from a teacher: tokens in, 50 draws per position out; warm, which is a run minus a short one, and as whole processes that
# include loading. The peers compute logits in batches of 4 sequences and discard them; their start-up and loading are not counted.
# shellcheck shell=bash disable=SC2034,SC2154
about_teacher_infer=270
run_teacher_infer() {
    local precision n
    for precision in bf16 f32; do
        n=$(sized 256 8192)
        title "$precision, $n tokens in sequences of $CONTEXT"
        ours "rill teacher-infer --encode, warm$(or_f32 teacher-infer $precision)" encode_warm "$n" "$(precision teacher-infer $precision)"
        ours "rill teacher-infer | logit-dump$(or_f32 teacher-infer $precision)" infer_ours "$n" "$(precision teacher-infer $precision)"
        ours "rill teacher-infer --encode$(or_f32 teacher-infer $precision)" infer_encode "$n" "$(precision teacher-infer $precision)"
        python_peer 'torch safetensors' PyTorch torch_infer --model "$(hf_folder)" --dtype $precision --batch 4 --context "$CONTEXT"
        peer_llama llama-perplexity "$precision, half of the logits" llama_perplexity "$(gguf_as $precision)"
        [ $precision = f32 ] || peer_llama llama-bench "$precision, no logits" llama_prompt "$(gguf_as $precision)"
        arithmetic_limit $precision "$(operations "$CONTEXT")"
        contest tokens/s
    done
}
infer_ours() { # TOKENS OPTIONS
    amount=$1
    timed_pipe "rill teacher-infer -q -j $THREADS $2 -m '$(model_as bf16)' '$(tokens "$1")' | rill logit-dump -q -j $THREADS --encode sample:50 >/dev/null"
}
infer_encode() { # TOKENS OPTIONS
    # shellcheck disable=SC2086
    amount=$1 && timed rill teacher-infer -q -j "$THREADS" $2 --encode sample:50 -m "$(model_as bf16)" "$(tokens "$1")" --force -o /dev/null
}
encode_warm() { # TOKENS OPTIONS
    local few all
    few=$(encode_seconds "$CONTEXT" "$2") && all=$(encode_seconds $(($1 + CONTEXT)) "$2") || return 1
    [ "$smoke" -eq 0 ] || few=0 # both take as long
    amount=$1 seconds=$(awk -v a="$all" -v b="$few" 'BEGIN { print a - b }')
    read -r _ _ memory <"$WORK/time"
}
encode_seconds() { infer_encode "$1" "$2" && echo "$seconds"; } # TOKENS OPTIONS
