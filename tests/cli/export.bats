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

hex() { printf %s "$1" | od -An -v -tx1 | tr -d ' \n'; }

@test "GGUF in parts: each as large as may be, and the same model" {
    check_exit 0 rill export --to gguf model.rill -o whole.gguf
    check_exit 0 rill import --no-provenance whole.gguf -o whole.rill
    check_exit 0 rill export --to gguf --split-size 40K model.rill -o parts
    assert_quiet
    assert_equal "$(ls parts | tr '\n' ' ')" "$(printf 'model-0000%d-of-00007.gguf ' 1 2 3 4 5 6 7)"
    check_exit 0 rill import --no-provenance parts/model-00001-of-00007.gguf -o back.rill
    assert_same whole.rill back.rill
    check_exit_in 0 model.rill rill export --to gguf --split-size 40960 -o again
    diff -r parts again
    # llama.cpp insists on the types: u16 (2) for split.no and split.count, i32 (5) for split.tensors.count (with the factors, 22)
    for i in 1 2 3 4 5 6 7; do
        want="$(hex split.no)02000000$(printf '%02x00' $((i - 1)))"
        want+="0b00000000000000$(hex split.count)020000000700"
        want+="1300000000000000$(hex split.tensors.count)0500000016000000"
        od -An -v -tx1 "parts/model-0000$i-of-00007.gguf" | tr -d ' \n' | grep -qF "$want"
        # beside its three keys a part after the first has none of the model's
        n=$(od -An -tu8 -j 16 -N 8 "parts/model-0000$i-of-00007.gguf" | tr -d ' ')
        if [ "$i" -eq 1 ]; then [ "$n" -gt 20 ]; else [ "$n" -eq 3 ]; fi
    done
    # a tensor of 44 KiB is larger than that, and alone; what fits in one part is one
    [ "$(od -An -tu8 -j 8 -N 8 parts/model-00007-of-00007.gguf | tr -d ' ')" -eq 1 ]
    check_exit 0 rill export --to gguf --split-size 1G model.rill -o one
    assert_equal "$(ls one)" model-00001-of-00001.gguf
    check_exit 0 rill import --no-provenance one/model-00001-of-00001.gguf -o back.rill --force
    assert_same whole.rill back.rill
    # the smallest: each tensor alone, the factors of the rotation with the first
    check_exit 0 rill export --to gguf --split-size 1 model.rill -o single
    assert_equal "$(ls single | wc -l)" 21
}

@test "GGUF in parts: what is asked wrongly, or exists" {
    check_exit 2 rill export --to gguf --split-size 40K model.rill
    assert_stderr_line "--split-size writes a folder: name it with -o"
    check_exit 2 rill export --to safetensors --split-size 40K model.rill -o out
    assert_stderr_line "--split-size needs --to gguf"
    check_exit 2 rill export --to gguf --split-size 0 model.rill -o out
    assert_stderr_line "--split-size: 0 is outside of 1 to *"
    check_exit 2 rill export --to gguf --split-size 2X model.rill -o out
    mkdir there
    check_exit 2 rill export --to gguf --split-size 40K --force model.rill -o there
    assert_stderr_line "there exists (a folder is not replaced: remove it, or name another)"
    cut_file model.rill 200000 >cut.rill
    check_exit 3 rill export --to gguf --split-size 40K cut.rill -o out
    assert_no_file out
}

@test "parts of a GGUF that are not all there, or not of one model" {
    rill export --to gguf --split-size 40K model.rill -o p
    check_exit 3 rill import p/model-00002-of-00007.gguf -o x.rill
    assert_stderr_line "p/model-00002-of-00007.gguf: part 2 of 7 of a split GGUF: name the first, the others are found from it"
    cp p/model-00001-of-00007.gguf alone.gguf
    check_exit 3 rill import alone.gguf -o x.rill
    assert_stderr_line "alone.gguf: the first of 7 parts of a split GGUF, but the names of the others * '-00001-of-00007.gguf'"
    cp p/model-00001-of-00007.gguf .
    check_exit 1 rill import model-00001-of-00007.gguf -o x.rill
    assert_stderr_line "*model-00002-of-00007.gguf: No such file or directory"
    mv p/model-00003-of-00007.gguf third
    cp p/model-00004-of-00007.gguf p/model-00003-of-00007.gguf
    check_exit 3 rill import p/model-00001-of-00007.gguf -o x.rill
    assert_stderr_line "*p/model-00003-of-00007.gguf: says that it is part 4 of 7, expected 3 of 7"
    cut_file third 20000 >p/model-00003-of-00007.gguf
    check_exit 3 rill import p/model-00001-of-00007.gguf -o x.rill
    assert_stderr_line "*p/model-00003-of-00007.gguf: tensor '*' needs * bytes *"
    # whole again, but for one of another set
    rill export --to gguf --split-size 1 model.rill -o q
    for i in 02 03 04 05 06 07; do cp "p/model-000$i-of-00007.gguf" .; done
    cp third model-00003-of-00007.gguf
    check_exit 0 rill import model-00001-of-00007.gguf -o x.rill
    cp q/model-00002-of-00021.gguf model-00002-of-00007.gguf
    check_exit 3 rill import model-00001-of-00007.gguf -o y.rill
    assert_stderr_line "*model-00002-of-00007.gguf: says that it is part 2 of 21, expected 2 of 7"
    assert_no_file y.rill
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

# Every golden architecture, some quantized too, into every format: from a pipe as from the file, without room in TMPDIR.
same_from_pipe() {
    local model=$1
    rm -rf a a.gguf b.gguf a-parts b-parts a-hf b-hf a-half b-half
    if rill export -q --to gguf "$model" -o a.gguf 2>err; then
        TMPDIR=$scratch check_exit 0 bash -c "cat $model | rill export -q --to gguf -o b.gguf" || return 1
        assert_same a.gguf b.gguf || return 1
        rill export -q --to gguf --split-size 20K "$model" -o a-parts
        TMPDIR=$scratch check_exit 0 bash -c "cat $model | rill export -q --to gguf --split-size 20K -o b-parts" || return 1
        diff -r a-parts b-parts || return 1
    else # refused alike
        check_exit 3 bash -c "cat $model | rill export -q --to gguf -o b.gguf" || return 1
        assert_equal "$err" "$(cat err)" && assert_no_file b.gguf || return 1
    fi
    rill export -q --to safetensors "$model" -o a-hf 2>err || return 0
    TMPDIR=/nonexistent check_exit 0 bash -c "cat $model | rill export -q --to safetensors -o b-hf" || return 1
    assert_equal "$(rill import -q --no-provenance a-hf | cksum)" "$(rill import -q --no-provenance b-hf | cksum)" || return 1
    diff -r -x model.safetensors a-hf b-hf || return 1
    rill export -q --to safetensors --dtype f32 "$model" -o a-half
    TMPDIR=/nonexistent check_exit 0 bash -c "cat $model | rill export -q --to safetensors --dtype f32 -o b-half" || return 1
    diff -r a-half b-half
}

@test "from a pipe each tensor goes straight to its place, whatever the architecture" {
    mkdir tmp
    for golden in "$ROOT"/tests/golden/arch/*/; do
        scratch=/nonexistent
        [[ $golden != */phi3* ]] || scratch=$PWD/tmp
        rill import -q --no-tokenizer "$golden" >arch.rill
        same_from_pipe arch.rill || fail "$golden"
        [[ $golden =~ /(llama|gpt2|gemma|mixtral|phi3)/ ]] || continue
        rill quantize -q --type q4_k_m arch.rill >packed.rill
        same_from_pipe packed.rill || fail "$golden quantized"
    done
    [ -z "$(ls tmp)" ]
}

@test "q, k and v of a phi3 in different types from a pipe" {
    rill import -q --no-tokenizer "$ROOT/tests/golden/arch/phi3" | rill quantize -q --type q8_0 --tensor-type 'attn.q.weight=q4_0' >p.rill
    rill export -q --to gguf p.rill -o a.gguf
    check_exit 0 bash -c 'cat p.rill | rill export -q --to gguf -o b.gguf'
    assert_same a.gguf b.gguf
    grep -q attn_q.weight b.gguf
    check_exit 1 bash -c 'cat p.rill | TMPDIR=/nonexistent rill export -q --to gguf -o c.gguf'
    assert_no_file c.gguf
}

@test "parts of one tensor of a file in different plain types: what a file allows, a pipe says" {
    rill import -q --no-tokenizer "$ROOT/tests/golden/arch/gpt2" >g.rill
    rill quantize -q --type f16 --tensor-type 'attn.k.weight=f32' g.rill -o mixed.rill
    check_exit 0 rill export --to gguf mixed.rill -o a.gguf
    check_exit 3 bash -c 'cat mixed.rill | rill export --to gguf -o b.gguf'
    assert_stderr "*'layers.0.attn.k.weight' is of type f32, but shares 'blk.0.attn_qkv.weight' with others of type f16*file first*"
    assert_no_file b.gguf
}

@test "a pipe into a file that has a beginning, and into one that is only appended to" {
    rill export --to gguf model.rill -o a.gguf
    printf 'before' >want && cat a.gguf >>want && printf 'after' >>want
    check_exit 0 bash -c '{ printf before; cat model.rill | rill export --to gguf; printf after; } >got'
    assert_same want got
    printf 'before' >got
    check_exit 0 bash -c '{ cat model.rill | rill export --to gguf; printf after; } >>got'
    assert_same want got
    mkfifo pipe
    cat model.rill >pipe &
    check_exit 0 rill export --to gguf pipe -o c.gguf
    assert_same a.gguf c.gguf
}

@test "a pipe that ends early leaves nothing that looks like a model" {
    cut_file model.rill 60000 >cut.rill
    check_exit 3 bash -c 'cat cut.rill | rill export --to gguf >a.gguf'
    assert_stderr "*truncated*"
    check_exit 3 rill import a.gguf -o back.rill
    for to in "gguf -o out" "gguf --split-size 40K -o out" "safetensors -o out"; do
        check_exit 3 bash -c "cat cut.rill | rill export --to $to"
        assert_no_file out
    done
}

@test "no room for the result" {
    check_exit 1 bash -c 'cat model.rill | (ulimit -f 20; trap "" XFSZ; rill export --to gguf -o a.gguf)'
    assert_stderr_line "*File too large"
    assert_no_file a.gguf
}

@test "where the result goes to a pipe too, a copy goes to TMPDIR, and a missing one is an error" {
    check_exit 1 bash -c 'cat model.rill | TMPDIR=/nonexistent rill export --to gguf | cat >a.gguf; exit ${PIPESTATUS[1]}'
    assert_stderr_line "/nonexistent: cannot create a temporary file (TMPDIR): No such file or directory"
    check_exit 1 bash -c 'cat model.rill | TMPDIR=/nonexistent rill export --to npy -o all'
    assert_stderr_line "/nonexistent: cannot create a temporary file (TMPDIR): No such file or directory"
    mkdir tmp
    check_exit 0 bash -c 'cat model.rill | TMPDIR=$PWD/tmp rill export --to gguf | cat >a.gguf'
    rill export --to gguf model.rill -o b.gguf
    assert_same a.gguf b.gguf
    [ -z "$(ls tmp)" ]
}
