# Continuing 1, 8 and 64 prompts at once: the decoding steps, from --report, and the whole process. The hardware's limits: each
# step reads all weights once and the caches of all sequences, at two bytes a number (f32: four), quantized weights at their
# stored size; and the arithmetic. llama.cpp counts only steps as well, transformers everything but loading.
# shellcheck shell=bash disable=SC2034,SC2154
about_generate=400
run_generate() {
    local n type
    for n in 1 8 64; do generate_table bf16 "$n" bf16; done
    generate_table f32 64 bf16
    for type in q8_0 q4_0 q4_k_m; do for n in 1 64; do generate_table int8 "$n" "$type"; done; done
}
generate_table() { # PRECISION SEQUENCES TYPE
    local new prompt bytes weights
    new=$(sized 8 128) prompt=$(sized 4 16)
    [ "$1" != int8 ] || weights="$3 in "
    title "${weights-}$1, $2 sequences, $prompt tokens of prompt, $new new ones"
    ours "rill generate, ${weights-}$1, steps" generate_steps "$2" "$prompt" "$new" "--precision $1" "$3"
    if [ "$1" = int8 ]; then
        ours "the same in bf16" generate_steps "$2" "$prompt" "$new" "--precision bf16" "$3"
    else
        ours 'the same, whole process' generate_all "$2" "$prompt" "$new" "--precision $1" "$3"
    fi
    if [ "$1" != f32 ]; then
        peer_llama llama-batched-bench "$3, steps" llama_batched "$(gguf_as "$3")" "$prompt" "$new" "$2"
    fi
    if [ "$1" = bf16 ]; then
        python_peer 'torch transformers' transformers hf_generate --model "$(hf_folder)" --dtype bf16 --sequences "$2" \
            --prompt "$prompt" --new "$new"
    fi
    bytes=$(generate_bytes "$1" "$2" $((prompt + new / 2)) "$3")
    limit 'memory-read, weights and cache' machine memory-read $((bytes / $2))
    [ "$1" = int8 ] || arithmetic_limit "$1" "$(operations $((2 * prompt + new)))"
    contest tokens/s
}
generate_bytes() { # PRECISION SEQUENCES KEYS TYPE: bytes that a step reads
    local width=4 weights
    [ "$1" = f32 ] || width=2
    weights=$((width * matrix_elements))
    [ "$1" != int8 ] || weights=$(stat -c %s "$(model_as "$4")")
    echo $((weights + width * 2 * $2 * $3 * shape_layers * shape_kv_heads * shape_head_dim))
}
generate_all() { # SEQUENCES PROMPT NEW OPTIONS TYPE
    # shellcheck disable=SC2086
    amount=$(($1 * $3)) && timed rill generate -q -j "$THREADS" $4 -m "$(model_as "$5")" --repeat "$1" --max-new "$3" --past-eos \
        --report "$WORK/report" "$(tokens "$2" "$2")" --force -o /dev/null
}
generate_steps() { # SEQUENCES PROMPT NEW OPTIONS TYPE
    generate_all "$@" && amount=$(report_field decode_tokens_per_second "$WORK/report") seconds=1
}
