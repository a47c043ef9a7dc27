#!/usr/bin/env bats
# rill generate and rill calibrate, beyond what every program must do.
load common

setup_file() { make_inputs; }
setup() {
    enter_temp
    cp -r "$INPUTS/." .
}

@test "greedy generation is transformers' own" {
    # tests/golden/tiny-qwen2/greedy.u32: the tokens that transformers generates after the golden tokens
    [ -f "$ROOT/tests/golden/tiny-qwen2/greedy.u32" ] || skip "no golden continuation"
    text=$(rill generate -q -m model.rill --temperature 0 --max-new 5 --text --past-eos prompts.rill)
    again=$(rill generate -q -m model.rill --temperature 0 --max-new 5 --text --past-eos prompts.rill)
    assert_equal "$text" "$again"
    check_exit 2 rill generate -m model.rill --temperature 0 --seed 9 prompts.rill
    assert_stderr_line "--seed has no effect with --temperature 0"
}

@test "any end token of the model ends a sequence, --past-eos none" {
    cp -r "$ROOT/tests/golden/tiny-qwen2" q
    made() { rill generate -q -m "$1" --temperature 0 --max-new 9 --only-new "${@:2}" prompt.rill | rill show --tsv --tensor tokens | tr '\t\n' '  '; }
    rill import -q q -o one.rill
    printf 'once upon a time' | rill tokenize -q -m one.rill -o prompt.rill
    read -r -a all <<<"$(made one.rill --past-eos)"
    # what comes fourth, unless it came before, is one of three ends
    expected=()
    for id in "${all[@]}"; do
        expected+=("$id")
        [ "$id" != "${all[3]}" ] || break
    done
    echo "{\"eos_token_id\":[351,${all[3]}]}" >q/generation_config.json
    rill import -q q -o three.rill
    assert_equal "$(made three.rill)" "${expected[*]} "
    assert_equal "$(made three.rill --past-eos)" "${all[*]} "
}

@test "the seed decides, the number of threads does not" {
    rill generate -q -m model.rill --max-new 12 --seed 5 --no-provenance -j 1 prompts.rill -o a.rill
    rill generate -q -m model.rill --max-new 12 --seed 5 --no-provenance -j 4 <prompts.rill >b.rill
    rill generate -q -m model.rill --max-new 12 --seed 6 --no-provenance prompts.rill -o c.rill
    assert_same a.rill b.rill
    assert_differ a.rill c.rill
}

@test "--repeat draws anew each time, --only-new leaves the prompt out" {
    check_exit 0 rill generate -q -m model.rill --max-new 12 --repeat 3 --text prompts.rill
    [ "$(grep -c '^once upon' <<<"$out")" -eq 3 ]
    [ "$(grep '^once upon' <<<"$out" | sort -u | wc -l)" -gt 1 ]
    check_exit 0 rill generate -q -m model.rill --max-new 2 --only-new --text prompts.rill
    [[ $out != *"once upon"* ]]
}

@test "the report counts tokens and says how fast steps with and without prompts were" {
    check_exit 0 rill generate -q -m model.rill --max-new 6 --past-eos --repeat 2 --report r.json prompts.rill -o made.rill
    assert_json r.json sequences 4
    assert_json r.json new_tokens 24
    grep -qE '"prompt_tokens_per_second": *[1-9]' r.json
    grep -qE '"decode_tokens_per_second": *[1-9]' r.json
    check_exit 0 rill generate -q -m model.rill --max-new 1 --report r.json prompts.rill -o one.rill
    assert_json r.json decode_tokens_per_second 0
}

@test "a prompt may be longer than a batch" {
    rill tokenize -q -m model.rill --no-provenance text.txt | rill cat --no-provenance >whole.rill
    rill tokenize -q -m model.rill --no-provenance --batch-tokens 20 text.txt | rill cat --no-provenance >parts.rill
    rill ls --batches parts.rill | grep -q 'goes on'
    for f in whole parts; do rill generate -q --no-provenance -m model.rill --max-new 5 $f.rill -o $f.made; done
    assert_same whole.made parts.made
    rill init -q --layers 1 --hidden 32 --heads 2 --ffn 64 --context 40 model.rill -o short.rill
    check_exit 3 rill generate -m short.rill parts.rill -o no.rill
    assert_stderr_line "parts.rill: sequence 0 has * positions, the model's context is 40 (tokenize --context 40)"
}

@test "what it writes is a token stream that others read" {
    rill generate -q -m model.rill --max-new 12 --past-eos prompts.rill -o made.rill
    check_exit 0 rill calibrate -m model.rill made.rill -o made.stats.rill --report r.json
    assert_json r.json sequences 2
}

@test "statistics of two texts add up" {
    rill calibrate -q -m model.rill tokens.rill -o one.rill
    cat one.rill one.rill >two.rill
    check_exit 0 rill prune -q --layers 1 --stats two.rill model.rill -o a.rill --no-provenance
    check_exit 0 rill prune -q --layers 1 --stats one.rill model.rill -o b.rill --no-provenance
    assert_same a.rill b.rill
}

@test "a sequence longer than the context is refused with what to do" {
    rill init -q --layers 1 --hidden 32 --heads 2 --ffn 64 --context 8 model.rill -o short.rill
    check_exit 3 rill calibrate -m short.rill tokens.rill -o no.rill
    assert_stderr_line "tokens.rill: sequence 0 has * positions, the model's context is 8 (tokenize --context 8)"
    assert_no_file no.rill
}

@test "init says when a shape cannot be" {
    check_exit 2 rill init --layers 1 --hidden 33 --heads 2 --ffn 64 model.rill -o no.rill
    assert_stderr_line "hidden size 33 is not a multiple of 2 heads: give --head-dim"
    check_exit 2 rill init --layers 1 --hidden 30 --heads 2 --ffn 64 model.rill -o no.rill
    assert_stderr_line "head size 15 is odd: rotary positions need pairs"
    check_exit 2 rill init --layers 1 --hidden 32 --heads 4 --kv-heads 3 --ffn 64 model.rill -o no.rill
    assert_no_file no.rill
}

@test "greedy generation takes what the whole forward pass finds likeliest, in every precision, each time" {
    local model=$ROOT/examples/data/model.rill precision
    echo 'Once upon a time there was a fox who' >prompts.txt
    rill tokenize -q -m "$model" --lines prompts.txt >prompts.rill
    for precision in f32 bf16; do
        for i in 1 2; do
            rill generate -q --no-provenance --precision $precision -m "$model" --temperature 0 --max-new 40 --past-eos prompts.rill >made$i.rill
        done
        cmp made1.rill made2.rill
        rill teacher-infer -q --precision $precision -m "$model" --encode topk:4 made1.rill | rill logit-dump -q --tsv --positions 12:40 -m "$model" >said.tsv
        # the prompt is shorter than 12 tokens; the label of the last position is not known; a tie may go the other way
        awk -F '\t' 'NR > 1 && $8 != "-" && $2 >= 12 { n++; wrong += $8 != 1 } END { print n, wrong; exit !(n > 30 && wrong < 2) }' said.tsv
    done
}

@test "integer products: a sequence gets the same tokens alone and among others" {
    local model=$ROOT/examples/data/model.rill type line
    printf '%s\n' 'Once upon a time' 'The fox said' 'It was' 'A small bird sat on a branch and' 'Why' 'In the morning they went' 'So the' >seven.txt
    for type in q8_0 q4_0; do
        rill quantize -q --force --type $type "$model" -o q.rill
        how=(-q --precision int8 -m q.rill --temperature 0 --max-new 20 --past-eos --text)
        rill tokenize -q -m q.rill --lines seven.txt | rill generate "${how[@]}" -j 2 >together
        while read -r line; do
            rill tokenize -q -m q.rill --lines <<<"$line" | rill generate "${how[@]}" -j 1
        done <seven.txt >alone
        assert_same together alone
        rill tokenize -q -m q.rill --lines seven.txt | rill generate "${how[@]}" --report r.json --force >again
        assert_json r.json precision '"int8"'
        assert_same together again
    done
}

@test "integer products want quantized weights, training none" {
    check_exit 2 rill generate --precision int8 -m model.rill prompts.rill
    assert_stderr_line "model.rill: no weights are of a type that --precision int8 is for (rill quantize)"
    check_exit 2 rill teacher-infer --precision int8 --weights stream -m model.rill tokens.rill
    assert_stderr_line "model.rill: no weights are of a type that *"
    check_exit 2 rill distill --precision int8 -m model.rill tokens.rill
    assert_stderr_line "*--precision*int8*"
    # auto takes what there is: integers for quantized weights, where bf16 is fast too
    rill generate -q -m model.rill --text --max-new 4 --report auto.json prompts.rill >auto
    grep -qE '"precision":"(bf16|f32)"' auto.json
    rill quantize -q --type q8_0 model.rill -o q.rill
    RILL_CPU=avx2 rill generate -q -m q.rill --text --max-new 4 --report avx2.json prompts.rill >avx2
    assert_json avx2.json precision '"f32"'
    if grep -q '"precision":"bf16"' auto.json; then
        rill generate -q -m q.rill --text --max-new 4 --report q.json prompts.rill >q
        assert_json q.json precision '"int8"'
        # many sequences at once are faster in bf16 on tiles
        rill generate -q -m q.rill --text --max-new 1 --repeat 41 --report many.json prompts.rill >/dev/null
        if rill --version -v | grep -q 'bf16 amx'; then
            assert_json many.json precision '"bf16"'
        else
            assert_json many.json precision '"int8"'
        fi
    fi
}
