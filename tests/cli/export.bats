#!/usr/bin/env bats
# rill export: formats, standard input, folders, messages.
load common

setup() {
    enter_temp
    rill import -q --no-provenance "$ROOT/tests/golden/tiny-llama" -o model.rill
}

@test "GGUF: file, pipe and redirection give the same bytes" {
    check_exit 0 rill export --to gguf model.rill -o a.gguf
    assert_quiet
    check_exit 0 bash -c 'cat model.rill | rill export --to gguf >b.gguf'
    check_exit 0 bash -c 'rill export --to gguf <model.rill | cat >c.gguf'
    assert_same a.gguf b.gguf
    assert_same a.gguf c.gguf
    check_exit 0 rill import --no-provenance a.gguf -o back.rill
    check_exit 0 rill export --to gguf back.rill -o d.gguf
    assert_same a.gguf d.gguf
}

@test "a compressed stream and one with provenance export the same" {
    check_exit 0 rill export --to gguf model.rill -o a.gguf
    check_exit 0 rill import --codec planes "$ROOT/tests/golden/tiny-llama" -o packed.rill
    check_exit 0 rill export --to gguf packed.rill -o b.gguf
    assert_same a.gguf b.gguf
}

@test "--name is the model's name in the GGUF" {
    check_exit 0 rill export --to gguf --name "A Name" model.rill -o a.gguf
    grep -aq "A Name" a.gguf
    check_exit 0 rill import --no-provenance a.gguf -o b.rill
    assert_json b.rill general '{"name":"A Name"}'
}

@test "a folder there and back" {
    check_exit 0 rill export --to safetensors model.rill -o out
    assert_quiet
    check_exit 0 rill import --no-provenance out -o back.rill
    assert_same model.rill back.rill
    for f in config.json generation_config.json model.safetensors tokenizer.json tokenizer_config.json; do [ -s "out/$f" ]; done
    check_exit_in 0 model.rill rill export --to safetensors --dtype f16 -o half/
    assert_json half/config.json torch_dtype '"float16"'
}

@test "a folder that exists is kept, --force or not" {
    mkdir there && echo mine >there/file
    check_exit 2 rill export --to safetensors model.rill -o there
    assert_stderr_line "there exists (a folder is not replaced: remove it, or name another)"
    check_exit 2 rill export --to safetensors --force model.rill -o there
    assert_equal "$(cat there/file)" mine
    assert_no_file there.nothing
    [ "$(ls)" = "$(printf 'model.rill\nthere')" ]
}

@test "npy: one tensor, and all" {
    check_exit 0 bash -c 'rill export --to npy --tensor norm.weight model.rill >norm.npy'
    [ "$(head -c 6 norm.npy | tail -c 5)" = NUMPY ]
    [ "$(file_size norm.npy)" -eq $((128 + 64 * 4)) ]
    check_exit 0 rill export --to npy model.rill -o all
    assert_same all/norm.weight.npy norm.npy
    assert_equal "$(ls all | wc -l)" 21
    check_exit 2 rill export --to npy --tensor none model.rill
    assert_stderr_line "no tensor 'none'*"
}

@test "layers that differ: GGUF says deci, a folder is refused" {
    check_exit 0 rill import -q --no-provenance "$ROOT/tests/fuzz/corpus/gguf/deci.gguf" -o deci.rill
    check_exit 0 rill export --to gguf deci.rill -o deci.gguf
    check_exit 0 rill import --no-provenance deci.gguf -o back.rill
    assert_same deci.rill back.rill
    check_exit 3 rill export --to safetensors deci.rill -o out
    assert_stderr_line "layer 1 has 1 heads, * Hugging Face's config.json cannot express that, GGUF can (--to gguf)"
    assert_no_file out
}

@test "options that do not go together" {
    check_exit 2 rill export --to gguf --dtype f16 model.rill
    assert_stderr_line "--dtype needs --to safetensors"
    check_exit 2 rill export --to gguf --tensor norm.weight model.rill
    assert_stderr_line "--tensor needs --to npy"
    check_exit 2 rill export --to npy --name x model.rill
    assert_stderr_line "--name needs --to gguf"
    check_exit 2 rill export --to safetensors model.rill
    assert_stderr_line "--to safetensors writes a folder: name it with -o"
    check_exit 2 rill export --to npy model.rill
    assert_stderr_line "--to npy writes a folder: name it with -o"
    check_exit 2 rill export model.rill
}

@test "a cut model leaves nothing" {
    cut_file model.rill 200000 >cut.rill
    for to in gguf safetensors npy; do
        check_exit 3 rill export --to $to cut.rill -o out
        assert_no_file out
        check_exit_in 3 cut.rill rill export --to $to -o out
        check_exit 3 bash -c "cat cut.rill | rill export --to $to -o out"
        assert_no_file out
    done
    flip_byte model.rill 150000
    for to in gguf safetensors npy; do
        check_exit 3 rill export --to $to model.rill -o out
        assert_no_file out
    done
}

@test "the temporary copy of a pipe goes to TMPDIR, and a missing one is an error" {
    check_exit 1 bash -c 'cat model.rill | TMPDIR=/nonexistent rill export --to gguf >a.gguf'
    assert_stderr_line "/nonexistent: cannot create a temporary file (TMPDIR): No such file or directory"
    mkdir tmp
    check_exit 0 bash -c 'cat model.rill | TMPDIR=$PWD/tmp rill export --to gguf >a.gguf'
    [ -z "$(ls tmp)" ]
}
