#!/usr/bin/env bats
# What programs say to people, on standard error and in tables: that it is there, and that it is true.
load common

setup_file() { make_inputs; }
setup() { enter_inputs; }

@test "prune says which layers went and how many zeros there are" {
    check_exit 0 rill prune --drop-layers 0,2 model.rill -o a.rill
    assert_stderr '*, 1 layer of 3 (without 0, 2)'
    check_exit 0 rill prune --drop-layers 1-2 model.rill -o a.rill --force
    assert_stderr '*, 1 layer of 3 (without 1-2)'
    check_exit 0 rill prune --sparsity 0.5 model.rill -o b.rill --report r.json
    assert_stderr "*, 3 layers of 3, $(grep -o '"counts":.*' r.json | grep -o '"parameters_before".*' | grep -o '"zeros":[0-9]*' | head -1 | cut -d: -f2) zeros in sparse matrices, 50.0% of their weights"
    n=$(for t in b.rill; do rill show --json --stats --tensor 'layers.*.weight' $t; done | grep -o '"zero":[0-9]*' | awk -F: '{ n += $2 } END { print n }')
    assert_stderr "*, $n zeros in sparse matrices*"
}

@test "calibrate ranks the layers by influence" {
    check_exit 0 rill calibrate -v -m model.rill --precision f32 tokens.rill -o s.rill --report r.json
    ranked=$(sed -n 's/.*: influence [0-9.]*: layer //p' <<<"$err" | xargs)
    sums=$(for i in 0 1 2; do echo "$i $(rill show --tsv --tensor layers.$i.influence s.rill)"; done | sort -k 2 -g | cut -d' ' -f1 | xargs)
    assert_equal "$ranked" "$sums"
    set -- $ranked
    assert_stderr "*positions; layers of least influence: $1 (*), $2 (*), $3 (*)"
    # the first of them is the one that prune takes
    check_exit 0 rill prune --layers 2 --stats s.rill model.rill -o a.rill
    assert_stderr "* (without $1)"
    grep -q '"influence":\[[0-9.e-]*,[0-9.e-]*,[0-9.e-]*\]' r.json
}

@test "quantize -v has the error of each layer" {
    check_exit 0 rill quantize -v --type q4_0 --pure model.rill -o a.rill
    for i in 0 1 2; do assert_stderr "rill quantize: layer $i: relative error 0.08[0-9]*, 4.[0-9]* bits per weight"; done
    assert_stderr "rill quantize: outside layers: relative error 0.0[0-9]*, 4.[0-9]* bits per weight"
    bits=$(rill ls --json a.rill | grep '"name":"layers.1' | sed -nE 's/.*"shape":\[([0-9]+),?([0-9]*)\].*"bytes":([0-9]+).*/\1 \2 \3/p' |
        awk '{ n += NF == 3 ? $1 * $2 : $1; b += $NF } END { printf "%.3f", 8 * b / n }')
    assert_stderr "*layer 1: *, $bits bits per weight"
    check_exit 0 rill quantize --type q4_0 --pure model.rill -o b.rill
    [[ $err != *"layer 1"* ]]
}

@test "distill ends with a line of losses, speed and the held-out values" {
    check_exit 0 rill distill -m student.rill --steps 2 --batch-tokens 64 --loss kl --loss ce --eval corpus.kd.rill --eval-every 2 corpus.kd.rill -o a.rill --report r.json
    assert_stderr 'rill distill: 2 steps, [0-9]* tokens: loss [0-9.]* (*, ce [0-9.]*), [0-9]* tokens/s; held-out *ce [0-9.]* after step 2'
    loss=$(grep -o '"loss":[0-9.]*' r.json | tail -1 | cut -d: -f2)
    assert_stderr "* tokens: loss $(printf %.4f "$loss") *"
    check_exit 0 rill distill -m student.rill --steps 1 --batch-tokens 64 corpus.kd.rill -o b.rill
    assert_stderr 'rill distill: 1 step, * tokens/s'
}

@test "eval says what model it was, and the table leaves percentiles to -v" {
    rill quantize -q --type q8_0 model.rill -o q.rill
    rill eval -q -m q.rill --context 16 --reference dense.kd.rill tokens.rill >e.json
    digest=$(rill ls q.rill | tail -1 | grep -o 'xxh3:.*')
    bytes=$(rill ls q.rill | tail -1 | grep -o '[0-9]* bytes of data' | cut -d' ' -f1)
    bits=$(rill ls q.rill | awk '$1 == "all" { print $NF }')
    while read -r line; do
        echo "$line" >line
        assert_json line model '"q.rill"'
        assert_json line model_digest "\"$digest\""
        assert_json line model_bytes "$bytes"
        assert_equal "$(grep -o '"bits_per_weight":[0-9.]*' line | cut -d: -f2 | xargs printf %.3f)" "$bits"
    done <e.json
    assert_equal "$(wc -l <e.json)" 2
    assert_json e.json kld_99.9 ''
    rill eval -q -m q.rill --context 16 --reference dense.kd.rill --table tokens.rill >t.txt
    grep -q '^bits_per_weight ' t.txt
    run ! grep -E '^(kld_|delta_p_)(max|99|median|min)|^model_digest' t.txt
    rill eval -v -m q.rill --context 16 --reference dense.kd.rill --table tokens.rill >v.txt 2>/dev/null
    grep -q '^kld_99.9 ' v.txt
    grep -q "^model_digest *$digest" v.txt
    assert_equal "$(grep -vE '^(kld|delta_p)_(max|99.9|99|95|90|median|10|5|1|0.1|min) |^model_digest' v.txt | tr -s ' ')" "$(tr -s ' ' <t.txt)"
}

@test "the model where it is not looked for: operand or -m" {
    check_exit 2 rill prune -m model.rill --ffn 32
    assert_stderr_line 'unknown option -m: the model is the operand here, or standard input (rill prune \[MODEL\])'
    check_exit 2 rill quantize --model model.rill --type q8_0
    assert_stderr_line 'unknown option --model: the model is the operand here, or standard input (rill quantize \[MODEL\])'
    check_exit 2 rill eval model.rill tokens.rill
    assert_stderr_line '--model FILE is required: it is not an operand here (rill eval -m FILE \[TOKENS\])'
    check_exit 3 rill eval -m tokens.rill tokens.rill
    assert_stderr_line 'tokens.rill: this is a tokens stream, expected a model stream'
    check_exit 3 rill calibrate -m model.rill model.rill
    assert_stderr_line 'model.rill: this is a model stream, expected tokens or knowledge'
}

# refused CODE MESSAGE COMMAND...: the one line that a command is refused with
refused() {
    local code=$1 message=$2
    shift 2
    check_exit "$code" rill "$@"
    assert_stderr_line "$message"
}

@test "names of other tools are answered with ours" {
    refused 2 'unknown option --ctx-size (here it is --context)' eval -m model.rill --ctx-size 16 tokens.rill
    refused 2 'unknown option -t (here it is --threads)' eval -m model.rill -t 2 tokens.rill
    refused 2 'unknown option --kl-divergence (here it is --reference)' eval -m model.rill --kl-divergence dense.kd.rill
    refused 2 'unknown option -f (text is tokenized first: rill tokenize *)' eval -m model.rill -f text.txt
    refused 2 'unknown option --max_new_tokens (here it is --max-new)' generate -m model.rill --max_new_tokens 5 tokens.rill
    refused 2 'unknown option --top_k (here it is --top-k)' generate -m model.rill --top_k 5 tokens.rill
    refused 2 'unknown option -p (prompts are a token stream: *)' generate -m model.rill -p hello
    refused 2 'unknown option --imatrix (here it is --stats)' quantize --imatrix i.gguf --type q4_0 model.rill
    refused 2 'unknown option --learning-rate (here it is --lr)' distill -m student.rill --learning-rate 1e-4 tokens.rill
    refused 2 'unknown option --per_device_train_batch_size=8 (here it is --batch-tokens)' distill -m student.rill --per_device_train_batch_size=8 tokens.rill
    refused 2 'unknown option -m: the model is the operand here (rill import PATH)' import -m model.gguf
    refused 2 "there is no program 'perplexity' (here it is rill eval)" perplexity model.rill
    refused 2 "--method: 'awq' is not one of *|* (AWQ is a step of its own before: rill fold --method awq)" quantize --method awq --type q4_0 model.rill
    refused 2 "--to: 'hf' is not one of *|* (did you mean safetensors?)" export --to hf model.rill
    refused 2 "unknown type 'Q4KM' (did you mean q4_k_m?)" quantize --type Q4KM model.rill
    refused 2 "unknown type 'int8' (did you mean q8_0?)" quantize --type int8 model.rill
    refused 2 "unknown type 'q4k9' (known: q8_0, *)" quantize --type q4k9 model.rill
}

# What a hint names is an option of at least one program, and what it answers is none of the program's own.
@test "no hint names an option that is nowhere" {
    for ours in $(sed -n 's/^    {"[^"]*", {\(.*\)}},$/\1/p' "$ROOT/lib/cli/hints.c" | tr -d '",'); do
        for p in "$RILL_BIN"/rill-*; do "$p" --help-options 2>/dev/null; done | grep -qE -- "(^|[ -])--$ours( |$)" || fail "--$ours"
    done
}

@test "a percentage, a folder, the output as an operand: what was meant is said" {
    refused 2 '--sparsity: 50 is outside of 0 to 0.999999 (did you mean 50%?)' prune --sparsity 50 model.rill
    refused 2 '--sparsity: 1e9 is outside of 0 to 0.999999' prune --sparsity 1e9 model.rill
    refused 2 "unexpected operand 'out.rill' (the output is named with -o)" quantize --type q8_0 model.rill out.rill
    echo 'once upon a time' >corpus.txt
    mkdir hf && echo '{}' >hf/config.json
    refused 1 'hf is a folder, expected a file (rill import makes a model stream of it)' tokenize -m hf corpus.txt
    refused 1 'hf is a folder, expected a file (rill import makes a model stream of it)' export --to gguf hf -o a.gguf
    refused 3 'corpus.txt: not a rill stream (starts with *; if it is text, rill tokenize makes tokens of it)' eval -m model.rill corpus.txt
    assert_no_file a.gguf
}
