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
    assert_stderr_line "* M parameters of * M, 1 layer of 3 (without *)"
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

@test "all of a width that is not a multiple of 32 is all of it" {
    rill init -q --layers 1 --hidden 32 --heads 2 --ffn 100 model.rill -o odd.rill
    rill prune -q --ffn 100% odd.rill -o all.rill
    check_exit 0 rill diff odd.rill all.rill
    check_exit 0 sh -c 'rill prune -q --ffn 99% odd.rill | rill ls'
    assert_stdout '*f32   \[96, 32\]*layers.0.ffn.gate.weight*'
}

@test "quantized tensors keep their blocks unless columns or single weights go" {
    rill init -q --layers 3 --hidden 256 --heads 4 --kv-heads 2 --ffn 512 model.rill -o m.rill
    rill quantize -q --pure --type q4_1 m.rill -o q.rill
    types() { rill ls "$1" | grep -E '(attn|ffn)\.[a-z]+\.weight|embed\.weight' | awk '{ print $1 }' | sort | uniq -c | xargs; }
    [ "$(types q.rill)" = "22 q4_1" ]
    rill prune -q --drop-layers 1 q.rill -o layers.rill
    [ "$(types layers.rill)" = "15 q4_1" ]
    rill prune -q --drop-layers 0-1 q.rill -o last.rill
    rill show q.rill --tensor layers.2.ffn.down.weight >a
    rill show last.rill --tensor layers.0.ffn.down.weight | sed 's/layers.0/layers.2/' >b
    assert_same a b
    # rows are whole blocks; the columns of down and o are not
    rill prune -q --ffn 256 q.rill -o ffn.rill
    [ "$(types ffn.rill)" = "3 f32 19 q4_1" ]
    rill ls ffn.rill | grep -q '^f32 .*layers.0.ffn.down.weight'
    rill quantize -q --type f32 q.rill | rill prune -q --ffn 256 -o other.rill --force
    rill quantize -q --type f32 ffn.rill -o same.rill
    check_exit 0 rill diff other.rill same.rill
    rill prune -q --kv-heads 1 q.rill -o heads.rill
    [ "$(types heads.rill)" = "3 f32 19 q4_1" ]
    rill quantize -q --type f32 q.rill | rill prune -q --kv-heads 1 -o other.rill --force
    rill quantize -q --type f32 heads.rill -o same.rill --force
    check_exit 0 rill diff other.rill same.rill
    rill prune -q --vocab tokens.rill q.rill -o vocab.rill
    [ "$(types vocab.rill)" = "22 q4_1" ]
    rill quantize -q --type f32 q.rill | rill prune -q --vocab tokens.rill -o other.rill --force
    rill quantize -q --type f32 vocab.rill -o same.rill --force
    check_exit 0 rill diff other.rill same.rill
    rill prune -q --sparsity 50% q.rill -o sparse.rill
    [ "$(types sparse.rill)" = "21 f32 1 q4_1" ]
}

@test "N of M stay, by weights or by Wanda, and the report says how sparse each matrix is" {
    rill prune -q --pattern 2:4 --method wanda --stats model.stats.rill --no-provenance -j 1 model.rill -o a.rill --report r.json
    rill prune -q --pattern 2:4 --method wanda --stats model.stats.rill --no-provenance -j 4 model.rill -o b.rill
    assert_same a.rill b.rill
    grep -q '"name":"layers.0.ffn.down.weight","weights":[0-9]*,"zeros":[0-9]*,"sparsity":0.5}' r.json
    run ! grep -q '"name":"embed.weight"' r.json
    rill prune -q --pattern 2:4 --no-provenance model.rill -o weights.rill
    check_exit 4 rill diff a.rill weights.rill
    rill prune -q --sparsity 0.5 --rate 'ffn_down=0' --rate 'layers.1.*=25%' model.rill -o c.rill --report r.json
    run ! grep -q '"name":"layers.0.ffn.down.weight"' r.json
    grep -q '"name":"layers.1.ffn.down.weight","weights":[0-9]*,"zeros":[0-9]*,"sparsity":0.25}' r.json
    # what is cut away first takes its statistics with it
    check_exit 0 rill prune -q --ffn 64 --sparsity 0.5 --method wanda --stats model.stats.rill model.rill -o d.rill
}

@test "patterns that rows do not divide into, and sparsities that are none, are refused" {
    check_exit 2 rill prune --pattern 3:7 model.rill -o no.rill
    assert_stderr_line "tensor 'layers.0.attn.q.weight': 7 does not divide its rows of 64, as 3:7 has to"
    check_exit 2 rill prune --pattern 0.5 model.rill -o no.rill
    assert_stderr_line "--pattern: '0.5' is not N:M, such as 2:4"
    check_exit 2 rill prune --pattern 4:4 model.rill -o no.rill
    check_exit 2 rill prune --pattern 2:4 --sparsity 0.5 model.rill -o no.rill
    check_exit 2 rill prune --rate attn model.rill -o no.rill
    assert_stderr_line "--rate: 'attn' is not REGEX=SPARSITY*"
    check_exit 2 rill prune --rate 'attn=1' model.rill -o no.rill
    check_exit 2 rill prune --rate '(=0.5' model.rill -o no.rill
    check_exit 2 rill prune --rate 'nothing=0.5' model.rill -o no.rill
    assert_stderr_line "*'nothing' matches no matrix of this model*"
    check_exit 2 rill prune --sparsity 0.5 --method wanda model.rill -o no.rill
    assert_stderr_line "--method wanda needs --stats or --data"
    rill prune -q --ffn 64 model.rill -o narrow.rill
    check_exit 3 rill prune --sparsity 0.5 --method wanda --stats model.stats.rill narrow.rill -o no.rill
    assert_no_file no.rill
}

@test "with data, layer by layer, and what cannot be is refused" {
    rill prune -q --sparsity 0.5 --method alps --reconstruct --data tokens.rill --precision f32 --no-provenance -j 1 model.rill -o a.rill --report r.json
    cat model.rill | rill prune -q --sparsity 0.5 --method alps --reconstruct --data tokens.rill --precision f32 --no-provenance -j 4 | cat >b.rill
    assert_same a.rill b.rill
    grep -q '"name":"layers.0.ffn.down.weight","weights":[0-9]*,"zeros":[0-9]*,"sparsity":0.5,"output_error":0' r.json
    # quantized tensors become f32
    check_exit 0 rill prune -q --sparsity 0.5 --method wanda --data tokens.rill model.q4.rill -o q.rill
    check_exit 0 rill ls q.rill
    [[ $out != *q8_0* ]]
    check_exit 2 rill prune --sparsity 0.5 --method sparsegpt model.rill -o no.rill
    assert_stderr_line "--method sparsegpt needs --data or --stats"
    check_exit 2 rill prune --sparsity 0.5 --ffn 64 --method alps --data tokens.rill model.rill -o no.rill
    check_exit 2 rill prune --sparsity 0.5 --method magnitude --data tokens.rill model.rill -o no.rill
    check_exit 2 rill prune --rate '^head|^embed=0.5' --method sparsegpt --data tokens.rill model.rill -o no.rill
    # fewer positions than inputs, and no damping
    check_exit 3 rill prune --sparsity 0.5 --method sparsegpt --damp 0 --max-tokens 8 --data tokens.rill model.rill -o no.rill
    assert_stderr_line "layer 0, attn_in: the Gram matrix does not factor*"
    rill import -q "$ROOT/tests/golden/tiny-llama" -o llama.rill
    rill tokenize -q -m llama.rill text.txt -o theirs.rill
    check_exit 3 rill prune --sparsity 0.5 --method sparsegpt --data theirs.rill model.rill -o no.rill
    assert_stderr_line "*disagree: vocabulary*"
    head -c 500 tokens.rill >cut.tok.rill
    check_exit 3 rill prune --sparsity 0.5 --method sparsegpt --data cut.tok.rill model.rill -o no.rill
    head -c 40000 model.rill >cut.rill
    check_exit 3 rill prune --sparsity 0.5 --method sparsegpt --data tokens.rill cut.rill -o no.rill
    assert_no_file no.rill
}

@test "sparsegpt and alps by second moments of the statistics, without data" {
    rill calibrate -q -m model.rill --precision f32 --moments tokens.rill -o m.stats.rill
    rill calibrate -q -m experts.rill --moments tokens.rill -o e.stats.rill
    for method in sparsegpt alps; do
        how="--sparsity 0.5 --method $method --no-provenance"
        # shellcheck disable=SC2086
        check_exit 0 rill prune -q $how --stats m.stats.rill -j 1 --report r.json model.rill -o a.rill --force
        # shellcheck disable=SC2086
        cat model.rill | rill prune -q $how --stats <(cat m.stats.rill) -j 4 | cat >b.rill
        assert_same a.rill b.rill
        [ "$(grep -o '"sparsity":0.5,"output_error":0\.' r.json | wc -l)" -eq 21 ] # seven matrices in each of three layers
        # in the first layer, the inputs are the same as with data, and so are the errors
        # shellcheck disable=SC2086
        rill prune -q $how --data tokens.rill --precision f32 --report d.json model.rill -o d.rill --force
        for json in r d; do grep -o '"name":"layers.0.attn.q.weight"[^}]*' $json.json | grep -o '"output_error":[^,}]*' | cut -d: -f2; done >errors.txt
        awk 'NR == 1 { a = $1 } NR == 2 { exit !(a < 1.02 * $1 && a > 0.98 * $1) }' errors.txt
        # shellcheck disable=SC2086
        check_exit 0 rill prune -q $how --stats rows.stats.rill model.rill -o rows.rill --force
        # shellcheck disable=SC2086
        check_exit 0 rill prune -q $how --stats m.stats.rill --layers 2 model.rill -o fewer.rill --force
        # shellcheck disable=SC2086
        check_exit 2 rill prune $how --stats m.stats.rill --sparsify-head model.rill -o no.rill
        assert_stderr "*tensor 'embed.weight' is the table of embeddings, too*"
        # shellcheck disable=SC2086
        check_exit 0 rill prune -q --pattern 2:4 --method $method --stats m.stats.rill model.rill -o pattern.rill --force
        # what the statistics do not have, and what would need others
        # shellcheck disable=SC2086
        check_exit 2 rill prune $how --stats model.stats.rill model.rill -o no.rill
        assert_stderr_line "this method needs --data (calibration tokens), or --stats with second moments (rill calibrate --moments)"
        # shellcheck disable=SC2086
        check_exit 2 rill prune $how --stats m.stats.rill --ffn 64 model.rill -o no.rill
        assert_stderr "*tensor 'layers.0.ffn.down.weight' loses inputs*"
        check_exit 2 rill prune --rate attn=rank:8 --method $method --stats m.stats.rill model.rill -o no.rill
        assert_stderr "*low-rank factors by what a matrix does to its inputs need --data*"
        check_exit 0 rill prune -q --experts 2 --rate attn=0.5 --method $method --stats e.stats.rill experts.rill -o e.rill --force
        # shellcheck disable=SC2086
        check_exit 3 rill prune $how --stats e.stats.rill experts.rill -o no.rill
        assert_stderr "*tensor 'layers.0.experts.0.gate.weight': the statistics have no second moments of its inputs*"
        check_exit 0 rill prune -q --rate attn=0.5 --method $method --stats e.stats.rill experts.rill -o e.rill --force
        # shellcheck disable=SC2086
        check_exit 3 rill prune $how --stats m.stats.rill student.rill -o no.rill
        assert_no_file no.rill
    done
}

@test "layers, heads and channels with data: what reads them is fitted" {
    how="--drop-layers 1 --ffn 64 --heads 2 --kv-heads 1 --reconstruct --data tokens.rill --precision f32 --no-provenance"
    # shellcheck disable=SC2086
    rill prune -q $how -j 1 model.rill -o a.rill --report r.json
    # shellcheck disable=SC2086
    cat model.rill | rill prune -q $how -j 4 | cat >b.rill
    assert_same a.rill b.rill
    grep -q '"name":"layers.1.ffn.down.weight","weights":4096,"zeros":0,"sparsity":0,"output_error":[0-9]' r.json
    check_exit 0 rill check a.rill
    # the plan of what is to go, edited, and then carried out with data
    rill prune -q --ffn 64 --heads 2 --dry-run model.rill -o plan.txt
    rill prune -q --ffn 64 --heads 2 --reconstruct --data tokens.rill --precision f32 --no-provenance model.rill -o c.rill
    rill prune -q --plan plan.txt --reconstruct --data tokens.rill --precision f32 --no-provenance model.rill -o d.rill
    assert_same c.rill d.rill
    check_exit 2 rill prune --ffn 64 --data tokens.rill model.rill -o no.rill
    check_exit 2 rill prune --ffn 64 --score cost model.rill -o no.rill
    assert_stderr_line "--score cost needs --reconstruct"
    check_exit 2 rill prune --ffn 64 --sparsity 0.5 --reconstruct --data tokens.rill model.rill -o no.rill
    assert_stderr_line "single weights cannot be pruned with --data together*"
    check_exit 2 rill prune --heads 3 --kv-heads 2 model.rill -o no.rill
    assert_stderr_line "layer 0: 3 query heads are no multiple of its 2 key/value heads"
    assert_no_file no.rill
}

@test "scores by gradients and by variance, and biases that compensate" {
    rill calibrate -q -m model.rill --precision f32 --gradients tokens.rill -o g.stats.rill
    check_exit 0 rill prune -q --ffn 64 --kv-heads 1 --score taylor --stats g.stats.rill model.rill -o t.rill
    check_exit 0 rill prune -q --ffn 64 --kv-heads 1 --score fluctuation --stats g.stats.rill model.rill -o f.rill
    check_exit 4 rill diff t.rill f.rill
    check_exit 2 rill prune --ffn 64 --score taylor --stats model.stats.rill model.rill -o no.rill
    assert_stderr_line "Taylor scores need statistics with gradients (rill calibrate --gradients)"
    check_exit 2 rill prune --ffn 64 --compensate --stats model.stats.rill model.rill -o no.rill
    assert_stderr_line "this * has no bias of ffn.down that could compensate for what goes"
    cat model.stats.rill g.stats.rill >both.rill
    check_exit 3 rill prune --ffn 64 --stats both.rill model.rill -o no.rill
    assert_stderr_line "*statistics with gradients and without cannot be added"
    assert_no_file no.rill
}

@test "layers by true divergence and by the angle of a run" {
    rill prune --layers 1 --layer-score divergence --data tokens.rill --precision f32 --no-provenance -j 1 model.rill -o a.rill 2>said
    rill prune -q --layers 1 --layer-score divergence --data tokens.rill --precision f32 --no-provenance -j 4 model.rill -o b.rill
    assert_same a.rill b.rill
    [ "$(grep -c 'without layer [0-9] too: divergence [0-9]' said)" = 2 ]
    rill prune -q --layers 1 --layer-score divergence --data tokens.rill --precision f32 --dry-run model.rill -o plan.txt
    [ "$(grep -c ^layer plan.txt)" = 1 ]
    check_exit 0 rill prune -q --layers 1 --layer-score divergence --data tokens.rill --reconstruct --ffn 64 model.rill -o c.rill
    check_exit 0 rill prune -q --layers 1 --layer-score angular --stats model.stats.rill model.rill -o d.rill
    check_exit_in 0 model.rill rill prune -q --no-provenance --layers 1 --layer-score divergence --data tokens.rill -o stdin.rill
    rill prune -q --no-provenance --layers 1 --layer-score divergence --data tokens.rill model.rill -o operand.rill
    assert_same stdin.rill operand.rill
    check_exit 2 sh -c 'cat model.rill | rill prune --layers 1 --layer-score divergence --data tokens.rill -o no.rill'
    assert_stderr_line "--layer-score divergence reads the model twice: give it as a file"
    check_exit 2 rill prune --layers 1 --layer-score divergence model.rill -o no.rill
    check_exit 2 rill prune --drop-layers 1 --layer-score angular --stats model.stats.rill model.rill -o no.rill
    assert_no_file no.rill
}

@test "a target is met by the shape that loses least, which the plan says" {
    rill calibrate -q -m model.rill --precision f32 --gradients tokens.rill -o g.stats.rill
    rill prune -q --target-params 70% --stats g.stats.rill --no-provenance model.rill -o a.rill --report r.json
    after="$(grep -o '"parameters_after":[0-9]*' r.json | cut -d: -f2)"
    before="$(grep -o '"parameters_before":[0-9]*' r.json | cut -d: -f2)"
    [ "$after" -le $((before * 7 / 10)) ]
    rill prune -q --target-params 70% --stats g.stats.rill --dry-run model.rill -o plan.txt
    rill prune -q --plan plan.txt --stats g.stats.rill --no-provenance model.rill -o b.rill
    assert_same a.rill b.rill
    check_exit 0 rill prune -q --target-speedup 1.3 --stats g.stats.rill --reconstruct --data tokens.rill model.rill -o c.rill
    check_exit 2 rill prune --target-params 1000 --stats g.stats.rill model.rill -o no.rill
    assert_stderr_line "no shape of this model is that small: the smallest has * parameters"
    check_exit 2 rill prune --target-params 70% --stats model.stats.rill model.rill -o no.rill
    assert_stderr_line "a target needs statistics with gradients (rill calibrate --gradients)"
    check_exit 2 rill prune --target-params 70% --ffn 64 --stats g.stats.rill model.rill -o no.rill
    assert_no_file no.rill
}

@test "a size in bytes, as the model is and as quantize makes it" {
    rill calibrate -q -m model.rill --precision f32 --gradients tokens.rill -o g.stats.rill
    # bytes FILE: of its tensors
    bytes() { rill ls --json "$1" | grep '"type":"tensor"' | sed 's/.*"bytes":\([0-9]*\).*/\1/' | awk '{ n += $1 } END { print n }'; }
    for type in "" q8_0; do
        if [ -n "$type" ]; then rill quantize -q --type $type model.rill -o as.rill; else cp model.rill as.rill; fi
        before="$(bytes as.rill)"
        rill prune -q --target-size $((before * 7 / 10)) ${type:+--target-type $type} --stats g.stats.rill model.rill -o small.rill --force
        if [ -n "$type" ]; then rill quantize -q --type $type small.rill -o small.as.rill --force; else cp small.rill small.as.rill; fi
        [ "$(bytes small.as.rill)" -le $((before * 7 / 10)) ]
        [ "$(bytes small.as.rill)" -ge $((before * 5 / 10)) ]
        rm as.rill
    done
    check_exit 2 sh -c 'cat model.rill | rill prune --target-size 100000 --stats g.stats.rill -o no.rill'
    assert_stderr_line "--target-size reads the model twice: give it as a file, or say --target-type"
    check_exit 0 sh -c 'cat model.rill | rill prune -q --target-size 100000 --target-type q8_0 --stats g.stats.rill -o piped.rill'
    check_exit 2 rill prune --target-size 100000 --target-type q9 --stats g.stats.rill model.rill -o no.rill
    assert_stderr_line "*q9*"
    check_exit 2 rill prune --target-size 10 --stats g.stats.rill model.rill -o no.rill
    assert_stderr_line "no shape of this model is that small: the smallest has * bytes"
    assert_no_file no.rill
}

@test "layers of their own shapes, which llama.cpp's format holds and transformers' does not" {
    rill calibrate -q -m model.rill --precision f32 --gradients tokens.rill -o g.stats.rill
    rill prune --target-params 75% --per-layer --stats g.stats.rill --no-provenance -j 1 model.rill -o a.rill 2>said
    grep -q "transformers will not load this, and export --to safetensors refuses it" said
    rill prune -q --target-params 75% --per-layer --stats g.stats.rill --no-provenance -j 4 model.rill -o b.rill
    assert_same a.rill b.rill
    rill prune -q --target-params 75% --per-layer --stats g.stats.rill --dry-run model.rill -o plan.txt
    [ "$(awk '$1 == "layer" { print $3, $4, $5 }' plan.txt | sort -u | wc -l)" -gt 1 ]
    rill prune -q --plan plan.txt --stats g.stats.rill --no-provenance model.rill -o c.rill
    assert_same a.rill c.rill
    check_exit 0 rill export -q --to gguf a.rill -o a.gguf
    check_exit 3 rill export --to safetensors a.rill -o a.hf
    check_exit 0 rill prune -q --target-speedup 1.3 --per-layer --stats g.stats.rill --reconstruct --data tokens.rill model.rill -o d.rill
}

@test "a student whose layers differ goes through every program" {
    # by hand: each layer with another width, the second with half of the heads
    rill prune -q --ffn 64 --dry-run model.rill -o plan.txt
    awk '$1 == "layer" { $5 = 32 + 16 * $2 } $1 == "layer" && $2 == 1 { $3 = 2; $4 = 1 } { print }' plan.txt >uneven.txt
    rill prune -q --plan uneven.txt model.rill -o a.rill
    rill prune -q --plan uneven.txt --dry-run model.rill -o again.txt
    [ "$(awk '$1 == "layer" { print $3, $4, $5 }' again.txt | tr '\n' ,)" = "4 2 32,2 1 48,4 2 64," ]
    rill teacher-infer -q --precision f32 --dtype f32 -m a.rill tokens.rill -o a.kd.rill
    check_exit 0 rill eval -q -m a.rill --precision f32 --reference a.kd.rill --table
    awk '$1 == "kld" { found = $2 < 1e-7 } END { exit !found }' <<<"$out"
    check_exit 0 rill eval -q -m a.rill --context 16 --table tokens.rill
    check_exit 0 rill generate -q -m a.rill --max-new 5 --text prompts.rill
    rill teacher-infer -q --precision f32 -m model.rill tokens.rill -o uneven.kd.rill
    check_exit 0 rill distill -q -m a.rill --steps 2 --batch-tokens 64 --precision f32 uneven.kd.rill -o uneven.student.rill
    check_exit 0 rill quantize -q --type q8_0 --method gptq --data tokens.rill uneven.student.rill -o uneven.q.rill
    check_exit 0 rill eval -q -m uneven.q.rill --context 16 --table tokens.rill
    check_exit 0 rill calibrate -q -m a.rill --precision f32 --gradients tokens.rill -o a.stats.rill
    check_exit 0 rill prune -q --ffn 16 --reconstruct --data tokens.rill a.rill -o even.rill
    check_exit 0 rill prune -q --hidden 48 --stats a.stats.rill --reconstruct --data tokens.rill a.rill -o narrow.rill
    check_exit 2 rill prune --target-params 90% --stats a.stats.rill a.rill -o no.rill
    assert_stderr_line "a target needs layers of one shape, but layer 1 differs from layer 0"
    # there and back
    rill export -q --to gguf a.rill -o a.gguf
    rill import -q a.gguf -o back.rill
    rill teacher-infer -q --precision f32 --dtype f32 -m back.rill tokens.rill | rill eval -q -m a.rill --precision f32 --reference - --table >same.txt
    awk '$1 == "kld" { found = $2 < 1e-7 } END { exit !found }' same.txt
    check_exit 3 rill export --to safetensors a.rill -o no.hf
    assert_stderr_line "layer 1 has 2 heads, 1 key/value heads*"
    assert_no_file no.hf
    assert_no_file no.rill
}

@test "candidates are judged by the divergence of what they become" {
    rill calibrate -q -m model.rill --precision f32 --gradients tokens.rill -o g.stats.rill
    tail -n +2 text.txt | rill tokenize -q -m model.rill --context 32 -o first.rill --report r.json # the shorter
    n="$(grep -o '"tokens":[0-9]*' r.json | head -1 | cut -d: -f2)"
    head -n 1 text.txt | rill tokenize -q -m model.rill --context 32 -o second.rill
    rill cat -q first.rill second.rill -o both.rill
    target="--target-params 70% --stats g.stats.rill --candidates 3 --data both.rill --search-tokens $n --precision f32"
    for how in "" --reconstruct --per-layer; do
        # shellcheck disable=SC2086
        rill prune --no-provenance $target $how -j 1 model.rill -o a.rill --report r.json --force 2>said
        # shellcheck disable=SC2086
        rill prune -q --no-provenance $target $how -j 4 model.rill -o b.rill --force
        assert_same a.rill b.rill
        if [ "$how" = --reconstruct ]; then # what is fitted to data is judged on other data
            # shellcheck disable=SC2086
            rill prune -q $target $how --dry-run model.rill -o plan.txt --force
            rill prune -q --plan plan.txt $how --stats g.stats.rill --precision f32 --data second.rill model.rill -o a.rill --force
        fi
        # what was said of the best is what eval says
        best="$(sed -n 's/^.*shape [0-9]*: .* divergence \([0-9.]*\)$/\1/p' said | sort -g | head -1)"
        rill teacher-infer -q --precision f32 -m model.rill first.rill | rill eval -q -m a.rill --precision f32 --reference - --table >kld.txt
        awk -v best="$best" '$1 == "kld" { found = $2 > best * 0.98 - 1e-5 && $2 < best * 1.02 + 1e-5 } END { exit !found }' kld.txt
    done
    printf once | rill tokenize -q -m model.rill -o one.rill
    check_exit 2 rill prune --target-params 70% --stats g.stats.rill --candidates 3 --reconstruct --data one.rill model.rill -o no.rill
    assert_stderr_line "--candidates with --reconstruct needs two sequences of --data at least"
    # shellcheck disable=SC2086
    check_exit 2 sh -c "cat model.rill | rill prune $target -o no.rill"
    assert_stderr_line "--candidates reads the model twice: give it as a file"
    assert_no_file no.rill
}

@test "a narrower residual stream, alone and after a rotation" {
    check_exit 0 rill prune -q --hidden 48 --stats model.stats.rill --no-provenance model.rill -o a.rill -j 1
    cat model.rill | rill prune -q --hidden 48 --stats model.stats.rill --no-provenance -j 4 >b.rill
    assert_same a.rill b.rill
    check_exit 0 rill generate -q -m a.rill --max-new 3 --text prompts.rill
    rill prune -q --hidden 48 --stats model.stats.rill --dry-run model.rill -o plan.txt
    grep -q '^hidden 48$' plan.txt
    rill prune -q --plan plan.txt --stats model.stats.rill --no-provenance model.rill -o b.rill --force
    assert_same a.rill b.rill
    check_exit 0 rill prune -q --hidden 75% --stats model.stats.rill --reconstruct --data tokens.rill --precision f32 model.rill -o c.rill
    check_exit 0 rill fold -q --method pca --data tokens.rill model.rill -o turned.rill
    rill calibrate -q -m turned.rill tokens.rill -o turned.stats.rill
    check_exit 0 rill prune -q --hidden 48 --stats turned.stats.rill --reconstruct --data tokens.rill turned.rill -o d.rill
    check_exit 0 rill ls d.rill
    assert_stdout "*head.weight*"
    check_exit 2 rill prune --hidden 48 --ffn 64 --stats model.stats.rill --reconstruct --data tokens.rill model.rill -o no.rill
    assert_stderr_line "--hidden cannot be combined with other pruning with --data: use a separate run"
    rill init -q --arch gpt2 --layers 1 --hidden 32 --heads 2 --ffn 64 model.rill -o gpt2.rill
    rill calibrate -q -m gpt2.rill tokens.rill -o gpt2.stats.rill
    check_exit 2 rill prune --hidden 16 --stats gpt2.stats.rill gpt2.rill -o no.rill
    assert_stderr_line "the residual stream of this model cannot be narrowed: its norms subtract the mean of all channels or have a bias"
    # bad LINE MESSAGE: in place of the plan's own
    bad() {
        grep -v '^hidden' plan.txt >bad.txt
        printf '%b\n' "$1" >>bad.txt
        check_exit 3 rill prune --plan bad.txt --stats model.stats.rill model.rill -o no.rill
        assert_stderr_line "bad.txt: line $2"
    }
    bad 'hidden 0' "*: hidden '0': no channel of the stream would be left"
    bad 'hidden' "*: hidden '': expected a number up to 64"
    bad 'hidden 65' "*: hidden '65': expected a number up to 64"
    bad 'hidden -1' "*: hidden '-1': expected a number up to 64"
    bad 'hidden 48 4' "*: '4' where the line should end"
    bad 'hidden 48\nhidden 40' "*: hidden is given twice"
    check_exit 2 rill prune --plan plan.txt model.rill -o no.rill
    assert_stderr_line "plan.txt: line *: choosing channels of the residual stream needs --stats (rill calibrate)"
    check_exit 2 sh -c 'cat model.rill | rill fold --method pca --data tokens.rill -o no.rill'
    assert_stderr_line "--method pca reads the model twice: give it as a file"
    assert_no_file no.rill
}

@test "a share is spread by outliers or by a search, as a plan that gives the same model" {
    zeros() { grep -o '"zeros":[0-9]*' "$1" | tail -1 | cut -d: -f2; }
    rill prune -q --sparsity 0.6 --no-provenance model.rill -o u.rill --report u.json
    rill prune --sparsity 0.6 --allocate owl --outlier 2 --stats model.stats.rill --no-provenance model.rill -o a.rill --report r.json 2>said
    grep -qE '^rill prune: by outliers: layers from 0\.[0-9]+ to 0\.[0-9]+$' said
    grep -q '"owl":{"outliers":\[0' r.json
    check_exit 4 rill diff u.rill a.rill
    # at most one weight of each of the 21 matrices is lost to rounding down
    [ $(($(zeros u.json) - $(zeros r.json))) -ge -21 ] && [ $(($(zeros u.json) - $(zeros r.json))) -le 21 ]
    rill prune -q --sparsity 0.6 --allocate owl --outlier 2 --stats model.stats.rill --dry-run model.rill -o owl.txt
    rill prune -q --plan owl.txt --no-provenance model.rill -o b.rill
    assert_same a.rill b.rill
    how="--sparsity 0.6 --allocate search --generations 3 --offspring 4 --data tokens.rill --precision f32 --no-provenance"
    # shellcheck disable=SC2086
    rill prune $how -j 1 --seed 5 --stats model.stats.rill --method wanda --outlier 2 model.rill -o a.rill --force --report s.json 2>said
    grep -qE 'uniform [0-9.]+, at its beginning [0-9.]+, found [0-9.]+ \([0-9]+ tried\)$' said
    # shellcheck disable=SC2086
    rill prune -q $how -j 4 --seed 5 --stats model.stats.rill --method wanda --outlier 2 model.rill -o b.rill --force
    assert_same a.rill b.rill
    # shellcheck disable=SC2086
    rill prune -q $how --seed 5 --dry-run model.rill -o search.txt
    # shellcheck disable=SC2086
    rill prune -q $how --seed 5 model.rill -o a.rill --force
    rill prune -q --plan search.txt --no-provenance model.rill -o b.rill --force
    assert_same a.rill b.rill
    # shellcheck disable=SC2086
    rill prune -q $how --seed 6 --dry-run model.rill -o other.txt
    run ! cmp search.txt other.txt
    # the plan of one method for another
    check_exit 0 rill prune -q --plan search.txt --method sparsegpt --data tokens.rill model.rill -o c.rill
    check_exit 2 rill prune --sparsity 0.6 --allocate owl model.rill -o no.rill
    assert_stderr_line "--allocate owl needs --stats"
    check_exit 2 rill prune --sparsity 0.6 --allocate search model.rill -o no.rill
    assert_stderr_line "--allocate search needs --data"
    check_exit 2 rill prune --sparsity 0.6 --allocate search --method sparsegpt --data tokens.rill model.rill -o no.rill
    assert_stderr_line "--allocate search needs --stats or --method magnitude"
    check_exit 0 rill prune -q --sparsity 0.6 --allocate search --generations 2 --offspring 2 --method sparsegpt --stats model.stats.rill \
        --data tokens.rill model.rill -o searched.rill
    check_exit 2 rill prune --pattern 2:4 --allocate owl --stats model.stats.rill model.rill -o no.rill
    check_exit 2 rill prune --sparsity 0.6 --ffn 64 --allocate owl --stats model.stats.rill model.rill -o no.rill
    for how in "owl --stats model.stats.rill" "search --data tokens.rill --generations 2 --offspring 2"; do
        # shellcheck disable=SC2086
        check_exit_in 0 model.rill rill prune -q --no-provenance --sparsity 0.6 --allocate $how -o stdin.rill --force
        # shellcheck disable=SC2086
        rill prune -q --no-provenance --sparsity 0.6 --allocate $how model.rill -o operand.rill --force
        assert_same stdin.rill operand.rill
    done
    check_exit 2 sh -c 'cat model.rill | rill prune --sparsity 0.6 --allocate owl --stats model.stats.rill -o no.rill'
    assert_stderr_line "--allocate owl reads the model twice: give it as a file"
    check_exit 2 sh -c 'cat model.rill | rill prune --sparsity 0.6 --allocate search --data tokens.rill -o no.rill'
    assert_stderr_line "--allocate search reads the model twice: give it as a file"
    rill prune -q --ffn 64 model.rill -o narrow.rill
    check_exit 3 rill prune --sparsity 0.6 --allocate owl --stats model.stats.rill narrow.rill -o no.rill
    assert_stderr_line "*disagree on the shape of layer 0"
    rill import -q "$ROOT/tests/golden/tiny-llama" -o llama.rill
    rill tokenize -q -m llama.rill text.txt -o theirs.rill
    check_exit 3 rill prune --sparsity 0.6 --allocate search --data theirs.rill model.rill -o no.rill
    assert_stderr_line "*disagree: vocabulary*"
    assert_no_file no.rill
}

@test "outliers and shares are those that PyTorch finds" {
    rill import -q --no-provenance "$ROOT/tests/golden/tiny-qwen2" -o m.rill
    rill tokenize -q -m m.rill --context 64 text.txt | rill calibrate -q -m m.rill --precision f32 -o s.rill
    rill prune -q --sparsity 0.6 --allocate owl --outlier 3 --stats s.rill m.rill -o p.rill --report r.json
    column() { grep -o "\"$1\":\[[^]]*" r.json | sed 's/.*\[//' | tr , '\n'; }
    paste -d' ' <(column outliers) <(column shares) "$ROOT/tests/golden/prune/owl.txt" >both
    [ "$(wc -l <both)" = 3 ]
    # no weight lies within rounding of the threshold
    awk '{ for (i = 1; i <= 2; i++) if (($i - $(i + 2))^2 > 1e-16) { print; exit 1 } }' both
}

@test "half the weights zero is about half the bytes, for every program" {
    rill quantize -q --type bf16 model.rill -o m.rill
    for how in "--sparsity 0.5" "--pattern 2:4"; do
        rill prune -q $how m.rill -o raw.rill --force
        rill prune -q $how --codec sparse m.rill -o small.rill --force
        check_exit 0 rill check small.rill
        check_exit 0 rill diff raw.rill small.rill
        check_exit 0 rill ls small.rill
        assert_stdout '*sparse  layers.0.ffn.down.weight*'
        size() { rill ls --json "$1" | grep -E 'layers.*(attn|ffn)\.[a-z]+\.weight' | sed 's/.*"stored":\([0-9]*\).*/\1/' | awk '{ n += $1 } END { print n }'; }
        [ "$(size small.rill)" -lt "$(($(size raw.rill) * 3 / 5))" ]
        rill cat -q --codec raw --no-provenance small.rill -o back.rill --force
        rill cat -q --codec raw --no-provenance raw.rill -o again.rill --force
        assert_same back.rill again.rill
        rill eval -q --context 16 -m small.rill tokens.rill | sed 's/,"model":.*//' >a
        rill eval -q --context 16 -m raw.rill tokens.rill | sed 's/,"model":.*//' >b
        grep -q '"perplexity":[1-9]' a
        assert_same a b
    done
    head -c 20000 small.rill >cut.rill
    check_exit 3 rill check cut.rill
    assert_stderr_line "cut.rill: truncated*"
}

@test "the plan prints, reads back and can be edited" {
    how="--layers 2 --ffn 64 --kv-heads 1 --rate attn=2:4 --rate ffn_down=0.25"
    # shellcheck disable=SC2086
    check_exit 0 rill prune -q $how --stats model.stats.rill --dry-run model.rill -o plan.txt
    grep -qE '^layer [0-9]+ +2 +1 +64 +0 +-$' plan.txt
    grep -qE '^layers\.[0-9]\.attn\.o\.weight +64x[0-9]+ +2:4$' plan.txt
    # shellcheck disable=SC2086
    rill prune -q $how --stats model.stats.rill --no-provenance model.rill -o a.rill
    rill prune -q --plan plan.txt --stats model.stats.rill --no-provenance model.rill -o b.rill
    assert_same a.rill b.rill
    rill prune -q --plan plan.txt --dry-run model.rill -o again.txt
    assert_same plan.txt again.txt
    rill prune -q --experts 3 --ffn 16 --rate experts=0.5 --stats experts.stats.rill --dry-run experts.rill -o e.txt
    rill prune -q --experts 3 --ffn 16 --rate experts=0.5 --stats experts.stats.rill --no-provenance experts.rill -o a.rill --force
    rill prune -q --plan e.txt --stats experts.stats.rill --no-provenance experts.rill -o b.rill --force
    assert_same a.rill b.rill
    # with data
    rill prune -q --sparsity 0.5 --dry-run model.rill -o s.txt
    sed 's/ 0\.5$/ 4:8/' s.txt >s8.txt
    rill prune -q --plan s8.txt --method sparsegpt --data tokens.rill --precision f32 --no-provenance model.rill -o a.rill --force
    rill prune -q --pattern 4:8 --method sparsegpt --data tokens.rill --precision f32 --no-provenance model.rill -o b.rill --force
    assert_same a.rill b.rill
    bad() {
        sed "$1" plan.txt >bad.txt
        check_exit 3 rill prune --plan bad.txt model.rill -o no.rill
        assert_stderr_line "bad.txt: $2"
    }
    bad '/^layer /d' "no layer stays: is it a plan?"
    bad '2s/layer [0-9]*/layer 9/' "line 2: layer '9': expected a number up to 2"
    bad '3s/layer [0-9]*/layer 0/' "line 3: layers are not in ascending order"
    bad '2s/ 64 / 640 /' "line 2: ffn '640': expected a number up to *"
    bad '2s/ 64 / 0 /' "line 2: layer *"
    bad '2s/-$/0,1/' "line 2: the layer has no experts"
    bad '5s/[0-9]*x[0-9]*/3x3/' "line 5: *the plan is for another model"
    bad '5s/2:4/4:2/' "line 5: '4:2' is not a sparsity*"
    bad '5s/2:4//' "line 5: *without a shape and a sparsity"
    bad '6s/.*/nothing 1x1 0.5/' "line 6: *"
    bad '5p' "line 6: *given twice"
    bad '2s/$/ 1/' "line 2: '1' where the line should end"
    bad '2s/ 2  *1 / 2 0 /' "line 2: layer *: expected heads, kv-heads*"
    bad '2s/ 2  *1 / 3 2 /' "line 2: layer *: 3 heads for 2 key/value heads: expected a multiple*"
    bad '2s/ 64 / 64x /' "line 2: ffn '64x': expected a number up to *"
    check_exit 2 rill prune --plan plan.txt --ffn 64 model.rill -o no.rill
    check_exit 2 rill prune --plan plan.txt --method sparsegpt --data tokens.rill model.rill -o no.rill
    check_exit 1 rill prune --plan none.txt model.rill -o no.rill
    assert_no_file no.rill
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
    assert_stderr_line "--layers needs --layer-score divergence or --stats"
    check_exit 2 rill prune --layers 1 --drop-layers 0 --stats model.stats.rill model.rill -o no.rill
    assert_stderr_line "--drop-layers has no effect with --layers"
    check_exit 2 rill prune --ffn 100000 model.rill -o no.rill
    assert_stderr_line "*cannot prune the feed-forward width of layer 0 to 100000*"
    check_exit 2 rill prune --sparsity 1.5 model.rill -o no.rill
    check_exit 2 rill prune --ffn 0% model.rill -o no.rill
    check_exit 2 rill prune --vocab
    check_exit 2 rill prune --ffn 64 --sparsify-head model.rill -o no.rill
    assert_stderr_line "--sparsify-head needs --sparsity*"
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

@test "--vocab-size keeps the most frequent tokens that fit" {
    tokens_of() { rill ls "$1" | sed -n 's/.*\[\([0-9]*\), .* embed.weight$/\1/p'; }
    rill prune -q --vocab tokens.rill --vocab-min-count 2 --no-provenance model.rill -o twice.rill
    check_exit 0 rill prune -q --vocab tokens.rill --vocab-size "$(tokens_of twice.rill)" --no-provenance model.rill -o a.rill
    assert_same a.rill twice.rill
    check_exit 0 rill prune -q --vocab tokens.rill --vocab-size 280 model.rill -o b.rill
    [ "$(tokens_of b.rill)" = 280 ]
    # as many as there are, with room for more; and not those that --vocab-min-count excludes
    rill prune -q --vocab tokens.rill --no-provenance model.rill -o all.rill
    check_exit 0 rill prune -q --vocab tokens.rill --vocab-size 400 --no-provenance model.rill -o c.rill
    assert_same c.rill all.rill
    check_exit 0 rill prune -q --vocab tokens.rill --vocab-size 280 --vocab-min-count 2 --no-provenance model.rill -o d.rill
    assert_same d.rill twice.rill
    check_exit 2 rill prune --vocab tokens.rill --vocab-size 100 model.rill -o no.rill
    assert_stderr_line "no vocabulary of 100 tokens: single bytes, special tokens and the most frequent one are 259"
    check_exit 2 rill prune --vocab padding --vocab-size 300 model.rill -o no.rill
    assert_stderr_line "--vocab-size has no effect with --vocab padding"
    assert_no_file no.rill
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

@test "the vocabulary goes first towards a target, and along with what is fitted to data" {
    rill calibrate -q -m model.rill --precision f32 --gradients tokens.rill -o g.stats.rill
    rill prune -q --vocab tokens.rill model.rill -o few.rill
    left="$(rill ls few.rill | awk '$1 == "all" { print $2 }')"
    # all that is to go is in the vocabulary: layers stay as they are
    rill prune -q --vocab tokens.rill --target-params "$left" --stats g.stats.rill --no-provenance model.rill -o a.rill
    rill prune -q --vocab tokens.rill --no-provenance model.rill -o b.rill
    assert_same a.rill b.rill
    for target in "--target-params $((left * 8 / 10))" "--target-size $((left * 4 * 8 / 10))"; do
        # shellcheck disable=SC2086
        rill prune -q --vocab tokens.rill $target --stats g.stats.rill --candidates 2 --data tokens.rill model.rill -o a.rill --force
        after="$(rill ls a.rill | awk '$1 == "all" { print $2 }')"
        [ "$after" -le $((left * 8 / 10)) ] && [ "$after" -gt $((left * 6 / 10)) ]
        check_exit 0 sh -c "rill tokenize -q -m a.rill --lines prompts.txt | rill generate -q -m a.rill --max-new 2 --text"
    done
    for how in "--ffn 64 --reconstruct" "--sparsity 0.5 --method sparsegpt" "--sparsity 0.3 --method svd --reconstruct"; do
        # shellcheck disable=SC2086
        rill prune -q --vocab tokens.rill $how --data tokens.rill --no-provenance model.rill -o a.rill --force
        # shellcheck disable=SC2086
        rill prune -q $how --data tokens.rill model.rill | rill prune -q --vocab tokens.rill --no-provenance -o b.rill --force
        check_exit 0 rill diff a.rill b.rill
    done
    check_exit 2 rill prune --vocab tokens.rill --hidden 48 --reconstruct --stats g.stats.rill --data tokens.rill model.rill -o no.rill
    assert_stderr_line "--hidden cannot be combined with other pruning with --data: use a separate run"
    assert_no_file no.rill
}

@test "a share is a number or a percentage" {
    check_exit 0 rill prune -q --no-provenance --sparsity 50% model.rill -o a.rill
    check_exit 0 rill prune -q --no-provenance --sparsity 0.5 model.rill -o b.rill
    assert_same a.rill b.rill
    check_exit 2 rill prune --sparsity 50%% model.rill -o no.rill
    assert_stderr_line "--sparsity: '50%%' is not a number or a percentage"
    check_exit 2 rill prune --sparsity 100% model.rill -o no.rill
    assert_stderr_line "--sparsity: 100% is outside of 0 to *"
    check_exit 2 rill prune --ffn 0.5 model.rill -o no.rill
    assert_stderr_line "--ffn: '0.5' is neither a whole number nor a percentage"
    check_exit 2 rill prune --layers 101% --stats model.stats.rill model.rill -o no.rill
    assert_stderr_line "--layers: '101%': expected more than 0% and at most 100%"
    assert_no_file no.rill
}

@test "what a share came to is said, and the report has the amount as it was written" {
    check_exit 0 rill prune --ffn 60% model.rill -o a.rill --report r.json
    assert_stderr "rill prune: 60% of 96 feed-forward channels: 64 stay, 66.7%"
    assert_json r.json ffn '"60%"'
}

@test "a shape that another program will not load is warned of, and refused by export" {
    rill init -q --layers 2 --hidden 64 --heads 4 --kv-heads 4 --ffn 1024 model.rill -o wide.rill
    check_exit 0 rill prune --kv-heads 3 wide.rill -o three.rill
    assert_stderr "rill prune: transformers will not load this, and export --to safetensors refuses it: hidden size 64 is not a multiple of 3 heads*"
    check_exit 3 rill export --to safetensors three.rill -o three
    assert_stderr_line "hidden size 64 is not a multiple of 3 heads, which transformers requires of a llama; GGUF can hold it (--to gguf)"
    assert_no_file three
    check_exit 0 rill export --to gguf three.rill -o three.gguf
    check_exit 0 rill prune --kv-heads 2 wide.rill -o two.rill
    check_exit 0 rill export --to safetensors two.rill -o two
    # rows that no block divides
    check_exit 0 rill prune --ffn 1000 wide.rill -o a.rill
    assert_stderr "rill prune: a feed-forward width of 1000 is not a multiple of 32: * f16, whatever the type (992 or 1024 would fit, for k-quants a multiple of 256)"
    check_exit 0 rill prune --ffn 512 wide.rill -o a.rill --force
    assert_stderr_line "* M parameters of *"
    check_exit 0 rill prune --ffn 60% wide.rill -o b.rill
    check_exit 0 rill ls b.rill
    assert_stdout '*\[512, 64\]*layers.0.ffn.gate.weight*'
}

@test "a pruned model does not go by the old name" {
    rill export --to gguf --name "Tiny 108K Chat" model.rill -o named.gguf
    rill import -q --no-provenance named.gguf -o named.rill
    rill prune -q --no-provenance --ffn 64 named.rill -o small.rill
    check_exit 0 rill show --meta small.rill
    assert_stdout '*pruned*'
    rill export --to gguf small.rill -o small.gguf
    grep -aq "general.finetune" small.gguf
    grep -aq "general.size_label" small.gguf
}

@test "low-rank factors: a plan of ranks, with data or without, and multiplied again" {
    check_exit 0 rill prune --dry-run --sparsity 0.5 --method svd --rate attn.k=0 model.rill -o plan.txt
    assert_stderr "*rill prune: transformers will not load this, and export --to safetensors refuses it: *low-rank factors*"
    grep -Eqx "layers.0.attn.q.weight +64x64  rank:16" plan.txt
    grep -Eqx "layers.2.ffn.down.weight +64x96  rank:19" plan.txt
    check_exit 1 grep attn.k plan.txt
    rill prune -q --no-provenance --sparsity 0.5 --method svd --rate attn.k=0 model.rill -o a.rill
    rill prune -q --no-provenance --plan plan.txt model.rill -o b.rill
    assert_same a.rill b.rill
    sed -i 's/rank:19/rank:23/' plan.txt
    check_exit 0 rill prune --plan plan.txt --method svd --data tokens.rill --report r.json model.rill -o c.rill
    assert_stderr "*, 18 matrices in low-rank factors"
    assert_json r.json rank 16
    check_exit 0 rill ls c.rill
    assert_stdout "*q_rank=16*gate_rank=23*up_rank=23*down_rank=23*\[23, 64\]*layers.0.ffn.gate.weight*\[96, 23\]*layers.0.ffn.gate.out.weight*"
    rill prune -q --merge c.rill -o whole.rill
    check_exit 0 rill ls whole.rill
    assert_stdout "*\[96, 64\]*layers.0.ffn.gate.weight*"
    check_exit 0 rill export -q --to gguf whole.rill -o whole.gguf
    for m in c whole; do
        rill eval -q --context 32 --precision f32 -m $m.rill --table tokens.rill | awk '$1 == "perplexity" { print $2 }' >$m.txt
    done
    paste c.txt whole.txt | awk 'NF == 2 && $1 < 1.02 * $2 && $2 < 1.02 * $1 { near = 1 } END { exit !near }' || fail "$(cat c.txt whole.txt)"
    # whitened by the data the outputs are nearer than by the weights alone, and the same with one and four threads
    for j in 1 4; do
        rill prune -q -j $j --no-provenance --sparsity 0.5 --method svd --data tokens.rill --precision f32 model.rill -o w$j.rill
    done
    assert_same w1.rill w4.rill
    rill teacher-infer -q --precision f32 -m model.rill tokens.rill -o teacher.kd.rill
    rill eval -q --context 32 --precision f32 -m w1.rill --reference teacher.kd.rill --table tokens.rill | awk '$1 == "kld" { print $2 }' >white.txt
    rill eval -q --context 32 --precision f32 -m factored.rill --reference teacher.kd.rill --table tokens.rill | awk '$1 == "kld" { print $2 }' >plain.txt
    paste white.txt plain.txt | awk 'NF == 2 && $1 < $2 { better = 1 } END { exit !better }' || fail "$(cat white.txt plain.txt)"
}

@test "low-rank factors: every program runs them, export and fold refuse them before any work" {
    check_exit 0 rill generate -q -m factored.rill --max-new 3 --text prompts.rill
    check_exit 0 rill teacher-infer -q --no-provenance -m factored.rill tokens.rill -o whole.kd.rill
    check_exit 0 rill teacher-infer -q --no-provenance --weights stream -m factored.rill tokens.rill -o streamed.kd.rill
    assert_same whole.kd.rill streamed.kd.rill
    for how in "" "--quantize q4_0" "--lora 4" "--optimizer muon"; do
        check_exit 0 rill distill -q -m factored.rill $how --steps 3 --batch-tokens 64 dense.kd.rill -o d.rill --force
    done
    check_exit 0 rill distill -q -m factored.rill --steps 3 --batch-tokens 64 dense.kd.rill -o d.rill --force
    check_exit 0 rill ls d.rill
    assert_stdout "*q_rank=16*"
    check_exit 4 rill diff factored.rill d.rill
    assert_stdout "*layers.0.attn.q.out.weight*"
    rill calibrate -q --precision f32 --gradients -m factored.rill tokens.rill -o f.stats.rill
    for how in "--stats f.stats.rill" "--method gptq --data tokens.rill" "--method learned --data tokens.rill"; do
        check_exit 0 rill quantize -q --type q4_0 $how factored.rill -o q.rill --force
        check_exit 0 rill eval -q --context 32 -m q.rill tokens.rill
    done
    for to in gguf safetensors; do
        check_exit 3 rill export --to $to factored.rill -o out
        assert_stderr_line "* knows no low-rank factors; multiply them first (rill prune --merge)"
    done
    check_exit 3 rill fold --method r1 factored.rill -o out
    assert_stderr_line "this model has low-rank factors, which fold does not rewrite; multiply them first (rill prune --merge)"
    assert_no_file out
    check_exit 0 rill prune -q --layers 2 --stats f.stats.rill factored.rill -o two.rill
    check_exit 0 rill prune -q --merge --ffn 64 --sparsity 0.2 factored.rill -o narrow.rill
    check_exit 0 rill prune -q --merge --rate ffn=rank:8 factored.rill -o again.rill
}

@test "low-rank factors that cannot be are refused" {
    cases=(
        "--sparsity 0.5 --method svd factored.rill|tensor 'layers.0.attn.q.weight' is a low-rank factor already"
        "--sparsity 0.5 --method sparsegpt --data tokens.rill factored.rill|tensor 'layers.0.attn.q.out.weight': nothing is known of its input, which this method needs"
        "--ffn 64 factored.rill|heads, channels and experts of a model with low-rank factors cannot be pruned; multiply them first (--merge)"
        "--merge model.rill|this model has no low-rank factors to multiply"
        "--sparsity 0.5 --method svd experts.rill|tensor 'layers.0.experts.0.gate.weight' cannot become low-rank factors"
        "--sparsity 0.5 --sparsify-head --method svd model.rill|tensor 'embed.weight' cannot become low-rank factors"
        "--pattern 2:4 --method svd model.rill|tensor 'layers.0.attn.q.weight': svd takes shares and ranks, not 2:4"
        "--rate attn.k=rank:33 model.rill|tensor 'layers.0.attn.k.weight': a rank of 33 for 32x64"
        "--rate attn.k=rank:0 model.rill|--rate: 'rank:0' is not a sparsity: *rank:64*"
        "--hidden 32 --stats model.stats.rill --rate attn.k=rank:8 model.rill|channels of the residual stream go in a run of their own, before matrices become low-rank factors"
        "--method svd --sparsity 0.5 --allocate search --stats model.stats.rill --data tokens.rill model.rill|--method *allocate*"
        "--merge --sparsity 0.5 --method svd --data tokens.rill factored.rill|--merge *"
    )
    for c in "${cases[@]}"; do
        check_exit 2 rill prune ${c%%|*} -o no.rill
        assert_stderr_line "${c#*|}"
    done
    printf 'layer 0 4 2 96 0 -\nlayer 1 4 2 96 0 -\nlayers.0.ffn.up.weight 96x64 rank:65\n' >plan.txt
    check_exit 2 rill prune --plan plan.txt model.rill -o no.rill
    assert_stderr_line "tensor 'layers.0.ffn.up.weight': a rank of 65 for 96x64"
    assert_no_file no.rill
}

@test "llama.cpp's importance matrix is enough for Wanda and outliers" {
    rill export --to imatrix model.stats.rill -o m.gguf
    for how in "--method wanda" "--method wanda --allocate owl" "--pattern 2:4 --method wanda" \
        "--method wanda --allocate search --data tokens.rill --precision f32 --generations 2 --offspring 2"; do
        share="--sparsity 0.5"
        [[ $how != --pattern* ]] || share=
        # shellcheck disable=SC2086
        check_exit 0 rill prune -q --no-provenance $share $how --stats model.stats.rill model.rill -o a.rill --force
        # shellcheck disable=SC2086
        check_exit 0 rill prune -q --no-provenance $share $how --stats m.gguf model.rill -o b.rill --force --report r.json
        # means in f32 instead of sums in f64: of weights that count the same but for rounding another may go
        check_exit 0 rill prune -q --no-provenance --sparsity 0.5 model.rill -o c.rill --force
        zeros() { rill export --to npy --tensor layers.0.ffn.down.weight "$1" | tail -c 24576 | od -An -v -tx4 -w4 | awk '{print ($1 == "00000000")}'; }
        assert_equal "$(paste <(zeros a.rill) <(zeros b.rill) | awk '{n += $1 != $2} END {print (n > 2)}')" 0
        [ "$(paste <(zeros a.rill) <(zeros c.rill) | awk '{n += $1 != $2} END {print n + 0}')" -gt 10 ]
    done
}

@test "what an importance matrix lacks is said" {
    rill export --to imatrix model.stats.rill -o m.gguf
    lacks() { # WHAT OPTION...
        check_exit 3 rill prune "${@:2}" --stats m.gguf model.rill -o no.rill || return 1
        assert_stderr_line "m.gguf: an importance matrix of llama.cpp has mean squares of inputs alone, not $1, which * needs: give statistics of rill calibrate"
    }
    lacks "how much each layer changes its input" --layers 1
    lacks "activations of each sequence" --ffn 64
    lacks "activations of each sequence" --ffn 64 --sparsity 0.5 --method wanda
    lacks "activations of each sequence" --hidden 32
    lacks "mean values" --ffn 64 --score fluctuation
    lacks "mean values" --ffn 64 --score weights --compensate
    lacks "gradients" --ffn 64 --score taylor
    lacks "gradients" --target-params 50%
    check_exit 0 rill prune -q --ffn 64 --score weights --sparsity 0.5 --method wanda --stats m.gguf model.rill -o both.rill
    rill export --to imatrix model.stats.rill | head -c 1000 >cut.gguf
    check_exit 3 rill prune --sparsity 0.5 --method wanda --stats cut.gguf model.rill -o no.rill
    assert_stderr_line "cut.gguf: *"
    rill import -q "$ROOT/tests/golden/tiny-llama" -o llama.rill
    check_exit 3 rill prune --sparsity 0.5 --method wanda --stats m.gguf llama.rill -o no.rill
    assert_no_file no.rill
}
