#!/usr/bin/env bats
load common

g() { echo "$ROOT/formats/golden/v1-$1.rill"; }

@test "show prints the first values" {
    check_exit 0 rill show --tensor codes --head 6 "$(g stats-zstd)"
    assert_equal "$out" $'codes u8 [1024]\n  0  0  0  0  1  1  ...'
}

@test "show --tsv writes every value, a row a line" {
    rill show --tensor values --batch 0 --tsv "$(g knowledge-planes)" >v.tsv
    assert_equal "$(wc -l <v.tsv)" 600
    assert_equal "$(head -1 v.tsv)" $'-0\t-1.0625\t-2.125\t-3.1875'
    assert_equal "$(awk -F'\t' 'NF != 4' v.tsv)" ""
}

@test "show --stats and --histogram agree with awk" {
    rill show --tensor codes --tsv "$(g stats-raw)" | tr '\t' '\n' >v
    want=$(awk '{s += $1; z += $1 == 0; if ($1 > m) m = $1} END {printf "max %d  mean %.7g zero %d", m, s / NR, z}' v)
    check_exit 0 rill show --tensor codes --stats "$(g stats-raw)"
    [[ $out =~ (max [0-9]+  mean [0-9.]+)\ .*(zero [0-9]+) ]]
    assert_equal "${BASH_REMATCH[1]} ${BASH_REMATCH[2]}" "$want"
    rill show --tensor codes --histogram "$(g stats-raw)" >h.txt
    assert_equal "$(awk 'NR > 1 {n += $2} END {print NR, n}' h.txt)" "21 1024"
}

@test "show --batch picks a batch" {
    check_exit 0 rill show --batch 1 "$(g tokens-raw)"
    assert_stdout $'batch 1\ntokens u32 \\[600\\]*lengths u32 \\[1\\]*600'
    check_exit 2 rill show --batch 2 "$(g tokens-raw)"
    assert_stderr_line "--batch 2: there are 2 batches"
}

@test "show --json, --meta, --prov and --vocab" {
    rill show --json --stats --head 2 --tensor codes "$(g model-raw)" >s.json
    assert_json s.json values '[0,0]'
    assert_json s.json max 31
    check_exit 0 rill show --meta "$(g model-raw)"
    assert_equal "$out" '{"kind":"model","arch":"llama","layers":[{"heads":3}]}'
    check_exit 0 rill show --prov "$(g model-raw)"
    assert_stdout '{"id":"xxh3:0123456789abcdef0123456789abcdef",*}'
    check_exit 0 rill show --vocab "$(g model-raw)"
    assert_stdout '23 bytes, digest of the bytes xxh3:*'
}

@test "show --vocab names the tokens with a role and those that end a text" {
    cp -r "$ROOT/tests/golden/tiny-qwen2" folder
    rill import -q folder -o one.rill
    check_exit 0 rill show --vocab one.rill
    assert_stdout '*352 tokens, * merges, cut as qwen2, identity xxh3:*'
    assert_stdout '*eos 342 <|im_end|>*end 342 <|im_end|>'
    echo '{"eos_token_id":[343,341]}' >folder/generation_config.json
    rill import -q folder -o three.rill
    rill show --vocab three.rill | grep '^end ' >ends
    printf 'end 341 <|endoftext|>\nend 342 <|im_end|>\nend 343 <|im_start|>\n' | cmp - ends
}

@test "show --json --histogram has the counts, --tsv takes neither" {
    check_exit 0 rill show --json --histogram "$ROOT/tests/golden/stream/finite.rill"
    assert_stdout '*"values":\[*\],"histogram":\[1,0,1,0,0,1,0,0,1,0,0,1,0,0,1,0,0,1,0,1\],"min":1,"max":8}'
    for option in --json --stats --histogram; do
        check_exit 2 rill show --tsv $option "$ROOT/tests/golden/stream/finite.rill"
        assert_stderr_line "$option has no effect with --tsv"
    done
}

@test "show --json says null where JSON has no number" {
    check_exit 0 rill show --json --stats "$ROOT/tests/golden/stream/nan.rill"
    assert_stdout '*"values":\[1,2,3,4,5,null,null,8\],*"max":8,*"nan":1,"inf":1}'
}

@test "show refuses a damaged tensor" {
    cp "$(g model-raw)" m.rill
    flip_byte m.rill 800
    check_exit 3 rill show m.rill
    assert_stderr_line "m.rill: record 3 at byte *: tensor 'blk.0.attn_q.weight': checksum mismatch"
}

@test "show numbers the batches" {
    check_exit 0 rill show --tensor lengths "$(g tokens-raw)"
    assert_equal "$(grep -E '^(batch|lengths)' <<<"$out")" $'batch 0\nlengths u32 [2]\nbatch 1\nlengths u32 [1]'
    check_exit 0 rill show --json --tensor lengths "$(g tokens-raw)"
    assert_equal "$(grep -o '"batch":[0-9]*' <<<"$out")" $'"batch":0\n"batch":1'
}

@test "show prints whole numbers that f32 cannot hold, and every digit of f64" {
    rill fixture --wide >wide.rill
    rill show --tsv wide.rill >v.tsv
    printf '%s\t%s\n' 16777217 4294967295 16777217 -2147483648 9007199254740993 18446744073709551615 \
        9007199254740993 -9223372036854775808 0.33333333333333331 16777217 | cmp - v.tsv
    check_exit 0 rill show --tensor '[ui]32' wide.rill
    assert_stdout '*  16777217  4294967295*  16777217  -2147483648*'
    check_exit 0 rill show --json --tensor u32 wide.rill
    assert_stdout '*"values":\[16777217,4294967295\]*'
}
