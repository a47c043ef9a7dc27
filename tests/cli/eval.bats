#!/usr/bin/env bats
# rill eval: what it prints, what it reads, what it refuses. The numbers are the unit tests' business.
load common

setup_file() { make_inputs; }
setup() {
    enter_inputs
    cp "$INPUTS"/*.jsonl "$INPUTS/text.txt" .
}
ev() { rill eval -q "$@"; }

# number KEY FILE: the number after "KEY": in a line of results
number() { grep -oE "\"$1\":-?[0-9.e+-]+" "$2" | head -1 | cut -d: -f2; }
holds() { awk "BEGIN { exit !($1) }" || fail "$1 does not hold"; }

@test "in bf16 the perplexity is within 0.3% of that in f32, from quantized weights too" {
    local model=$ROOT/examples/data/model.rill
    [ -f "$model" ] || skip "without examples/data/model.rill"
    head -c 20000 "$ROOT/examples/data/heldout.txt" | rill tokenize -q -m "$model" --context 256 >t.rill
    rill quantize -q --type q8_0 "$model" -o q.rill
    for m in "$model" q.rill; do
        ev -m "$m" --precision bf16 --context 256 t.rill --report bf16.json >bf16
        ev -m "$m" --precision f32 --context 256 t.rill --report f32.json >f32
        holds "$(number perplexity bf16) != $(number perplexity f32)"
        holds "($(number perplexity bf16) / $(number perplexity f32) - 1) ^ 2 <= 0.003 ^ 2"
        assert_json bf16.json precision '"bf16"'
        assert_json f32.json precision '"f32"'
    done
    # what auto came to is in the report and in the provenance of what is made
    rill teacher-infer -q --encode topk:3 -m "$model" t.rill --report auto.json -o k.rill
    grep -qE '"precision":"(bf16|f32)"' auto.json
    rill show --prov k.rill | grep -qE '"precision":"(bf16|f32)"'
}

@test "integer products move the perplexity by less than 1%, layer by layer and at once alike" {
    local model=$ROOT/examples/data/model.rill
    head -c 20000 "$ROOT/examples/data/heldout.txt" | rill tokenize -q -m "$model" --context 256 >t.rill
    for type in q8_0 q4_k_m q4_1; do
        rill quantize -q --force --type $type "$model" -o q.rill
        for precision in bf16 int8; do
            ev -m q.rill --precision $precision --context 256 t.rill --report $precision.json --force >$precision
        done
        assert_json int8.json precision '"int8"'
        holds "$(number perplexity int8) != $(number perplexity bf16)"
        holds "($(number perplexity int8) / $(number perplexity bf16) - 1) ^ 2 <= 0.01 ^ 2"
        RILL_CPU=avx2 ev -m q.rill --precision int8 --context 256 t.rill >elsewhere
        holds "($(number perplexity int8) / $(number perplexity elsewhere) - 1) ^ 2 <= 0.003 ^ 2"
    done
    for weights in resident stream; do
        rill teacher-infer -q --no-provenance --precision int8 --weights $weights --encode topk:3 -m q.rill t.rill -o $weights.rill
    done
    assert_same resident.rill stream.rill
}

# ---- what is printed ------------------------------------------------------------------------------------------------------

@test "perplexity is one JSON line, and names its protocol" {
    ev -m model.rill --context 32 tokens.rill >out
    [ "$(wc -l <out)" -eq 1 ]
    assert_json out metric '"perplexity"'
    assert_json out protocol '"gptq"'
    for p in llama sliding sequences documents; do
        ev -m model.rill --protocol $p --context 32 tokens.rill >$p
        assert_json $p protocol "\"$p\""
        assert_differ out $p
    done
    assert_json sliding stride 16
    holds "$(number word_perplexity documents) > 1 && $(number words documents) > 10"
    assert_json documents documents "$(number windows documents)" # each fits a window
}

@test "files, pipes, knowledge streams and threads give the same numbers" {
    ev --context 32 -m model.rill tokens.rill >one
    ev --context 32 -m model.rill -j 1 <tokens.rill >two
    cat tokens.rill | ev --context 32 -m model.rill -j 3 - >three
    ev --context 32 -m model.rill dense.kd.rill >four # the tokens of a knowledge stream
    ev --context 32 -m - tokens.rill <model.rill >five
    assert_json five model '"standard input"'
    sed -i 's/"model":"standard input"/"model":"model.rill"/' five
    for f in two three four five; do assert_same one $f; done
}

@test "batches and their borders do not matter" {
    for n in 1 7 32 100; do
        rill tokenize -q -m model.rill --batch-tokens $n text.txt >cut.rill
        for p in gptq llama sliding documents; do
            ev -m model.rill --context 16 --protocol $p cut.rill >>"$p.all"
        done
    done
    for p in gptq llama sliding documents; do assert_equal "$(sort -u $p.all | wc -l)" 1; done
}

@test "--max-windows scores the first ones, and reads the rest" {
    ev -m model.rill --context 16 --max-windows 2 tokens.rill >out
    assert_json out windows 2
    assert_json out scored 30
    cut_file tokens.rill $(($(file_size tokens.rill) - 10)) >cut.rill
    check_exit 3 rill eval -m model.rill --context 16 --max-windows 1 cut.rill
}

@test "a model is its own reference; sparse knowledge says what became of the tail" {
    ev -m teacher.rill --reference dense.kd.rill >out
    assert_json out same_top 1
    holds "$(number kld out) < 1e-4 && $(number kld_max out) < 1e-3"
    assert_json out tail '"none"'
    ev -m student.rill --reference dense.kd.rill >student
    holds "$(number kld student) > 0.001 && $(number same_top student) < 1"
    rill logit-dump -q --encode ghost:5 dense.kd.rill >ghost.rill
    ev -m student.rill --reference ghost.rill >ghost
    grep -q '"tail":"one pseudo-token' ghost
    holds "$(number kld_lower_bound ghost) < $(number kld student) + 1e-4"
    rill logit-dump -q --encode topk:5 dense.kd.rill | ev -m student.rill --reference - >topk
    grep -q '"tail":"one pseudo-token' topk
    ev -m student.rill --reference corpus.kd.rill >sample
    grep -q '"tail":"draws' sample
    for f in ghost topk sample; do
        if grep -q '"kld"' $f; then fail "a divergence from $f"; fi
        if grep -q '"perplexity_reference"' $f; then fail "the reference's perplexity from $f"; fi
        holds "($(number perplexity $f) / $(number perplexity student) - 1) ^ 2 < 1e-10" # of all labels
    done
    # the same bytes say the same
    assert_equal "$(sed 's/topk/ghost/' topk)" "$(cat ghost)"
}

@test "what is of another temperature is not called the same" {
    for e in ghost:5 sample:9; do
        for t in 1 2; do
            rill logit-dump -q --encode $e --temperature $t dense.kd.rill | ev -m student.rill --reference - >$t.$e
        done
        assert_json 2.$e temperature 2
        assert_equal "$(number perplexity 1.$e)" "$(number perplexity 2.$e)"
        grep -qE '"(tempered_kld_lower_bound|tempered_cross_entropy)":' 2.$e
        if grep -qE '"(kld_lower_bound|cross_entropy|delta_p_lower_bound|perplexity_reference_lower_bound)":' 2.$e; then
            fail "a number at temperature 2 under the name of one at 1"
        fi
    done
}

@test "tasks print a line each, and a mean when there are several of a kind" {
    cp pairs.jsonl more.jsonl
    ev -m model.rill --task pairs.jsonl --task choices.jsonl --task more.jsonl >out
    assert_equal "$(grep -c '"metric":"task"' out)" 3
    assert_equal "$(grep -c '"metric":"task_mean"' out)" 1
    assert_json out task '"choices"'
    grep '"metric":"task_mean"' out >mean
    assert_json mean tasks 2
    assert_json mean n 4
    assert_json mean acc "$(number acc out)"
    ev -m model.rill --task - <pairs.jsonl >piped
    assert_equal "$(number acc piped)" "$(number acc out)"
}

@test "everything at once: tokens, reference, tasks" {
    ev -m student.rill --reference dense.kd.rill --task pairs.jsonl --context 32 tokens.rill --report report.json >out
    assert_equal "$(grep -oE '"metric":"[a-z]*"' out | tr '\n' ' ')" '"metric":"perplexity" "metric":"divergence" "metric":"task" '
    assert_json report.json results '[{"metric":"perplexity"'
}

@test "--table is for people: rows under a head, one result on its side" {
    ev -m model.rill --context 32 --table tokens.rill >out
    grep -qE '^protocol +gptq$' out
    grep -qE '^perplexity +[0-9]+\.?[0-9]*$' out
    cp pairs.jsonl more.jsonl
    ev -m model.rill --table --task pairs.jsonl --task more.jsonl >out
    assert_equal "$(grep -c '^metric' out)" 2 # the rows' head, and the mean on its side
    grep -qE '^task +pairs +minimal_pairs +2 ' out
    head -3 out | awk '{ if (NR > 1 && length != n) exit 1; n = length }' # aligned
    if grep -q ' $' out; then fail "trailing spaces"; fi
}

@test "--fail-above prints, then exits with 4" {
    check_exit 0 rill eval -q -m model.rill --context 32 --fail-above 1e9 tokens.rill
    check_exit 4 rill eval -q -m model.rill --context 32 --fail-above 1.5 -o out tokens.rill
    assert_stderr_line "the perplexity is *: above 1.5"
    assert_json out metric '"perplexity"' # the result stays
    check_exit 4 rill eval -q -m model.rill --context 32 --table --fail-above 1.5 tokens.rill
    assert_stdout "metric*perplexity*"
}

# ---- what is read ---------------------------------------------------------------------------------------------------------------

@test "standard input is left alone when a reference or a task is all there is to do" {
    check_exit_in 0 /dev/null rill eval -q -m model.rill --task pairs.jsonl
    check_exit_in 3 /dev/null rill eval -q -m model.rill --task pairs.jsonl -
    check_exit_in 0 /dev/null rill eval -q -m student.rill --reference dense.kd.rill
    need script
    on_terminal rill eval -q -m model.rill --task pairs.jsonl
    assert_equal "$code" 0
    assert_stdout '*"task":"pairs"*'
}

@test "a file on standard input is tokens beside a reference or a task; a pipe is named" {
    ev -m student.rill --reference dense.kd.rill --context 32 tokens.rill >both
    assert_equal "$(grep -oE '"metric":"[a-z]*"' both | tr '\n' ' ')" '"metric":"perplexity" "metric":"divergence" '
    ev -m student.rill --reference dense.kd.rill --context 32 <tokens.rill >redirected
    cat tokens.rill | ev -m student.rill --reference dense.kd.rill --context 32 - >piped
    assert_same both redirected
    assert_same both piped
    ev -m student.rill --task pairs.jsonl --context 32 <tokens.rill >task
    assert_equal "$(wc -l <task)" 2
    # what an option has named is not the tokens
    grep '"divergence"' both >alone
    ev -m student.rill --reference - <dense.kd.rill >reference
    ev -m - --reference dense.kd.rill <student.rill | sed 's/"model":"standard input"/"model":"student.rill"/' >model
    assert_same alone reference
    assert_same alone model
    # a file that a loop is reading is not ours, and a pipe that nobody closes is not waited for
    printf '%s\n' student.rill teacher.rill >list
    while read -r m; do ev -m "$m" --reference dense.kd.rill; done <list >loop
    assert_equal "$(grep -c '"divergence"' loop)" 2
    check_exit 0 bash -c 'cat tokens.rill | rill eval -m student.rill --reference dense.kd.rill'
    assert_stderr_line "standard input is a pipe and is not read (write - as the operand to read it)"
    assert_equal "$(wc -l <"$T/.stdout")" 1
}

@test "options for tokens without tokens are a usage error" {
    for o in "--fail-above 9" "--protocol llama" "--context 16" "--max-windows 1"; do
        # shellcheck disable=SC2086
        check_exit 2 rill eval -m model.rill --task pairs.jsonl $o
        assert_stderr_line "${o%% *} applies to tokens*"
    done
    check_exit 2 rill eval -m model.rill --stride 4 tokens.rill
    assert_stderr_line "--stride needs --protocol sliding"
    check_exit 2 rill eval tokens.rill
    check_exit 2 rill eval -m model.rill --protocol ppl tokens.rill
    check_exit 2 rill eval -m model.rill --context 100000 tokens.rill
    assert_stderr_line "context 100000: *context is *"
    check_exit 2 rill eval -m model.rill --protocol sliding --context 16 --stride 16 tokens.rill
    check_exit_in 2 model.rill rill eval --context 32 -m - -
    assert_stderr_line "standard input is used twice*"
}

# ---- what is refused --------------------------------------------------------------------------------------------------------------

@test "another vocabulary is refused with both digests, wherever it comes in" {
    rill import -q "$ROOT/tests/golden/tiny-llama" >other.rill
    for a in tokens.rill "--reference dense.kd.rill" "--reference corpus.kd.rill"; do
        # shellcheck disable=SC2086
        check_exit 3 rill eval -q -m other.rill $a
        assert_stderr_line "*disagree: vocabulary xxh3:* against xxh3:*"
    done
    rill tokenize -q -m other.rill text.txt >other.tok.rill
    cat tokens.rill other.tok.rill >both.rill
    check_exit 3 rill eval -q -m model.rill both.rill
    assert_stderr_line "both.rill: the segments disagree*"
}

@test "streams of another kind, text and nothing at all are refused" {
    : >empty
    for bad in model.rill empty text.txt pairs.jsonl; do
        check_exit 3 rill eval -q -m model.rill $bad
        assert_stderr_line "$bad: *"
        check_exit 3 rill eval -q -m model.rill --reference $bad
        assert_stderr_line "$bad: *"
    done
    for bad in tokens.rill dense.kd.rill empty text.txt; do
        check_exit 3 rill eval -q -m $bad tokens.rill
        assert_stderr_line "$bad: *"
    done
    check_exit 3 rill eval -q -m model.rill --reference tokens.rill
    assert_stderr_line "tokens.rill: *"
    for bad in model.rill empty text.txt; do
        check_exit 3 rill eval -q -m model.rill --task $bad
        assert_stderr_line "$bad: *"
    done
    check_exit 1 rill eval -q -m nowhere tokens.rill
    check_exit 1 rill eval -q -m model.rill nowhere
    check_exit 1 rill eval -q -m model.rill --reference nowhere
    check_exit 1 rill eval -q -m model.rill --task nowhere
    check_exit 1 rill eval -q -m model.rill --task .
}

@test "cut anywhere, every input fails, and -o leaves nothing" {
    for f in model.rill tokens.rill dense.kd.rill corpus.kd.rill; do
        size=$(file_size $f)
        for n in 0 1 63 64 200 $((size / 3)) $((size / 2)) $((size - 64)) $((size - 1)); do
            cut_file $f "$n" >cut
            case $f in
            model.rill) check_exit 3 rill eval -q -m cut tokens.rill -o out ;;
            tokens.rill) check_exit 3 rill eval -q -m model.rill cut -o out ;;
            *) check_exit 3 rill eval -q -m student.rill --reference cut -o out ;;
            esac
            assert_stderr_line "cut: *"
            assert_no_file out
        done
    done
}

@test "a flipped bit fails" {
    for f in tokens.rill dense.kd.rill; do
        for at in 10 100 700 $(($(file_size $f) / 2)) $(($(file_size $f) - 30)); do
            cp $f bad && flip_byte bad "$at"
            case $f in
            tokens.rill) check_exit 3 rill eval -q -m model.rill bad ;;
            *) check_exit 3 rill eval -q -m student.rill --reference bad ;;
            esac
            assert_stderr_line "bad: *"
        done
    done
    cp model.rill bad && flip_byte bad $(($(file_size bad) / 2))
    check_exit 3 rill eval -q -m bad tokens.rill
}

@test "a weight that is no number fails" {
    local python
    python=$(command -v python3) || skip "no python3 to make one"
    mkdir nan && cp "$ROOT"/tests/golden/tiny-smollm/*.json nan/
    # the last weight of the file: f32, little-endian NaN
    $python - "$ROOT/tests/golden/tiny-smollm/model.safetensors" nan/model.safetensors <<'PY'
import sys
d = bytearray(open(sys.argv[1], "rb").read())
d[-4:] = b"\0\0\xc0\x7f"
open(sys.argv[2], "wb").write(d)
PY
    if rill import -q nan >nan.rill 2>err; then
        rill tokenize -q -m nan.rill text.txt >nan.tok.rill
        check_exit 3 rill eval -q -m nan.rill nan.tok.rill
    else
        grep -qi 'finite\|nan' err # import has refused it already
    fi
}

@test "too little text is an error, not a number" {
    rill tokenize -q -m model.rill --max-tokens 9 text.txt >short.rill
    check_exit 3 rill eval -q -m model.rill --context 10 short.rill
    assert_stderr_line "short.rill: not enough tokens for one window of 10 by protocol gptq*"
    check_exit 0 rill eval -q -m model.rill --context 9 short.rill
    printf '\n\n' >blank.jsonl
    check_exit 3 rill eval -q -m model.rill --task blank.jsonl
    assert_stderr_line "blank.jsonl: no items"
    echo '{"sentence_good":"a"}' >half.jsonl
    check_exit 3 rill eval -q -m model.rill --task pairs.jsonl --task half.jsonl
    assert_stderr_line "half.jsonl: line 1: *sentence_bad*"
}

@test "a full disk and a closed pipe are noticed" {
    for how in "" --table; do
        # shellcheck disable=SC2086
        check_exit 1 sh -c "rill eval -q -m model.rill --context 32 $how tokens.rill >/dev/full"
        assert_stderr_line "standard output: No space left on device"
    done
    # the reader is gone before the first line
    check_exit 0 bash -c '{ sleep 0.05; rill eval -q -m model.rill --context 32 tokens.rill; echo $? >status; } | exec true'
    assert_quiet
    assert_equal "$(cat status)" 141
}

@test "--kv-cache: what a quantized cache of keys and values does, and where there is none" {
    ppl() { rill eval -q -m assistant.rill --precision f32 --context 32 "$@" tokens.rill | grep -o '"perplexity":[0-9.]*' | cut -d: -f2; }
    # eight bits move it less than four, and four with a rotation less than without
    awk -v f="$(ppl)" -v a="$(ppl --kv-cache q8_0)" -v b="$(ppl --kv-cache q4_0)" \
        'function d(x) { return x > f ? x - f : f - x } BEGIN { exit !(d(a) > 0 && d(a) < d(b) / 4) }'
    rill teacher-infer -q --no-provenance -m assistant.rill --kv-cache q4_0 tokens.rill >resident
    rill teacher-infer -q --no-provenance -m assistant.rill --kv-cache q4_0 --weights stream tokens.rill >streamed
    assert_same resident streamed
    check_exit 3 rill eval -m model.rill --kv-cache q8_0 tokens.rill
    assert_stderr_line "--kv-cache: heads of * elements are not a whole number of q8_0's blocks of 32"
    check_exit 3 rill eval -m bert.rill --kv-cache q8_0 tokens.rill
    assert_stderr_line "--kv-cache: this model reads its whole text at once and has no cache of keys and values"
    check_exit 2 rill eval -m assistant.rill --kv-plain tokens.rill
    check_exit 2 rill eval -m assistant.rill --kv-cache q2_k tokens.rill
}
