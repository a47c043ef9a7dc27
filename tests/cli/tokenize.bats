#!/usr/bin/env bats
# rill tokenize: text to tokens and back.
load common

setup_file() {
    export MODELS="$BATS_FILE_TMPDIR/models"
    mkdir -p "$MODELS"
    for m in tiny-llama tiny-qwen2 tiny-smollm; do
        "$RILL_BIN/rill-import" -q "$ROOT/tests/golden/$m" -o "$MODELS/$m.rill"
    done
}
setup() {
    enter_temp
    ln -s "$MODELS"/*.rill .
}
tok() { rill tokenize -q --no-provenance "$@"; }
count() { sed -E "s/.*\"$1\":([0-9.]+).*/\1/" r.json; } # from --report r.json
# the bytes of FILE occur in STREAM, where a tensor may begin
assert_holds() {
    local at size=0
    size=$(file_size "$1")
    for ((at = 0; at < size; at += 64)); do
        if cmp -s -i "$at:0" -n "$(file_size "$2")" "$1" "$2"; then return 0; fi
    done
    fail "$1 does not hold $2"
}

@test "the tokens are those of Hugging Face's tokenizers" {
    for m in tiny-llama tiny-qwen2 tiny-smollm; do
        tok -m $m.rill "$ROOT/tests/golden/$m/text.txt" >out
        assert_holds out "$ROOT/tests/golden/$m/tokens.u32"
    done
}

@test "decode gives the text again, from every model and in every shape" {
    for m in tiny-llama tiny-qwen2 tiny-smollm; do
        for how in "" "--context 7" "--context 7 --bos always" "--batch-tokens 3" "--no-special" "--bos never"; do
            case "$m $how" in tiny-smollm*always*) continue ;; esac
            # shellcheck disable=SC2086
            tok -m $m.rill $how "$ROOT/tests/golden/$m/text.txt" >out
            tok -m $m.rill --decode out >text || return 1
            assert_same text "$ROOT/tests/golden/$m/text.txt"
        done
    done
    head -c 3000 /dev/urandom >noise
    tok -m tiny-llama.rill noise | tok -m tiny-llama.rill --decode >text
    assert_same text noise
}

@test "lines come back as lines, JSON strings too" {
    printf 'one\n\n two  \n\r\nlast' >lines
    tok -m tiny-llama.rill --lines lines | tok -m tiny-llama.rill --decode >text
    printf 'one\n two  \nlast\n' >expected
    assert_same text expected
    printf '{"a":1,"t":"one"}\n{"t":"\\u00e9"}\n\n' | tok -m tiny-llama.rill --jsonl t | tok -m tiny-llama.rill --decode >text
    printf 'one\n\xc3\xa9\n' >expected
    assert_same text expected
}

@test "line ends are LF or CR LF, a byte order mark is not text" {
    printf 'Hello\n\nworld\n' | tok -m tiny-llama.rill --lines >lf
    printf 'Hello\r\n\r\nworld\r\n' | tok -m tiny-llama.rill --lines | cmp - lf
    printf '\xef\xbb\xbfHello\r\n\r\nworld' | tok -m tiny-llama.rill --lines | cmp - lf
    printf '{"t":"Hello"}\n\n{"t":"world"}\n' | tok -m tiny-llama.rill --jsonl t >lf
    printf '\xef\xbb\xbf{"t":"Hello"}\r\n\r\n{"t":"world"}\r\n' | tok -m tiny-llama.rill --jsonl t | cmp - lf
    # in a whole file line ends are text
    printf 'Hello\r\nworld\r\n' >crlf
    { printf '\xef\xbb\xbf' && cat crlf; } | tok -m tiny-llama.rill | tok -m tiny-llama.rill --decode | cmp - crlf
}

@test "what is no text is refused by name" {
    check_exit 3 rill tokenize -m tiny-llama.rill tiny-llama.rill
    assert_stderr "*tiny-llama.rill: this is a Rill stream, not text in UTF-8*"
    check_exit 3 rill tokenize -m tiny-llama.rill "$ROOT/tests/golden/tiny-llama/model-f32.gguf"
    assert_stderr "*this is a GGUF model, not text*"
    printf 'some text' | gzip >text.gz
    check_exit 3 rill tokenize -m tiny-llama.rill --lines text.gz
    assert_stderr "*text.gz: this is compressed by gzip, not text in UTF-8: decompress it with gzip -dc*"
    printf '\xff\xfea\0' >utf16
    check_exit 3 rill tokenize -m tiny-llama.rill --jsonl t utf16
    assert_stderr "*utf16: this is UTF-16, not text in UTF-8: convert it with iconv*"
    check_exit 3 rill eval -m tiny-llama.rill --task text.gz
    assert_stderr "*text.gz: this is compressed by gzip*"
}

@test "each segment of a concatenation is decoded in its own way" {
    printf 'one\ntwo\n' >lines
    printf 'three' >whole
    tok -m tiny-llama.rill --lines --bos always lines >a.rill
    tok -m tiny-llama.rill --bos never whole >b.rill
    assert_equal "$(cat a.rill b.rill | tok -m tiny-llama.rill --decode)" $'one\ntwo\nthree'
    cat b.rill a.rill | tok -m tiny-llama.rill --decode >text
    printf 'threeone\ntwo\n' | cmp - text
}

@test "the report counts documents, sequences, tokens and bytes" {
    printf 'ab\n\ncd\n' >lines
    tok -m tiny-llama.rill --lines --report r.json lines >out
    assert_equal "$(count documents)" 2
    assert_equal "$(count empty_documents)" 1
    assert_equal "$(count sequences)" 2
    assert_equal "$(count input_bytes)" 7
    assert_equal "$(count text_bytes)" 4
    tok -m tiny-llama.rill --lines --context 3 --bos never --report r.json lines >out
    assert_equal "$(count text_bytes)" 4
    grep -qF '"packed":true,"context":3,"documents":"lines","bos":false,"eos":"between"' out
    tok -m tiny-llama.rill --context 4 --drop-last --bos never --eos never --max-tokens 9 --report r.json "$ROOT/LICENSE" >out
    assert_equal "$(count tokens)" 8
    tok -m tiny-llama.rill --max-tokens 9 --report r.json "$ROOT/LICENSE" >out
    assert_equal "$(count tokens)" 9
}

@test "a line separates documents, and so does the end of a file" {
    printf 'one\n<|doc|>\ntwo\nlines\n\n<|doc|>\r\n <|doc|>\n<|doc|>' >text
    tok -m tiny-llama.rill --separator '<|doc|>' --report r.json text >out
    assert_equal "$(count documents) $(count empty_documents)" "3 0"
    tok -m tiny-llama.rill --decode out >back
    printf 'one\ntwo\nlines\n\n <|doc|>\n' >expected # a line end after each document
    assert_same back expected
    printf one >a && printf 'two\n' >b
    tok -m tiny-llama.rill --report r.json a b text >out
    assert_equal "$(count documents)" 3
    cat a b text | tok -m tiny-llama.rill --decode <(tok -m tiny-llama.rill a b text) >back
    cat a b text >expected
    assert_same back expected
    rill tokenize -q -m tiny-llama.rill a b -o out.rill # each is an input of the provenance
    rill recipe out.rill | grep -qE '[ -]tokenize -m tiny-llama.rill a b'
    for i in $(seq 300); do echo "$i" >"d$i"; done
    (ulimit -n 64 && tok -m tiny-llama.rill --report r.json d* >out)
    assert_equal "$(count documents)" 300
    check_exit 1 tok -m tiny-llama.rill a missing b
    assert_stderr_line "missing: *"
    printf '\037\213\010\0' >packed.gz
    check_exit 3 tok -m tiny-llama.rill a packed.gz
    assert_stderr_line "packed.gz: this is compressed by gzip*"
    printf '{"t":"a"}\n' >good && printf '{"t":1}\n' >bad
    check_exit 3 tok -m tiny-llama.rill --jsonl t good bad
    assert_stderr_line 'bad: line 1: *"t"*'
}

@test "packs are full, and hold documents whole" {
    for i in $(seq 400); do
        head -c $((RANDOM % 200)) /dev/zero | tr '\0' x
        echo " $i"
    done >lines
    tok -m tiny-smollm.rill --lines --pack 300 --eos never --report r.json lines >out
    awk -v tokens="$(count tokens)" -v packs="$(count packs)" 'BEGIN { exit !(tokens > 0.98 * 300 * packs) }'
    assert_equal "$(count sequences) $(count documents)" "400 400"
    tok -m tiny-smollm.rill --decode out | sort >got # in another order, each as it was
    sort lines >expected
    assert_same got expected
    tok -m tiny-smollm.rill --lines --pack 300 --packing next-fit --eos never lines | tok -m tiny-smollm.rill --decode >got
    assert_same got lines
    tok -m tiny-smollm.rill --lines --pack 300 --eos never -j 1 lines >one
    tok -m tiny-smollm.rill --lines --pack 300 --eos never --batch-tokens 1 <lines >two
    assert_same out one
    tok -m tiny-smollm.rill --decode two | sort >got
    assert_same got expected
}

@test "what a teacher says of a packed document is what it says of the document alone" {
    printf 'a first line\nmore of it, longer than the first\nthe end\nand one\n' >lines
    for packing in best-fit next-fit; do
        tok -m tiny-qwen2.rill --lines --pack 24 --packing $packing --eos never lines >packed
        rill teacher-infer -q -m tiny-qwen2.rill packed | rill logit-dump -q --tsv --positions 0:1000 --top 20 | tail -n +2 | cut -f 2- | sort >together
        while read -r line; do
            printf %s "$line" | tok -m tiny-qwen2.rill --lines --pack 24 --eos never | rill teacher-infer -q -m tiny-qwen2.rill |
                rill logit-dump -q --tsv --positions 0:1000 --top 20 | tail -n +2 | cut -f 2-
        done <lines | sort >alone
        [ -s alone ]
        assert_same together alone # to the bit, but for the number of the sequence
    done
}

@test "eval does not join what is packed" {
    printf 'a first line\nmore of it, longer than the first\nthe end\nand one\n' >lines
    tok -m tiny-qwen2.rill --lines --pack 24 --eos never lines >packed
    tok -m tiny-qwen2.rill --lines --eos never lines >plain
    # the same sums in another order
    { rill eval -q -m tiny-qwen2.rill --precision f32 packed && rill eval -q -m tiny-qwen2.rill --precision f32 --protocol sequences plain; } |
        sed -E 's/.*"scored":([0-9]+).*"nll":([0-9.]+).*/\1 \2/' >values
    awk 'NR == 1 { n = $1; nll = $2 } NR == 2 { d = $2 / nll - 1; exit !(n > 20 && $1 == n && d < 1e-6 && d > -1e-6) }' values
    [ "$(wc -l <values)" -eq 2 ]
    check_exit 2 rill eval -q -m tiny-qwen2.rill --protocol gptq packed
    assert_stderr_line "packed is packed, and --protocol gptq would join its documents (sequences, documents)"
}

@test "a file is a pipe, one thread is many" {
    for i in 1 2 3 4 5 6 7 8; do cat "$ROOT"/lib/*/*.h; done >text
    for how in "--context 100" "--lines" "--lines --context 64 --eos always" ""; do
        # shellcheck disable=SC2086
        {
            tok -m tiny-qwen2.rill $how -j 1 text >one
            tok -m tiny-qwen2.rill $how -j 3 text >three
            { head -c 1000 text; sleep 0.1; tail -c +1001 text; } | tok -m tiny-qwen2.rill $how >piped
            tok -m <(cat tiny-qwen2.rill) $how <text >model_piped
        }
        assert_same one three
        assert_same one piped
        assert_same one model_piped
    done
}

@test "ten times the text takes the same memory" {
    cat "$ROOT"/lib/*/*.[ch] >some
    while [ "$(file_size some)" -lt 9000000 ]; do cat some some >more && mv more some || return; done
    tok -m tiny-smollm.rill -j 1 --context 512 --report r.json some >out
    once=$(count peak_memory_bytes)
    for i in 1 2 3 4 5 6 7 8 9 10; do cat some; done | tok -m tiny-smollm.rill -j 1 --context 512 --report r.json >out
    ten=$(count peak_memory_bytes)
    [ "$ten" -le $((once * 105 / 100)) ] || fail "$once bytes, then $ten"
}

@test "--max-tokens ends with an endless pipe" {
    check_exit 0 bash -c 'yes "some words" | timeout 60 rill tokenize -q -m tiny-llama.rill --context 64 --max-tokens 1000 --drop-last >out'
    tok -m tiny-llama.rill --decode out >text
    grep -q "some words" text
}

@test "special tokens in the text are tokens, or text with --no-special" {
    printf '<|begin_of_text|>' >special
    tok -m tiny-llama.rill --bos never --report r.json special >out
    assert_equal "$(count tokens)" 1
    assert_equal "$(count text_bytes)" 0
    tok -m tiny-llama.rill --decode --no-special out >text
    assert_equal "$(cat text)" ""
    tok -m tiny-llama.rill --bos never --no-special --report r.json special >out
    assert_equal "$(count text_bytes)" 17
}

@test "what cannot be done is said" {
    check_exit 2 rill tokenize -m tiny-llama.rill --lines --jsonl text x
    assert_stderr_line '--lines has no effect with --jsonl'
    check_exit 2 rill tokenize -m tiny-llama.rill --drop-last x
    assert_stderr_line '--drop-last needs --context'
    for option in --lines '--jsonl text' '--context 5' '--bos always' '--max-tokens 3' --no-normalise; do
        check_exit 2 rill tokenize -m tiny-llama.rill --decode $option x
        assert_stderr_line "${option%% *} has no effect with --decode"
    done
    check_exit 2 rill tokenize -m tiny-llama.rill --context 1 --bos always "$ROOT/LICENSE"
    check_exit 1 rill tokenize -m nothing.rill "$ROOT/LICENSE"
    assert_stderr_line 'nothing.rill: No such file or directory'
    printf '{"text":"a"}\n{"txt":"b"}\n' >bad.jsonl
    check_exit 3 rill tokenize -m tiny-llama.rill --jsonl text bad.jsonl
    assert_stderr_line 'bad.jsonl: line 2: *text*'
    tok -m tiny-llama.rill "$ROOT/LICENSE" >out
    check_exit 3 rill tokenize -m out "$ROOT/LICENSE"
    assert_stderr_line 'out: this is a tokens stream*'
    check_exit 3 bash -c 'cat out | rill tokenize -m /dev/stdin "$ROOT/LICENSE"'
    assert_stderr_line '/dev/stdin: there is no tokenizer in it*'
    check_exit 3 bash -c 'cat "$ROOT/formats/golden/v1-model-raw.rill" | rill tokenize -m /dev/stdin "$ROOT/LICENSE"'
    assert_stderr_line '/dev/stdin: vocabulary: 23 bytes, too few for a vocabulary'
    check_exit 3 rill tokenize -m tiny-qwen2.rill --decode out
    assert_stderr_line 'model and tokens disagree: vocabulary xxh3:* against xxh3:*'
}
