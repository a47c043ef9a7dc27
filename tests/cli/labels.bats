#!/usr/bin/env bats
# Models of the BERT family: masked tokens and classes, from text to a student that is judged.
load common

setup_file() { make_inputs; }
setup() {
    enter_temp
    need rill-tokenize
    cp "$INPUTS"/{bert,classes,tags,teacher,masked}.rill "$INPUTS"/{labelled,tagged}.* .
    for i in {a..t}; do printf 'the good film %s\t1\nthe bad film %s\t0\n' "$i" "$i"; done >texts.tsv
}

@test "masked tokens are seeded, and their labels are what they were" {
    rill tokenize -q --no-provenance -m bert.rill --lines --mask-rate 0.5 texts.tsv >a
    rill tokenize -q --no-provenance -m bert.rill --lines --mask-rate 0.5 -j 1 --batch-tokens 9 texts.tsv >b
    rill tokenize -q --no-provenance -m bert.rill --lines --mask-rate 0.5 --seed 1 texts.tsv >c
    for x in a b c; do
        for t in tokens labels; do rill show --tensor $t --tsv $x | tr '\t' '\n' >$t.$x; done
    done
    [ "$(wc -l <labels.b)" -eq "$(wc -l <labels.a)" ]
    [ "$(rill show b | grep -c '^labels')" -gt "$(rill show a | grep -c '^labels')" ] # it is cut into other batches
    [ "$(grep -vc '^4.2949673e+09$' labels.a)" -gt 80 ]
    assert_same labels.a labels.b
    assert_same tokens.a tokens.b
    assert_differ labels.a labels.c
    assert_differ a c
    check_exit 2 rill tokenize -m teacher.rill --lines --mask-rate 0.5 texts.tsv
    assert_stderr_line 'the vocabulary has no mask token, \[MASK\] or <mask>'
}

@test "texts with classes: columns, JSON, pairs with token types, cut to the context" {
    rill tokenize -q -m classes.rill --lines --labels 2 labelled.tsv | rill show - >out
    grep -A1 '^labels u32 \[3\]' out | grep -q '1  0  1'
    rill tokenize -q -m classes.rill --jsonl text --labels label labelled.jsonl | rill show - >out
    grep -A1 '^labels u32 \[2\]' out | grep -q '0  2'
    rill tokenize -q -m classes.rill --lines --labels 2 --pair 3 --context 7 labelled.tsv | rill show - >out
    grep -A1 '^types u8' out | grep -q '0  0  0  0  0  1  1'
    grep -A1 '^lengths' out | grep -q '7  7  6'
    printf 'a\tb\n' >bad.tsv
    check_exit 3 rill tokenize -m classes.rill --lines --labels 2 bad.tsv
    assert_stderr_line 'bad.tsv: line 1: label "b": expected the number of a class*'
    check_exit 3 rill tokenize -m classes.rill --lines --labels 3 bad.tsv
    assert_stderr_line 'bad.tsv: line 1: 2 columns: expected at least 3'
}

@test "a masked language model learns, and a student learns from its answers" {
    rill tokenize -q -m bert.rill --lines --mask-rate 0.3 texts.tsv -o data.rill
    rill distill -q -m bert.rill --precision f32 --steps 60 --epochs 60 --batch-tokens 300 --lr 3e-3 data.rill -o taught.rill
    rill eval -m bert.rill data.rill >before
    check_exit 4 rill eval -m bert.rill --fail-above 5 data.rill
    check_exit 0 rill eval -m taught.rill --fail-above 5 data.rill
    assert_json before metric '"masked"'
    rill teacher-infer -q -m taught.rill --precision f32 --encode sample:50 data.rill -o data.kd.rill
    rill distill -q -m bert.rill --precision f32 --steps 60 --epochs 60 --batch-tokens 300 --lr 3e-3 data.kd.rill -o student.rill
    check_exit 0 rill eval -m student.rill --fail-above 5 data.rill
    rill eval -m student.rill --reference data.kd.rill >after
    assert_json after metric '"divergence"'
}

@test "a classifier learns, and a student learns from its answers alone" {
    rill tokenize -q -m classes.rill --lines --labels 2 texts.tsv -o data.rill
    rill distill -q -m classes.rill --precision f32 --steps 60 --epochs 60 --batch-tokens 300 --lr 3e-3 data.rill -o taught.rill
    rill eval -m taught.rill data.rill >out
    assert_json out accuracy 1
    assert_json out macro_f1 1
    for w in resident stream; do
        rill teacher-infer -q --no-provenance -m taught.rill --precision f32 --weights $w data.rill >$w.kd.rill
    done
    assert_same resident.kd.rill stream.kd.rill
    rill distill -q -m classes.rill --precision f32 --steps 60 --epochs 60 --batch-tokens 300 --lr 3e-3 resident.kd.rill -o student.rill
    rill eval -m student.rill data.rill >out
    assert_json out accuracy 1
    rill logit-dump -q --encode ghost:2 resident.kd.rill | rill logit-dump --tsv --positions 1:2 >table
    [ "$(wc -l <table)" -eq 3 ]
}

@test "words with tags: labels of first tokens, names, null, cut to the context" {
    rill tokenize -q -m tags.rill --jsonl words --tags tags tagged.jsonl >a
    rill show --meta a | grep -q '"target": *"token"'
    rill show --tensor lengths a | grep -q '7  5'
    none=4294967295
    rill show --tensor labels --tsv a >out
    printf '%s\t' $none 0 1 4 $none $none $none $none 2 $none 3 >wanted # [CLS] the good s ##a ##w [SEP], [CLS] bad film i [SEP]
    echo $none >>wanted
    assert_same out wanted
    rill tokenize -q -m tags.rill --jsonl words --tags tags --context 5 tagged.jsonl | rill show --tensor labels --tsv >out
    printf '%s\t' $none 0 1 4 $none $none 2 $none 3 >wanted
    echo $none >>wanted
    assert_same out wanted

    cp -r "$INPUTS/hf-tags" hf
    sed -i 's/LABEL_2/B-FILM/; s/LABEL_3/O/' hf/config.json
    rill import -q hf -o named.rill
    printf '{"words":["bad","film"],"tags":["B-FILM","O"]}\n' >named.jsonl
    rill tokenize -q -m named.rill --jsonl words --tags tags named.jsonl | rill show --tensor labels --tsv >out
    printf '%s\t' $none 2 3 >wanted
    echo $none >>wanted
    assert_same out wanted

    printf '{"words":["bad"],"tags":[0]}\n{"words":["bad","film"],"tags":[1,"B-PER"]}\n' >bad.jsonl
    check_exit 3 rill tokenize -m named.rill --jsonl words --tags tags bad.jsonl
    assert_stderr_line 'bad.jsonl: line 2: word 2: label "B-PER": expected the number of a class or its name'
    printf '{"words":["bad"],"tags":[0,1]}\n' >bad.jsonl
    check_exit 3 rill tokenize -m named.rill --jsonl words --tags tags bad.jsonl -o not.rill
    assert_stderr_line 'bad.jsonl: line 1: 1 words and 2 tags'
    [ ! -e not.rill ]
    printf '{"words":["bad"],"tags":[5]}\n' >bad.jsonl
    check_exit 3 rill tokenize -m named.rill --jsonl words --tags tags bad.jsonl
    assert_stderr_line 'bad.jsonl: line 1: word 1: expected a tag: the number of a class below 5, a name, or null'
    printf '{"words":"bad","tags":[1]}\n' >bad.jsonl
    check_exit 3 rill tokenize -m named.rill --jsonl words --tags tags bad.jsonl
    assert_stderr_line 'bad.jsonl: line 1: "words" is not a list: expected a list'
    printf '{"words":["bad",7],"tags":[1,1]}\n' >bad.jsonl
    check_exit 3 rill tokenize -m named.rill --jsonl words --tags tags bad.jsonl
    assert_stderr_line 'bad.jsonl: line 1: word 2 is not a string'
    check_exit 2 rill tokenize -m named.rill --lines --tags tags bad.jsonl
}

@test "a tagger learns, and a student learns from its answers alone" {
    for i in {a..t}; do
        printf '{"words":["the","good","film","%s"],"tags":[0,1,3,2]}\n{"words":["bad","%s","films"],"tags":[4,2,3]}\n' $i $i
    done >texts.jsonl
    rill tokenize -q -m tags.rill --jsonl words --tags tags texts.jsonl -o data.rill
    rill eval -m tags.rill data.rill >before
    assert_json before metric '"token_classification"'
    assert_json before labels 140
    rill distill -q -m tags.rill --precision f32 --steps 60 --epochs 60 --batch-tokens 300 --lr 3e-3 data.rill -o taught.rill
    rill eval -m taught.rill data.rill >out
    assert_json out accuracy 1
    assert_json out macro_f1 1
    for w in resident stream; do
        rill teacher-infer -q --no-provenance -m taught.rill --precision f32 --weights $w data.rill >$w.kd.rill
    done
    assert_same resident.kd.rill stream.kd.rill
    rill show --meta resident.kd.rill | grep -q '"classes": *5'
    rill logit-dump -q --encode sample:50 resident.kd.rill -o sample.kd.rill
    rill logit-dump -q --encode ghost:2 resident.kd.rill -o ghost.kd.rill
    for encoding in resident sample ghost; do
        rill distill -q -m tags.rill --precision f32 --steps 60 --epochs 60 --batch-tokens 300 --lr 3e-3 --loss kl $encoding.kd.rill -o student.rill --force
        rill eval -m student.rill data.rill >out
        assert_json out accuracy 1
    done
    rill distill -q -m tags.rill --precision f32 --steps 60 --epochs 60 --batch-tokens 300 --lr 3e-3 --teacher taught.rill --loss kl data.rill -o beside.rill
    rill eval -m beside.rill data.rill >out
    assert_json out accuracy 1
    rill eval -m student.rill --reference resident.kd.rill >out
    assert_json out metric '"divergence"'
    rill logit-dump --tsv --positions 1:2 ghost.kd.rill >table
    [ "$(wc -l <table)" -eq 3 ]
    [ "$(cut -f 4 table | sed -n 2p)" = 0 ]
}

@test "a BERT classifier teaches a bidirectional LSTM by its logits alone" {
    rill tokenize -q -m classes.rill --lines --labels 2 texts.tsv -o data.rill
    rill distill -q -m classes.rill --precision f32 --steps 60 --epochs 60 --batch-tokens 300 --lr 3e-3 data.rill -o taught.rill
    rill teacher-infer -q -m taught.rill --precision f32 data.rill -o data.kd.rill
    rill init -q --arch bilstm --layers 1 --hidden 32 --embed 16 taught.rill -o fresh.rill
    rill eval -m fresh.rill data.rill >before
    learn() { rill distill -q -m fresh.rill --precision "$1" --steps 40 --epochs 40 --batch-tokens 300 --lr 1e-2 "${@:2}" -o student.rill --force; }
    for precision in f32 bf16; do
        learn $precision data.kd.rill --loss mse
        rill eval -m student.rill data.rill >out
        assert_json out accuracy 1
    done
    # what it learned from are the answers, of which it comes near
    rill eval -m fresh.rill --reference data.kd.rill >before
    rill eval -m student.rill --reference data.kd.rill >after
    kld() { sed -n 's/.*"kld":\([0-9.e-]*\).*/\1/p' "$1"; }
    awk -v a="$(kld after)" -v b="$(kld before)" 'BEGIN { exit !(b > 0 && a < b / 10) }'
    # from labels alone, from a teacher beside it, and with what was stopped halfway
    learn f32 data.rill
    rill eval -m student.rill data.rill >out
    assert_json out accuracy 1
    learn f32 --teacher taught.rill --loss kl data.rill
    rill eval -m student.rill data.rill >out
    assert_json out accuracy 1
    # a pruned and quantized one is judged like any other, resident or from a stream
    rill quantize -q --type q8_0 student.rill -o small.rill
    rill eval -m small.rill data.rill >out
    assert_json out accuracy 1
    for w in resident stream; do
        rill teacher-infer -q --no-provenance -m small.rill --weights $w data.rill >$w.kd.rill
    done
    assert_same resident.kd.rill stream.kd.rill
}

@test "a student's weights are the same with one thread and with four" {
    rill init -q --arch bilstm --layers 2 --hidden 32 --classes 2 classes.rill -o fresh.rill
    rill tokenize -q -m classes.rill --lines --labels 2 texts.tsv -o data.rill
    for j in 1 4; do
        rill distill -q --no-provenance -j $j -m fresh.rill --steps 4 --batch-tokens 200 data.rill >$j.rill
    done
    assert_same 1.rill 4.rill
}

@test "data of another target is refused by name" {
    check_exit 3 rill distill -m classes.rill masked.rill
    assert_stderr_line 'the target of the data is "masked", that of the model "sequence"'
    check_exit 3 rill teacher-infer -m bert.rill labelled.rill
    assert_stderr_line 'the target of the data is "sequence", that of the model "masked"'
    check_exit 3 rill eval -m classes.rill masked.rill
    assert_stderr_line 'masked.rill: the data has no labels for this model, whose target is "sequence" (tokenize --labels)'
    check_exit 2 rill eval -m classes.rill --protocol gptq labelled.rill
    check_exit 3 rill distill -m tags.rill labelled.rill
    assert_stderr_line 'the target of the data is "sequence", that of the model "token"'
    check_exit 3 rill eval -m tags.rill masked.rill
    assert_stderr_line 'masked.rill: the data has no labels for this model, whose target is "token" (tokenize --tags)'
    rill tokenize -q -m tags.rill --lines texts.tsv -o plain.rill
    check_exit 3 rill distill -m tags.rill plain.rill
    assert_stderr_line 'the data has no labels of the target "token", which the student learns (tokenize --tags)'
}

@test "generate refuses a model that continues nothing, before any output" {
    rill tokenize -q -m bert.rill --lines texts.tsv -o plain.rill
    for m in bert classes tags; do
        check_exit 3 rill generate -m $m.rill plain.rill
        [ ! -s "$T/.stdout" ]
        check_exit 3 rill generate -m $m.rill --text plain.rill
        [ ! -s "$T/.stdout" ]
    done
    check_exit 3 rill generate -m bert.rill plain.rill
    assert_stderr_line '*masked language model*'
}
