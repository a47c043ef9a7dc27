#!/usr/bin/env bats
# rill prune, beyond what every program must do (every.bats) and what the library's tests say (tests/unit/test_prune.c).
load common

setup_file() { make_inputs; }
setup() {
    enter_temp
    cp -r "$INPUTS/." .
}

@test "a smaller model comes out, is said, and runs" {
    check_exit 0 rill prune --ffn 64 --layers 1 --stats model.stats.rill model.rill -o small.rill --report r.json
    assert_stderr_line "* M parameters of * M, 1 layers of 3"
    assert_json r.json parameters_before "$(grep -o '"parameters_before":[0-9]*' r.json | cut -d: -f2)"
    [ "$(grep -o '"parameters_after":[0-9]*' r.json | cut -d: -f2)" -lt "$(grep -o '"parameters_before":[0-9]*' r.json | cut -d: -f2)" ]
    [ "$(file_size small.rill)" -lt "$(file_size model.rill)" ]
    check_exit 0 rill generate -q -m small.rill --max-new 3 --text prompts.rill
    [ "$(wc -l <<<"$out")" -ge 2 ]
}

@test "a file and a pipe give the same bytes, and so do one and four threads" {
    rill prune -q --sparsity 0.3 --no-provenance model.rill -o a.rill -j 1
    cat model.rill | rill prune -q --sparsity 0.3 --no-provenance -j 4 | cat >b.rill
    assert_same a.rill b.rill
}

@test "all of a width that is no multiple of 32 is all of it" {
    rill init -q --layers 1 --hidden 32 --heads 2 --ffn 100 model.rill -o odd.rill
    rill prune -q --ffn 100% odd.rill -o all.rill
    check_exit 0 rill diff odd.rill all.rill
    check_exit 0 sh -c 'rill prune -q --ffn 99% odd.rill | rill ls'
    assert_stdout '*f32   \[96, 32\]*layers.0.ffn.gate.weight*'
}

@test "--drop-layers takes numbers and ranges" {
    check_exit 0 rill prune -q --drop-layers 1 model.rill -o one.rill
    check_exit 0 rill prune -q --drop-layers 1-1 model.rill -o two.rill --no-provenance
    for bad in x 1, ,1 1-0 1--2 1-x 99999; do
        check_exit 2 rill prune -q --drop-layers "$bad" model.rill -o no.rill
        assert_no_file no.rill
    done
    check_exit 2 rill prune --drop-layers 7 model.rill -o no.rill
    assert_stderr_line "cannot drop layer 7: the model has layers 0 to 2"
    check_exit 2 rill prune --drop-layers 1,1 model.rill -o no.rill
    assert_stderr_line "layer 1 is dropped twice"
    assert_no_file no.rill
}

@test "what makes no sense is a usage error that says why" {
    check_exit 2 rill prune model.rill -o no.rill
    assert_stderr_line "nothing to prune: give --sparsity*"
    check_exit 2 rill prune --layers 1 model.rill -o no.rill
    assert_stderr_line "--layers needs --stats"
    check_exit 2 rill prune --layers 1 --drop-layers 0 --stats model.stats.rill model.rill -o no.rill
    assert_stderr_line "--drop-layers has no effect with --layers"
    check_exit 2 rill prune --ffn 100000 model.rill -o no.rill
    assert_stderr_line "*cannot prune the feed-forward width of layer 0 to 100000*"
    check_exit 2 rill prune --sparsity 1.5 model.rill -o no.rill
    check_exit 2 rill prune --ffn 0% model.rill -o no.rill
    check_exit 2 rill prune --vocab
    check_exit 2 rill prune --ffn 64 --sparsify-head model.rill -o no.rill
    assert_stderr_line "--sparsify-head needs --sparsity"
    check_exit 2 rill prune --ffn 64 --vocab-min-count 2 model.rill -o no.rill
    assert_stderr_line "--vocab-min-count needs --vocab"
    assert_no_file no.rill
}

@test "tokens of two vocabularies are refused" {
    rill import -q "$ROOT/tests/golden/tiny-llama" -o llama.rill
    rill tokenize -q -m llama.rill text.txt -o theirs.rill
    cat tokens.rill theirs.rill >both.rill
    check_exit 3 rill prune --vocab both.rill model.rill -o no.rill
    assert_stderr_line "both.rill: tokens of two vocabularies: xxh3:* and xxh3:*"
    assert_no_file no.rill
    cat tokens.rill tokens.rill >twice.rill
    check_exit 0 rill prune -q --vocab twice.rill --vocab-min-count 2 --no-provenance model.rill -o a.rill
    check_exit 0 rill prune -q --vocab tokens.rill --no-provenance model.rill -o b.rill
    assert_same a.rill b.rill
}

@test "statistics of another model are refused" {
    rill prune -q --ffn 64 model.rill -o narrow.rill
    check_exit 3 rill prune --layers 1 --stats model.stats.rill narrow.rill -o no.rill
    assert_stderr_line "*disagree on the shape of layer 0"
    check_exit 3 rill prune --layers 1 --stats tokens.rill model.rill -o no.rill
    assert_no_file no.rill
}

@test "a vocabulary cut to a text spells that text as before" {
    check_exit 0 rill prune -q --vocab tokens.rill model.rill -o small.rill
    rill tokenize -q -m model.rill text.txt -o before.rill
    rill tokenize -q -m small.rill text.txt -o after.rill --report r.json
    [ "$(rill tokenize -q -m small.rill --decode after.rill | cksum)" = "$(cksum <text.txt)" ]
    # ids are others, the cuts between tokens the same
    rill tokenize -q -m model.rill text.txt --report a.json >/dev/null
    assert_json r.json tokens "$(grep -o '"tokens":[0-9]*' a.json | head -1 | cut -d: -f2)"
    check_exit 3 rill prune --vocab after.rill model.rill -o no.rill
    assert_stderr_line "model and tokens disagree: vocabulary xxh3:*against xxh3:* (tokenize with this model)"
    check_exit 3 rill prune --vocab model.stats.rill model.rill -o no.rill
    check_exit 3 rill calibrate -m model.rill after.rill -o no.rill
    assert_stderr_line "*disagree: vocabulary xxh3:*against xxh3:*"
    assert_no_file no.rill
}
