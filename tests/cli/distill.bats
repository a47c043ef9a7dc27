#!/usr/bin/env bats
# rill distill: that a run can be told, logged, resumed and trusted. Losses and learning are the unit tests' business too.
load common

setup_file() { make_inputs; }
setup() {
    enter_temp
    need rill-tokenize
    cp "$INPUTS"/*.rill .
}
train() { rill distill -q --no-provenance -m student.rill --batch-tokens 32 --micro-tokens 16 --lr 0.01 --epochs "${epochs:-6}" "$@"; }

@test "the student learns, and the log says so" {
    epochs=60 train --log log.tsv --report report.json corpus.kd.rill >trained
    head -1 log.tsv | grep -qx "$(printf 'step\tkl\tce\tlr\tgrad_norm\ttokens')"
    awk -F'\t' 'NR == 2 { first = $2 } END { if (!(NR > 20 && $2 < first / 2)) { print first, $2; exit 1 } }' log.tsv
    awk -F'\t' 'NR > 1 && ($1 != NR - 1 || NF != 6) { exit 1 }' log.tsv
    grep -q '"tokens_per_second":' report.json
    rill teacher-infer -q -m trained tokens.rill | rill logit-dump -q >/dev/null # a model like any other
}

@test "threads, pipes and standard input change nothing" {
    train -j 1 corpus.kd.rill >one
    train -j 2 <corpus.kd.rill >two
    assert_same one two
    epochs=1 train corpus.kd.rill --log log.tsv >one
    steps=$(tail -1 log.tsv | cut -f1)
    cat corpus.kd.rill | rill distill -q --no-provenance -m student.rill --batch-tokens 32 --micro-tokens 16 --lr 0.01 \
        --steps "$steps" >piped
    assert_same one piped
}

@test "layers that run again give the same bytes; -v says where the memory went" {
    train corpus.kd.rill >kept
    train --recompute corpus.kd.rill >again
    assert_same kept again
    rill distill -v -m student.rill corpus.kd.rill 2>log >/dev/null
    grep -Eq 'memory in MB: weights [0-9.]+, gradients [0-9.]+, optimizer [0-9.]+, activations [0-9.]+, ' log
}

@test "the precision is what was asked for, and part of the run" {
    train --precision f32 --report f32.json --checkpoint run.rill --checkpoint-every 2 corpus.kd.rill >f32
    train --precision bf16 --report bf16.json --log bf16.tsv corpus.kd.rill >bf16
    train --precision auto --report auto.json corpus.kd.rill >auto
    assert_differ f32 bf16
    grep -q '"precision":"f32"' f32.json
    grep -q '"precision":"bf16"' bf16.json
    assert_same auto "$(sed -n 's/.*"precision":"\([a-z0-9]*\)".*/\1/p' auto.json)"
    RILL_CPU=portable train --precision auto --report portable.json corpus.kd.rill >portable
    grep -q '"precision":"f32"' portable.json # no instructions for bf16 there
    check_exit 3 train --precision bf16 --resume run.rill corpus.kd.rill
    assert_stderr_line "run.rill: the checkpoint was made with precision f32, this run has bf16"
}

@test "moments in bf16: half the memory, learns as well, resumes to the bit" {
    train --log f32.tsv corpus.kd.rill >f32
    train --optimizer-state bf16 --log bf16.tsv --checkpoint run.rill --checkpoint-every 3 corpus.kd.rill >bf16
    assert_differ f32 bf16
    paste f32.tsv bf16.tsv | tail -1 | awk '{ d = $2 / $8 - 1; exit !(d < 0.02 && d > -0.02) }'
    train --optimizer-state bf16 -j 1 --resume run.rill corpus.kd.rill >resumed
    assert_same bf16 resumed
    check_exit 3 train --resume run.rill corpus.kd.rill
    assert_stderr_line "run.rill: the checkpoint was made with optimizer-state bf16, this run has f32"
}

@test "a resumed run ends in the same bytes" {
    train --log log.tsv corpus.kd.rill >whole
    steps=$(tail -1 log.tsv | cut -f1)
    for every in 1 $((steps / 2)) $((steps - 1)); do
        train --checkpoint run.rill --checkpoint-every "$every" corpus.kd.rill >with
        assert_same whole with
        train --resume run.rill --log again.tsv corpus.kd.rill >resumed
        assert_same whole resumed
    done
    # of the last resumed run, which had one step to go
    assert_equal "$(tail -1 again.tsv)" "$(tail -1 log.tsv)"
}

@test "a checkpoint serves the run that it is of" {
    train --checkpoint run.rill --checkpoint-every 2 corpus.kd.rill >whole
    check_exit 3 rill distill -m student.rill --batch-tokens 32 --micro-tokens 16 --epochs 6 --resume run.rill corpus.kd.rill
    assert_stderr_line "run.rill: the checkpoint was made with lr 0.01, this run has 0.0001"
    check_exit 3 train --resume student.rill corpus.kd.rill
    cut_file run.rill 5000 >cut.rill
    check_exit 3 train --resume cut.rill corpus.kd.rill -o out
    assert_no_file out
}

@test "plain tokens are trained on their labels" {
    train --log log.tsv tokens.rill >a
    train --loss ce tokens.rill >b
    assert_same a b
    awk -F'\t' 'NR > 1 && ($2 != 0 || $3 == 0) { exit 1 }' log.tsv
    check_exit 3 train --loss kl tokens.rill
    assert_stderr_line "*kl needs a teacher*"
}

@test "losses add up, and are spelled one way" {
    train --loss kl:weight=0.5 --loss ce:weight=0.1 corpus.kd.rill >a
    train --loss ce:weight=0.1 --loss kl:weight=0.5,temperature=1 corpus.kd.rill >b
    train corpus.kd.rill >c
    assert_same a b
    assert_differ a c
    for loss in mse kl:weight kl:weight=x kl:temperature=0 ce:temperature=2 kl:weight=-1 kl:weight=0; do
        check_exit 2 train --loss $loss corpus.kd.rill
        assert_stderr_line "*"
    done
    check_exit 2 train --loss kl --loss kl:weight=2 corpus.kd.rill
    check_exit 3 train --loss kl:temperature=2 corpus.kd.rill
    assert_stderr_line "temperature 2 is not possible: the knowledge is sample:50 at temperature 1*"
    train --loss kl:temperature=2 dense.kd.rill >d # dense knowledge serves all
}

@test "a pipe does not tell how many steps there are" {
    check_exit 2 bash -c "cat corpus.kd.rill | rill distill -m student.rill"
    assert_stderr_line "how many steps?*--steps"
    check_exit 2 bash -c "cat corpus.kd.rill | rill distill -m student.rill --steps 3 --epochs 2"
    check_exit 2 rill distill -m student.rill --steps 2 --warmup 3 corpus.kd.rill
    check_exit 2 rill distill -m student.rill --checkpoint-every 2 corpus.kd.rill
    assert_stderr_line '--checkpoint-every needs --checkpoint'
}

@test "data that ends before the schedule is said, and is no error" {
    check_exit 0 rill distill --no-provenance -m student.rill --batch-tokens 32 --steps 1000 corpus.kd.rill
    assert_stderr "rill distill: the data ended after * of 1000 steps"
}

@test "another vocabulary is refused, with both digests" {
    rill import -q "$ROOT/tests/golden/tiny-llama" >other.rill
    check_exit 3 rill distill -m other.rill corpus.kd.rill
    assert_stderr_line "*disagree: vocabulary xxh3:* against xxh3:*"
}

@test "a sequence longer than the student's context is refused" {
    rill init -q --layers 1 --hidden 32 --heads 2 --kv-heads 1 --ffn 64 --context 8 model.rill >short.rill
    check_exit 3 rill distill -m short.rill corpus.kd.rill
    assert_stderr_line "*sequence 0 has * positions, the student's context is 8 (tokenize --context 8)"
}

@test "streams of another kind are refused" {
    check_exit 3 rill distill -m student.rill model.rill
    assert_stderr_line "model.rill: *expected tokens or knowledge"
    check_exit 3 rill distill -m tokens.rill corpus.kd.rill
    assert_stderr_line "tokens.rill: *tokens*model*"
}

@test "a flipped bit is noticed, and nothing is left under the final name" {
    flip_byte corpus.kd.rill 3000
    check_exit 3 train corpus.kd.rill -o out
    assert_stderr_line "corpus.kd.rill: *"
    assert_no_file out
}

@test "an output that exists is refused before the first step" {
    touch out
    check_exit 2 train corpus.kd.rill -o out --log log.tsv
    assert_stderr_line "out exists*"
    assert_no_file log.tsv
}
