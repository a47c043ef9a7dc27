#!/usr/bin/env bats
# rill teacher-infer: what it refuses, and what its output may depend on. The numbers are the unit tests' business.
load common

setup_file() { make_inputs; }
setup() { enter_inputs; }

@test "neither threads nor a pipe change the bytes" {
    rill teacher-infer -q -j 1 --no-provenance -m teacher.rill <tokens.rill >one
    rill teacher-infer -q -j 2 --no-provenance -m teacher.rill tokens.rill >two
    cat tokens.rill | rill teacher-infer -q --no-provenance -m teacher.rill | cat >piped
    assert_same one two
    assert_same one piped
}

@test "logits and log-probabilities say the same" {
    for how in "--dtype f32" "--dtype f32 --logits"; do
        # shellcheck disable=SC2086
        rill teacher-infer -q $how -m teacher.rill tokens.rill | rill logit-dump --tsv >"table$how"
    done
    assert_same "table--dtype f32" "table--dtype f32 --logits"
    [ "$(wc -l <"table--dtype f32")" -eq 21 ]
}

@test "a teacher that goes by layer by layer says the same, in any blocks, from a file or a pipe" {
    local how=(-q --no-provenance --dtype f32 --batch-tokens 64)
    rill teacher-infer "${how[@]}" -m teacher.rill tokens.rill >resident
    for n in 1 100; do
        rill teacher-infer "${how[@]}" --weights stream --block-tokens $n -m teacher.rill tokens.rill >block
        assert_same resident block
    done
    rill teacher-infer "${how[@]}" --weights stream -m teacher.rill <tokens.rill >block
    assert_same resident block
    cat teacher.rill | rill teacher-infer "${how[@]}" --weights stream -m - tokens.rill >piped
    assert_same resident piped
    rill teacher-infer "${how[@]}" --weights stream -m - tokens.rill <teacher.rill >file
    assert_same resident file
    check_exit 2 rill teacher-infer --block-tokens 5 -m teacher.rill tokens.rill
    assert_stderr_line "--block-tokens needs --weights stream"
    check_exit 2 sh -c 'cat teacher.rill | rill teacher-infer --weights stream --block-tokens 5 -m - tokens.rill'
    assert_stderr_line "standard input is not a file and can be read only once: all tokens are one block"
}

@test "what is encoded at once is what logit-dump encodes" {
    for encode in 'sample:20 --seed 3' topk:5 ghost:5; do
        # shellcheck disable=SC2086
        rill teacher-infer -q --encode $encode --temperature 2 -m teacher.rill tokens.rill -o at-once --force
        rill teacher-infer -q --dtype f32 --logits -m teacher.rill tokens.rill |
            rill logit-dump -q --encode $encode --temperature 2 -o in-two --force
        check_exit 0 rill diff -q at-once in-two
    done
    check_exit 2 rill teacher-infer --encode topk:5 --dtype f32 -m teacher.rill tokens.rill
    assert_stderr_line "--dtype needs --encode dense"
    check_exit 2 rill teacher-infer --logits --temperature 2 -m teacher.rill tokens.rill
    assert_stderr_line "--logits has no effect with --temperature"
    check_exit 2 rill teacher-infer --encode best:5 -m teacher.rill tokens.rill
}

@test "the types differ in size" {
    for t in f32 f16 bf16; do rill teacher-infer -q --dtype $t -m teacher.rill tokens.rill >$t; done
    [ "$(file_size f32)" -gt $((19 * $(file_size f16) / 10)) ]
    assert_equal "$(file_size f16)" "$(file_size bf16)"
    check_exit 2 rill teacher-infer --dtype q8_0 -m teacher.rill tokens.rill
}

@test "another vocabulary is refused, with both digests" {
    rill import -q "$ROOT/tests/golden/tiny-llama" >other.rill
    check_exit 3 rill teacher-infer -m other.rill tokens.rill
    assert_stderr_line "*disagree: vocabulary xxh3:* against xxh3:*"
}

@test "a sequence longer than the context is refused" {
    rill init -q --layers 1 --hidden 32 --heads 2 --kv-heads 1 --ffn 64 --context 8 model.rill >short.rill
    check_exit 3 rill teacher-infer -m short.rill tokens.rill
    assert_stderr_line "sequence 0 has * positions, the teacher's context is 8 (tokenize --context 8)"
}

@test "streams of another kind are refused" {
    check_exit 3 rill teacher-infer -m teacher.rill model.rill
    assert_stderr_line "model.rill: *model*tokens*"
    check_exit 3 rill teacher-infer -m tokens.rill tokens.rill
    assert_stderr_line "tokens.rill: *tokens*model*"
    check_exit 3 rill teacher-infer -m teacher.rill dense.kd.rill
    assert_stderr_line "dense.kd.rill: *knowledge*tokens*"
}

@test "a flipped bit is noticed, and nothing is left under the final name" {
    flip_byte tokens.rill 700
    check_exit 3 rill teacher-infer -m teacher.rill tokens.rill -o out
    assert_stderr_line "tokens.rill: *"
    assert_no_file out
}

@test "a missing model is an I/O error, a missing option one of usage" {
    check_exit 1 rill teacher-infer -m nowhere.rill tokens.rill
    check_exit 2 rill teacher-infer tokens.rill
}

@test "what is tapped is the same resident and streamed, in any blocks, and at all threads" {
    local how=(-q --no-provenance --precision f32 --batch-tokens 64 -m teacher.rill tokens.rill)
    local taps=(--tap hidden:all --tap attention:all:dtype=int8 --tap q --tap k:0:dtype=f32 --tap v --tap embed --tap output)
    for encode in "sample:5" "none --tap-positions 5" "dense --dtype f32"; do
        # shellcheck disable=SC2086
        {
            rill teacher-infer "${how[@]}" "${taps[@]}" --encode $encode >resident
            rill teacher-infer "${how[@]}" "${taps[@]}" --encode $encode -j 1 --weights stream --block-tokens 100 >streamed
        }
        assert_same resident streamed
        check_exit 0 rill check resident
    done
    check_exit 2 rill teacher-infer --tap hidden:99 -m teacher.rill tokens.rill
    assert_stderr_line '--tap hidden: layer 99 of a teacher of *'
    check_exit 2 rill teacher-infer --tap lips -m teacher.rill tokens.rill
    assert_stderr_line '--tap lips: expected embed, hidden, *'
    check_exit 2 rill teacher-infer --encode none -m teacher.rill tokens.rill
    assert_stderr_line '--encode none needs --tap*'
    check_exit 2 rill teacher-infer --tap hidden:0 --tap hidden:0-1 -m teacher.rill tokens.rill
    assert_stderr_line 'the field hidden.0 is given twice'
}

@test "taps leave the answers as they are" {
    rill teacher-infer -q --precision f32 -m teacher.rill --encode sample:5 tokens.rill -o plain
    rill teacher-infer -q --precision f32 -m teacher.rill --encode sample:5 --tap hidden:all --tap attention tokens.rill |
        rill logit-dump -q --encode keep --drop 'hidden.*' --drop 'attention.*' - -o dropped
    check_exit 0 rill diff -q plain dropped
}

@test "sizes that are said before are those that come" {
    local how=(--precision f32 -m teacher.rill --tap hidden:all --tap attention:0:dtype=int8 --tap-positions 4 tokens.rill)
    rill teacher-infer --dry-run "${how[@]}" >sizes
    rill teacher-infer -q "${how[@]}" --report report -o kd.rill
    local said
    said=$(awk '$1 == "sum" { print $3 }' sizes)
    # attention at sampled positions is the mean over them: all else is exact
    awk -v said="$said" -v got="$(grep -o '"teacher_bytes":[0-9]*' report | cut -d: -f2)" 'BEGIN { exit !(said > got * 0.9 && said < got * 1.1) }'
    awk '$1 == "hidden.0" { print $2 }' sizes | grep -qx bf16
}

@test "--profile says what the time went into, in shares that make one" {
    check_exit 0 rill teacher-infer --profile --report r.json -m teacher.rill -o kd.rill --force tokens.rill
    assert_stderr_line 'profile: *reading *products *other *s; of * idle'
    sed 's/.*"profile":{//; s/}.*//' r.json | tr ',' '\n' | awk -F '[":]+' '
        { share[$2] = $3; if ($2 != "idle") sum += $3 }
        END { exit !(share["products"] > 0 && share["attention"] > 0 && share["head"] > 0 && sum > 0.999999 && sum < 1.000001) }'
    rill teacher-infer -q -m teacher.rill --no-provenance tokens.rill >without
    rill teacher-infer -q --profile --report r.json -m teacher.rill --no-provenance tokens.rill >with
    assert_same without with
    check_exit 2 rill teacher-infer -q --profile -m teacher.rill tokens.rill
    assert_stderr_line '--profile with --quiet needs --report'
}
