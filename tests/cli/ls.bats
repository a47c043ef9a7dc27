#!/usr/bin/env bats
load common

@test "ls lists kind, tensors and totals" {
    check_exit 0 rill ls "$ROOT/formats/golden/v1-model-planes.rill"
    assert_quiet
    assert_equal "$(head -1 <<<"$out")" "  kind=model  arch=llama"
    assert_equal "$(sed -n 2p <<<"$out")" "type  shape     bytes  stored  codec   name"
    assert_stdout '*bf16  \[50, 60\]   6000  *%  planes  blk.0.attn_q.weight*'
    assert_stdout '*4 tensors, 8140 bytes of data, * bytes in all, xxh3:*'
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
    assert_stdout '*u32   \[1200\] *4800  tokens (in 2 batches)*'
    assert_stdout '*2 batches, 1200 positions, 6 tensors*'
    check_exit 0 rill ls --batches "$ROOT/formats/golden/v1-knowledge-raw.rill"
    assert_stdout '*batch of 1 sequence from 1 (at position 500), 600 positions*'
    assert_stdout '*u32   \[600\] *2400  100.0%  raw     tokens*'
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
    assert_stderr_line 'text: not a rill stream (starts with "Once upon a time"; if it is text, rill tokenize makes tokens of it)'
    check_exit 1 rill ls nothing
    assert_stderr_line 'nothing: No such file or directory'
    check_exit 3 rill ls <>/dev/null
    assert_stderr_line 'standard input: empty: not a rill stream'
}

@test "ls leaves out columns that say the same of every tensor, facts that are false, and the tail of long lists" {
    check_exit 0 rill ls "$ROOT/formats/golden/v1-knowledge-raw.rill"
    assert_stdout '*type  shape   *bytes  name
*'
    rill import -q --no-tokenizer "$ROOT/tests/golden/arch/llama-longrope" -o m.rill
    check_exit 0 rill ls m.rill
    [[ "$(head -1 <<<"$out")" != *=false* ]]
    rill fixture --wide >wide.rill
    check_exit 0 rill ls wide.rill
    assert_equal "$(head -1 <<<"$out")" "  kind=stats  numbers=1,2,3,...(40)"
}

@test "ls adds up the parts of a model" {
    rill import -q --no-tokenizer "$ROOT/tests/golden/arch/mixtral" -o m.rill
    check_exit 0 rill ls m.rill
    sum=$(awk '$1 ~ /^(f32|bf16|f16)$/ { gsub(/[][,]/, " "); n = $2; if ($3 ~ /^[0-9]+$/ && $4 ~ /^[0-9]+$/) n *= $3; s += n } END { print s }' <<<"$out")
    assert_equal "$(awk '$1 == "all" { print $2, $4 }' <<<"$out")" "$sum $((4 * sum))"
    assert_equal "$(awk '/^part/ { on = 1 } /^all/ { on = 0 } on && !/^part/ { s += $2 } END { print s }' <<<"$out")" "$sum"
    assert_equal "$(awk '/^part/ { on = 1; next } on && /%/ { printf "%s ", $1 }' <<<"$out")" "embedding attention ffn experts output all "
    # of other streams there are none
    check_exit 0 rill ls "$ROOT/formats/golden/v1-tokens-raw.rill"
    [[ $out != *bits/weight* ]]
}

@test "ls takes several files" {
    rill fixture -n 1 >a.rill
    rill fixture -n 2 >b.rill
    check_exit 0 rill ls a.rill b.rill
    { echo a.rill: && rill ls a.rill && echo && echo b.rill: && rill ls b.rill; } | cmp - "$T/.stdout"
    check_exit 0 rill ls --json a.rill b.rill
    assert_equal "$(grep '"type":"file"' <<<"$out")" $'{"type":"file","name":"a.rill"}\n{"type":"file","name":"b.rill"}'
    check_exit 1 rill ls a.rill nothing b.rill
    assert_stderr_line 'nothing: No such file or directory'
}

@test "ls and check count the same bytes" {
    for f in "$ROOT"/formats/golden/*.rill; do
        assert_equal "$(rill ls "$f" | tail -1)" "$(rill check "$f" | sed 's/.*: OK, //')"
    done
}
