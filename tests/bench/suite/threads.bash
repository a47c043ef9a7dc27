# Speed by number of threads, and a model of it: T(n) = S + M / min(n, b) + P / n. S, what one thread does while others are idle,
# comes from --profile; b, how many threads' worth of memory bandwidth the machine has, from bench_hardware. M, the time bound by
# memory, is what S leaves unexplained at the most threads measured, so it holds imbalance and noise too. P is the rest of the time
# of one thread. A range from M as it is to M = 0, which holds where the bandwidth grows with the threads.
# shellcheck shell=bash disable=SC2034,SC2154
about_threads=180
run_threads() {
    local n counts='' most
    for ((n = 1; n < THREADS; n *= 2)); do counts+="$n "; done
    counts+=$THREADS most=$(sized 512 4096)
    title "threads $counts; $most tokens in windows of $CONTEXT; distill: 2 steps of 4 x $CONTEXT"
    bandwidth=$(awk -v one="$(bench_hardware 1 memory-read)" -v all="$(bench_hardware "$THREADS" memory-read)" \
        'BEGIN { split(one, a, " "); split(all, b, " "); print (a[2] > 0 && b[2] > a[2] ? b[2] / a[2] : 1) }')
    scaled teacher-infer -m "$(model_as bf16)" --encode sample:50 "$(tokens "$most")"
    scaled eval -m "$(model_as q4_k_m)" "$(tokens "$most")"
    scaled distill -m "$(model_as bf16)" --steps 2 --batch-tokens $((4 * CONTEXT)) "$(knowledge $((CONTEXT * 28)))"
    scaled quantize --type q4_k_m "$(model_as bf16)"
}
scaled() { # PROGRAM ARGUMENTS...: runs it with each number of threads, REPS times
    local round n idle
    : >"$WORK/scaled"
    for ((round = 0; round < REPS; round++)); do
        for n in $counts; do
            if ! timed rill "$1" -q -j "$n" --profile --report "$WORK/report" "${@:2}" --force -o /dev/null; then
                note "rill $1: $(tail -n 1 "$WORK/stderr")"
                failures=$((failures + 1))
                return
            fi
            idle=$(report_field idle "$WORK/report")
            json kind threads benchmark "$benchmark" program "$1" arguments "${*:2}" threads "$n" seconds "$seconds" idle "$idle"
            printf '%s %s %s\n' "$n" "$seconds" "$idle" >>"$WORK/scaled"
        done
    done
    note "rill $1: $(sort -k1,1n -k2,2n "$WORK/scaled" | model_of_threads)"
}
# Lines of threads, seconds, idle share, sorted by threads and seconds; the median of seconds counts.
model_of_threads() {
    awk -v b="$bandwidth" '
        { list[$1] = list[$1] " " $2; shares[$1] = shares[$1] " " $3; if (!seen[$1]++) counts[++kinds] = $1 }
        function middle(text,  a, k) { k = split(text, a, " "); return a[int((k + 1) / 2)] }
        function smaller(x, y) { return x < y ? x : y }
        function efficiency(n, t) { return 100 * one / n / t }
        END {
            n = counts[kinds]; one = middle(list[1])
            for (i = 1; i <= kinds; i++) line = line sprintf("%s%.2f s", i > 1 ? ", " : "", middle(list[counts[i]]))
            if (n == 1) { print line; exit }
            all = middle(list[n]); s = middle(shares[n]) * n * all / (n - 1)
            if (s > one) s = one
            span = 1 / smaller(n, b) - 1 / n
            m = span > 0.01 ? (all - s - (one - s) / n) / span : 0
            m = m < 0 ? 0 : m > one - s ? one - s : m
            p = one - s - m
            printf "%s, efficiency %.0f%%; serial %.1f%%, bound by memory %.1f%% of the time of one thread; model:", line, efficiency(n, all), \
                100 * s / one, 100 * m / one
            for (i = 4; i <= 64; i *= 2)
                printf "%s %d: %.0f to %.0f%%", (i > 4 ? "," : ""), i, efficiency(i, s + m / smaller(i, b) + p / i), efficiency(i, s + (m + p) / i)
            print ""
        }'
}
