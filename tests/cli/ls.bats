#!/usr/bin/env bats
load common

@test "ls lists kind, tensors and totals" {
    check_exit 0 rill ls "$ROOT/formats/golden/v1-model-planes.rill"
    assert_quiet
    assert_equal "$(head -1 <<<"$out")" "  kind=model  arch=llama"
    assert_stdout '*bf16  \[50, 60\]  *6000  *% planes blk.0.attn_q.weight*'
    assert_stdout '*4 tensors, 8140 bytes, stored *%, xxh3:*'
}

@test "ls tells two rotations apart" {
    rill import -q --no-tokenizer "$ROOT/tests/golden/arch/gemma3" -o gemma3.rill
    check_exit 0 rill ls gemma3.rill
    assert_stdout '* theta=1000 * local_rope.theta=50 *'
}

@test "ls shows numbers of each layer, runs of them with a count, and the ends of a text" {
    rill import -q --no-tokenizer "$ROOT/tests/golden/arch/gemma3" -o gemma3.rill
    check_exit 0 rill ls gemma3.rill
    assert_stdout '* window=5,0,5  layer_rope=1,0,1 *'
    rill import -q "$ROOT/tests/golden/tiny-qwen2" -o qwen2.rill
    check_exit 0 rill ls qwen2.rill
    ends=$(rill show --vocab qwen2.rill | sed -n 's/^end \([0-9]*\) .*/\1/p' | paste -sd,)
    [ -n "$ends" ]
    [[ "$(head -1 <<<"$out")" == *"  ends=$ends" ]]
    rill init -q --layers 4 --hidden 32 --heads 2 --ffn 64 qwen2.rill -o even.rill
    rill prune -q --ffn 32 even.rill -o narrow.rill
    check_exit 0 rill ls narrow.rill
    [[ "$(head -1 <<<"$out")" == *"  ffn=32 "* ]]
    rill ls --json qwen2.rill >l.json
    [ "$(sed -n 2p l.json | grep -c '"type":"vocabulary".*"ends":\[')" -eq 1 ]
}

@test "ls says the same of a file and of a pipe" {
    for f in "$ROOT"/formats/golden/*.rill; do
        rill ls "$f" >file.txt
        cat "$f" | rill ls >pipe.txt
        assert_same file.txt pipe.txt
    done
}

@test "ls sums up batches by name, and lists them on request" {
    check_exit 0 rill ls "$ROOT/formats/golden/v1-knowledge-raw.rill"
    assert_stdout '*u32   \[1200\] *4800 100.0% raw    tokens (in 2 batches)*'
    assert_stdout '*2 batches, 1200 positions, 6 tensors*'
    check_exit 0 rill ls --batches "$ROOT/formats/golden/v1-knowledge-raw.rill"
    assert_stdout '*batch of 1 sequences from 1 (at position 500), 600 positions*'
    assert_stdout '*u32   \[600\] *2400 100.0% raw    tokens*'
}

@test "ls --json is one object a line" {
    rill ls --json "$ROOT/formats/golden/v1-model-zstd.rill" >l.json
    assert_equal "$(wc -l <l.json)" 6
    assert_json l.json name '"codes"'
    assert_json l.json attrs '{"group":32,"scale":0.125}'
    assert_json l.json raw_bytes 8140
}

@test "ls of several segments" {
    rill fixture -n 1 >a.rill
    cat a.rill a.rill >b.rill
    check_exit 0 rill ls b.rill
    assert_stdout '*2 segments, 2 tensors*'
}

@test "ls notices a cut" {
    rill fixture >a.rill
    for n in 100 1000 $(($(file_size a.rill) - 1)); do
        cut_file a.rill $n >cut.rill
        check_exit 3 rill ls cut.rill
        assert_stderr_line 'cut.rill: truncated: end of file at byte *'
    done
}

@test "ls tells what a foreign file is" {
    echo "Once upon a time" >text
    check_exit 3 rill ls text
    assert_stderr_line 'text: not a rill stream (starts with "Once upon a time")'
    check_exit 1 rill ls nothing
    assert_stderr_line 'nothing: No such file or directory'
    check_exit 3 rill ls <>/dev/null
    assert_stderr_line 'standard input: empty: not a rill stream'
}
