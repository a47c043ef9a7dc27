#!/usr/bin/env bats
# No option is ignored: alone and beside each other one it has an effect or is refused (tests/cli/option-pairs).
# takes long
load common

setup_file() {
    make_inputs
    cd "$INPUTS" || return 1
    rill init -q --layers 1 --hidden 32 --heads 2 --ffn 64 --seed 3 model.rill -o teacher2.rill
    rill init -q --layers 1 --hidden 32 --heads 2 --ffn 64 --seed 4 model.rill -o student2.rill
    rill init -q --layers 1 --hidden 32 --heads 2 --ffn 64 --untied model.rill -o untied.rill
    rill import -q "$ROOT/tests/golden/tiny-llama" -o llama.rill
    cp -r sharded other-shards && flip_byte other-shards/model-00001-of-00002.safetensors 100000
    mkdir other-tokenizer && sed 's/<|endoftext|>/<|endofit|>/g' hf/tokenizer.json >other-tokenizer/tokenizer.json
    # special tokens, what is not in normalisation form C, lines
    for n in 1 2 3 4 5 6 7 8; do printf 'a<|endoftext|>na\xcc\x88\nive end, or not %d\n' $n; done >special.txt
    for n in 1 2 3 4 5 6 7 8 9; do cat corpus.jsonl; done >many.jsonl
    for n in 1 2 3 4 5 6 7 8 9; do cat tagged.jsonl; done >words.jsonl
    for n in 1 2 3 4 5 6 7 8 9; do printf 'once %d upon\n--\na time\n++\nthe end, %d, and so on\n--\n' $n $n; done >separated.txt
    rill tokenize -q -m model.rill special.txt -o special.rill
    rill tokenize -q -m model.rill --context 32 --batch-tokens 32 text.txt -o batches.rill
    rill calibrate -q -m model.rill b.tok.rill -o b.stats.rill
    rill prune -q --sparsity 0.03 model.rill -o sparse.rill
    rill quantize -q --type q5_0 --dry-run model.rill -o model.plan
    rill quantize -q --type q4_1 --dry-run model.rill -o other.plan
    rill tokenize -q -m model.rill --lines text.txt | rill teacher-infer -q -m teacher.rill -o lines.kd.rill
    rill tokenize -q -m llama.rill --lines text.txt -o llama.tok.rill
    rill teacher-infer -q -m teacher.rill --precision f32 chats.tok.rill -o chats.kd.rill
    # in f32, and without draws: the first steps of a run are the same on every CPU, and with them which is the best
    rill teacher-infer -q -m teacher.rill --precision f32 tokens.rill -o steady.kd.rill
    printf 'it it is\n' | rill tokenize -q -m model.rill -o few.rill
}
setup() {
    enter_temp
    cp -r "$INPUTS/." .
}

pairs() { check_exit 0 "$BATS_TEST_DIRNAME/option-pairs" "$1" || fail "$out"; }

@test "every program is in the table" {
    for p in "$RILL_BIN"/rill-*; do
        grep -q "^$(basename "$p" | sed s/rill-//) " "$BATS_TEST_DIRNAME/pairs.table" || fail "$p is not in pairs.table"
    done
}

@test "calibrate" { pairs calibrate; }
@test "cat" { pairs cat; }
@test "check" { pairs check; }
@test "diff" { pairs diff; }
@test "distill" { pairs distill; }
@test "eval" { pairs eval; }
@test "export" { pairs export; }
@test "fidelity" { pairs fidelity; }
@test "fold" { pairs fold; }
@test "generate" { pairs generate; }
@test "import" { pairs import; }
@test "init" { pairs init; }
@test "logit-dump" { pairs logit-dump; }
@test "ls" { pairs ls; }
@test "mix" { pairs mix; }
@test "plot" { pairs plot; }
@test "prune" { pairs prune; }
@test "quantize" { pairs quantize; }
@test "realign" { pairs realign; }
@test "recipe" { pairs recipe; }
@test "show" { pairs show; }
@test "teacher-infer" { pairs teacher-infer; }
@test "tokenize" { pairs tokenize; }
