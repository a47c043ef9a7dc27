# Continuing 1, 8 and 64 prompts at once: steps without prompts, as --report tells them, and the whole process. The hardware's limits: reading
# all weights once and the caches of all sequences for each step, at two (f32: four) bytes a number; and the arithmetic. llama.cpp counts
# steps alone as well, transformers all but loading.
# shellcheck shell=bash disable=SC2034,SC2154
about_generate=240
run_generate() {
    local n
    for n in 1 8 64; do generate_table bf16 "$n"; done
    generate_table f32 64
}
generate_table() { # PRECISION SEQUENCES
    local new prompt bytes
    new=$(sized 8 128) prompt=$(sized 4 16)
    title "$1, $2 sequences, $prompt tokens of prompt, $new new ones"
    ours "rill generate, $1, steps" generate_steps "$2" "$prompt" "$new" "--precision $1"
    ours 'the same, whole process' generate_all "$2" "$prompt" "$new" "--precision $1"
    if [ "$1" = bf16 ]; then
        peer_llama llama-batched-bench "bf16, steps" llama_batched "$(gguf_as bf16)" "$prompt" "$new" "$2"
        python_peer 'torch transformers' transformers hf_generate --model "$(hf_folder)" --dtype bf16 --sequences "$2" \
            --prompt "$prompt" --new "$new"
    fi
    bytes=$(generate_bytes "$1" "$2" $((prompt + new / 2)))
    limit 'memory-read, weights and cache' machine memory-read $((bytes / $2))
    arithmetic_limit "$1" "$(operations $((2 * prompt + new)))"
    contest tokens/s
}
generate_bytes() { # PRECISION SEQUENCES KEYS: that a step reads
    local width=4
    [ "$1" = f32 ] || width=2
    echo $((width * (matrix_elements + 2 * $2 * $3 * shape_layers * shape_kv_heads * shape_head_dim)))
}
generate_all() { # SEQUENCES PROMPT NEW OPTIONS
    # shellcheck disable=SC2086
    amount=$(($1 * $3)) && timed rill generate -q -j "$THREADS" $4 -m "$(model_as bf16)" --repeat "$1" --max-new "$3" --past-eos \
        --report "$WORK/report" "$(tokens "$2" "$2")" --force -o /dev/null
}
generate_steps() { # SEQUENCES PROMPT NEW OPTIONS
    generate_all "$@" && amount=$(report_field decode_tokens_per_second "$WORK/report") seconds=1
}
