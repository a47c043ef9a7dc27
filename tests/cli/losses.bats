#!/usr/bin/env bats
# rill distill: its table of losses, exits, and teachers in the process. Values and gradients are the unit tests' business.
load common

setup_file() { make_inputs; }
setup() {
    enter_inputs
    rill init -q --layers 3 --hidden 32 --heads 2 --kv-heads 1 --ffn 64 model.rill -o three.rill
    rill init -q --layers 4 --hidden 32 --heads 2 --kv-heads 1 --ffn 64 --seed 3 model.rill -o like.rill
}
train() { rill distill -q --no-provenance -m three.rill --precision f32 --batch-tokens 32 --micro-tokens 32 --lr 0.01 --steps 6 --epochs 9 "$@"; }
names() { rill distill --list-losses | sed -n 's/^\([a-z0-9]*\): .*/\1/p'; }

@test "the table is shown, and is what help, completion and the page know" {
    check_exit 0 rill distill --list-losses
    [ "$(grep -c '^  formula: ' <<<"$out")" = "$(names | wc -l)" ]
    [ "$(grep -c '^  source: ' <<<"$out")" = "$(names | wc -l)" ]
    for name in $(names); do
        rill distill --help-bash | grep -E -- '^ +--loss\)' | grep -qw "$name"
        rill distill --help-options | grep -E '^--loss ' | grep -qw "$name"
    done
    "$ROOT/tests/reference/make-loss-list" --print "$RILL_BIN/rill" >list
    sed -n '/losses: begin/,/losses: end/p' "$ROOT/lib/losses/README.md" | grep '^|' >page
    assert_same list page
}

@test "every loss trains with a teacher beside the student, and has its column" {
    for name in $(names); do
        rm -f log.tsv
        case $name in
        ce | smooth | tfkd) set -- ;;
        pkd | tinybert | minilm) set -- --teacher like.rill ;; # widths or heads are to be the student's
        *) set -- --teacher teacher.rill ;;
        esac
        train "$@" --loss "$name" --log log.tsv tokens.rill >trained || fail "$name"
        [ "$(head -1 log.tsv | cut -f2)" = "$name" ] || fail "$(head -1 log.tsv)"
        rill check -q trained
    done
}

@test "a teacher in the process gives the bytes of dense knowledge, and so does one that is streamed" {
    rill teacher-infer -q -m teacher.rill --precision f32 --dtype f32 --logits --tap hidden:all:dtype=f32 tokens.rill -o dense.rill
    for how in "--loss kl" "--loss kl:temperature=2 --loss ce:weight=0.1" "--loss jsd --loss mse:centred=no,weight=0.1" \
        "--loss kl --loss hidden:weight=0.1,map=2:0+0:1,projector=linear"; do
        # shellcheck disable=SC2086
        train $how dense.rill >offline
        # shellcheck disable=SC2086
        train $how --teacher teacher.rill --teacher-precision f32 tokens.rill >live
        # shellcheck disable=SC2086
        train $how --teacher teacher.rill --teacher-precision f32 --teacher-weights stream --recompute tokens.rill >streamed
        assert_same offline live
        assert_same offline streamed
    done
}

@test "exits learn, threads and recomputation change nothing, and the model is as without them" {
    how="--exit 1,2 --loss ce --loss kl:at=exits,teacher=final --loss ce:at=1,label=first,weight=0.5"
    # shellcheck disable=SC2086
    train $how --log log.tsv -j 1 tokens.rill >one
    # shellcheck disable=SC2086
    train $how -j 2 --recompute tokens.rill >two
    assert_same one two
    head -1 log.tsv | grep -q "^step	ce	kl_exits	first	lr"
    awk -F'\t' 'NR == 2 { first = $4 } END { exit !($4 < first) }' log.tsv
    [ "$(rill ls one | wc -l)" = "$(rill ls three.rill | wc -l)" ]
}

@test "projectors, averages and scheduled weights resume bit by bit" {
    how="--teacher teacher.rill --ema 0.9 --loss kl:weight=1..0.2 --loss hidden:weight=0.1,projector=linear --loss rkl:teacher=ema,label=mean"
    # shellcheck disable=SC2086
    train $how --log whole.tsv tokens.rill >whole
    # shellcheck disable=SC2086
    train $how --checkpoint run.ck --checkpoint-every 2 --log log.tsv tokens.rill >again
    assert_same whole again
    rill ls run.ck | grep -q 'losses.hidden.projector.0.weight'
    if rill ls whole | grep -q projector; then fail "the projector is in the model"; fi
    # half of the way, and on
    half() {
        # shellcheck disable=SC2086
        rill distill -q --no-provenance -m three.rill --precision f32 --batch-tokens 32 --micro-tokens 32 --lr 0.01 --warmup 0 \
            --schedule constant --epochs 9 ${how/1..0.2/1} "$@" tokens.rill
    }
    half --steps 6 >whole
    half --steps 3 --checkpoint half.ck >/dev/null
    half --steps 6 --resume half.ck >resumed
    assert_same whole resumed
    check_exit 3 train --teacher teacher.rill --ema 0.9 --loss kl --resume run.ck tokens.rill
    assert_stderr "*the checkpoint was made with loss kl kl:weight=1..0.2*"
}

@test "what cannot be served is refused before training, and says what to add" {
    check_exit 3 train --loss rkl corpus.kd.rill
    assert_stderr_line "the loss rkl is not defined for sample:50: use one of the encodings dense, ghost (teacher-infer --encode), or --teacher"
    check_exit 3 train --loss kl tokens.rill
    assert_stderr "*--teacher MODEL*"
    check_exit 3 train --loss hidden corpus.kd.rill
    assert_stderr "*teacher-infer --tap hidden:LAYERS*"
    check_exit 2 train --loss kl:teacher=live corpus.kd.rill
    check_exit 2 train --loss ce --teacher teacher.rill tokens.rill
    assert_stderr_line "--teacher has no effect: no loss asks it (teacher=live)"
    check_exit 2 train --exit 1 --loss ce tokens.rill
    check_exit 2 train --exit 3 --loss ce:at=exits tokens.rill
    check_exit 2 train --exit 2,1 --loss ce:at=exits tokens.rill
    check_exit 2 train --exit x --loss ce:at=exits tokens.rill
    check_exit 2 train --loss kl --loss kl dense.kd.rill
    assert_stderr "*label=*"
    check_exit 2 train --loss entropy dense.kd.rill
    assert_stderr "*expected one of kl|rkl*"
    check_exit 3 train --loss mse:centred=no dense.kd.rill
    assert_stderr "*teacher-infer --logits*"
}
