#!/usr/bin/env bats
# rill distill --eval: what is measured, which state is kept, when a run ends early, and that none of it depends on being
# stopped or killed.
load common

setup_file() {
    make_inputs
    cd "$INPUTS" || return 1
    # a text to learn by heart, and how it goes on
    head -c 600 "$ROOT/examples/data/heldout.txt" | rill tokenize -q -m model.rill --context 32 -o few.rill
    head -c 1200 "$ROOT/examples/data/heldout.txt" | tail -c 600 | rill tokenize -q -m model.rill --context 32 -o held.rill
}
setup() { enter_inputs; }
d() { rill distill -q --no-provenance -m student.rill --batch-tokens 32 --micro-tokens 16 --precision f32 "$@"; }
# value FILE NAME ROW: of a column of a log, in the row of that step
value() {
    awk -F'\t' -v name="$2" -v step="$3" 'NR == 1 { for (i = 1; i <= NF; i++) if ($i == name) c = i }
        NR > 1 && $1 == step { print $c }' "$1"
}
json() { grep -o "\"$2\":[^,}]*" "$1" | tail -1 | cut -d: -f2; }
close_to() { awk -v a="$1" -v b="$2" -v t="${3:-1e-5}" 'BEGIN { d = a - b; exit !(a > 0 && d < t * b && d > -t * b) }' || fail "$1 is not $2"; }

# The values of a model by other means: ce from rill eval's perplexity, kl as a step at rate 0 has it.
check_values() { # MODEL KL CE
    rill eval -q -m "$1" --precision f32 --reference dense.kd.rill --table >eval.txt
    close_to "$3" "$(awk '$1 == "perplexity" { print log($2) }' eval.txt)"
    rm -f still.tsv
    rill distill -q -m "$1" --precision f32 --lr 0 --steps 1 --batch-tokens 100000 --log still.tsv dense.kd.rill >/dev/null
    assert_equal "$2" "$(value still.tsv kl 1)"
}

@test "values are those of rill eval, of what would be saved, and training is as without" {
    for extra in "" "--ema 0.9" "--lora 2 --ema 0.5"; do
        # shellcheck disable=SC2086
        d $extra --steps 9 --epochs 9 corpus.kd.rill >plain
        # shellcheck disable=SC2086
        d $extra --steps 9 --epochs 9 --eval dense.kd.rill --eval-every 4 --log log.tsv --report r.json corpus.kd.rill >model.out
        assert_same plain model.out
        assert_equal "$(head -1 log.tsv | cut -f 8-)" "$(printf 'eval_kl\teval_ce')"
        awk -F'\t' 'NR > 1 { on = $1 % 4 == 0 || $1 == 9; if (($8 != "nan") != on || ($9 != "nan") != on) exit 1 }' log.tsv
        check_values model.out "$(value log.tsv eval_kl 9)" "$(json r.json eval_ce)"
        close_to "$(value log.tsv eval_kl 9)" "$(json r.json eval_kl)"
        rm log.tsv
    done
    # the state after step 4 too: a run of four steps at the same rates ends there
    d --steps 9 --epochs 9 --schedule constant --warmup 0 --eval tokens.rill --eval-every 4 --log log.tsv corpus.kd.rill >nine
    d --steps 4 --epochs 9 --schedule constant --warmup 0 --eval tokens.rill --log four.tsv corpus.kd.rill >four
    assert_equal "$(value log.tsv eval_ce 4)" "$(value four.tsv eval_ce 4)"
    head -1 log.tsv | grep -q 'noise_scale	eval_ce$'
}

@test "the values do not depend on threads, nor on how passes and batches are cut" {
    for how in "-j 1" "-j 2" "--micro-tokens 1000"; do
        # shellcheck disable=SC2086
        rill distill -q --no-provenance -m student.rill --batch-tokens 1000 --precision f32 --steps 3 --epochs 9 $how \
            --eval dense.kd.rill --report "r.json" corpus.kd.rill >/dev/null
        json r.json eval_kl >>kl && json r.json eval_ce >>ce
    done
    assert_equal "$(sed -n 1p kl)" "$(sed -n 2p kl)"
    close_to "$(sed -n 3p kl)" "$(sed -n 1p kl)" 1e-6
    close_to "$(sed -n 3p ce)" "$(sed -n 1p ce)" 1e-6
}

@test "what a metric is called, and who answers" {
    for stream in corpus.kd.rill:eval_teacher_ce,eval_ce dense.kd.rill:eval_kl,eval_ce tokens.rill:eval_ce; do
        d --steps 1 --eval "${stream%:*}" --log log.tsv tokens.rill >/dev/null
        assert_equal "$(head -1 log.tsv | cut -f 7- | tr '\t' ,)" "${stream#*:}"
        rm log.tsv
    done
    # a teacher beside the student says the same as its knowledge
    d --steps 5 --teacher teacher.rill --teacher-precision f32 --eval tokens.rill --report live.json tokens.rill >live
    rill teacher-infer -q -m teacher.rill --precision f32 --dtype f32 tokens.rill -o f32.kd.rill
    d --steps 5 --teacher teacher.rill --teacher-precision f32 --eval f32.kd.rill --report file.json tokens.rill >file
    assert_same live file
    close_to "$(json live.json eval_kl)" "$(json file.json eval_kl)"
    d --steps 5 --teacher teacher.rill --teacher-precision f32 --teacher-weights stream --eval tokens.rill \
        --report stream.json tokens.rill >stream
    assert_same live stream
    assert_equal "$(json live.json eval_kl)" "$(json stream.json eval_kl)"
    # points of a teacher that runs ahead over the micro-batches of a step are found at their own rows
    for where in resident stream; do
        rill distill -q --no-provenance -m student.rill --batch-tokens 96 --micro-tokens 32 --precision f32 --steps 3 --epochs 3 \
            --loss kl --loss hidden:map=last --teacher teacher.rill --teacher-weights $where --eval tokens.rill --report $where.json \
            tokens.rill >$where
    done
    assert_same resident stream
    assert_equal "$(json resident.json eval_kl)" "$(json stream.json eval_kl)"
}

@test "masked language models and classifiers are evaluated on their own labels" {
    for kind in masked:bert labelled:classes; do
        m=${kind#*:}.rill data=${kind%:*}.rill
        rill distill -q -m "$m" --precision f32 --lr 1e-3 --steps 3 --epochs 3 --eval "$data" --report r.json --force "$data" -o out.rill
        rill eval -q -m out.rill --precision f32 --table "$data" >eval.txt
        close_to "$(json r.json eval_ce)" "$(awk '$1 == "nll" { print $2 }' eval.txt)"
    done
}

# Learnt by heart: what is held out gets better, and then worse.
overfit() {
    rill distill -q --no-provenance -m student.rill --batch-tokens 64 --micro-tokens 64 --precision f32 --lr 0.003 \
        --warmup 0 --schedule constant --epochs 1000 --eval held.rill --eval-every 2 "$@" few.rill
}

@test "a run that overfits stops early and writes its best state, that of a run which ends there" {
    check_exit 0 rill distill -m student.rill --batch-tokens 64 --micro-tokens 64 --precision f32 --lr 0.003 --warmup 0 \
        --schedule constant --steps 300 --epochs 1000 --eval held.rill --eval-every 2 --keep-best --patience 3 \
        --log log.tsv --report r.json few.rill -o best.rill
    best=$(json r.json best_step) last=$(json r.json steps)
    assert_equal "$last" $((best + 6))
    [ "$last" -lt 100 ]
    [ "$best" -gt 20 ]
    assert_json r.json stopped_early true
    assert_stderr "rill distill: stopped early after step $last of 300: eval_ce has not improved in 3 evaluations"
    assert_stderr "rill distill: the result is the state after step $best: eval_ce *"
    assert_equal "$(tail -1 log.tsv | cut -f1)" "$last"
    # the smallest value of all
    assert_equal "$(awk -F'\t' 'NR > 1 && $7 != "nan" && (!b || $7 < b) { b = $7; s = $1 } END { print s }' log.tsv)" "$best"
    rill show --prov best.rill | grep -q "\"\?best-step\"\?[=:] *$best"
    overfit --steps "$best" >cut
    overfit --steps 300 --keep-best --patience 3 >stopped
    assert_same cut stopped
    overfit --steps 300 --patience 3 >last # without --keep-best: as it is when it stops
    overfit --steps "$last" >there
    assert_same last there
    # averages are what is judged and kept
    overfit --steps 300 --keep-best --patience 3 --ema 0.7 --report r.json >stopped
    overfit --steps "$(json r.json best_step)" --ema 0.7 >cut
    assert_same cut stopped
    overfit --steps 300 --keep-best --patience 3 --lora 2 --report r.json >stopped
    overfit --steps "$(json r.json best_step)" --lora 2 >cut
    assert_same cut stopped
    # the recorded command makes the same again
    rill recipe best.rill >Makefile
    mkdir again && cp student.rill few.rill held.rill Makefile again
    make -s -C again -o student.rill -o few.rill -o held.rill best.rill
    assert_same best.rill again/best.rill
}

@test "--min-delta: a small improvement does not count for patience, and is kept all the same" {
    overfit --steps 60 --keep-best --patience 2 --min-delta 1000 --report r.json >early
    assert_json r.json steps 6 # the first evaluation, and two that are not better by 1000
    [ "$(json r.json best_step)" -gt 2 ]
}

@test "another metric keeps another state" {
    d --lr 0.02 --steps 40 --epochs 99 --eval dense.kd.rill --eval-every 1 --keep-best --eval-metric ce --report ce.json corpus.kd.rill >ce
    d --lr 0.02 --steps 40 --epochs 99 --eval dense.kd.rill --eval-every 1 --keep-best --report kl.json corpus.kd.rill >kl
    assert_json ce.json metric '"eval_ce"'
    assert_json kl.json metric '"eval_kl"'
    assert_differ ce kl
}

# A run that needs some seconds, and evaluates often.
LONG="-q --no-provenance -m student.rill --batch-tokens 32 --micro-tokens 16 --precision f32 --lr 0.01 --epochs 1000 --steps 303
    --ema 0.5 --eval dense.kd.rill --eval-every 7 --keep-best --patience 30 --log log.tsv --checkpoint run.rill --checkpoint-every 5"
# shellcheck disable=SC2086
long() { rill distill $LONG "$@" corpus.kd.rill; }
# shellcheck disable=SC2086
kill_long_at() { kill_at "$1" "$2" $LONG "${@:3}" corpus.kd.rill; }

@test "killed again and again, it ends in the same best state and the same log" {
    long --report r.json >whole
    mv log.tsv whole.tsv && rm run.rill
    kill_long_at 12 KILL
    for lines in 40 90 150; do
        rill check -q run.rill
        kill_long_at $lines KILL --resume run.rill
    done
    for signal in TERM INT; do
        kill_long_at 200 $signal --resume run.rill
        [ "$code" = 0 ] || assert_equal "$code" $((128 + $(kill -l $signal)))
    done
    long -j 1 --resume run.rill --report again.json >resumed
    assert_same whole resumed
    assert_same whole.tsv log.tsv
    for key in best best_step eval_kl eval_ce evaluated_step; do
        assert_equal "$(json r.json $key)" "$(json again.json $key)"
    done
    long --resume run.rill >again # no step is left: it is evaluated, and that is all
    assert_same whole again
    assert_same whole.tsv log.tsv
}

@test "an evaluation at the end is none of a longer run's" {
    part() { overfit --keep-best --patience 2 --log log.tsv "$@"; }
    part --steps 30 --report whole.json >whole
    mv log.tsv whole.tsv
    part --steps 7 --checkpoint run.rill >short
    [ "$(value log.tsv eval_ce 7)" != nan ]
    part --steps 30 --resume run.rill --report r.json >resumed
    assert_same whole resumed
    assert_same whole.tsv log.tsv
    assert_equal "$(json r.json best_step)" "$(json whole.json best_step)"
}

@test "the data's end is an end, of a pipe's log too" {
    d --steps 500 --eval tokens.rill --log log.tsv corpus.kd.rill >/dev/null
    n=$(tail -1 log.tsv | cut -f1)
    [ "$n" -lt 500 ]
    [ "$(value log.tsv eval_ce "$n")" != nan ]
    mkfifo pipe
    cat pipe >piped.tsv &
    d --steps 500 --eval tokens.rill --log pipe corpus.kd.rill >/dev/null
    wait
    assert_equal "$(tail -1 piped.tsv)" "$(tail -1 log.tsv)"
}

@test "what a resumed run must have in common, and what it may change" {
    overfit --steps 80 --keep-best --patience 2 --checkpoint run.rill >first
    check_exit 0 overfit --steps 80 --keep-best --patience 5 --resume run.rill
    check_exit 2 overfit --steps 80 --keep-best --patience 1 --resume run.rill
    assert_stderr_line "run.rill: --patience 1: the run of the checkpoint has had 2 evaluations in a row without improvement, and would have stopped"
    check_exit 3 overfit --steps 80 --patience 2 --resume run.rill
    assert_stderr_line "run.rill: the checkpoint was made with keep-best on, this run has none"
    check_exit 3 overfit --steps 80 --keep-best --patience 2 --min-delta 0.1 --resume run.rill
    assert_stderr_line "run.rill: the checkpoint was made with min-delta 0, this run has 0.10000000000000001"
    other() {
        rill distill -q -m student.rill --batch-tokens 64 --micro-tokens 64 --precision f32 --lr 0.003 --warmup 0 \
            --schedule constant --epochs 1000 --steps 80 --resume run.rill few.rill --eval "$@"
    }
    check_exit 3 other held.rill --eval-every 3 --keep-best --patience 2
    assert_stderr_line "run.rill: the checkpoint was made with eval-every 2, this run has 3"
    check_exit 3 other tokens.rill --eval-every 2 --keep-best --patience 2
    assert_stderr_line "run.rill: the checkpoint was made with eval xxh3:*, this run has xxh3:*"
    # only measured: anything goes
    overfit --steps 80 --checkpoint run.rill >first
    other tokens.rill --no-provenance >second
    assert_same first second
}

@test "what cannot be a held-out stream" {
    rill import -q "$ROOT/tests/golden/tiny-llama" -o llama.rill
    rill tokenize -q -m llama.rill "$INPUTS/text.txt" -o llama.tok.rill
    try() { rill distill -q -m student.rill --batch-tokens 32 corpus.kd.rill -o out.rill --log log.tsv --eval "$@"; }
    check_exit 3 try llama.tok.rill
    assert_stderr_line "*llama.tok.rill*vocabulary*"
    : >empty.txt
    rill tokenize -q -m model.rill empty.txt -o empty.rill
    check_exit 3 try empty.rill
    assert_stderr_line "evaluation: the held-out stream holds no sequences"
    cut_file dense.kd.rill $(($(file_size dense.kd.rill) - 100)) >cut.rill
    check_exit 3 try cut.rill
    assert_stderr_line "evaluation: cut.rill: truncated: *"
    cp dense.kd.rill damaged.rill && flip_byte damaged.rill $(($(file_size damaged.rill) / 2))
    check_exit 3 try damaged.rill
    assert_stderr_line "evaluation: damaged.rill: *checksum*"
    check_exit 3 try model.rill
    assert_stderr_line "model.rill: *"
    check_exit 1 try none.rill
    assert_stderr_line "none.rill: No such file or directory"
    check_exit 2 sh -c 'cat tokens.rill | rill distill -q -m student.rill corpus.kd.rill --eval - -o out.rill'
    assert_stderr_line "--eval - is read in each evaluation, so it must be a file, not a pipe"
    check_exit 2 try dense.kd.rill --eval-every 0
    check_exit 2 rill distill -q -m student.rill --patience 2 corpus.kd.rill -o out.rill
    assert_stderr_line "--patience needs --eval"
    check_exit 2 rill distill -q -m student.rill --keep-best corpus.kd.rill -o out.rill
    assert_stderr_line "--keep-best needs --eval"
    check_exit 2 try tokens.rill --keep-best --eval-metric kl
    assert_stderr_line "--eval-metric kl: the held-out stream has no teacher's answers, and there is no --teacher"
    assert_no_file out.rill
    [ ! -s log.tsv ]
}
