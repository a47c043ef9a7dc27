# Time per token against the context, from the step times that rill generate --report gives: a constant part for the weights,
# and attention's, which grows. For a prompt it is arithmetic, so a whole prompt takes time quadratic in its length; for a new
# token it is reading the keys and values before it.
# shellcheck shell=bash disable=SC2034,SC2154
about_context=90
run_context() {
    local contexts context n
    n=$(sized 256 4096) contexts=$(sized '16 64 256' '128 512 1024 2048 4096')
    title "prompts: milliseconds for 1000 of $n tokens"
    for context in $contexts; do
        [ $((context + 64)) -gt "$shape_context" ] || ours "context $context: $(parts_of_prompt "$context")" prompt_ms "$n" "$context"
    done
    contest ms
    title 'generation: milliseconds for a token of one sequence'
    for context in $contexts; do
        [ $((context + 64)) -gt "$shape_context" ] || ours "context $context: $(parts_of_step "$context")" step_ms "$context"
    done
    contest ms
}
# The head runs for the last position only.
parts_of_prompt() { # CONTEXT
    local linear=$((2 * (matrix_elements - shape_vocab_size * shape_hidden) / 1000000))
    echo "$linear + $((($(operations "$1") - $(operations 0)) / 1000000)) MFLOP a token"
}
parts_of_step() { # CONTEXT
    echo "$((2 * matrix_elements / 1000000)) + $((4 * ($1 + 32) * shape_layers * shape_kv_heads * shape_head_dim / 1000000)) MB"
}
continued() { # PROMPTS NEW FIELD: the report's value of FIELD
    timed rill generate -q -j "$THREADS" -m "$(model_as bf16)" --max-new "$2" --past-eos --report "$WORK/report" "$1" --force -o /dev/null &&
        amount=$(report_field "$3" "$WORK/report") seconds=1
}
prompt_ms() { # TOKENS CONTEXT
    continued "$(tokens "$1" "$2")" 1 prompt_tokens_per_second && amount=$(awk -v a="$amount" 'BEGIN { print a / 1000 }')
}
step_ms() { # CONTEXT
    continued "$(tokens "$1" "$1")" $((smoke ? 8 : 64)) decode_tokens_per_second
}
