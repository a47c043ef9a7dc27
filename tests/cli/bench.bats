#!/usr/bin/env bats
# The benchmarks still run (tests/bench). Their figures decide nothing here.
load common

bench() { RILL_BIN="$RILL_BIN" BENCH_OUT="$T/out" PEER_PYTHON=/nonexistent LLAMA_BIN=/nonexistent "$ROOT/tests/bench/run" "$@"; }

@test "every benchmark runs, on a tiny model" {
    [ -f "$ROOT/examples/data/model.rill" ] || skip "without examples/data/model.rill"
    need stopwatch bench_hardware
    check_exit 0 bench --smoke
    for name in $(bench --list); do
        grep -q "\"kind\":\"[a-z]*\",\"benchmark\":\"$name\".*\"\(median\|seconds\)\":[0-9]" out/*.jsonl || fail "no figure of $name: $out"
    done
    # nothing failed, everything is JSON, a peer that is not here is said to be missing
    if grep FAILED <<<"$out"; then fail "a run failed"; fi
    assert_stdout "*llama-quantize: not here*"
    grep -q '^{"kind":"machine","cpu":".*"threads":[0-9]' out/*.jsonl
    if command -v jq; then jq -e . out/*.jsonl; fi
    # it leaves nothing behind but inputs and results
    assert_equal "$(ls out | sed 's/.*jsonl/jsonl/' | tr '\n' ' ')" "jsonl inputs "
}

@test "a benchmark that cannot run is a failure" {
    need stopwatch bench_hardware
    mkdir bin && ln -s "$RILL_BIN"/rill-* "$RILL_BIN/bench" bin/
    printf '#!/bin/sh\n[ "$1" = logit-dump ] && { echo "no disk" >&2; exit 1; }\nexec "%s/rill" "$@"\n' "$RILL_BIN" >bin/rill
    chmod +x bin/rill
    RILL_BIN="$T/bin" check_exit 2 bench --smoke teacher-infer
    assert_stdout "*rill teacher-infer*FAILED: *no disk*"
    check_exit 2 bench nonsense
    assert_stderr "run: nonsense: no such benchmark;*tokenize*"
}

@test "the stopwatch says what a command took, and passes its exit code on" {
    need stopwatch
    check_exit 3 stopwatch time.txt sh -c 'sleep 0.2; exit 3'
    read -r wall cpu memory <time.txt
    awk -v w="$wall" -v c="$cpu" -v m="$memory" 'BEGIN { exit !(w >= 0.2 && c < w && m > 100000) }'
    check_exit 127 stopwatch time.txt ./no-such-program
}

@test "the tables of quantization: every method, targets, curves" {
    need stopwatch gnuplot
    table() { RILL_BIN="$RILL_BIN" BENCH_OUT="$T/out" LLAMA_BIN=/nonexistent MODEL="$ROOT/tests/golden/tiny-llama" CALIBRATION_TOKENS=300 \
        TEST_TOKENS=300 CONTEXT=32 TYPES="q4_0 q8_0" METHODS="rtn hqq awq gptq learned" AT=q4_0 CHOICES=q4_0,q5_0,q8_0 TARGETS="6 7" MIXTURES=q4_0 \
        "$@" "$ROOT/tests/bench/quant"; }
    check_exit 0 table env PICTURE="$T/curves.svg"
    if grep FAILED <<<"$out"; then fail "a run failed"; fi
    # two types by five methods (q8_0 by hqq is nothing), one size by a mixture and by two targets, a mixture and two targets by two methods
    assert_equal "$(grep -c '"kind":"quantized"' out/quant-*.jsonl)" $((9 + 3 + 6))
    grep -q '"kld_99.9":[0-9]' out/quant-*.jsonl
    grep -q '<title>target, gptq' curves.svg
    rm -r out
    check_exit 2 table env MODEL=/nonexistent
    assert_stderr "quant: /nonexistent: no such model"
}
