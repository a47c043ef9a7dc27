# Continuing 64 prompts at once, the whole process. The hardware's limits: reading all weights and the cache for each step of 64 tokens,
# at two bytes a number; or the arithmetic of 64 tokens. The lower one counts.
# shellcheck shell=bash disable=SC2034,SC2154
about_generate=120
run_generate() {
    local precision bytes new prompt
    new=$(sized 8 128) prompt=$(sized 4 16)
    for precision in $(precisions generate); do
        title "$precision, 64 sequences, $prompt tokens of prompt, $new new ones"
        ours "rill generate, $precision" generate_ours "$new" "$(tokens "$prompt" "$prompt")" "$(precision generate "$precision")"
        if [ "$precision" = bf16 ] || [ "$(precisions generate)" = f32 ]; then
            peer_llama llama-batched-bench "bf16, 16 new" llama_batched "$(gguf_as bf16)" "$prompt"
            python_peer 'torch transformers' transformers hf_generate --model "$(hf_folder)" --dtype bf16 --sequences 64 \
                --prompt "$prompt" --new "$new"
        fi
        bytes=$((2 * matrix_elements + 64 * (prompt + new / 2) * 4 * shape_layers * shape_kv_heads * shape_head_dim))
        limit 'memory-read, weights and cache' machine memory-read $((bytes / 64))
        arithmetic_limit "$precision" "$(operations $((prompt + new)))"
        contest tokens/s
    done
}
generate_ours() { # NEW PROMPT OPTIONS
    # shellcheck disable=SC2086
    amount=$((64 * $1)) && timed rill generate -q -j "$THREADS" $3 -m "$(model_as bf16)" --repeat 64 --max-new "$1" --past-eos "$2" --force -o /dev/null
}
