# The cost of joining programs by pipes: text to knowledge in one pipeline, and step by step through files. Above 1, the pipeline
# takes less time than its parts together; the goal is 0.95.
# shellcheck shell=bash disable=SC2034,SC2154
about_pipeline=60
run_pipeline() {
    local bytes n infer dump pack
    n=$(sized 256 4096)
    repeat_text $((smoke ? 4000 : 100000)) >"$WORK/text"
    pack="rill tokenize -q -m '$INPUTS/model.rill' --context $CONTEXT --max-tokens $n"
    infer="rill teacher-infer -q -j $THREADS -m '$(model_as bf16)'"
    dump="rill logit-dump -q -j $THREADS --encode sample:50"
    title "tokenize | teacher-infer | logit-dump on $n tokens"
    ours 'one pipeline' in_all "$n" "$pack '$WORK/text' | $infer | $dump >/dev/null"
    ours 'its parts, through files' in_all "$n" \
        "$pack '$WORK/text' >'$WORK/out.1' && $infer <'$WORK/out.1' >'$WORK/out.2' && $dump <'$WORK/out.2' >/dev/null"
    contest ms
    rm -f "$WORK"/out.* "$WORK/text"
}
in_all() { timed_pipe "$2" && amount=1; }
