#!/usr/bin/env bats
# Every loss of the table, from the table: it runs on what it says it needs, and is refused without. The values are the unit tests' business.
load common

setup_file() {
    make_inputs
    cd "$INPUTS" || return
    rill init -q --layers 4 --hidden 32 --heads 4 --kv-heads 2 --ffn 64 model.rill -o big.rill
    rill init -q --layers 2 --hidden 32 --heads 4 --kv-heads 2 --ffn 64 --seed 2 model.rill -o small.rill
    rill teacher-infer -q -m big.rill tokens.rill -o answers.rill
    for point in embed hidden:all attention:all q:all k:all v:all; do set -- "$@" --tap "$point:dtype=f32"; done
    rill teacher-infer -q --precision f32 -m big.rill "$@" tokens.rill -o all.rill
}
setup() { enter_inputs; }
train() { rill distill -q --no-provenance -m small.rill --batch-tokens 64 --micro-tokens 64 --steps 2 "$@"; }
# "NAME: what it needs" of every loss
needs() { rill distill --list-losses | awk '/^[a-z0-9]+: / { name = $1 } /^  needs: / { sub(/^  needs: */, ""); print name, $0 }'; }
on_points() { needs | sed -n 's/^\([a-z0-9]*\): \(.*\) of a teacher (.*/\1 \2/p'; }

@test "every loss of the table takes two steps on the fields that it names" {
    needs | cut -d: -f1 >names
    [ "$(wc -l <names)" -ge 30 ]
    while read -r name; do
        train --loss "$name" --log "$name.tsv" all.rill >trained.rill
        awk -F'\t' -v f="$name" 'NR == 1 { for (i = 1; i <= NF; i++) if ($i == f) c = i }
            NR > 1 && c && $c + 0 != $c { exit 1 } END { exit NR != 3 }' "$name.tsv"
        assert_differ small.rill trained.rill
    done <names
}

@test "a loss on points is refused without a field, with the name of what to add; with it alone it runs" {
    on_points >points
    [ "$(wc -l <points)" -ge 15 ]
    while read -r name fields; do
        check_exit 3 train --loss "$name" answers.rill
        assert_stderr_line "*the loss $name needs *teacher-infer --tap *--teacher MODEL*"
        [ -z "$out" ]
        taps=()
        for field in ${fields//,/}; do
            taps+=(--tap "$field$([ "$field" = embed ] || echo :all)")
        done
        rill teacher-infer -q --encode none -m big.rill "${taps[@]}" tokens.rill -o own.rill --force
        train --loss "$name" own.rill >trained.rill
    done <points
}

@test "a teacher beside the student says the same as its fields" {
    on_points >points
    [ "$(wc -l <points)" -ge 15 ]
    while read -r name _; do
        for from in all.rill "--teacher big.rill --teacher-precision f32 tokens.rill"; do
            # shellcheck disable=SC2086
            train --precision f32 --loss "$name" --log log.tsv $from >/dev/null
            sed -n 2p log.tsv | cut -f2 >>values
        done
        awk 'NR == 1 { a = $1 } END { d = $1 - a; exit !(d * d <= 1e-8 * a * a) }' values || { echo "$name"; cat values; return 1; }
        rm values
    done <points
}

@test "relations of positions that are sampled, and of sequences" {
    rill teacher-infer -q -m big.rill --encode none --tap hidden:all --tap-positions 4 tokens.rill -o some.rill
    for loss in sp cc pkt rkd irg crd nst at fsp pkd; do train --loss "$loss" some.rill >/dev/null; done
    for loss in sp cc pkt rkd irg crd pkd; do train --loss "$loss:per=sequence" all.rill >/dev/null; done
    check_exit 3 train --loss hidden some.rill
    assert_stderr_line "*needs hidden.* of all positions, and the data has some*"
}

@test "what does not fit is refused before training" {
    rill init -q --layers 2 --hidden 48 --heads 3 --kv-heads 3 --ffn 64 "$INPUTS/model.rill" -o odd.rill
    odd() { rill distill -q -m odd.rill --steps 1 "$@" all.rill; }
    check_exit 2 odd --loss pkd
    assert_stderr_line "*the loss pkd: widths of 48 and 32*"
    check_exit 2 odd --loss minilm
    assert_stderr_line "*3 heads of the student against 4 of the teacher*minilm2*"
    odd --loss minilm2 >/dev/null
    odd --loss sp --loss rkd --loss hidden --loss fsp >/dev/null
    check_exit 2 train --loss minilm2:heads=5 all.rill
    assert_stderr_line "*heads=5 does not divide*"
    check_exit 2 train --loss fsp:map=last all.rill
    check_exit 2 train --loss sp:map=first all.rill
    for none in rkd:distance=0,angle=0 irg:edges=0,moves=0 minilm:attention=0,values=0 minilm2:qq=0,kk=0,vv=0 \
        tinybert:embed=0,hidden=0,attention=0; do
        check_exit 2 train --loss "$none" all.rill
        assert_stderr_line "*all of its terms have the weight 0"
    done
    check_exit 3 train --loss tinybert:of=scores all.rill
    assert_stderr_line "*scores are of a teacher beside the student*"
}
