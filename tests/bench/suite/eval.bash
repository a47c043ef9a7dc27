# Perplexity of a quantized model, with blocks converted to bf16 and with integer products. The goal from packed weights is at
# least 0.9 of bf16's speed. Also the perplexity that bf16 costs.
# shellcheck shell=bash disable=SC2034,SC2154
about_eval=170
run_eval() {
    local n type precision
    n=$(sized 512 8192)
    title "$n tokens in windows of $CONTEXT; the ratio of bf16 to each type"
    for type in bf16 q8_0 q4_k_m q4_0; do ours "rill eval, $type" eval_ours "$n" $type ''; done
    for type in q8_0 q4_k_m q4_0; do ours "rill eval, $type in int8" eval_ours "$n" $type '--precision int8'; done
    for type in q8_0 q4_k_m; do peer_llama llama-perplexity $type llama_perplexity "$(gguf_as $type)"; done
    contest tokens/s
    for precision in $(precisions eval); do
        eval_ours "$n" bf16 "$(precision eval "$precision")" && note "perplexity in $precision: $(report_field perplexity "$WORK/stdout")"
    done
    for type in q8_0 q4_k_m q4_0; do
        for precision in bf16 int8; do
            eval_ours "$n" $type "--precision $precision" && note "perplexity of $type in $precision: $(report_field perplexity "$WORK/stdout")"
        done
    done
}
eval_ours() { # TOKENS TYPE OPTIONS
    # shellcheck disable=SC2086
    amount=$1 && STDOUT=$WORK/stdout timed rill eval -q -j "$THREADS" $3 -m "$(model_as "$2")" --context "$CONTEXT" "$(tokens "$1")"
}
