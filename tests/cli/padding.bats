#!/usr/bin/env bats
# One tokenizer of 344 tokens, embeddings of 384, 352 and 344 rows (as Qwen2.5 7B and 0.5B have 152064 and 151936 for
# 151665 tokens): every program takes them together, and the numbers are those of the models without padding.
load common

setup_file() { make_inputs; }
setup() {
    enter_temp
    cp "$INPUTS/model.rill" narrow.rill # tiny-qwen2: 352 rows
    cp "$INPUTS/student.rill" "$INPUTS/text.txt" "$INPUTS/prompts.txt" .
    rill fixture -q --model narrow.rill --rows 384 -o wide.rill
    rill prune -q --vocab padding wide.rill -o even.rill
    rill tokenize -q -m narrow.rill --context 32 text.txt -o tokens.rill
}
rows() { rill ls "$1" | sed -n 's/.*\[\([0-9]*\), [0-9]*\].* embed.weight/\1/p'; }
vocab() { rill show --meta "$1" | grep -oE 'xxh3:[0-9a-f]{32}' | head -1; }
# the numbers of a report or of a line of results that must not depend on padding
numbers() {
    tr ',{}' '\n\n\n' <"$1" |
        grep -E '"(kld|same_top|perplexity|nll|cross_entropy|delta_p|loss|kl|ce|teacher_ce|labels)[a-z0-9_.]*":[-0-9]'
}
# near FILE FILE: the same keys, values within 1e-5
near() {
    paste -d: <(numbers "$1") <(numbers "$2") | awk -F: '
        { n++; d = $2 - $4; d = d < 0 ? -d : d; m = $2 < 0 ? -$2 : $2; if (m < 1) m = 1
          if ($1 != $3 || d > 1e-5 * m) { print; bad = 1 } }
        END { exit bad || n < 3 }' || fail "$1 and $2 differ"
}

@test "the models are what this file says" {
    assert_equal "$(rows wide.rill) $(rows narrow.rill) $(rows even.rill) $(rows student.rill)" "384 352 344 352"
    assert_equal "$(vocab wide.rill)" "$(vocab narrow.rill)"
    assert_equal "$(vocab even.rill)" "$(vocab narrow.rill)"
    # all tokens are kept, at their places
    rill tokenize -q --no-provenance -m wide.rill text.txt >a
    rill tokenize -q --no-provenance -m even.rill text.txt >b
    assert_equal "$(rill show --tensor tokens a | tail -n +2)" "$(rill show --tensor tokens b | tail -n +2)"
    rill prune -q --no-provenance --vocab padding even.rill >again
    rill cat -q --no-provenance even.rill >same
    assert_same again same
    check_exit 2 rill prune --vocab padding --vocab-min-count 2 wide.rill -o no.rill
    assert_stderr_line "--vocab-min-count has no effect with --vocab padding"
    # a stream of tokens of one padding serves a model of another
    rill prune -q --vocab tokens.rill wide.rill -o pruned.rill
    rill prune -q --vocab tokens.rill even.rill -o pruned2.rill
    assert_equal "$(rows pruned.rill)" "$(rows pruned2.rill)"
}

@test "tokens of any of them are tokens of all" {
    rill tokenize -q -m wide.rill --context 32 text.txt -o wide.tok.rill
    rill tokenize -q -m even.rill --context 32 text.txt -o even.tok.rill
    for m in wide narrow even; do
        for t in tokens wide.tok even.tok; do rill eval -q -m $m.rill --precision f32 --context 32 $t.rill >>"$m"; done
        assert_equal "$(sort -u "$m" | wc -l)" 1
        near "$m" wide
    done
    cat wide.tok.rill even.tok.rill >both.rill
    rill eval -q -m narrow.rill --context 32 both.rill >out
    rill calibrate -q -m wide.rill even.tok.rill -o stats.rill
}

@test "a teacher has a column for each token, and not the padding's share" {
    for m in wide narrow even; do
        rill teacher-infer -q --precision f32 --dtype f32 -m $m.rill tokens.rill -o $m.kd.rill
        rill show --meta $m.kd.rill | grep -q '"vocab_size": *344'
        rill logit-dump --tsv --positions 0:1000 --top 344 $m.kd.rill >$m.tsv
        for e in topk:5 ghost:5 sample:50; do
            rill teacher-infer -q --precision f32 --encode $e -m $m.rill tokens.rill |
                rill logit-dump --tsv --positions 0:1000 >$m.$e
        done
        rill teacher-infer -q --precision f32 --dtype f32 --weights stream -m $m.rill tokens.rill |
            rill logit-dump --tsv --positions 0:1000 --top 344 >$m.stream
        assert_same $m.tsv $m.stream
        # a line's probabilities sum to 1
        tail -n +2 $m.tsv | awk -F'\t' '{ n = split($8, a, " "); s = 0
            for (i = 1; i <= n; i++) { split(a[i], b, ":"); s += b[2] }
            if (n != 344 || s < 0.999 || s > 1.001) exit 1 }'
    done
    for m in narrow wide; do
        for e in tsv topk:5 ghost:5 sample:50; do assert_same even.$e $m.$e; done
    done
}

@test "student and teacher with different padding: judged and trained as without" {
    rill prune -q --vocab padding student.rill -o student.even.rill
    for e in dense topk:8 ghost:8 sample:50; do
        for teacher in even wide; do
            rill teacher-infer -q --force --precision f32 --encode $e -m $teacher.rill tokens.rill -o $teacher.kd.rill
            for student in student.even student; do
                rill eval -q -m $student.rill --precision f32 --reference $teacher.kd.rill >$teacher.$student.eval
                rill distill -q -m $student.rill --precision f32 --batch-tokens 32 --loss kl --loss ce:weight=0.1 \
                    --report $teacher.$student.json --force $teacher.kd.rill >$teacher.$student.rill
                near even.student.even.eval $teacher.$student.eval
                near even.student.even.json $teacher.$student.json
            done
        done
    done
    # rows of padding learn nothing, and the result is a model as before
    assert_equal "$(rows wide.student.rill) $(rows wide.student.even.rill)" "352 344"
    rill prune -q --vocab padding wide.student.rill -o a.rill
    check_exit 0 rill diff -q --min-cosine 0.99999 a.rill wide.student.even.rill
}

@test "a model as its own teacher, after more padding, does not diverge" {
    rill teacher-infer -q --precision f32 --dtype f32 -m wide.rill tokens.rill |
        rill eval -q -m narrow.rill --precision f32 --reference - >out
    grep -oE '"kld_max":[-0-9.e]+' out | awk -F: '{ exit !($2 < 1e-5) }'
    assert_json out same_top 1
    # bf16 and integers cut the same rows
    for p in bf16 int8; do
        for m in wide even; do
            rill quantize -q --force --type q8_0 $m.rill -o q.rill
            rill eval -q -m q.rill --precision $p --context 32 tokens.rill >$m.$p
        done
        near wide.$p even.$p
    done
}

@test "generate never samples a row of padding" {
    rill tokenize -q -m wide.rill --lines prompts.txt -o prompts.rill
    for p in f32 bf16; do
        for m in wide narrow even; do
            rill generate -q --no-provenance -m $m.rill --precision $p --temperature 5 --repeat 8 --max-new 100 --seed 3 \
                prompts.rill >$m.$p
            rill tokenize --decode -m even.rill $m.$p >$m.ids # refuses a token that it has not
        done
        assert_same even.ids wide.ids
        assert_same even.ids narrow.ids
    done
    rill generate -q -m wide.rill --temperature 5 --text --max-new 100 prompts.rill >text
    [ -s text ]
}

@test "a teacher without its vocabulary: dense knowledge is cut, sparse refused" {
    mkdir hf && cp "$ROOT"/tests/golden/tiny-qwen2/{config.json,model.safetensors} hf/
    rill import -q hf >bare.rill
    rill teacher-infer -q --precision f32 --dtype f32 -m bare.rill tokens.rill -o bare.kd.rill
    rill show --meta bare.kd.rill | grep -q '"vocab_size": *352'
    rill teacher-infer -q --precision f32 --dtype f32 -m even.rill tokens.rill -o even.kd.rill
    for k in bare even; do rill eval -q -m student.rill --precision f32 --reference $k.kd.rill >$k.eval; done
    near bare.eval even.eval
    for k in bare even; do rill logit-dump --tsv -m even.rill --positions 0:1000 $k.kd.rill | cut -f 7,8,9 >$k.tsv; done
    paste bare.tsv even.tsv | awk '
        NR > 1 && NF == 6 { n++; d = $1 - $4; if (d > 1e-3 * $4 || d < -1e-3 * $4) { bad = 1; exit } }
        END { exit bad || n < 20 }'
    rill logit-dump -q --encode sample:5 bare.kd.rill -o bare.s.rill
    check_exit 3 rill distill -m student.rill bare.s.rill
    assert_stderr_line "*knowledge over 352 rows of an embedding, 344 of them tokens*"
    check_exit 3 rill eval -m student.rill --reference bare.s.rill
    assert_stderr_line "*knowledge over 352 rows of an embedding, 344 of them tokens*"
}
