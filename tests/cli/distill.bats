#!/usr/bin/env bats
# rill distill: that a run can be told, logged, resumed and trusted. Losses and learning are the unit tests' business too.
load common

setup_file() { make_inputs; }
setup() { enter_inputs; }
train() { rill distill -q --no-provenance -m student.rill --batch-tokens 32 --micro-tokens 16 --lr 0.01 --epochs "${epochs:-6}" "$@"; }

@test "the student learns, and the log says so" {
    epochs=60 train --log log.tsv --report report.json dense.kd.rill >trained
    head -1 log.tsv | grep -qx "$(printf 'step\tkl\tce\tlr\tgrad_norm\ttokens\tnoise_scale')"
    awk -F'\t' 'NR == 2 { first = $2 } END { if (!(NR > 20 && $2 < first / 2)) { print first, $2; exit 1 } }' log.tsv
    awk -F'\t' 'NR > 1 && ($1 != NR - 1 || NF != 7) { exit 1 }' log.tsv
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
    paste f32.tsv bf16.tsv | tail -1 | awk '{ d = $2 / $9 - 1; exit !(d < 0.02 && d > -0.02) }'
    train --optimizer-state bf16 -j 1 --resume run.rill corpus.kd.rill >resumed
    assert_same bf16 resumed
    check_exit 3 train --resume run.rill corpus.kd.rill
    assert_stderr_line "run.rill: the checkpoint was made with optimizer-state bf16, this run has f32"
}

# A run of 400 steps, some tenths of a second, that gets a signal when its log has some lines. It may have got further
# then, or even to its end: what is asked of it holds wherever it was.
LONG="-q --no-provenance -m student.rill --batch-tokens 32 --micro-tokens 16 --lr 0.01 --epochs 1000 --steps 400"
# shellcheck disable=SC2086
long() { rill distill $LONG "$@" corpus.kd.rill; }
# shellcheck disable=SC2086
kill_long_at() { kill_at "$1" "$2" $LONG "${@:3}" corpus.kd.rill; }

@test "a run that is killed again and again ends in the same bytes, and so does its log" {
    long --log whole.tsv >whole
    kill_long_at 20 KILL --log log.tsv --checkpoint run.rill --checkpoint-every 7
    rill check -q run.rill
    for lines in 60 140 250; do
        kill_long_at $lines KILL --log log.tsv --checkpoint run.rill --checkpoint-every 7 --resume run.rill
        rill check -q run.rill
    done
    long -j 1 --log log.tsv --resume run.rill >resumed
    assert_same whole resumed
    assert_same whole.tsv log.tsv
    long --log log.tsv --resume run.rill >again # the checkpoint is what it was: cut off and written once more
    assert_same whole again
    assert_same whole.tsv log.tsv
}

@test "SIGTERM and SIGINT keep the state and are what the program dies of" {
    long --log whole.tsv >whole
    for signal in TERM INT; do
        rm -f run.rill log.tsv
        kill_long_at 30 $signal --log log.tsv --checkpoint run.rill --checkpoint-every 1000000 -o killed.rill
        if [ "$code" -ne 0 ]; then # it may have come to its end
            assert_equal "$code" $((128 + $(kill -l $signal)))
            assert_no_file killed.rill run.rill.tmp
            grep -Eq '^rill distill: stopped \((Terminated|Interrupt)\) after step [0-9]+ of 400: --resume run.rill goes on$' err
            [ "$(wc -l <err)" -eq 1 ]
        fi
        rill check -q run.rill
        steps=$(tail -1 log.tsv | cut -f1)
        long --log log.tsv --resume run.rill --report report.json >resumed
        assert_json report.json resumed_after_step "$steps"
        assert_same whole resumed
        assert_same whole.tsv log.tsv
        rm -f killed.rill
    done
}

@test "SIGTERM is heeded when it ends the writer of the data too" {
    long() { rill distill -q --no-provenance -m student.rill --batch-tokens 32 --steps 8 "$@"; }
    cat corpus.kd.rill corpus.kd.rill >twice
    long <twice >whole
    mkfifo data
    "$RILL_BIN/rill-distill" -q --no-provenance -m student.rill --batch-tokens 32 --steps 8 --checkpoint run.rill \
        --checkpoint-every 1 --log log.tsv data >killed 2>err &
    {
        cut_file twice $(($(file_size corpus.kd.rill) + 100))
        wait_until test -s run.rill
        kill -TERM $!
    } >data
    code=0
    wait $! || code=$?
    assert_equal "$code" 143
    grep -q '^rill distill: stopped (Terminated) after step [1-7] of 8' err
    # once it has been read, the old checkpoint is held by nobody: its disk space goes when it is replaced
    "$RILL_BIN/rill-distill" -q --no-provenance -m student.rill --batch-tokens 32 --steps 8 --checkpoint run.rill \
        --checkpoint-every 1 --resume run.rill --log log.tsv --report report.json data >resumed &
    {
        cut_file twice $(($(file_size corpus.kd.rill) + 100))
        # shellcheck disable=SC2010
        holds_log() { ls -l "/proc/$1/fd" | grep -q 'log.tsv$'; }
        wait_until holds_log $!
        # shellcheck disable=SC2010
        if ls -l /proc/$!/fd | grep -Eq 'run.rill( \(deleted\))?$'; then touch held; fi
        tail -c +$(($(file_size corpus.kd.rill) + 101)) twice
    } >data
    wait $!
    assert_no_file held
    assert_same whole resumed
}

@test "SIGUSR1 keeps the state, and the run goes on" {
    long >whole
    mkfifo log
    { # reading the log is what the run waits for
        head -20 >/dev/null
        kill -USR1 "$(cat pid)"
        head -60 >/dev/null
        [ -e run.rill ] && touch kept
        cat >/dev/null
    } <log &
    # shellcheck disable=SC2086
    (exec bash -c 'echo $$ >pid; exec "$@"' - "$RILL_BIN/rill-distill" $LONG \
        --checkpoint run.rill --checkpoint-every 1000000 --log log corpus.kd.rill >asked)
    wait
    [ -e kept ]
    assert_same whole asked
}

@test "the end is kept too, and a run that has no step left to take gives its model" {
    train --log log.tsv --report first.json --checkpoint run.rill --checkpoint-every 1000 corpus.kd.rill >whole
    cp log.tsv whole.tsv
    train --log log.tsv --report second.json --resume run.rill corpus.kd.rill >resumed
    assert_same whole resumed
    assert_same whole.tsv log.tsv
    for key in steps positions teacher_ce ce loss; do
        assert_equal "$(grep -oE "\"$key\":[^,]*" first.json | tail -1)" "$(grep -oE "\"$key\":[^,]*" second.json | tail -1)"
    done
}

# Steps of an epoch: six epochs are three times this many.
steps_of() { tail -1 "$1" | cut -f1; }

@test "a longer run goes on with its own schedule, and its recipe makes it from the beginning" {
    local lr=0.01
    d() { rill distill -m student.rill --batch-tokens 32 --micro-tokens 16 --lr $lr "$@" corpus.kd.rill; }
    d -q --epochs 3 --log log.tsv --checkpoint run.rill >short.rill
    n=$(steps_of log.tsv)
    check_exit 0 d --epochs 6 --log log.tsv --checkpoint run.rill --resume run.rill -o long.rill
    assert_stderr "rill distill: run.rill: after step $n of $n the schedule is one of $((2 * n)) steps, *lr 0.01 to 0.001: the learning rate goes from 0.001 to 0.00*"
    assert_equal "$(steps_of log.tsv)" $((2 * n))
    # from there on the rate is that of a run of six epochs
    d -q --epochs 6 --log straight.tsv >straight.rill
    assert_equal "$(tail -n "$n" log.tsv | cut -f1,4)" "$(tail -n "$n" straight.tsv | cut -f1,4)"
    assert_differ long.rill straight.rill
    rill recipe long.rill >Makefile
    grep -q -- "--schedule=$n:steps=$n,warmup=" Makefile
    grep -q run.rill Makefile && fail "the recipe needs the checkpoint: $(cat Makefile)"
    # once more, and with another peak
    lr=0.003
    check_exit 0 d --epochs 8 --log log.tsv --resume run.rill -o longer.rill
    for file in long.rill longer.rill; do
        rm -rf again && mkdir again && cp student.rill corpus.kd.rill again
        rill recipe "$file" >again/Makefile
        make -s -C again -o student.rill -o corpus.kd.rill "$file"
        assert_same "$file" "again/$file"
    done
    assert_equal "$(grep -o -- '--schedule=' again/Makefile | wc -l)" 2
    # files are recorded under relative names whatever words were put before them
    rill distill -q --model="$PWD/student.rill" --batch-tokens 32 --micro-tokens 16 --lr 0.003 --epochs 8 \
        --resume run.rill "$PWD/corpus.kd.rill" -o named.rill
    rill show --prov named.rill | tail -1 | grep -q -- '"--model=student.rill",.*"corpus.kd.rill"]'
}

@test "a resumed run leaves no trace in its model" {
    d() { rill distill -q -m student.rill --batch-tokens 32 --micro-tokens 16 --lr 0.01 --epochs 1000 --steps 400 "$@" corpus.kd.rill; }
    d -o out.rill
    mv out.rill whole.rill
    "$RILL_BIN/rill-distill" -q -m student.rill --batch-tokens 32 --micro-tokens 16 --lr 0.01 --epochs 1000 --steps 400 \
        --checkpoint run.rill --checkpoint-every 5 corpus.kd.rill -o killed.rill &
    wait_until test -s run.rill
    kill -KILL $!
    wait $! || true
    d --resume run.rill -o out.rill
    assert_same whole.rill out.rill # with its provenance
}

@test "what the bytes depend on may not change, the schedule may" {
    train --checkpoint run.rill corpus.kd.rill >whole
    for option in "--weight-decay 0" "--clip 2" "--beta1 0.8" "--beta2 0.9" "--eps 1e-7" "--loss kl --loss ce" \
        "--optimizer-state bf16"; do
        # shellcheck disable=SC2086
        check_exit 3 train $option --resume run.rill corpus.kd.rill
        assert_stderr_line "run.rill: the checkpoint was made with *, this run has *"
    done
    check_exit 3 rill distill -m student.rill --batch-tokens 32 --resume run.rill corpus.kd.rill
    assert_stderr_line "run.rill: the checkpoint was made with micro-tokens 16, this run has 1024"
    check_exit 3 rill distill -m student.rill --resume run.rill corpus.kd.rill
    assert_stderr_line "run.rill: the checkpoint was made with batch-tokens 32, this run has 8192"
    rill init -q --layers 1 --hidden 32 --heads 2 --kv-heads 1 --ffn 64 --seed 5 model.rill >other.rill
    check_exit 3 rill distill -m other.rill --batch-tokens 32 --micro-tokens 16 --resume run.rill corpus.kd.rill
    assert_stderr_line "run.rill: the checkpoint was made with student xxh3:*, this run has xxh3:*"
    check_exit 3 train --resume run.rill dense.kd.rill
    assert_stderr_line "run.rill: the checkpoint was made with encoding sample:50, this run has dense"
    rill logit-dump -q --encode sample:50 --seed 1 dense.kd.rill >drawn.kd.rill
    epochs=7 check_exit 3 train --resume run.rill drawn.kd.rill
    assert_stderr_line "*this is not the data of the checkpoint*"
    check_exit 3 train --resume student.rill corpus.kd.rill
    cut_file run.rill 5000 >cut.rill
    check_exit 3 train --resume cut.rill corpus.kd.rill -o out
    assert_no_file out
    check_exit 2 train --steps 5 --resume run.rill corpus.kd.rill
    assert_stderr_line "run.rill: the checkpoint is at step *, this run has 5"
    epochs=2 check_exit 2 train --steps 100 --resume run.rill corpus.kd.rill
    assert_stderr_line "the checkpoint is in epoch 6, this run has 2"
    check_exit_in 2 corpus.kd.rill train --resume -
    assert_stderr_line "standard input is used twice*"
    train --resume - corpus.kd.rill <run.rill >resumed
    assert_same whole resumed
}

@test "data that has grown since is noticed" {
    rill cat -q --merge a.tok.rill b.tok.rill >more.tok.rill
    t() { rill distill -q --no-provenance -m student.rill --batch-tokens 1000000 --micro-tokens 16 "$@"; }
    t --checkpoint run.rill --epochs 1 a.tok.rill >short # one step, and a short one
    check_exit 3 t --resume run.rill --steps 5 --epochs 5 more.tok.rill
    assert_stderr_line "*the data has grown: it ended after * sequences when it was read before"
    t --resume run.rill --steps 5 --epochs 5 a.tok.rill >long
}

@test "the log of another run is left alone" {
    train --log log.tsv --checkpoint run.rill corpus.kd.rill >whole
    rill distill -q -m student.rill --batch-tokens 32 --micro-tokens 16 --lr 0.02 --epochs 6 --log other.tsv corpus.kd.rill >other
    head -5 log.tsv >early.tsv
    sed "s/step/STEP/" log.tsv >named.tsv
    epochs=7
    for log in other early named; do
        cp $log.tsv before.tsv
        check_exit 3 train --log $log.tsv --resume run.rill corpus.kd.rill
        assert_same before.tsv $log.tsv
    done
    assert_stderr_line "named.tsv is not the log of a distillation like this"
    { cat log.tsv && printf '31\t0.1'; } >torn.tsv # as a run that is killed may leave it
    train --log torn.tsv --resume run.rill corpus.kd.rill >one
    train --log log.tsv --resume run.rill corpus.kd.rill >two
    assert_same one two
    assert_same log.tsv torn.tsv
    train --log new.tsv --resume run.rill corpus.kd.rill >one # none yet: it begins here
    assert_equal "$(sed 1d new.tsv)" "$(tail -n +$(($(wc -l <log.tsv) - $(wc -l <new.tsv) + 2)) log.tsv)"
}

@test "a phase of the schedule is spelled one way" {
    for phase in 3 x:steps=3,warmup=0,lr=1,lr-min=1 3:steps=3 3:steps=3,warmup=0,lr=1 \
        3:steps=3,warmup=0,lr=1,lr-min=1,lr=1 3:steps=3,warmup=0,lr=11,lr-min=1 3:steps=3,warmup=0,lr=1,lr-min=1,x=1 \
        0:steps=3,warmup=0,lr=1,lr-min=1 3:steps=3,warmup=4,lr=1,lr-min=1 99:steps=3,warmup=0,lr=1,lr-min=1; do
        check_exit 2 train --steps 9 --schedule $phase corpus.kd.rill
        assert_stderr_line "*"
    done
    # a phase that says what holds anyway changes nothing
    train --steps 9 --warmup 2 --lr-min 0.001 --log a.tsv corpus.kd.rill >a
    train --steps 9 --warmup 2 --lr-min 0.001 --log b.tsv --schedule 5:steps=9,warmup=2,lr=0.01,lr-min=0.001 corpus.kd.rill >b
    assert_same a b
    assert_same a.tsv b.tsv
}

@test "plain tokens are trained on their labels" {
    train --log log.tsv tokens.rill >a
    train --loss ce tokens.rill >b
    assert_same a b
    head -1 log.tsv | grep -qx "$(printf 'step\tce\tlr\tgrad_norm\ttokens\tnoise_scale')" # no teacher, no kl
    awk -F'\t' 'NR > 1 && (NF != 6 || $2 == 0) { exit 1 }' log.tsv
    check_exit 3 train --loss kl tokens.rill
    assert_stderr_line "*kl needs a teacher*"
}

@test "log and report name the teacher's term by its encoding; ce is the same for all" {
    for pair in dense=kl topk:5=kl_truncated ghost:5=kl_lower_bound sample:9=teacher_ce; do
        encoding=${pair%=*} name=${pair#*=}
        rill teacher-infer -q --encode "$encoding" -m teacher.rill tokens.rill -o k.rill --force
        rill distill -q -m student.rill --steps 1 --batch-tokens 100000 --log log.tsv --report report.json --force \
            k.rill >/dev/null
        assert_equal "$(head -1 log.tsv | cut -f 2)" "$name"
        assert_equal "$(grep -oE '"(kl|kl_truncated|kl_lower_bound|teacher_ce)":' report.json)" "\"$name\":"
        tail -1 log.tsv | cut -f 2,3 >>values
    done
    awk -F'\t' 'NR == 1 { kl = $1; ce = $2 } $1 < 0 || $2 != ce || (NR == 3 && $1 > kl + 1e-3) { bad = 1 }
        END { exit bad || NR != 4 }' values
}

@test "losses add up, and are spelled one way" {
    train --loss kl:weight=0.5 --loss ce:weight=0.1 corpus.kd.rill >a
    train --loss ce:weight=0.1 --loss kl:weight=0.5,temperature=1 corpus.kd.rill >b
    train corpus.kd.rill >c
    assert_same a b
    assert_differ a c
    for loss in entropy kl:weight kl:weight=x kl:temperature=0 ce:temperature=2 kl:weight=-1 kl:weight=0; do
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
    assert_stderr_line "--steps N is required, because the data comes from a pipe"
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

# ---- lib/train ----

@test "optimizers, averages, groups and adapters resume to the bit, on any number of threads" {
    for how in "--optimizer muon" "--optimizer muon:momentum=0.9 --optimizer-state bf16 --precision bf16" "--ema 0.9" \
        "--group *attn*:lr=0.5 --group *norm*:decay=0.2 --freeze embed*" "--lora 2:alpha=4 --ema 0.9" \
        "--quantize q4_0 --quantize-refit 3 --ema 0.9" "--quantize q5_1 --tensor-type ffn=mxfp4 --optimizer muon" \
        "--schedule wsd:decay=0.4" "--schedule linear" "--schedule constant"; do
        set -f
        # shellcheck disable=SC2086
        train $how --log log.tsv corpus.kd.rill >whole
        cp log.tsv whole.tsv
        # stopped half way, where the data ends
        steps=$(steps_of log.tsv)
        # shellcheck disable=SC2086
        epochs=3 train $how --steps "$steps" --log log.tsv --checkpoint run.rill corpus.kd.rill >half
        [ "$(steps_of log.tsv)" -lt "$steps" ]
        # shellcheck disable=SC2086
        train $how -j 1 --steps "$steps" --log log.tsv --resume run.rill corpus.kd.rill >resumed
        set +f
        assert_same whole resumed
        assert_same whole.tsv log.tsv
        rm log.tsv
    done
}

@test "--keep-mask: a sparse student learns, and stays as sparse as it was" {
    mv student.rill dense.rill
    rill prune -q --pattern 2:4 dense.rill -o student.rill
    epochs=40 train --keep-mask --log log.tsv corpus.kd.rill >kept.rill
    awk -F'\t' 'NR == 2 { first = $2 } END { if (!($2 < first * 0.8)) { print first, $2; exit 1 } }' log.tsv
    # what was pruned is pruned still: nothing is left to prune
    rill prune -q --pattern 2:4 kept.rill -o again.rill
    check_exit 0 rill diff kept.rill again.rill
    check_exit 4 rill diff student.rill kept.rill
    train corpus.kd.rill >filled.rill
    rill prune -q --pattern 2:4 filled.rill -o again.rill --force
    check_exit 4 rill diff filled.rill again.rill
    train --keep-mask --optimizer muon --ema 0.9 --checkpoint run.rill corpus.kd.rill >muon.rill
    rill prune -q --pattern 2:4 muon.rill -o again.rill --force
    check_exit 0 rill diff muon.rill again.rill
    train --keep-mask --optimizer muon --ema 0.9 -j 1 --resume run.rill corpus.kd.rill >resumed
    assert_same muon.rill resumed
    check_exit 3 train --optimizer muon --ema 0.9 --resume run.rill corpus.kd.rill
    assert_stderr_line "run.rill: the checkpoint was made with keep-mask on, this run has none"
    check_exit 2 rill distill -m dense.rill --keep-mask corpus.kd.rill -o no.rill
    assert_stderr_line "--keep-mask: no weight of the matrices that are trained is 0"
    check_exit 2 rill distill -m student.rill --keep-mask --lora 2 corpus.kd.rill -o no.rill
    assert_no_file no.rill
}

@test "what is compared at --resume is what the bytes depend on" {
    set -f
    train --ema 0.9 --optimizer muon --checkpoint run.rill corpus.kd.rill >whole
    check_exit 3 train --optimizer muon --resume run.rill corpus.kd.rill
    assert_stderr_line "run.rill: the checkpoint was made with ema 0.9*, this run has none"
    check_exit 3 train --ema 0.9 --resume run.rill corpus.kd.rill
    assert_stderr_line "run.rill: the checkpoint was made with optimizer muon, this run has none"
    check_exit 3 train --ema 0.9 --optimizer muon:momentum=0.5 --resume run.rill corpus.kd.rill
    assert_stderr_line "run.rill: the checkpoint was made with momentum 0.94*, this run has 0.5"
    check_exit 3 train --ema 0.9 --optimizer muon --freeze embed* --resume run.rill corpus.kd.rill
    assert_stderr_line "run.rill: the checkpoint was made with freeze none, this run has embed*"
    # not what leaves them as they are
    train --ema 0.9 --optimizer muon --recompute --log log.tsv -j 1 --resume run.rill corpus.kd.rill >resumed
    assert_same whole resumed
}

@test "frozen parameters and adapters: what is not trained stays as it is, and takes no memory of a checkpoint" {
    set -f
    train --freeze layers.* --checkpoint all.rill corpus.kd.rill >frozen.rill
    train --lora 2 --checkpoint lora.rill corpus.kd.rill >lora.rill.out
    rill diff student.rill frozen.rill >frozen.txt || true # prints what differs
    ! grep -q '^layers' frozen.txt
    grep -q '^embed.weight' frozen.txt
    rill diff student.rill lora.rill.out >lora.txt || true
    ! grep -q '^embed.weight' lora.txt
    grep -q layers.0.attn.q.weight lora.txt
    [ "$(file_size lora.rill)" -lt $(($(file_size student.rill))) ]
    rill ls lora.rill | grep -q layers.0.ffn.up.weight.lora_a
    for bad in "--freeze *" "--freeze nothing" "--group nothing:lr=1" "--lora 2 --freeze embed*" "--lora 2 --mup" \
        "--lora 2 --optimizer muon" "--lora x" "--group x" "--optimizer sgd" "--optimizer adamw:momentum=1"; do
        # shellcheck disable=SC2086
        check_exit 2 train $bad corpus.kd.rill
        assert_stderr_line "*"
    done
}

@test "the log has a norm for each group, and the noise of the gradient" {
    set -f
    train --group *attn*:lr=1 --group *ffn*:lr=1 --log log.tsv corpus.kd.rill >out
    head -1 log.tsv | grep -qF "$(printf 'noise_scale\tgrad_norm:rest\tgrad_norm:*attn*\tgrad_norm:*ffn*')"
    awk -F'\t' 'NR > 1 { d = sqrt($8 ^ 2 + $9 ^ 2 + $10 ^ 2) / $5 - 1; if (d > 1e-4 || d < -1e-4) exit 1 }' log.tsv
    awk -F'\t' 'NR > 1 && $7 > 0 { n++ } END { exit !n }' log.tsv
}

@test "a schedule by name is kept by a longer run and its recipe" {
    d() { rill distill -q -m student.rill --batch-tokens 32 --micro-tokens 16 --lr 0.01 --schedule wsd:decay=0.3 "$@" corpus.kd.rill; }
    d --epochs 3 --log log.tsv --checkpoint run.rill -o short.rill
    n=$(steps_of log.tsv)
    d --epochs 6 --log log.tsv --resume run.rill -o long.rill
    rill recipe long.rill >Makefile
    grep -q -- "--schedule=$n:wsd:steps=$n,warmup=" Makefile
    grep -q -- "--schedule=wsd:decay=0.3" Makefile
    rm -rf again && mkdir again && cp student.rill corpus.kd.rill again
    cp Makefile again
    make -s -C again -o student.rill -o corpus.kd.rill long.rill
    assert_same long.rill again/long.rill
    check_exit 2 d --schedule linear --lr-min 0
    check_exit 2 train --schedule constant --lr-min 0.001 corpus.kd.rill
    assert_stderr_line "--lr-min has no effect with --schedule constant"
}

@test "a run begins with another run's moments" {
    train --checkpoint run.rill corpus.kd.rill -o first.rill
    rill distill -q -m first.rill --batch-tokens 32 --lr 0.01 --start-state run.rill --loss ce tokens.rill -o warm.rill
    rill distill -q -m first.rill --batch-tokens 32 --lr 0.01 --loss ce tokens.rill -o cold.rill
    assert_differ warm.rill cold.rill
    rill recipe warm.rill >Makefile
    grep -q -- '--start-state' Makefile
    check_exit 3 train --optimizer muon --start-state run.rill corpus.kd.rill
    assert_stderr_line "run.rill: the state is of adamw, this run has muon"
    check_exit 3 train --start-state student.rill corpus.kd.rill
}

@test "--mup serves a student of another width, and says when there is no base" {
    rill init -q --layers 1 --hidden 64 --heads 4 --ffn 128 --mup student.rill model.rill -o wide.rill
    rill distill -q --no-provenance --mup -m wide.rill --batch-tokens 32 corpus.kd.rill >a
    rill distill -q --no-provenance -m wide.rill --batch-tokens 32 corpus.kd.rill >b
    assert_differ a b
    check_exit 3 train --mup corpus.kd.rill
    assert_stderr_line "the model says nothing of the widths of a base (init --mup BASE)"
    rill export -q --to gguf wide.rill -o wide.gguf # is a model like any other
}

@test "--plan says what a run takes: steps, bytes and memory as they then are" {
    t() { rill distill -q -m student.rill --batch-tokens 32 --micro-tokens 16 --epochs 3 "$@" corpus.kd.rill; }
    t --plan --price 2 >plan.json
    t --checkpoint run.rill --log log.tsv --report report.json --price 2 -o out.rill
    value() { grep -oE "\"$2\":[^,}]*" "$1" | tail -1 | cut -d: -f2; }
    assert_equal "$(value plan.json steps)" "$(steps_of log.tsv)"
    assert_equal "$(value plan.json positions)" "$(tail -1 log.tsv | cut -f6)"
    within() { awk -v a="$1" -v b="$2" -v by="$3" 'BEGIN { exit !(a > b / by && a < b * by) }' || fail "$1, planned $2"; }
    within "$(file_size out.rill)" "$(value plan.json model_bytes)" 1.2
    within "$(file_size run.rill)" "$(value plan.json checkpoint_bytes)" 1.2
    for key in cost cost_per_million_tokens share_of_peak flops_per_token peak_flops training_seconds recovered; do
        grep -q "\"$key\":" report.json
    done
    for key in cost training_seconds tokens_per_second peak_memory_bytes; do grep -q "\"$key\":" plan.json; done
    check_exit 2 t --plan --checkpoint run.rill
    check_exit 2 t --price 2
    check_exit 2 bash -c "cat corpus.kd.rill | rill distill -m student.rill --steps 3 --plan"
}
