#!/usr/bin/env bats
# Memory does not grow with the stream: peak memory on an input ten times as long is within 5% (or 2 MiB, the noise of a small
# process's pages), as the programs themselves report it.
load common

peak() { grep -o '"peak_memory_bytes":[0-9]*' "$1" | cut -d: -f2; }

# same_memory NAME SHORT LONG ARGUMENTS...: the program on both inputs, which come on stdin
same_memory() {
    local name=$1 short=$2 long=$3 a b
    shift 3
    rill "$name" -q "$@" --report short.json <"$short" >/dev/null || fail "$name on $short"
    rill "$name" -q "$@" --report long.json <"$long" >/dev/null || fail "$name on $long"
    [ "$(file_size "$long")" -gt $((8 * $(file_size "$short"))) ] || fail "$long is not ten times as long as $short"
    a=$(peak short.json) b=$(peak long.json)
    [ "$b" -le $((a + a / 20 + 2097152)) ] || fail "$name: $a bytes on the short input, $b on the long one"
}

setup_file() {
    export INPUTS="$BATS_FILE_TMPDIR/inputs"
    mkdir -p "$INPUTS" && cd "$INPUTS" || return 1
    PATH="$RILL_BIN:$PATH"
    # tokenize reads pieces of some MB: the short text is longer than that
    for i in $(seq 28000); do echo "line $i: the quick brown fox jumps over the lazy dog, and then some."; done >piece.txt
    for _ in 1 2 3 4 5; do cat piece.txt; done >short.txt
    for _ in 1 2 3 4 5 6 7 8 9 10; do cat short.txt; done >long.txt
    rill import -q "$BATS_TEST_DIRNAME/../golden/tiny-llama" -o vocab.rill
    rill init -q --layers 3 --hidden 512 --heads 8 --ffn 2048 vocab.rill -o short.model.rill
    rill init -q --layers 30 --hidden 512 --heads 8 --ffn 2048 vocab.rill -o long.model.rill
    rill tokenize -q -m vocab.rill --max-tokens 300000 short.txt -o short.tok.rill
    rill tokenize -q -m vocab.rill --max-tokens 3000000 long.txt -o long.tok.rill
}
setup() { enter_temp; }

@test "tokenize" {
    same_memory tokenize "$INPUTS/short.txt" "$INPUTS/long.txt" -m "$INPUTS/vocab.rill" --context 64
}

@test "quantize" {
    same_memory quantize "$INPUTS/short.model.rill" "$INPUTS/long.model.rill" --type q4_k_m
}

@test "quantize by error feedback from statistics, which stay in the file" {
    for n in 4 40; do
        rill init -q --layers $n --hidden 256 --heads 4 --ffn 1024 "$INPUTS/vocab.rill" -o $n.rill
        rill tokenize -q -m "$INPUTS/vocab.rill" --max-tokens 64 "$INPUTS/short.txt" |
            rill calibrate -q -m $n.rill --precision f32 --moments -o $n.stats.rill
        rill quantize -q --type q4_0 --method gptq --stats $n.stats.rill --report $n.json $n.rill -o q.rill --force
    done
    [ $(($(peak 40.json) - $(peak 4.json))) -le $((($(file_size 40.stats.rill) - $(file_size 4.stats.rill)) / 8)) ]
}

@test "prune" {
    same_memory prune "$INPUTS/short.model.rill" "$INPUTS/long.model.rill" --sparsity 0.5
    same_memory prune "$INPUTS/short.model.rill" "$INPUTS/long.model.rill" --ffn 50%
}

@test "check, cat and ls" {
    for program in check cat ls; do
        same_memory $program "$INPUTS/short.model.rill" "$INPUTS/long.model.rill"
        same_memory $program "$INPUTS/short.tok.rill" "$INPUTS/long.tok.rill"
    done
}

@test "logit-dump, through a pipe from teacher-infer" {
    rill init -q --layers 1 --hidden 32 --heads 2 --ffn 64 "$INPUTS/vocab.rill" -o teacher.rill
    rill tokenize -q -m teacher.rill --context 64 --max-tokens 20000 "$INPUTS/short.txt" -o short.tok.rill
    rill tokenize -q -m teacher.rill --context 64 --max-tokens 200000 "$INPUTS/long.txt" -o long.tok.rill
    for encode in sample:50 topk:20 ghost:20; do
        for size in short long; do
            rill teacher-infer -q -m teacher.rill $size.tok.rill --report infer.$size.json |
                rill logit-dump -q --encode $encode --report $size.json >/dev/null
        done
        a=$(peak short.json) b=$(peak long.json)
        [ "$b" -le $((a + a / 20 + 2097152)) ] || fail "logit-dump $encode: $a bytes on the short input, $b on the long one"
        a=$(peak infer.short.json) b=$(peak infer.long.json)
        [ "$b" -le $((a + a / 20 + 2097152)) ] || fail "teacher-infer: $a bytes on the short input, $b on the long one"
    done
}

@test "teacher-infer holds one layer of a model that goes by" {
    # 30 layers of 13 MB: the model is 400 MB, a layer and its packing some 30
    rill tokenize -q -m "$INPUTS/vocab.rill" --context 64 --max-tokens 512 "$INPUTS/short.txt" -o some.tok.rill
    for how in "-m $INPUTS/long.model.rill" "-m -"; do
        # shellcheck disable=SC2086
        rill teacher-infer -q --weights stream --encode topk:5 $how some.tok.rill --report r.json >streamed \
            < <(cat "$INPUTS/long.model.rill")
        [ "$(peak r.json)" -lt 100000000 ] || fail "$how: $(peak r.json) bytes"
    done
    [ "$(file_size "$INPUTS/long.model.rill")" -gt 400000000 ]
}
