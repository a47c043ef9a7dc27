# Where the time of each program goes, by --profile: shares of the main thread's time, and idle time of threads. One run each.
# shellcheck shell=bash disable=SC2034,SC2154
about_profile=60
run_profile() {
    local n
    n=$(sized 512 4096)
    title "$n tokens in windows of $CONTEXT; distill: $(sized 2 4) steps of 4 x $CONTEXT; generate: $(sized 4 64) new tokens a sequence"
    profiled teacher-infer -m "$(model_as bf16)" --encode sample:50 "$(tokens "$n")"
    profiled eval -m "$(model_as bf16)" "$(tokens "$n")"
    profiled eval -m "$(model_as q4_k_m)" "$(tokens "$n")"
    profiled eval -m "$(model_as q4_k_m)" --precision int8 "$(tokens "$n")"
    profiled distill -m "$(model_as bf16)" --steps "$(sized 2 4)" --batch-tokens $((4 * CONTEXT)) "$(knowledge $((CONTEXT * 28)))"
    profiled generate -m "$(model_as q4_k_m)" --max-new "$(sized 4 64)" --past-eos "$(tokens 4 4)"
    profiled generate -m "$(model_as q4_k_m)" --max-new "$(sized 4 64)" --past-eos --repeat 64 "$(tokens 4 4)"
    profiled calibrate -m "$(model_as bf16)" "$(tokens "$n")"
    profiled quantize --type q4_k_m "$(model_as bf16)"
    profiled quantize --type q4_0 --method gptq --data "$(tokens "$n")" "$(model_as bf16)"
}
profiled() { # PROGRAM ARGUMENTS...
    local -a shares
    if ! timed rill "$1" -q -j "$THREADS" --profile --report "$WORK/report" "${@:2}" --force -o /dev/null; then
        note "rill $1: $(tail -n 1 "$WORK/stderr")"
        failures=$((failures + 1))
        return
    fi
    read -ra shares < <(sed 's/.*"profile":{//; s/}.*//; s/[":,]/ /g' "$WORK/report")
    json kind profile benchmark "$benchmark" program "$1" arguments "${*:2}" seconds "$seconds" "${shares[@]}"
    note "rill $1 $(basename "$3" .rill) $([[ $* != *--precision* ]] || echo in int8), $seconds s: $(printf '%s %s\n' "${shares[@]}" |
        awk '$2 >= 0.005 { printf "%s%s %.0f%%", n++ ? ", " : "", $1, 100 * $2 }')"
}
