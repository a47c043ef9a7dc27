#!/usr/bin/env bats
# rill plot: the curves are those of the log, the picture is XML, and what is no log is refused by its line.
load common

setup() {
    enter_temp
    need gnuplot
    # falls by 1 a step from 10; every second step has an evaluation, which rises
    awk 'BEGIN { OFS = "\t"; print "step", "kl", "lr", "tokens", "noise_scale", "eval_kl"
        for (i = 1; i <= 9; i++) print i, 10 - i, 0.5, 100 * i, "nan", i % 2 ? "nan" : i }' >run.tsv
    awk 'BEGIN { OFS = "\t"; print "step", "kl", "lr", "tokens", "noise_scale"; for (i = 1; i <= 5; i++) print i, i, 0.5, 300 * i, "nan" }' >other.tsv
}
titles() { grep -o '<g id="gnuplot_plot_[0-9]*" ><title>[^<]*' "$1" | sed 's/.*<title>//' | tr '\n' ';'; }
# points FILE N: x,y of the vertices of curve N, in pixels; the first two are of the sample beside its name
points() {
    tr '\n' ' ' <"$1" | sed "s/.*id=\"gnuplot_plot_$2\"//; s/id=\"gnuplot_plot_.*//" | sed "s/.*<path stroke='rgb[^']*' *d='\([^']*\)'.*/\1/" |
        grep -o '[0-9.]*,[0-9.]*' | tail -n +3
}
well_formed() { python3 -c 'import sys, xml.etree.ElementTree as t; t.parse(sys.argv[1])' "$1" || fail "$1 is no XML"; }

@test "the curves of a log, in its order and of its shape" {
    check_exit 0 rill plot run.tsv -o run.svg
    assert_quiet
    need python3
    well_formed run.svg
    assert_equal "$(titles run.svg)" 'kl;eval_kl;'
    grep -q 'width="900" height="560"' run.svg
    # nine points on a line that falls (y grows downwards), four that rise, as far to the right as the log has them
    points run.svg 2 >eval
    rill plot --y kl run.tsv >kl.svg
    points kl.svg 1 >kl
    assert_equal "$(wc -l <kl) $(wc -l <eval)" '9 4'
    awk -F, 'NR > 1 { if ($1 <= x || $2 <= y) exit 1; if (NR > 2 && ($1 - x - dx > 0.2 || dx - $1 + x > 0.2 || $2 - y - dy > 0.2 || dy - $2 + y > 0.2)) exit 1
        dx = $1 - x; dy = $2 - y } { x = $1; y = $2 }' kl || fail "$(cat kl)"
    awk -F, 'NR > 1 && ($1 <= x || $2 >= y) { exit 1 } { x = $1; y = $2 }' eval || fail "$(cat eval)"
}

@test "a file, standard input and a pipe give the same picture" {
    rill plot run.tsv >a
    rill plot <run.tsv >b
    rill plot - <run.tsv >c
    cat run.tsv | rill plot >d
    for f in b c d; do assert_same a $f; done
    head -c -1 run.tsv | rill plot >e # without the end of the last line
    assert_same a e
}

@test "several logs, other columns, a logarithmic axis, a title" {
    rill plot --y kl run.tsv other.tsv -o two.svg
    assert_equal "$(titles two.svg)" 'run.tsv: kl;other.tsv: kl;'
    rill plot --y lr,kl --x tokens --log xy --size 400x300 --title "it's <b> & \$x \`id\` \"@1\"" run.tsv -o log.svg
    need python3
    well_formed log.svg
    assert_equal "$(titles log.svg)" 'lr;kl;'
    python3 -c 'import sys, xml.etree.ElementTree as t; s = "".join(t.parse("log.svg").getroot().itertext()); sys.exit("it'"'"'s <b> & $x `id` \"@1\"" not in s)'
    grep -q 'width="400" height="300"' log.svg
    # equal steps of a straight line are none on a logarithmic axis
    rill plot --y kl --log y run.tsv >kl.svg
    assert_equal "$(points kl.svg 1 | wc -l)" 9
    points kl.svg 1 | awk -F, '{ d = $2 - y; if (NR > 2 && d <= last) exit 1; last = NR > 1 ? d : 0; y = $2 }' || fail "$(points kl.svg 1)"
}

@test "the log of a real run, while it is evaluated" {
    cp "$ROOT/examples/data/model.rill" m.rill
    rill init -q --layers 1 --hidden 32 --heads 2 --ffn 64 m.rill -o s.rill
    rill tokenize -q -m m.rill --max-tokens 400 --context 64 "$ROOT/examples/data/heldout.txt" -o t.rill
    rill distill -q -m s.rill --batch-tokens 64 --eval t.rill --eval-every 2 --group '*attn*:lr=0.5' --log log.tsv t.rill >/dev/null
    rill plot log.tsv -o log.svg
    assert_equal "$(titles log.svg)" 'ce;eval_ce;'
    rill plot --y 'grad_norm:rest,grad_norm:*attn*' log.tsv >norms.svg
    assert_equal "$(titles norms.svg)" 'grad_norm:rest;grad_norm:*attn*;'
}

bad() { # WANTED TEXT
    printf "$2" >bad.tsv
    check_exit 3 rill plot bad.tsv -o out.svg
    assert_stderr_line "$1"
    assert_no_file out.svg
}

@test "what is no log is refused, and the line is named" {
    bad 'bad.tsv is empty' ''
    bad 'bad.tsv has no lines after the header' 'step\tkl\n'
    bad 'bad.tsv: line 3: expected 2 columns, found 1' 'step\tkl\n1\t2\n2\n'
    bad 'bad.tsv: line 3: expected 2 columns, found 3' 'step\tkl\n1\t2\n2\t3\t4\n'
    bad 'bad.tsv: line 2: column "kl": "two" is not a number' 'step\tkl\n1\ttwo\n'
    bad 'bad.tsv: line 2: column "kl": "" is not a number' 'step\tkl\n1\t\n'
    bad 'bad.tsv: line 2: column "kl": "0x10" is not a number' 'step\tkl\n1\t0x10\n'
    bad 'bad.tsv: line 3: expected 2 columns, found 1' 'step\tkl\n1\t2\n\n'
    bad 'bad.tsv: line 1: two columns are called "kl"' 'step\tkl\tkl\n1\t2\t3\n'
    bad 'bad.tsv: line 1: expected names of columns, found "1"' '1\t2\n2\t3\n'
    bad 'bad.tsv has no column "step"; it has a, b' 'a\tb\n2\t3\n'
    bad 'bad.tsv: no column with a loss or an evaluation: choose columns with --y' 'step\tkl\tlr\n1\tnan\t3\n'
    check_exit 3 rill plot --y ce run.tsv
    assert_stderr_line 'run.tsv has no column "ce"; it has step, kl, lr, tokens, noise_scale, eval_kl'
    check_exit 3 rill plot --y noise_scale run.tsv
    assert_stderr_line 'run.tsv: column "noise_scale" has no number to draw'
    check_exit 3 rill plot --y kl,eval_kl run.tsv other.tsv
    assert_stderr_line 'other.tsv has no column "eval_kl"; *'
    printf 'step\tkl\n1\t2\n2\t0\n' >bad.tsv
    check_exit 3 rill plot --log y bad.tsv
    assert_stderr_line 'bad.tsv: line 3: column "kl": 0 cannot be drawn on a logarithmic axis'
    for size in 900 99x200 200x99 10001x200 axb 200x; do
        check_exit 2 rill plot --size $size run.tsv
        assert_stderr_line "--size $size: expected WxH, each from 100 to 10000"
    done
    check_exit 2 rill plot --y kl,,lr run.tsv
    check_exit 1 rill plot none.tsv
    head -c 3000 /dev/urandom >noise && check_exit 3 rill plot noise
    [ "$(wc -l <"$T/.stderr")" = 1 ]
}

@test "without gnuplot, or with one that fails, the message says so" {
    mkdir bin
    ln -s "$RILL_BIN/rill-plot" bin
    check_exit 1 env PATH="$T/bin" rill-plot run.tsv -o out.svg
    assert_stderr_line 'gnuplot, which does the drawing, is not installed (make deps, or apt-get install gnuplot-nox)'
    printf '#!/bin/sh\ncat >/dev/null\necho >&2\necho "  no terminal svg" >&2\nexit 1\n' >bin/gnuplot && chmod +x bin/gnuplot
    check_exit 1 env PATH="$T/bin:/bin:/usr/bin" rill-plot run.tsv -o out.svg
    assert_stderr_line 'gnuplot failed: no terminal svg'
    printf '#!/bin/sh\necho half a picture\n' >bin/gnuplot
    check_exit 1 env PATH="$T/bin:/bin:/usr/bin" rill-plot run.tsv -o out.svg
    printf '#!/bin/sh\nkill -9 $$\n' >bin/gnuplot
    check_exit 1 env PATH="$T/bin:/bin:/usr/bin" rill-plot run.tsv -o out.svg
    assert_stderr_line 'gnuplot died of signal 9'
    assert_no_file out.svg
}
