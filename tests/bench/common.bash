# common.bash: measuring and printing of benchmarks. A file of tests/bench/suite defines run_NAME (with _ for - in the name)
# and about_NAME, its seconds on a machine with two cores, and uses:
#
#   title TEXT                          begins a table
#   ours LABEL FUNCTION [ARGUMENT]...   \  a contender: one call of FUNCTION is one repetition and sets `amount`, `seconds`
#   peer LABEL FUNCTION [ARGUMENT]...   |  and, if known, `memory` (bytes). Ratios refer to the first of `ours`.
#   limit LABEL FUNCTION [ARGUMENT]...  /  A limit of the hardware; shares refer to the lowest one.
#   python_peer LABEL SCRIPT [ARG]...   a peer in Python, started once, then asked for each repetition (peers/peer.py)
#   missing LABEL WHY                   a peer that is not installed
#   contest UNIT [SCALE]                runs all contenders interleaved (A B C A B C ...); prints median, spread, ratio,
#                                       share. The figure is SCALE * amount / seconds; for the unit ms 1000 * seconds / amount
#   timed COMMAND..., timed_pipe TEXT   a process, or a pipeline as bash text; sets `seconds` and `memory`
# shellcheck shell=bash
# shellcheck disable=SC2034,SC2154

failures=0
declare -a who=() kind=() call=() peers_started=()
declare -A peer_in=() peer_out=() peer_pid=()

die() { printf '%s\n' "$*" >&2; exit 2; }
note() { printf '  %s\n' "$*"; }

# ---- output: a table for people, JSON lines for machines ----

json_string() { local s=${1//\\/\\\\}; printf '"%s"' "${s//\"/\\\"}"; }
# json KEY VALUE...: appends an object to RESULTS; values that look like numbers, lists or null are not quoted
json() {
    local line='' number='^(-?[0-9]+(\.[0-9]+)?(e[-+]?[0-9]+)?|null|\[[-0-9.,e+]*\])$'
    while [ $# -gt 0 ]; do
        if [[ $2 =~ $number ]]; then line+=",$(json_string "$1"):$2"; else line+=",$(json_string "$1"):$(json_string "$2")"; fi
        shift 2
    done
    printf '{%s}\n' "${line:1}" >>"$RESULTS"
}

cpu_field() { sed -n "s/^$1[^:]*: *//p" /proc/cpuinfo | head -n 1; }
cache_sizes() { # of the first core: L1d 48K, L2 2048K ...
    local c=/sys/devices/system/cpu/cpu0/cache i
    for i in "$c"/index*; do
        [ -r "$i/size" ] && [ "$(cat "$i/type")" != Instruction ] && printf 'L%s %s, ' "$(cat "$i/level")" "$(cat "$i/size")"
    done | sed 's/, $//'
}
describe_machine() {
    local cpu version commit memory load extensions
    cpu=$(cpu_field 'model name') memory=$(awk '/^MemTotal/ { printf "%.0f", $2 * 1024 }' /proc/meminfo) load=$(cut -d' ' -f1 /proc/loadavg)
    extensions=$(cpu_field flags | tr ' ' '\n' | grep -E '^(avx2|fma|avx512f|avx512_bf16|avx512_vnni|amx_.*)$' | tr '\n' ' ')
    version=$(rill --version | awk '{ print $2; exit }') commit=$(git rev-parse --short HEAD 2>/dev/null)
    json kind machine cpu "${cpu:-$(uname -m)}" cores "$(nproc)" threads "$THREADS" caches "$(cache_sizes)" memory_bytes "$memory" \
        extensions "${extensions% }" kernel "$(uname -sr)" compiler "$(${CC:-gcc} --version 2>/dev/null | head -n 1)" rill "$version" \
        commit "$commit" rill_cpu "${RILL_CPU:-best}" load "$load" repetitions "$REPS" date "$(date -u +%FT%TZ)"
    printf '%s, %s cores, %s, %s GiB, %s\n' "${cpu:-$(uname -m)}" "$(nproc)" "$(cache_sizes)" $((memory >> 30)) "${extensions% }"
    printf 'rill %s %s, %s threads, path %s, %s repetitions, interleaved; medians. Load at the start: %s\n' "$version" "$commit" "$THREADS" \
        "${RILL_CPU:-best}" "$REPS" "$load"
}
say_estimate() { # NAME...: about_NAME assumes three repetitions with all peers
    local sum=0 name about
    for name; do about=about_${name//-/_} sum=$((sum + ${!about})); done
    [ "$smoke" -eq 1 ] || printf 'takes about %d s on two cores with all peers\n' $((sum * (REPS + 1) / 4))
}

# ---- contenders ----

add() { kind+=("$1") who+=("$2") && call+=("$(printf '%q ' "${@:3}")"); }
ours() { add ours "$@"; }
peer() { add peer "$@"; }
limit() { add limit "$@"; }
missing() {
    note "$1: not here ($2)"
    json kind missing benchmark "$benchmark" who "$1" why "$2"
}
title() {
    printf '\n== %s: %s\n' "$benchmark" "$1"
    subject=$1 who=() kind=() call=()
}

# ---- measuring ----

timed() {
    memory=null
    stopwatch "$WORK/time" "$@" >"${STDOUT:-/dev/null}" 2>"$WORK/stderr" || return 1
    read -r seconds cpu_seconds memory <"$WORK/time"
}
timed_pipe() { timed bash -o pipefail -c "$1"; }
report_field() { grep -o "\"$1\":[-0-9.e+]*" "$2" | head -n 1 | cut -d: -f2; }
sized() { if [ "$smoke" -eq 1 ]; then echo "$1"; else echo "$2"; fi; } # SMOKE FULL
copied() { amount=$(stat -c %s "$1") && timed bash -c "cat '$1' >'$WORK/out.copy'"; }
value_of() { awk -v a="$amount" -v s="$seconds" -v unit="$1" -v k="$2" 'BEGIN { print unit == "ms" ? 1000 * s / a : k * a / s }'; }

positive() { awk -v x="$1" 'BEGIN { exit !(x > 0) }'; }

# Calls the i-th contender once; appends the value to runs[i], or sets broken[i] to the reason.
repetition() {
    local i=$1
    amount=1 seconds=0 memory=null
    [ -z "${broken[i]:-}" ] || return 0
    : >"$WORK/stderr"
    if eval "${call[i]}" && positive "${amount:-0}" && positive "${seconds:-0}"; then
        runs[i]+=" $(value_of "$2" "$3")"
        peak[i]=$memory
    else
        broken[i]=$(grep -v '^ *$' "$WORK/stderr" | tail -n 1 | cut -c 1-160)
        broken[i]=${broken[i]:-no figure}
        [ "${kind[i]}" != ours ] || failures=$((failures + 1))
    fi
}

contest() { # UNIT [SCALE]
    local unit=$1 scale=${2:-1} round i
    local -a runs=() peak=() broken=()
    for ((round = 0; round < ${ROUNDS:-$REPS}; round++)); do
        for ((i = 0; i < ${#call[@]}; i++)); do repetition "$i" "$unit" "$scale"; done
    done
    stop_peers
    for ((i = 0; i < ${#call[@]}; i++)); do
        printf '%s\t%s\t%s\t%s\t%s\n' "${kind[i]}" "${who[i]}" "${peak[i]:-null}" "${runs[i]:-}" "${broken[i]:-}"
    done | sort_out "$unit"
}

# Medians, spread ((max - min) / median), ratio to the first of ours (above 1: ours is better), share of the lowest limit.
sort_out() {
    awk -F'\t' -v unit="$1" -v benchmark="$benchmark" -v subject="$subject" -v results="$RESULTS" '
        function median(text, list,  n, i, j, t) {
            n = split(text, list, " ")
            for (i = 2; i <= n; i++) for (j = i; j > 1 && list[j] + 0 < list[j - 1] + 0; j--) { t = list[j]; list[j] = list[j - 1]; list[j - 1] = t }
            low = list[1]; high = list[n]; count = n
            return n % 2 ? list[(n + 1) / 2] : (list[n / 2] + list[n / 2 + 1]) / 2
        }
        function short(x) { return sprintf(x >= 1000 ? "%.0f" : x >= 100 ? "%.1f" : x >= 10 ? "%.2f" : "%.3f", x) }
        function text(s) { gsub(/\\/, "\\\\", s); gsub(/"/, "\\\"", s); return "\"" s "\"" }
        { kind[NR] = $1; who[NR] = $2; memory[NR] = $3; runs[NR] = $4; broken[NR] = $5
          if ($4 != "") { m[NR] = median($4, list); lo[NR] = low; hi[NR] = high; reps[NR] = count }
          if ($1 == "limit" && $4 != "" && (bound == 0 || m[NR] < bound)) bound = m[NR]
          if ($1 == "ours" && $4 != "" && !base) base = NR
          if ($1 == "peer") peers = 1; if ($1 == "ours") { n_ours++ } }
        END {
            printf "  %-52s %12s %7s %7s %7s %9s\n", "", unit, "spread", base && (peers || n_ours > 1) ? "ratio" : "", bound && base ? "share" : "", "peak"
            for (i = 1; i <= NR; i++) {
                label = (kind[i] == "limit" && base ? "limit: " : "") who[i]
                if (runs[i] == "") { printf "  %-52s FAILED: %s\n", label, broken[i]; ratio = share = "null" }
                else {
                    ratio = base && kind[i] != "limit" ? (unit == "ms" ? m[i] / m[base] : m[base] / m[i]) : "null"
                    share = base && bound && kind[i] != "limit" ? (unit == "ms" ? bound / m[i] : m[i] / bound) : "null"
                    printf "  %-52s %12s %6.0f%% %7s %7s %9s\n", label, short(m[i]), m[i] ? 100 * (hi[i] - lo[i]) / m[i] : 0,
                        ratio == "null" || i == base ? "" : sprintf("%.2f", ratio), share == "null" ? "" : sprintf("%.1f%%", 100 * share),
                        memory[i] == "null" ? "" : sprintf("%.0f MB", memory[i] / 1e6)
                }
                gsub(/^ /, "", runs[i]); gsub(/ /, ",", runs[i])
                printf "{\"kind\":%s,\"benchmark\":%s,\"case\":%s,\"who\":%s,\"unit\":%s,\"median\":%s,\"min\":%s,\"max\":%s,\"runs\":[%s],\"ratio\":%s,\"share\":%s,\"peak_memory_bytes\":%s%s}\n",
                    text(kind[i]), text(benchmark), text(subject), text(who[i]), text(unit), runs[i] == "" ? "null" : m[i], runs[i] == "" ? "null" : lo[i],
                    runs[i] == "" ? "null" : hi[i], runs[i], ratio, share, memory[i], broken[i] == "" ? "" : ",\"failed\":" text(broken[i]) >> results
            }
        }'
}

# ---- limits ----

# machine NAME PER: a figure of bench_hardware, in units of PER: operations or bytes per token
machine() {
    local rate
    rate=$(bench_hardware "$THREADS" "$1" 2>"$WORK/stderr" | awk '{ print $2 }')
    seconds=1 amount=$(awk -v r="${rate:-0}" -v per="$2" 'BEGIN { print 1e9 * r / per }')
    [ -n "$rate" ]
}
# best_of bf16|int8|f32: this CPU's fastest instruction for that element type; for bf16, f32 always qualifies
best_of() {
    local name names
    names=$(bench_hardware --names)
    for name in "$1-amx" "$1-avx512" "$1-avx2" f32-avx512 f32-avx2; do
        if grep -qx -- "$name" <<<"$names"; then echo "$name"; return; fi
    done
    return 1
}
# arithmetic_limit bf16|f32 OPERATIONS: tokens per second if nothing but arithmetic took time
arithmetic_limit() {
    local name
    name=$(best_of "$1") && limit "$name in registers" machine "$name" "$2"
}

# ---- peers ----

# glibc must keep freed memory, or every step pays for fresh pages; and it must take huge pages
tuned=(env MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=100000000000 MALLOC_TOP_PAD_=67108864 GLIBC_TUNABLES=glibc.malloc.hugetlb=1
    OMP_NUM_THREADS="$THREADS" RAYON_NUM_THREADS="$THREADS" TOKENIZERS_PARALLELISM=true TRANSFORMERS_VERBOSITY=error HF_HUB_OFFLINE=1)

no_python="${PEER_PYTHON:-python3} lacks it; PEER_PYTHON=PATH names another Python"
no_llama='not on PATH; LLAMA_BIN=DIR names its folder'

python_with() { # MODULE...: whether PEER_PYTHON has these
    local python=${PEER_PYTHON:-python3} m
    command -v "$python" >/dev/null || return 1
    for m; do "$python" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$m') is None)" 2>/dev/null || return 1; done
}
python_peer() { # MODULES LABEL SCRIPT [ARG]...
    local modules=$1 label=$2 script=$3 id="p$((++peer_count))" line
    shift 3
    # shellcheck disable=SC2086
    python_with $modules || { missing "$label" "$no_python"; return; }
    mkfifo "$WORK/$id.in" "$WORK/$id.out"
    TORCHINDUCTOR_CACHE_DIR="$BENCH_OUT/inductor" "${tuned[@]}" "${PEER_PYTHON:-python3}" "$ROOT/tests/bench/peers/$script.py" --threads "$THREADS" "$@" \
        <"$WORK/$id.in" >"$WORK/$id.out" 2>"$WORK/$id.err" &
    peer_pid[$id]=$!
    local to from
    exec {to}>"$WORK/$id.in" {from}<"$WORK/$id.out"
    peer_in[$id]=$to peer_out[$id]=$from
    peers_started+=("$id")
    if read -r line <&"$from"; then
        peer "$label, $line" ask_peer "$id"
    else
        missing "$label" "$(grep -v '^ *$' "$WORK/$id.err" | tail -n 1 | cut -c 1-160)"
    fi
}
ask_peer() {
    echo go >&"${peer_in[$1]}"
    read -r amount seconds memory <&"${peer_out[$1]}" && return
    cp "$WORK/$1.err" "$WORK/stderr"
    return 1
}
stop_peers() {
    local id to from
    for id in "${peers_started[@]}"; do
        to=${peer_in[$id]} from=${peer_out[$id]}
        exec {to}>&- {from}<&-
        wait "${peer_pid[$id]}" 2>/dev/null
        unset "peer_pid[$id]"
    done
    peers_started=()
}
peer_count=0

# llama PROGRAM: the path of llama.cpp's program, or nothing
llama() { if [ -n "${LLAMA_BIN:-}" ]; then [ ! -x "$LLAMA_BIN/$1" ] || echo "$LLAMA_BIN/$1"; else command -v "$1"; fi; }
peer_llama() { # PROGRAM WHAT FUNCTION ARGUMENT...
    if [ -n "$(llama "$1")" ]; then peer "$1 $(llama_version "$1"), $2" "${@:3}"; else missing "$1" "$no_llama"; fi
}
llama_version() { "$(llama "$1")" --version 2>&1 | sed -nE 's/^version:.*\(build [0-9]+, commit ([0-9a-f]+).*/\1/p; s/^version: [0-9]+ \(([0-9a-f]+).*/\1/p' | head -n 1; }

# Each of these uses the time that the program itself reports, which excludes loading.
llama_perplexity() { # GGUF: 4 sequences at once, one pass
    local log=$WORK/stdout
    repeat_text $((smoke ? 4000 : 60000)) >"$WORK/text"
    STDOUT=$log timed bash -c 'exec "$@" 2>&1' _ "$(llama llama-perplexity)" -m "$1" -f "$WORK/text" -c "$CONTEXT" -b $((4 * CONTEXT)) \
        --chunks 4 -t "$THREADS" || { cp "$log" "$WORK/stderr"; return 1; }
    amount=$((4 * CONTEXT)) seconds=$(sed -nE 's/.* ([0-9.]+) seconds per pass.*/\1/p' "$log")
}
llama_prompt() { # GGUF
    STDOUT=$WORK/stdout timed "$(llama llama-bench)" -m "$1" -t "$THREADS" -p "$CONTEXT" -n 0 -r 1 -o json || return 1
    amount=$(sed -nE 's/.*"avg_ts": ([0-9.]+).*/\1/p' "$WORK/stdout") seconds=1
}
llama_batched() { # GGUF PROMPT NEW SEQUENCES: its steps without prompts
    STDOUT=$WORK/stdout timed "$(llama llama-batched-bench)" -m "$1" -t "$THREADS" -npp "$2" -ntg "$3" -npl "$4" -c $(($4 * ($2 + $3))) \
        --output-format jsonl || return 1
    amount=$(sed -nE 's/.*"speed_tg": ([0-9.]+).*/\1/p' "$WORK/stdout") seconds=1
}

finish() {
    local pid
    for pid in "${peer_pid[@]}"; do kill "$pid" 2>/dev/null; done
    rm -rf "$WORK"
}
