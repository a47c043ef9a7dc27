#!/usr/bin/env bats
# Answers and states are kept where they count: what is learnt of them is to the bit what is learnt of all.
load common

setup_file() {
    make_inputs
    cd "$INPUTS" || return
    cp "$ROOT/tests/golden/chat/qwen2.jinja" .
    for i in $(seq 12); do
        printf '{"messages":[{"role":"user","content":"what is %d and why is it so"},{"role":"assistant","content":"it is %d"},' "$i" "$i"
        printf '{"role":"user","content":"the end of the story"},{"role":"assistant","content":"once upon"}]}\n'
    done >chats.jsonl
    rill init -q --layers 3 --hidden 32 --heads 4 --kv-heads 2 --ffn 64 model.rill -o big.rill
    rill init -q --layers 2 --hidden 32 --heads 4 --kv-heads 2 --ffn 64 --seed 2 model.rill -o small.rill
    rill tokenize -q -m model.rill --chat --chat-template qwen2.jinja chats.jsonl -o chat.rill
}
setup() { enter_inputs; }
infer() { rill teacher-infer -q --no-provenance -m big.rill "$@"; }
train() { rill distill -q --no-provenance -m small.rill --batch-tokens 200 --micro-tokens 64 --steps 3 "$@"; }
# the numbers of a tensor of small integers, a line each
numbers() { rill show --tensor "$2" --tsv "$1" | tr '\t ' '\n\n' | grep -E '^[0-9]+$'; }

@test "with any encoding, a student learns to the bit the same" {
    for encoding in dense topk:5 ghost:5 topp:0.5 sample:20; do
        infer --encode $encoding chat.rill >some
        infer --encode $encoding --rows all chat.rill >all
        rill ls some | grep -q 'teacher.counted$'
        if rill ls all | grep -q 'teacher.counted$'; then return 1; fi
        train --loss kl --loss ce some >a
        train --loss kl --loss ce all >b
        assert_same a b
        assert_differ a small.rill
        train --loss kl --shuffle some >a
        train --loss kl --shuffle all >b
        assert_same a b
        rill check -q some
    done
}

@test "with any loss, on fields of all kinds" {
    taps=()
    for tap in embed hidden:all attention:all q:all k:all v:all; do taps+=(--tap "$tap"); done
    infer "${taps[@]}" chat.rill >some
    infer "${taps[@]}" --rows all chat.rill >all
    infer "${taps[@]}" --weights stream --block-tokens 100 chat.rill >streamed
    assert_same some streamed
    rill distill --list-losses | awk '/^[a-z0-9]+: / { sub(/:$/, "", $1); print $1 }' >names
    [ "$(wc -l <names)" -ge 30 ]
    while read -r name; do
        train --loss "$name" some >a
        train --loss "$name" all >b
        cmp a b || { echo "$name"; return 1; }
    done <names
}

@test "there are as many rows as tokens of answers, and --dry-run says so" {
    infer --dtype f32 --tap hidden:0 --tap attention --tap k --dry-run chat.rill >sizes
    infer --dtype f32 --tap hidden:0 --tap attention --tap k chat.rill >some
    learnt=$(numbers chat.rill mask | grep -c 1)
    count=$(numbers some teacher.counted | grep -c 1)
    [ "$learnt" -eq "$count" ]
    rill ls some | grep -qF "f32   [$count, 344]"
    rill ls some | grep -qF "bf16  [$count, 32]"
    rill ls some | grep -qF "bf16  [$(numbers chat.rill tokens | wc -l), 16]" # others attend to keys
    rill ls some | awk '/teacher/ { sum += $(NF - 1) } END { print sum }' >have
    awk '$1 == "sum" { print $NF }' sizes >want
    assert_same have want
    rill teacher-infer -q -m big.rill --dry-run --rows all chat.rill >sizes
    if grep -q counted sizes; then return 1; fi
    infer --tap hidden:0 --tap-positions 3 chat.rill >sampled
    for p in $(numbers sampled teacher.positions); do numbers sampled teacher.counted | sed -n "$((p + 1))p"; done | sort -u >flags
    assert_equal "$(cat flags)" 1
}

@test "nothing depends on passes, batches and threads; logit-dump passes on what there is" {
    infer --encode sample:20 chat.rill >want
    infer chat.rill >dense
    rill tokenize -q --no-provenance -m model.rill --chat --chat-template "$INPUTS/qwen2.jinja" --batch-tokens 7 "$INPUTS/chats.jsonl" >cut.rill
    for how in "-j 3" "--batch-tokens 100" "--weights stream --block-tokens 300"; do
        # shellcheck disable=SC2086
        infer --encode sample:20 $how chat.rill >got
        assert_same got want
    done
    infer --encode sample:20 cut.rill >got
    assert_same got want
    infer --dtype f32 chat.rill | rill logit-dump -q --no-provenance --encode sample:20 >got
    assert_same got want
    rill logit-dump -q --no-provenance --encode topk:9 dense | rill logit-dump -q --no-provenance --encode topk:4 >got
    rill logit-dump -q --no-provenance --encode topk:4 dense >want
    assert_same got want
    rill logit-dump --tsv --positions 0:112 want >table
    awk -F'\t' 'NR > 1 && ($4 == "-") != ($8 == "") && $2 < 112 { exit 1 }' table
    infer --rows all chat.rill | cat dense - >both # streams of either kind may follow one another
    train both >trained
}

@test "what is measured, mixed and aligned is what counts" {
    infer --dtype f32 chat.rill >some
    infer --dtype f32 --rows all chat.rill >all
    rill logit-dump -q --encode ghost:9 some >ghost
    count=$(numbers some teacher.counted | grep -c 1)
    rill eval -q -m small.rill --reference some >got
    assert_json got positions "$count"
    rill eval -q -m small.rill --reference all >want # of positions with a label as many
    for key in labels perplexity perplexity_reference delta_p; do
        assert_equal "$(grep -o "\"$key\":[0-9.e-]*" got)" "$(grep -o "\"$key\":[0-9.e-]*" want)"
    done
    rill eval -q -m small.rill --reference ghost >got
    assert_json got positions "$count"
    rill fidelity -q -m small.rill some ghost | sed 's/"seconds[^,]*,//; s/"tokens_per_second[^,}]*//' >got
    grep -q '"encoding":"ghost:9"' got
    rill mix --no-provenance some all >mixed
    rill mix --no-provenance some some >same
    assert_same mixed same
    train mixed >a
    train all >b
    rill ls mixed | grep -qF "[$count, 344]"
    rill mix -q --no-provenance ghost ghost | rill show --tensor teacher.counted --tsv - >a
    rill show --tensor teacher.counted --tsv some >b
    assert_same a b
    for x in some all; do
        rill logit-dump -q --encode ghost:100 $x | rill realign -q --no-provenance --teacher big.rill -m small.rill --entries 20 >$x.aligned
    done
    assert_same some.aligned all.aligned
    numbers some.aligned teacher.counted >a
    numbers some teacher.counted >b
    assert_same a b
    train some.aligned >a
}

@test "answers about masked tokens and tags are those of the tokens that are asked for" {
    for i in {a..t}; do printf 'the good film %s\nthe bad film %s\n' "$i" "$i"; done >texts.txt
    rill tokenize -q -m bert.rill --lines --mask-rate 0.3 texts.txt -o data.rill
    rill teacher-infer -q -m bert.rill --encode topk:5 data.rill -o some
    rill teacher-infer -q -m bert.rill --encode topk:5 --rows all data.rill -o all
    labels=$(rill show --tensor labels --tsv data.rill | tr '\t ' '\n\n' | grep -E '^[0-9]+$' | grep -cvx 4294967295)
    assert_equal "$(numbers some teacher.n | wc -l)" "$labels"
    for x in some all; do rill distill -q --no-provenance -m bert.rill --steps 2 --loss kl $x >$x.trained; done
    assert_same some.trained all.trained
    # without labels all are kept: there is nothing to tell them by
    rill tokenize -q -m bert.rill --lines texts.txt | rill teacher-infer -q -m bert.rill --encode topk:5 - >plain
    if rill ls plain | grep -q teacher.counted; then return 1; fi
}
