#!/usr/bin/env bats
# rill distill --shuffle, --mix, --decay-data, and data in packs: what a run draws, that it can be stopped anywhere, and
# what is refused. The order itself is test_distill_mixture's business.
load common

setup_file() {
    make_inputs
    cd "$INPUTS" || return 1
    for n in 1 2 3 4 5 6; do
        printf 'a longer text, with some words in it, once upon a time the end %d\nthe end of it, once\nand upon this\nno\n' $n
    done >lines.txt
    rill tokenize -q -m model.rill --lines --pack 40 lines.txt | rill teacher-infer -q -m teacher.rill |
        rill logit-dump -q --encode sample:50 -o packed.kd.rill
    rill tokenize -q -m model.rill --lines lines.txt | rill teacher-infer -q -m teacher.rill |
        rill logit-dump -q --encode sample:50 -o b.kd.rill --force
    rill import -q "$ROOT/tests/golden/tiny-llama" | rill tokenize -q -m - --lines lines.txt -o llama.tok.rill
}
setup() { enter_inputs; }
train() { rill distill -q --no-provenance -m student.rill --batch-tokens "${batch:-64}" --micro-tokens "${micro:-32}" --lr 0.01 "$@"; }
MIXED="--shuffle --seed 3 --mix b.kd.rill=0.5"
DECAYED="$MIXED --decay-data b.kd.rill=3 --decay-data corpus.kd.rill --schedule wsd:decay=0.4"

@test "the order is the seed's, whatever the threads" {
    train --epochs 3 --shuffle -j 1 corpus.kd.rill >one
    train --epochs 3 --shuffle -j 2 --seed 0 <corpus.kd.rill >two # a file, on standard input
    assert_same one two
    train --epochs 3 --shuffle --seed 1 corpus.kd.rill >other
    assert_differ one other
    train --epochs 3 corpus.kd.rill >plain
    assert_differ one plain
    rill cat -q b.kd.rill b.kd.rill -o both.rill # two segments
    train --epochs 2 --shuffle --report report.json both.rill >three
    assert_json report.json epochs 2
    rill cat -q --merge b.kd.rill b.kd.rill -o merged.rill
    train --epochs 2 --shuffle merged.rill >four
    assert_same three four
}

@test "a file is read in any order in less memory than it takes" {
    for _ in $(seq 600); do cat "$INPUTS/lines.txt"; done >much.txt
    rill tokenize -q -m model.rill --lines much.txt | rill teacher-infer -q -m teacher.rill -o much.kd.rill
    [ "$(file_size much.kd.rill)" -gt 60000000 ]
    train --shuffle --steps 4 --max-memory 20M --report report.json much.kd.rill >out
    memory=$(sed -E 's/.*"peak_memory_bytes":([0-9]+).*/\1/' report.json)
    [ "$memory" -lt 40000000 ]
}

@test "shares are what the weights say" {
    train --epochs 40 --mix b.kd.rill=0.5 --report report.json corpus.kd.rill >out
    sed -E 's/.*"data":\[\{[^}]*"positions":([0-9]+)[^}]*\},\{[^}]*"positions":([0-9]+).*/\1 \2/' report.json |
        awk '{ exit !($1 == 40 * 146 && $2 > 0.49 * $1 && $2 < 0.51 * $1) }'
    train --epochs 40 --mix b.kd.rill=0.5 --log log.tsv corpus.kd.rill 2>err >out
    assert_equal "$(cat err)" "" # as many steps as the data makes
    awk -F'\t' 'END { d = $4 / 0.001 - 1; exit !(d < 1e-4 && d > -1e-4) }' log.tsv
}

@test "the decay of the schedule has its own data" {
    train $DECAYED --epochs 3 --log a.tsv corpus.kd.rill >a
    train $MIXED --schedule wsd:decay=0.4 --epochs 3 --log b.tsv corpus.kd.rill >b
    assert_differ a b
    steps=$(($(wc -l <a.tsv) - 1))
    same=$(paste a.tsv b.tsv | awk -F'\t' 'NR > 1 && $1 <= 0.6 * '"$steps"' && ($2 != $9 || $6 != $13) { print }')
    assert_equal "$same" ""
    paste a.tsv b.tsv | awk -F'\t' 'NR > 1 && $1 > 0.6 * '"$steps"' && $2 != $9 { n++ } END { exit !n }'
}

kill_new_at() { # LINES SIGNAL ARGUMENTS...: from the start, not from what is there
    rm -f log.tsv run.rill
    kill_at "$1" "$2" -q --no-provenance -m student.rill --batch-tokens 64 --micro-tokens 32 --lr 0.01 \
        --log log.tsv --checkpoint run.rill --checkpoint-every 7 "${@:3}"
}

@test "a run that is stopped anywhere goes on to the same bytes" {
    # shellcheck disable=SC2086
    for how in "$MIXED" "$DECAYED" "--shuffle"; do
        train $how --epochs 1000 --steps 300 --log whole.tsv corpus.kd.rill >whole
        for lines in 20 150 220; do
            kill_new_at $lines KILL $how --epochs 1000 --steps 300 corpus.kd.rill
            train -j 1 $how --epochs 1000 --steps 300 --log log.tsv --resume run.rill corpus.kd.rill >resumed
            assert_same whole resumed
            assert_same whole.tsv log.tsv
        done
        kill_new_at 30 TERM $how --epochs 1000 --steps 300 corpus.kd.rill
        train $how --epochs 1000 --steps 300 --resume run.rill corpus.kd.rill >resumed
        assert_same whole resumed
    done
}

@test "a run that is made longer leaves its decay, and one command makes the same model" {
    # shellcheck disable=SC2086
    {
        train $DECAYED --epochs 50 --steps 10 --warmup 0 --checkpoint run.rill corpus.kd.rill >short
        rill distill -q -m student.rill --batch-tokens 64 --micro-tokens 32 --lr 0.01 $DECAYED --epochs 50 --steps 20 --warmup 0 \
            --resume run.rill corpus.kd.rill -o long.rill
    }
    rill recipe long.rill >recipe.mk
    grep -q '^long.rill: student.rill corpus.kd.rill b.kd.rill$' recipe.mk
    cp long.rill kept.rill && rm long.rill
    make -s -f recipe.mk -o student.rill -o corpus.kd.rill -o b.kd.rill RILL="$RILL_BIN/rill" long.rill
    assert_same long.rill kept.rill
}

@test "a resumed run knows its data" {
    # shellcheck disable=SC2086
    train $MIXED --steps 3 --checkpoint run.rill corpus.kd.rill >out
    check_exit 3 train --shuffle --seed 4 --mix b.kd.rill=0.5 --steps 3 --resume run.rill corpus.kd.rill
    assert_stderr_line "run.rill: the checkpoint was made with shuffle 3, this run has 4"
    check_exit 3 train --steps 3 --resume run.rill corpus.kd.rill
    assert_stderr_line "run.rill: the checkpoint was made with shuffle 3, this run has none"
    check_exit 3 train --shuffle --seed 3 --mix b.kd.rill=0.6 --steps 3 --resume run.rill corpus.kd.rill
    assert_stderr_line "run.rill: b.kd.rill: the checkpoint was made with weight 2 0.5*, this run has 0.[56]*"
    check_exit 3 train --shuffle --seed 3 --mix packed.kd.rill=0.5 --steps 3 --resume run.rill corpus.kd.rill
    assert_stderr_line "run.rill: packed.kd.rill: the checkpoint was made with data 2 xxh3:*, this run has xxh3:*"
    cp b.kd.rill elsewhere.rill # the same content under another name
    train --shuffle --seed 3 --mix elsewhere.rill=0.5 --steps 3 --resume run.rill corpus.kd.rill >again
    assert_same out again
}

@test "steps and passes take whole packs" {
    train --epochs 3 --log log.tsv packed.kd.rill 2>err >in_order
    assert_equal "$(cat err)" ""
    # each step has at least 64 positions, which with packs of at most 40 is two or more packs, but the last of an epoch
    cut -f 6 log.tsv | awk 'NR > 2 { if ($1 - last > 80) exit 1 } { last = $1 }'
    train --epochs 3 --shuffle --log shuffled.tsv packed.kd.rill 2>err >shuffled
    assert_equal "$(cat err)" ""
    assert_equal "$(tail -1 log.tsv | cut -f 6)" "$(tail -1 shuffled.tsv | cut -f 6)"
    # what a step is does not depend on how passes are cut, up to the rounding of sums; in bf16, 18 steps make that too large to tell
    train --precision f32 --epochs 3 --log many.tsv packed.kd.rill >out
    micro=1000 train --precision f32 --epochs 3 --log one.tsv packed.kd.rill >out
    paste many.tsv one.tsv | awk -F'\t' 'NR > 1 { d = $2 / $9 - 1; if ($6 != $13 || d > 1e-4 || d < -1e-4) exit 1 }'
    train --epochs 3 --checkpoint run.rill --steps 4 --schedule constant packed.kd.rill >out
    train --epochs 3 --resume run.rill --schedule constant --warmup 0 packed.kd.rill >resumed
    train --epochs 3 --schedule constant --warmup 0 packed.kd.rill >whole
    assert_same whole resumed
}

@test "the plan counts what is drawn" {
    train --plan --epochs 2 --shuffle --mix b.kd.rill corpus.kd.rill >plan.json
    train --epochs 2 --shuffle --mix b.kd.rill --log log.tsv corpus.kd.rill >out
    assert_json plan.json steps "$(tail -1 log.tsv | cut -f 1)"
}

@test "rows of fields and labels come along" {
    micro=1000 batch=1000 train --epochs 2 --loss hidden --loss kl --shuffle --log shuffled.tsv tapped.kd.rill >shuffled
    micro=1000 batch=1000 train --epochs 2 --loss hidden --loss kl --log log.tsv tapped.kd.rill >plain
    # an epoch is a step: the same sum in another order
    paste log.tsv shuffled.tsv | awk -F'\t' 'NR > 1 { for (i = 2; i <= 3; i++) { d = $i / $(i + NF / 2) - 1; if (d > 1e-3 || d < -1e-3) exit 1 } }'
}

@test "what cannot be mixed is refused" {
    for weight in 0 -1 nan inf 1e10 x ""; do
        check_exit 2 train --mix b.kd.rill="$weight" corpus.kd.rill
        assert_stderr_line "--mix b.kd.rill=$weight: expected a weight above 0 and up to 1e9 after the ="
    done
    check_exit 2 train --mix =1 corpus.kd.rill
    assert_stderr_line "--mix =1: no file is named"
    check_exit 1 train --mix missing corpus.kd.rill
    assert_stderr_line "missing: No such file or directory"
    check_exit 2 train --mix b.kd.rill --mix b.kd.rill=2 corpus.kd.rill
    assert_stderr_line "--mix b.kd.rill: it is in the mixture already"
    check_exit 2 sh -c 'cat corpus.kd.rill | rill distill -m student.rill --shuffle --steps 2'
    assert_stderr_line "standard input is a pipe: data to be shuffled or mixed must be in a file"
    mkfifo pipe
    cat b.kd.rill >pipe &
    check_exit 2 train --mix pipe corpus.kd.rill
    assert_stderr_line "pipe is a pipe: *"
    wait
    cut_file b.kd.rill 5000 >cut.rill
    check_exit 3 train --mix cut.rill corpus.kd.rill
    assert_stderr_line "cut.rill: truncated: end of file at byte 5000 inside record *"
    : >empty.rill
    check_exit 3 train --mix empty.rill corpus.kd.rill
    assert_stderr_line "empty.rill: empty*"
    check_exit 3 train --mix llama.tok.rill tokens.rill
    assert_stderr_line "model and llama.tok.rill disagree: vocabulary xxh3:* against xxh3:*"
    check_exit 3 train --mix dense.kd.rill corpus.kd.rill
    assert_stderr_line "corpus.kd.rill and dense.kd.rill disagree: first sample:50 *, then dense *"
    check_exit 3 train --mix model.rill corpus.kd.rill
    assert_stderr_line "model.rill: this is a model stream, expected tokens or knowledge"
    check_exit 2 train --decay-data b.kd.rill corpus.kd.rill
    check_exit 2 train --decay-data b.kd.rill --schedule cosine corpus.kd.rill
    assert_stderr_line "--decay-data: the schedule cosine has no decay (--schedule wsd)"
    check_exit 2 train --seed 1 corpus.kd.rill
    cp b.kd.rill flipped.rill
    flip_byte flipped.rill 2000
    check_exit 3 train --epochs 9 --mix flipped.rill=9 corpus.kd.rill -o out.rill
    assert_stderr_line "flipped.rill: *checksum mismatch"
    assert_no_file out.rill
}
