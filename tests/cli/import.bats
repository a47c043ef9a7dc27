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
    rm hf/tokenizer.json && touch hf/tokenizer.model
    check_exit 3 rill import hf
    assert_stderr_line "hf: a tokenizer in tokenizer.model is not supported (tokenizer.json is)"
}

@test "messages name the file and the key" {
    sed -i 's/LlamaForCausalLM/GemmaForCausalLM/' hf/config.json
    check_exit 3 rill import hf
    assert_stderr_line "hf: config.json: architecture 'GemmaForCausalLM' is not supported (LlamaForCausalLM and *"
    sed -i 's/GemmaForCausalLM/LlamaForCausalLM/; s/"hidden_size": 64/"hidden_size": "64"/' hf/config.json
    check_exit 3 rill import hf
    assert_stderr_line "hf: config.json: json: key \"hidden_size\" is a string, expected a whole number"
    sed -i 's/"hidden_size": "64"/"hidden_size": 32/' hf/config.json
    check_exit 3 rill import hf
    assert_stderr_line "hf: tensor 'model.embed_tokens.weight' has shape \[352, 64\], expected \[352, 32\]"
    check_exit 1 rill import nowhere
    assert_stderr_line "nowhere: No such file or directory"
    check_exit 3 rill import "$ROOT/LICENSE"
    assert_stderr_line "$ROOT/LICENSE: not a GGUF file*"
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
