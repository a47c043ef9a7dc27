#!/usr/bin/env bats
# rill import: sources, options, messages.
load common

setup() {
    enter_temp
    cp -r "$ROOT/tests/golden/tiny-llama" hf
    cp "$ROOT/tests/golden/tiny-qwen2/model-f32.gguf" qwen.gguf
}

@test "a folder, its shards, its weights alone: the same bytes" {
    check_exit 0 rill import --no-provenance hf -o a.rill
    assert_quiet
    check_exit 0 rill import --no-provenance hf/sharded -o b.rill
    check_exit 0 rill import --no-provenance hf/model.safetensors -o c.rill
    check_exit 0 rill import --no-provenance hf/ -o d.rill
    assert_same a.rill b.rill
    assert_same a.rill c.rill
    assert_same a.rill d.rill
    (cd hf && check_exit 0 rill import --no-provenance model.safetensors -o ../e.rill && check_exit 0 rill import --no-provenance . -o ../f.rill)
    assert_same a.rill e.rill
    assert_same a.rill f.rill
}

@test "a GGUF may have any name" {
    check_exit 0 rill import --no-provenance qwen.gguf -o a.rill
    mv qwen.gguf weights
    check_exit 0 rill import --no-provenance weights -o b.rill
    assert_same a.rill b.rill
}

@test "--dtype stores every tensor in one type" {
    check_exit 0 rill import --no-provenance --dtype f32 hf -o f32.rill
    check_exit 0 rill import --no-provenance --dtype bf16 hf -o bf16.rill
    check_exit 0 rill import --no-provenance hf -o keep.rill
    assert_same bf16.rill keep.rill
    [ "$(file_size f32.rill)" -gt "$(file_size bf16.rill)" ]
    check_exit 2 rill import --dtype q8_0 hf
    assert_stderr_line "*--dtype*"
}

@test "the tokenizer can be left out, or be another" {
    check_exit 0 rill import --no-provenance hf -o with.rill
    check_exit 0 rill import --no-provenance --no-tokenizer hf -o without.rill
    [ "$(file_size with.rill)" -gt "$(file_size without.rill)" ]
    mkdir elsewhere && mv hf/tokenizer.json hf/tokenizer_config.json elsewhere/
    check_exit 0 rill import --no-provenance hf -o none.rill
    assert_stderr_line "warning: the model comes without a tokenizer: *"
    assert_same none.rill without.rill
    check_exit 0 rill import --no-provenance --tokenizer elsewhere/tokenizer.json hf -o again.rill
    assert_same again.rill with.rill
    check_exit 2 rill import --no-tokenizer --tokenizer elsewhere/tokenizer.json hf
    assert_stderr_line "--tokenizer has no effect with --no-tokenizer"
}

@test "a tokenizer that is not supported is named, and can be left out" {
    sed -i 's/"Isolated"/"Removed"/' hf/tokenizer.json
    check_exit 3 rill import hf
    assert_stderr_line "hf: tokenizer.json: pre_tokenizer: only a Split by a regex*"
    check_exit 0 rill import --no-tokenizer hf -o out.rill
    assert_quiet
    rm hf/tokenizer.json && touch hf/tekken.json
    check_exit 3 rill import hf
    assert_stderr_line "hf: a tokenizer in tekken.json is not supported (tokenizer.json is)"
}

@test "a SentencePiece model is read, written for others, and refused when it is cut or too large" {
    families=$ROOT/tests/golden/tokenizers/families
    rm -f hf/tokenizer.json hf/tokenizer_config.json
    zstd -dcq "$families/tiny.model.zst" >hf/tokenizer.model
    check_exit 0 rill import hf -o spm.rill
    printf '  Grüße, 数 🦙\t\n end' >text
    rill tokenize -q -m spm.rill text -o tokens.rill
    check_exit 0 rill tokenize --decode -m spm.rill tokens.rill -o back
    assert_same text back
    check_exit 0 rill export --to gguf spm.rill -o spm.gguf
    check_exit 0 rill import spm.gguf -o again.rill
    rill tokenize -q -m again.rill text -o again.tokens.rill
    check_exit 0 rill diff tokens.rill again.tokens.rill
    check_exit 0 rill export --to safetensors spm.rill -o folder
    check_exit 0 rill import folder -o folder.rill
    rill tokenize -q -m folder.rill text -o folder.tokens.rill
    check_exit 0 rill diff tokens.rill folder.tokens.rill

    zstd -dcq "$families/tiny.model.zst" | head -c 2000 >hf/tokenizer.model
    check_exit 3 rill import hf
    assert_stderr_line "hf: SentencePiece model: *or a cut one"
    zstd -dcq "$families/llama2.model.zst" >hf/tokenizer.model
    check_exit 3 rill import hf
    assert_stderr_line "hf: *1600 tokens*352*"
    printf '[UNK]\n[CLS]\na\n' >hf/vocab.txt && rm hf/tokenizer.model
    check_exit 3 rill import hf
    assert_stderr_line "hf: vocab.txt has no [[]SEP[]]"
    printf '[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\na\n##b\nc\n' >hf/vocab.txt
    check_exit 0 rill import hf -o bert.rill
    [ "$(printf 'Áb c [MASK]' | rill tokenize -q -m bert.rill | rill tokenize --decode -m bert.rill)" = "ab c [MASK] [SEP]" ]
}

# tokenizer_config.json with these members before its own
with_config() { sed "s/^{/{$1,/" "$ROOT/tests/golden/tiny-qwen2/tokenizer_config.json" >q/tokenizer_config.json; }
ids() { printf '%s' "$1" | rill tokenize -q -m q.rill | rill show --tsv --tensor tokens | tr '\t\n' '  '; }

@test "a token that only another file of the folder has is one id" {
    cp -r "$ROOT/tests/golden/tiny-qwen2" q
    tool='"344":{"content":"<tool_call>","special":false,"normalized":false}'
    with_config "\"added_tokens_decoder\":{$tool}"
    check_exit 0 rill import q -o q.rill
    assert_quiet
    assert_equal "$(ids 'a<tool_call>')" "64 344 " # transformers 5.24
    rill export -q --to safetensors q.rill -o out
    rill import -q --no-provenance out -o again.rill
    rill import -q --no-provenance q -o q.rill --force
    rill diff q.rill again.rill
    with_config "\"added_tokens_decoder\":{${tool/344/343}}"
    check_exit 3 rill import q
    assert_stderr_line "q: tokenizer_config.json says that token 343 is '<tool_call>', tokenizer.json says '<|im_start|>'"
    cp "$ROOT/tests/golden/tiny-qwen2/tokenizer_config.json" q
    echo '{"<tool_call>":344}' >q/added_tokens.json
    rill import -q q -o q.rill --force
    assert_equal "$(ids 'a<tool_call>')" "64 344 "
    echo '{"pad_token":"<pad>","additional_special_tokens":["<x>"]}' >q/special_tokens_map.json
    rill import -q q -o q.rill --force
    assert_equal "$(ids '<x><pad><tool_call>')" "346 345 344 "
    rm q/added_tokens.json
    rill import -q q -o q.rill --force
    assert_equal "$(ids '<x><pad>')" "345 344 "
}

@test "several ends: into the stream, into a folder and a GGUF and back" {
    cp -r "$ROOT/tests/golden/tiny-qwen2" q
    ends() { rill show --vocab "$1" | sed -n 's/^end \([0-9]*\) .*/\1/p' | tr '\n' ' '; }
    rill import -q q -o one.rill
    assert_equal "$(ends one.rill)" "342 "
    echo '{"eos_token_id":[350,301],"top_k":20}' >q/generation_config.json
    rill import -q q -o q.rill
    assert_equal "$(ends q.rill)" "301 342 350 "
    rill export -q --to safetensors q.rill -o out
    grep -q '"eos_token_id":\[342,301,350\]' <(tr -d ' \n\t' <out/generation_config.json)
    rill import -q out -o again.rill
    assert_equal "$(ends again.rill)" "301 342 350 "
    rill export -q --to gguf q.rill -o q.gguf
    rill import -q q.gguf -o again.rill --force
    assert_equal "$(ends again.rill)" "301 342 350 "
    rill export -q --to gguf one.rill -o one.gguf
    rill import -q one.gguf -o again.rill --force
    assert_equal "$(ends again.rill)" "342 "
    rill import -q qwen.gguf -o again.rill --force # of llama.cpp, which goes by the texts
    assert_equal "$(ends again.rill)" "341 342 "
    rm q/generation_config.json
    sed -i 's/"eos_token_id": *[0-9]*/"eos_token_id": [342, 7]/' q/config.json
    rill import -q q -o again.rill --force
    assert_equal "$(ends again.rill)" "7 342 "
    echo '{"eos_token_id":[352]}' >q/generation_config.json
    check_exit 3 rill import q
    assert_stderr_line 'q: generation_config.json: "eos_token_id" is not a token of the model'
}

@test "vocab.json and merges.txt are a tokenizer" {
    command -v python3 >/dev/null || skip "no python3 to take a tokenizer.json apart"
    cp -r "$ROOT/tests/golden/tiny-qwen2" q
    rill import -q --no-provenance q -o whole.rill
    python3 - <<'END'
import json
model = json.load(open("q/tokenizer.json"))
json.dump(model["model"]["vocab"], open("q/vocab.json", "w"))
pairs = [m if isinstance(m, str) else " ".join(m) for m in model["model"]["merges"]]
open("q/merges.txt", "w").write("#version: 0.2\n" + "".join(m + "\n" for m in pairs))
json.dump({t["content"]: t["id"] for t in model["added_tokens"]}, open("q/added_tokens.json", "w"))
json.dump({"additional_special_tokens": [t["content"] for t in model["added_tokens"]]},
          open("q/special_tokens_map.json", "w"))
END
    rm q/tokenizer.json
    rill import -q q -o q.rill
    assert_equal "$(rill show --vocab q.rill | grep -o 'identity.*')" "$(rill show --vocab whole.rill | grep -o 'identity.*')"
    rm q/merges.txt
    check_exit 3 rill import q
    assert_stderr_line "q: vocab.json without merges.txt (or a tokenizer.json) is not a tokenizer"
}

@test "messages name the file and the key" {
    sed -i 's/LlamaForCausalLM/MambaForCausalLM/' hf/config.json
    check_exit 3 rill import hf
    assert_stderr_line "hf: config.json: architecture 'MambaForCausalLM' is not supported (supported: LlamaForCausalLM, *"
    sed -i 's/MambaForCausalLM/LlamaForCausalLM/; s/"hidden_size": 64/"hidden_size": "64"/' hf/config.json
    check_exit 3 rill import hf
    assert_stderr_line "hf: config.json: json: key \"hidden_size\" is a string, expected a whole number"
    sed -i 's/"hidden_size": "64"/"hidden_size": 32/' hf/config.json
    check_exit 3 rill import hf
    assert_stderr_line "hf: tensor 'model.embed_tokens.weight' has shape \[352, 64\], expected \[352, 32\]"
    check_exit 1 rill import nowhere
    assert_stderr_line "nowhere: No such file or directory *"
    check_exit 3 rill import "$ROOT/LICENSE"
    assert_stderr_line "$ROOT/LICENSE: neither a GGUF file*"
}

@test "a configuration that contradicts itself is refused with both names" {
    cp hf/config.json whole.json
    sed 's/"rope_theta": 500000.0/"rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}/' whole.json >hf/config.json
    check_exit 3 rill import hf -o out.rill
    assert_stderr_line "hf: config.json: \"rope_scaling\" and \"rope_parameters\" disagree: rope type 'llama3' against 'default'"
    sed 's/"mlp_bias": false/"attention_multiplier": 0.5/' whole.json >hf/config.json
    check_exit 3 rill import hf -o out.rill
    assert_stderr_line "hf: config.json: \"attention_multiplier\": 0.5 is not supported"
    sed 's/"mlp_bias": false/"new_key": 1/' whole.json >hf/config.json
    check_exit 3 rill import hf -o out.rill
    assert_stderr_line "hf: config.json: \"new_key\" is not known, and may change what the model computes*"
    assert_no_file out.rill
}

@test "a head that was trained is kept, whatever the configuration says" {
    check_exit 0 rill import --no-provenance hf -o apart.rill
    sed -i 's/"tie_word_embeddings": false/"tie_word_embeddings": true/' hf/config.json
    check_exit 0 rill import --no-provenance hf -o said-tied.rill
    assert_stderr_line "config.json ties 'lm_head.weight' to the embedding, but the two differ: both are kept"
    assert_same apart.rill said-tied.rill
}

@test "a cut source leaves no stream" {
    cut_file qwen.gguf 100000 >cut.gguf
    check_exit 3 rill import cut.gguf -o out.rill
    assert_stderr_line "cut.gguf: tensor '*' needs * bytes at byte * of a file of 100000 bytes"
    assert_no_file out.rill
    cut_file hf/model.safetensors 100000 >t && mv t hf/model.safetensors
    check_exit 3 rill import hf -o out.rill
    assert_stderr_line "hf/model.safetensors: *"
    assert_no_file out.rill
    check_exit 3 bash -c 'rill import cut.gguf | cat >out.rill; exit ${PIPESTATUS[0]}'
    [ ! -s out.rill ]
}

@test "the source's digest is in the provenance" {
    check_exit 0 rill import qwen.gguf -o a.rill
    printf 'x' | dd of=qwen.gguf bs=1 seek=$(($(file_size qwen.gguf) - 2)) conv=notrunc status=none
    check_exit 0 rill import qwen.gguf -o b.rill
    a=$(grep -aoE '"digest":"xxh3:[0-9a-f]{32}"' a.rill | head -1)
    b=$(grep -aoE '"digest":"xxh3:[0-9a-f]{32}"' b.rill | head -1)
    [ -n "$a" ] && [ "$a" != "$b" ]
}

@test "what cannot be imported is told apart: not there, a stream already, a pickle, a cut GGUF" {
    check_exit 1 rill import HuggingFaceTB/SmolLM2-135M -o a.rill
    assert_stderr_line 'HuggingFaceTB/SmolLM2-135M: No such file or directory (models are read from local files: *)'
    rill import -q hf -o model.rill
    check_exit 3 rill import model.rill -o a.rill
    assert_stderr_line 'model.rill: this is a rill stream already: no import is needed'
    printf 'PK\003\004and so on' >pytorch_model.bin
    check_exit 3 rill import pytorch_model.bin -o a.rill
    assert_stderr_line 'pytorch_model.bin: this looks like a PyTorch checkpoint: convert it to safetensors first'
    head -c 3000 qwen.gguf >cut.gguf
    check_exit 3 rill import cut.gguf -o a.rill
    assert_stderr_line 'cut.gguf: key *a truncated file*'
    assert_no_file a.rill
}
