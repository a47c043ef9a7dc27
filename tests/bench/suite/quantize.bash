# Rounding a whole f32 model to each type, as a whole process; llama-quantize on the same weights. MB of f32 per second.
# QUANT_TYPES selects the types.
# shellcheck shell=bash disable=SC2034,SC2154
about_quantize=100
run_quantize() {
    local type model
    # --pure: one type, no mixture
    local -A theirs=([q8_0]=Q8_0 [q6_k]='--pure Q6_K' [q5_k]='--pure Q5_K_S' [q5_1]='--pure Q5_1' [q5_0]='--pure Q5_0'
        [q4_k_m]=Q4_K_M [q4_k]='--pure Q4_K_S' [q4_1]='--pure Q4_1' [q4_0]='--pure Q4_0')
    local -A ours=([q8_0]='--type q8_0' [q4_k_m]='--type q4_k_m')
    for type in q6_k q5_k q5_1 q5_0 q4_k q4_1 q4_0; do ours[$type]="--pure --type $type"; done
    model=$(model_as f32)
    for type in ${QUANT_TYPES:-$(sized 'q8_0 q4_k_m' 'q8_0 q6_k q5_k q5_1 q5_0 q4_k_m q4_k q4_1 q4_0')}; do
        title "$type"
        ours "rill quantize ${ours[$type]}" quantize_ours "$model" "${ours[$type]}"
        if [ -n "$(llama llama-quantize)" ]; then
            peer "llama-quantize ${theirs[$type]}" quantize_llama "$(stat -c %s "$model")" "$(gguf_as f32)" "${theirs[$type]}"
        else missing llama-quantize "$no_llama"; fi
        ROUNDS=$((REPS > 2 ? 2 : REPS)) contest MB/s 1e-6
    done
    rm -f "$WORK"/out.*
}
quantize_ours() { # MODEL "[--pure] --type TYPE"
    local -a how
    read -r -a how <<<"$2"
    amount=$(stat -c %s "$1") && timed rill quantize -q -j "$THREADS" "${how[@]}" "$1" --force -o "$WORK/out.rill"
}
quantize_llama() { # BYTES GGUF "[--pure] TYPE"
    local pure=()
    [[ $3 != --pure* ]] || pure=(--pure)
    amount=$1 && timed "$(llama llama-quantize)" "${pure[@]}" "$2" "$WORK/out.gguf" "${3#--pure }" "$THREADS"
}
