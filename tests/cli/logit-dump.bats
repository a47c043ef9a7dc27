#!/usr/bin/env bats
# rill logit-dump: encodings from the outside, the table, refusals. That draws are unbiased is the unit tests' business.
load common

setup_file() { make_inputs; }
setup() { enter_inputs; }
dump() { rill logit-dump -q --no-provenance "$@"; }

@test "the seed decides, threads and pipes do not" {
    dump -j 1 <dense.kd.rill >a
    dump -j 2 dense.kd.rill >b
    cat dense.kd.rill | dump | cat >c
    dump --seed 1 dense.kd.rill >d
    assert_same a b
    assert_same a c
    assert_differ a d
    check_exit 2 rill logit-dump --encode topk:5 --seed 1 dense.kd.rill
    assert_stderr_line '--seed needs --encode sample:N'
}

@test "fewer entries of more are the entries themselves" {
    dump --encode topk:20 dense.kd.rill >many
    dump --encode ghost:5 dense.kd.rill >few
    dump --encode ghost:5 many >cut
    assert_same few cut
    dump --encode topk:5 few | dump --encode ghost:5 >back
    assert_same few back
}

@test "what is gone cannot be made again" {
    dump --encode topk:5 dense.kd.rill >top
    check_exit 3 rill logit-dump --encode topk:6 top
    assert_stderr_line "topk:5 cannot become topk:6: *"
    check_exit 3 rill logit-dump --encode sample:5 top
    assert_stderr_line "topk:5 cannot become sample:5: *"
    check_exit 3 rill logit-dump --encode topk:5 corpus.kd.rill
    assert_stderr_line "sample:50 cannot become topk:5: *"
    check_exit 3 rill logit-dump --encode topk:5 --temperature 2 top
    assert_stderr_line "temperature 2 is not possible: the knowledge is topk:5 at temperature 1*"
    check_exit 3 rill logit-dump --encode topk:60000 dense.kd.rill
}

@test "options that make no sense are refused" {
    for enc in dense topk topk:0 topp:5 sample:65536; do check_exit 2 rill logit-dump --encode $enc dense.kd.rill; done
    check_exit 2 rill logit-dump --temperature 0 dense.kd.rill
    check_exit 2 rill logit-dump --tsv --encode topk:5 dense.kd.rill
    check_exit 2 rill logit-dump --tsv --codec zstd dense.kd.rill
    assert_stderr_line '--codec has no effect with --tsv'
    check_exit 2 rill logit-dump --positions 0:5 dense.kd.rill
    for at in 5 5: :5 a:b 1:2:3; do check_exit 2 rill logit-dump --tsv --positions $at dense.kd.rill; done
}

@test "the table shows what is asked for" {
    check_exit 0 rill logit-dump --tsv --positions 3:2 --top 3 -m teacher.rill dense.kd.rill
    assert_equal "$(wc -l <"$T/.stdout")" 3
    head -1 "$T/.stdout" | grep -qx "$(printf 'sequence\tposition\ttoken\tpiece\tlabel\tlabel_piece\tprobability\trank\trest\ttop')"
    sed -n 2p "$T/.stdout" | grep -qE "$(printf '^0\t3\t[0-9]+\t[^\t ]+\t[0-9]+\t[^\t ]+\t[0-9.e-]+\t[0-9]+\t[0-9.e-]+\t([0-9]+:[^\t ]+:[0-9.e-]+ ?){3}$')"
    # sparse knowledge, ids alone, after the end
    check_exit 0 rill logit-dump --tsv --positions 0:100000 corpus.kd.rill
    sed -n 2p "$T/.stdout" | grep -qE "$(printf '^0\t0\t[0-9]+\t[0-9]+\t(-|[0-9.e-]+)\t(-|[0-9]+)\t[0-9.e-]+\t[0-9]+:')"
    check_exit 0 rill logit-dump --tsv --positions 100000:5 corpus.kd.rill
    assert_equal "$(wc -l <"$T/.stdout")" 1
}

@test "the table's probabilities of a row and their rest are 1" {
    rill logit-dump --tsv --top 1000 --positions 0:1000 dense.kd.rill |
        awk -F'\t' 'NR > 1 { s = $7; n = split($8, e, " "); for (i = 1; i <= n; i++) { split(e[i], x, ":"); s += x[2] }
                             if (s < 0.999 || s > 1.001) { print; exit 1 } }'
}

@test "another model's vocabulary spells nothing" {
    rill import -q "$ROOT/tests/golden/tiny-llama" >other.rill
    check_exit 3 rill logit-dump --tsv -m other.rill dense.kd.rill
    assert_stderr_line "*disagree: vocabulary xxh3:* against xxh3:*"
}

@test "streams of another kind are refused" {
    check_exit 3 rill logit-dump tokens.rill
    assert_stderr_line "tokens.rill: *tokens*knowledge*"
    check_exit 3 rill logit-dump model.rill
}

@test "a concatenation is one stream; segments of two formats are none" {
    cat dense.kd.rill dense.kd.rill | dump --encode topk:5 >both
    [ "$(rill logit-dump --tsv --positions 0:100000 both | wc -l)" -eq \
        $((2 * $(rill logit-dump --tsv --positions 0:100000 dense.kd.rill | wc -l) - 1)) ]
    dump --encode topk:5 dense.kd.rill >top
    cat corpus.kd.rill top >mixed
    check_exit 3 rill logit-dump --tsv --positions 0:100000 mixed
    assert_stderr_line "mixed: the segments disagree: first sample:50 *, then topk:5 *"
}

@test "a flipped bit is noticed, and nothing is left under the final name" {
    flip_byte dense.kd.rill 9000
    check_exit 3 rill logit-dump dense.kd.rill -o out
    assert_stderr_line "dense.kd.rill: *"
    assert_no_file out
}

@test "memory does not grow with the stream" {
    peak() { grep -oE '"peak_memory_bytes":[0-9]+' "$1" | cut -d: -f2; }
    for i in 1 2 3 4 5 6 7 8 9 10; do cat dense.kd.rill; done >ten
    for i in 1 2 3 4 5 6 7 8 9 10; do cat ten; done >hundred
    dump --report short.json ten >/dev/null
    dump --report long.json hundred >/dev/null
    [ "$(peak long.json)" -lt $(($(peak short.json) * 5 / 4)) ] ||
        fail "peak memory: $(peak short.json) and $(peak long.json) bytes for ten times as much"
}

@test "fields are forwarded, dropped and stored in other types" {
    cp "$INPUTS"/tapped.kd.rill .
    dump --encode keep tapped.kd.rill >kept
    check_exit 0 rill diff -q tapped.kd.rill kept
    dump --encode keep --drop 'hidden.*' tapped.kd.rill | rill ls - >list
    run ! grep -q hidden list
    grep -q attention list
    dump --encode keep --drop response --field-dtype int8 tapped.kd.rill >small
    rill ls small >list
    grep -q '^i8 .*teacher.hidden.0' list
    run ! grep -q draws list
    dump --encode keep --field-dtype f32 tapped.kd.rill | dump --encode keep --field-dtype bf16 >back
    check_exit 0 rill diff -q tapped.kd.rill back
    rill logit-dump --tsv --positions 3:2 tapped.kd.rill | head -n 1 | grep -q "hidden.0.*attention"
    check_exit 2 rill logit-dump --encode keep --drop lips tapped.kd.rill
    assert_stderr_line '--drop lips: there is no such field'
    cat tapped.kd.rill kept | rill logit-dump -q --encode keep --drop 'attention.*' >joined
    check_exit 0 rill check joined
}

@test "the fewest entries with a share" {
    dump --encode topp:0.5 dense.kd.rill >half
    dump --encode topp:0.2 half >cut
    dump --encode topp:0.2 dense.kd.rill >fifth
    assert_same cut fifth
    check_exit 3 rill logit-dump --encode topp:0.6 half
    check_exit 2 rill logit-dump --encode topp:0 half
    assert_stderr_line 'encoding "topp:0": expected topp:P with P from above 0 to 1'
}
