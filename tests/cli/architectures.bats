#!/usr/bin/env bats
# Every program on every architecture of the registry: the tiny models of tests/golden/arch with a tokenizer of letters. A cell of the
# matrix is ok, or refused with one line that says why; causal language models are refused nothing but what a target cannot hold.

load common

setup_file() {
    mkdir "$BATS_FILE_TMPDIR/letters"
    cp "$BATS_TEST_DIRNAME/letters.json" "$BATS_FILE_TMPDIR/letters/tokenizer.json"
    export TOKENIZER="$BATS_FILE_TMPDIR/letters/tokenizer.json"
}

# cell NAME CMD...: adds "NAME ok" or "NAME refused: ..." to the row; anything else fails.
cell() {
    local name=$1 code=0
    shift
    "$@" >out 2>err || code=$?
    if [ $code -eq 0 ]; then
        row+=" $name"
        return 0
    fi
    [[ $code -eq 2 || $code -eq 3 ]] && [ "$(grep -c '^rill' err)" -eq 1 ] || {
        echo "$arch: $name: exit $code: $(cat err)"
        return 1
    }
    refused+=" $name"
    echo "# $arch: $name refused: $(cat err)"
    return 0
}

# must NAME CMD...: a cell that may not be refused
must() {
    local before=$refused
    cell "$@" || return 1
    [ "$refused" = "$before" ] || { echo "$arch: $1 was refused: $(cat err)"; return 1; }
}

types="q8_0 q6_k q5_k q5_1 q5_0 q4_k_m q4_k q4_1 q4_0 f16 bf16 f32"

one_architecture() {
    local golden=$ROOT/tests/golden/arch/$arch wants=must has_ffn=must type
    row='' refused=''
    rill import -q --tokenizer "$TOKENIZER" "$golden" -o m.rill || return 1
    printf 'once upon a time, the end.\nthe hen and the fox ran on and on, and on.\n' >t.txt
    rill tokenize -q -m m.rill --lines t.txt -o tok.rill || return 1
    rill ls m.rill >/dev/null && rill check -q m.rill || return 1
    causal || wants=cell
    ! recurrent || has_ffn=cell
    must calibrate rill calibrate -q -m m.rill tok.rill -o stats.rill || return 1
    must layers rill prune -q --layers 50% --stats stats.rill m.rill -o layers.rill || return 1
    $has_ffn ffn rill prune -q --ffn 16 --stats stats.rill --score activations m.rill -o ffn.rill || return 1
    cell experts rill prune -q --experts 2 --stats stats.rill m.rill -o experts.rill || return 1
    $has_ffn kv-heads rill prune -q --kv-heads 1 m.rill -o heads.rill || return 1
    must vocab rill prune -q --vocab padding m.rill -o vocab.rill || return 1
    must sparsity rill prune -q --sparsity 50% m.rill -o sparse.rill || return 1
    for type in $types; do
        must "$type" rill quantize -q --type "$type" m.rill -o "$type.rill" || return 1
    done
    $wants teacher-infer rill teacher-infer -q -m m.rill --encode sample:20 tok.rill -o kd.rill || return 1
    $wants weights-stream rill teacher-infer -q -m m.rill --weights stream --encode sample:20 tok.rill -o kd2.rill || return 1
    if [ -e kd.rill ]; then
        # a stream remembers how it was made, so only the tensors are compared
        rill diff -q kd.rill kd2.rill || { echo "$arch: layer by layer gives other knowledge"; return 1; }
        for student in ffn layers heads experts; do
            [ -e $student.rill ] || continue
            $wants "distill-$student" rill distill -q -m $student.rill --steps 2 --epochs 2 --batch-tokens 40 kd.rill -o trained.$student.rill || return 1
        done
        [ -e ffn.rill ] || cp trained.layers.rill trained.ffn.rill
        [ -e heads.rill ] || cp trained.layers.rill trained.heads.rill
        $wants eval rill eval -q -m trained.ffn.rill --context 16 tok.rill || return 1
        $wants eval-reference rill eval -q -m trained.heads.rill --reference kd.rill || return 1
        $wants eval-q8_0 rill eval -q -m q8_0.rill --context 16 tok.rill || return 1
        $wants eval-int8 rill eval -q -m q4_0.rill --precision int8 --context 16 tok.rill || return 1
    fi
    $wants generate rill generate -q -m q8_0.rill --max-new 5 tok.rill --text || return 1
    must safetensors rill export -q --to safetensors m.rill -o hf || return 1
    must reload rill import -q hf -o again.rill || return 1
    rill diff -q m.rill again.rill || { echo "$arch: export and import changed it"; return 1; }
    [ ! -e experts.rill ] || must safetensors-experts rill export -q --to safetensors experts.rill -o hf.experts || return 1
    [ ! -e ffn.rill ] || must safetensors-ffn rill export -q --to safetensors ffn.rill -o hf.ffn || return 1
    cell gguf rill export -q --to gguf m.rill -o m.gguf || return 1
    if [ -e m.gguf ]; then
        must gguf-reload rill import -q m.gguf -o again.gguf.rill || return 1
        must gguf-q8_0 rill export -q --to gguf q8_0.rill -o q8_0.gguf || return 1
    fi
    echo "# $arch: ok:$row"
}

# Does it write text? The registry's encoders are bidirectional.
causal() { ! rill show --meta m.rill | grep -q '"bidirectional"'; }

# Has it layers without attention and feed-forward parts?
recurrent() { rill show --meta m.rill | grep -q '"layer": *"lstm"'; }

@test "every program works on every architecture, or says why not" {
    local folder
    for folder in "$ROOT"/tests/golden/arch/*/; do
        arch=$(basename "$folder")
        mkdir "$T/$arch" && cd "$T/$arch"
        one_architecture
        cd "$T"
    done
}

# What tests/reference/compare_pruned.py found: transformers loads neither.
@test "heads that transformers would make of another width are refused" {
    local name what
    for name in phi-norms phi3-longrope; do
        what='the norms of q and k of a phi'
        [ $name = phi-norms ] || what='the factors of longrope of a phi3'
        rill import -q --force --tokenizer "$TOKENIZER" "$ROOT/tests/golden/arch/$name" -o m.rill
        rill prune -q --force --kv-heads 1 m.rill -o heads.rill
        check_exit 3 rill export --to safetensors heads.rill -o hf
        assert_stderr_line "2 heads of 8 in a hidden size of 32: transformers makes $what as wide as the hidden size divided by the heads, 16"
        [ ! -e hf ]
    done
}

@test "the registry is printed, and each row has a model" {
    check_exit 0 rill help architectures
    local name
    while read -r name _; do
        [ -z "$name" ] && break
        ls -d "$ROOT/tests/golden/arch/$name"* >/dev/null
    done < <(printf '%s\n' "$out" | tail -n +2)
}

@test "init makes every architecture, and export and import keep it" {
    rill import -q --tokenizer "$TOKENIZER" "$ROOT/tests/golden/arch/llama" -o teacher.rill
    local name shape made=0
    for name in $(rill help architectures | awk 'NR > 1 && !NF { exit } NR > 1 { print $1 }'); do
        shape="--heads 4 --ffn 64"
        [ "$name" != bilstm ] || shape="--classes 3"
        rill init -q --force --arch "$name" --layers 2 --hidden 32 $shape --context 64 teacher.rill -o new.rill
        rill export -q --force --to safetensors new.rill -o "hf.$name"
        rill import -q --force "hf.$name" -o again.rill
        check_exit 0 rill diff -q new.rill again.rill
        made=$((made + 1))
    done
    [ $made -ge 25 ]
    check_exit 2 rill init --arch qwen2 --experts 4 --layers 2 --hidden 32 --heads 4 --ffn 64 teacher.rill
    assert_stderr_line '--experts has no effect with --arch qwen2, which has no experts*'
    check_exit 2 rill init --arch olmoe --experts-per-token 9 --layers 2 --hidden 32 --heads 4 --ffn 64 teacher.rill
    assert_stderr_line 'layer 0: a position takes 9 of 8 experts'
    check_exit 2 rill init --arch gpt2 --rope-theta 500 --layers 2 --hidden 32 --heads 4 --ffn 64 teacher.rill
    assert_stderr_line '--rope-theta has no effect with --arch gpt2*'
    check_exit 2 rill init --arch bilstm --layers 2 --hidden 32 teacher.rill
    assert_stderr_line '--classes N is required: the model that is read is not a classifier'
    check_exit 2 rill init --arch bilstm --layers 2 --hidden 33 --classes 2 teacher.rill
    assert_stderr_line 'a hidden size of 33 for LSTMs of two directions'
    local option
    for option in heads kv-heads head-dim ffn window rotary-dims norm-eps rope-theta experts; do
        check_exit 2 rill init --arch bilstm --layers 2 --hidden 32 --classes 2 --$option "$([ $option = norm-eps ] && echo 0.01 || echo 2)" teacher.rill
        assert_stderr_line "--$option has no effect with --arch bilstm, which has no *"
    done
    check_exit 2 rill init --arch bilstm --layers 2 --hidden 32 --classes 2 --untied teacher.rill
    assert_stderr_line '--untied has no effect with --arch bilstm, which has no output matrix but its classifier'
    check_exit 2 rill init --arch bilstm --layers 2 --hidden 32 --classes 2 --mup teacher.rill teacher.rill
    assert_stderr_line 'muP needs logits of the next token *'
    check_exit 2 rill init --embed 16 --layers 2 --hidden 32 --heads 4 --ffn 64 teacher.rill
    assert_stderr_line '--embed has no effect with --arch llama, which has embeddings of the hidden size'
    check_exit 2 rill init --classes 3 --layers 2 --hidden 32 --heads 4 --ffn 64 teacher.rill
    assert_stderr_line '--classes has no effect with --arch llama, *'
    check_exit 2 rill init --layers 2 --hidden 32 --ffn 64 teacher.rill
    assert_stderr_line '--heads N is required'
    check_exit 2 rill init --layers 2 --hidden 32 --heads 4 teacher.rill
    assert_stderr_line '--ffn N is required'
    check_exit 2 rill init --arch mamba --layers 2 --hidden 32 --heads 4 --ffn 64 teacher.rill
    assert_stderr_line "architecture 'mamba' is not supported (supported: llama, *"
}

@test "init copies the embedding of the model it reads" {
    rill import -q --tokenizer "$TOKENIZER" "$ROOT/tests/golden/arch/llama" -o teacher.rill
    rows() { rill show --tsv --tensor embed.weight "$1"; }
    rill init -q --arch bilstm --layers 1 --hidden 16 --classes 2 --copy-embed teacher.rill -o student.rill
    [ "$(rows student.rill)" = "$(rows teacher.rill)" ]
    rill quantize -q --type q8_0 teacher.rill -o small.rill
    rill init -q --layers 1 --hidden 32 --heads 2 --ffn 64 --copy-embed small.rill -o other.rill
    [ "$(rows other.rill)" = "$(rows small.rill)" ]
    check_exit 2 rill init --arch bilstm --layers 1 --hidden 16 --embed 16 --classes 2 --copy-embed teacher.rill -o no.rill
    assert_stderr_line '--copy-embed: embeddings of 32, and the new model has some of 16'
    check_exit 2 rill init --layers 1 --hidden 64 --heads 2 --ffn 64 --copy-embed teacher.rill -o no.rill
    assert_stderr_line '--copy-embed: embeddings of 32, and the new model has some of 64'
    rill ls teacher.rill >/dev/null
    head -c "$(($(stat -c %s teacher.rill) / 20))" teacher.rill >cut.rill
    check_exit 3 rill init --arch bilstm --layers 1 --hidden 16 --classes 2 --copy-embed cut.rill -o no.rill
    [ ! -e no.rill ]
}

@test "init gives layers windows, and rotates heads in part, as far as the architecture does" {
    rill import -q --tokenizer "$TOKENIZER" "$ROOT/tests/golden/arch/llama" -o teacher.rill
    local shape="--layers 6 --hidden 32 --heads 4 --ffn 64 --context 64"
    facts() { rill ls new.rill | head -1; }
    make() {
        rill init -q --force $shape "$@" teacher.rill -o new.rill
        rm -rf hf
        rill export -q --to safetensors new.rill -o hf
        rill import -q --force hf -o again.rill
        check_exit 0 rill diff -q new.rill again.rill
    }
    make --arch gemma3 --window 16
    [[ "$(facts)" == *"  window=5x16,0  layer_rope=5x1,0 "*"  local_rope.theta=10000 "* ]]
    make --arch gemma2 --window 16
    [[ "$(facts)" == *"  window=16,0,16,0,16,0 "* ]]
    make --arch gemma3 --window 16 --window-pattern 3
    [[ "$(facts)" == *"  window=2x16,0,2x16,0 "* ]]
    make --arch mistral --window 16
    [[ "$(facts)" == *"  window=16 "* ]]
    make --arch qwen2 --window 16 --window-pattern 2
    make --arch ministral --window 16 --window-pattern 4
    make --arch smollm3 --window 16 --window-pattern 2
    make --arch phi
    [[ "$(facts)" == *" dims=4 "* ]]
    make --arch gpt_neox
    [[ "$(facts)" == *" dims=2 "* ]]
    make --arch gpt_neox --rotary-dims 8
    [[ "$(facts)" != *" dims="* ]]
    make --arch phi3 --rotary-dims 6 --window 16
    [[ "$(facts)" == *" dims=6 "* ]]
    # what Rill computes and the architecture elsewhere does not is said, and refused by export
    check_exit 0 rill init --force $shape --rotary-dims 4 teacher.rill -o new.rill
    assert_stderr "*: transformers will not load this, and export --to safetensors refuses it: 4 of the 8 dimensions of a head are rotated, and a llama rotates all"
    assert_stderr "*: llama.cpp will not load this, *a llama rotates all"
    check_exit 0 rill init --force $shape --window 16 teacher.rill -o new.rill
    assert_stderr "*: transformers will not load this, *: layer 0 sees 16 positions only, and a llama of transformers has no such window"
    check_exit 0 rill init --force $shape --arch mistral --window 16 --window-pattern 2 teacher.rill -o new.rill
    assert_stderr "*: transformers will not load this, *: layer 1 has a window of 0 positions, layer 0 of 16 (0: all): a mistral has one for all"
    check_exit 2 rill init $shape --window-pattern 2 teacher.rill
    assert_stderr_line "--window-pattern needs --window"
    check_exit 2 rill init $shape --arch opt --rotary-dims 2 teacher.rill
    assert_stderr_line "--rotary-dims has no effect with --arch opt*"
    check_exit 2 rill init $shape --arch bert --window 16 teacher.rill
    assert_stderr_line "layer 0: a window of attention that is not causal"
    check_exit 2 rill init $shape --rotary-dims 3 teacher.rill
    check_exit 2 rill init $shape --rotary-dims 10 teacher.rill
    assert_stderr_line "10 of a head of 8 are to be rotated"
}

@test "a bilstm is refused by name what it has no place for" {
    rill import -q --tokenizer "$TOKENIZER" "$ROOT/tests/golden/arch/bilstm" -o m.rill
    printf 'once upon a time\t1\nthe end\t0\n' >t.tsv
    rill tokenize -q -m m.rill --lines --labels 2 t.tsv -o tok.rill
    rill teacher-infer -q -m m.rill tok.rill -o kd.rill
    refuses() {
        local says=$1
        shift
        check_exit 3 rill "$@"
        assert_stderr_line "$says"
    }
    check_exit 2 rill prune --drop-layers 0 m.rill -o no.rill
    assert_stderr_line 'cannot drop layer 0: it makes rows of 32 from rows of 24'
    check_exit 2 rill prune --ffn 8 m.rill -o no.rill
    assert_stderr_line 'no layer that stays has a feed-forward part'
    check_exit 2 rill prune --kv-heads 1 m.rill -o no.rill
    assert_stderr_line 'no layer that stays has attention'
    refuses 'the model is a classifier: its logits are of 3 classes, and not of tokens' generate -m m.rill tok.rill -o no.rill
    refuses 'architecture bilstm has no name in GGUF: llama.cpp does not know it' export --to gguf m.rill -o no.rill
    refuses '--tap q: layer 0 of this model has no such point' teacher-infer -m m.rill --tap q:all tok.rill -o no.rill
    refuses "a loss needs q of the student's layer 1, which has none" distill -m m.rill --steps 1 --loss minilm --teacher m.rill kd.rill -o no.rill
    check_exit 2 rill distill -m m.rill --steps 1 --lora '2:target=*.state.*' kd.rill -o no.rill
    assert_stderr_line '--lora: no matrix of a layer that is trained is called "\*.state.\*"'
    [ ! -e no.rill ]
    # what has a place: adapters of what the inputs add, hidden states and embeddings of a teacher
    rill distill -q -m m.rill --steps 1 --lora 2 kd.rill -o lora.rill
    rill distill -q -m m.rill --steps 1 --loss tinybert:attention=0 --teacher m.rill kd.rill -o tiny.rill
    rill prune -q --drop-layers 1 m.rill -o one.rill
    rill eval -q -m one.rill tok.rill >out
}

@test "an unknown architecture is named, with those that are known" {
    cp -r "$ROOT/tests/golden/arch/llama" hf
    sed -i 's/LlamaForCausalLM/MambaForCausalLM/; s/"model_type": "llama"/"model_type": "mamba"/' hf/config.json
    check_exit 3 rill import hf
    assert_stderr_line "hf: config.json: architecture 'MambaForCausalLM' is not supported (supported: LlamaForCausalLM*"
}

@test "an encoder is refused where logits of the next token are meant" {
    local model says
    for model in bert roberta-classes camembert-tags distilbert-answers distilbert-encoder; do
        case $model in
        bert) says='is a masked language model: its logits are of the token itself' ;;
        roberta-classes) says='is a classifier: its logits are of 3 classes' ;;
        camembert-tags) says='is a classifier: its logits are of 4 classes' ;;
        distilbert-answers) says='finds answers: its logits are of where one begins and ends' ;;
        *) says='has no head: it makes hidden states' ;;
        esac
        says="the model $says*"
        check_exit 0 rill import --force -q --tokenizer "$TOKENIZER" "$ROOT/tests/golden/arch/$model" -o m.rill
        echo 'once upon a time, the end.' >t.txt
        check_exit 0 rill tokenize --force -q -m m.rill --lines t.txt -o tok.rill
        check_exit 3 rill generate -m m.rill tok.rill
        assert_stderr_line "$says"
        # These teach, and learn from masked tokens and labels: labels.bats.
        case $model in
        bert | roberta-classes | camembert-tags)
            check_exit 3 rill distill -m m.rill --steps 2 tok.rill -o s.rill
            assert_stderr_line 'the data has no labels of the target "*'
            continue
            ;;
        esac
        check_exit 3 rill teacher-infer -m m.rill tok.rill -o kd.rill
        assert_stderr_line "$says"
        check_exit 3 rill teacher-infer -m m.rill --weights stream tok.rill -o kd.rill
        assert_stderr_line "$says"
        check_exit 3 rill eval -m m.rill --context 16 tok.rill
        assert_stderr_line "$says"
        check_exit 3 rill distill -m m.rill --steps 2 tok.rill -o s.rill
        assert_stderr_line "$says"
    done
}
