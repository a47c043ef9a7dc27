#!/usr/bin/env bats
load common

g() { echo "$ROOT/formats/golden/v1-$1.rill"; }

@test "diff of equal content is silent, however it is stored" {
    for kind in model stats checkpoint tokens knowledge; do
        check_exit 0 rill diff "$(g $kind-raw)" "$(g $kind-planes)"
        assert_equal "$out" ""
        assert_quiet
    done
}

@test "diff --all lists what is equal" {
    check_exit 0 rill diff --all "$(g model-raw)" "$(g model-zstd)"
    assert_stdout '*codes: max 0 at 0, mean 0, rmse 0, relative 0, cosine 1.000000000, bits 8*'
}

@test "diff measures, and fails" {
    rill fixture --kind stats --seed 1 >a.rill
    rill fixture --kind stats --seed 2 >b.rill
    check_exit 4 rill diff a.rill b.rill
    assert_stdout '*: max *, mean *, rmse *, relative *, cosine *, bits 32*total of 2: max *, mean *, rmse *, relative *'
    assert_stderr_line '2 differences in 2 tensors'
    check_exit 4 rill diff --json a.rill b.rill
    assert_stdout '*"outside":true*'
    check_exit 0 sh -c 'rill diff - a.rill < a.rill'
}

@test "diff --json says null of an infinite difference" {
    check_exit 4 rill diff --json "$ROOT/tests/golden/stream/nan.rill" "$ROOT/tests/golden/stream/finite.rill"
    assert_stdout '*"different":2,"max_abs":null,"mean_abs":null,"rmse":null,"relative":null,"cosine":1,"bits":32,"outside":true}*"total":*'
}

@test "diff agrees with awk" {
    rill fixture --kind stats -n 1 --elems 50 --seed 1 >a.rill
    rill fixture --kind stats -n 1 --elems 50 --seed 2 >b.rill
    paste <(rill show --tsv a.rill | tr '\t' '\n') <(rill show --tsv b.rill | tr '\t' '\n') >v
    want=$(awk '{d = $1 - $2; if (d < 0) d = -d; if (d > m) m = d; s += d; q += d * d; x += $1 * $2; a += $1 * $1; b += $2 * $2}
        END {printf "%.4g %.4g %.4g %.4g %.4g", m, s / NR, sqrt(q / NR), sqrt(q / a), x / sqrt(a * b)}' v)
    rill diff a.rill b.rill >d.txt 2>/dev/null || true
    [ "$(wc -l <d.txt)" -eq 2 ] # of one tensor the total says the same
    sed -E 's/.*max ([^ ,]*)( at [0-9]*)?, mean ([^,]*), rmse ([^,]*), relative ([^,]*), cosine ([^,]*), bits 32$/\1 \3 \4 \5 \6/' d.txt |
        awk '{printf "%.4g %.4g %.4g %.4g %.4g\n", $1, $2, $3, $4, $5}' >got
    assert_equal "$(cat got)" "$(printf '%s\n%s' "$want" "$want")"
}

@test "the total of a quantized model is that of its values" {
    rill import -q --no-provenance "$ROOT/tests/golden/tiny-llama" -o a.rill
    rill quantize -q --type q8_0 --no-provenance a.rill -o b.rill
    paste <(rill show --tsv a.rill | tr '\t' '\n') <(rill show --tsv b.rill | tr '\t' '\n') >v
    check_exit 4 sh -c 'rill diff --json -j 1 a.rill b.rill >one'
    check_exit 4 sh -c 'rill diff --json -j 3 a.rill b.rill >three'
    assert_same one three
    awk '{d = $1 - $2; q += d * d; x += $1 * $2; a += $1 * $1; b += $2 * $2}
        END {printf "%d %.4g %.4g %.6f\n", NR, sqrt(q / NR), sqrt(q / a), x / sqrt(a * b)}' v >want
    tail -n 1 one | sed -E 's/.*"total":21,.*"rmse":([^,]*),"relative":([^,]*),"cosine":([^,]*),.*/\1 \2 \3/' |
        awk -v n="$(wc -l <v)" '{printf "%d %.4g %.4g %.6f\n", n, $1, $2, $3}' >got
    assert_same want got
    # bytes of the tensors in B over their elements: 34 bytes for 32 values, vectors in f32
    grep '"name":"layers.0.attn.q.weight"' one | grep -q '"bits":8.5,'
    bits=$(rill ls --json b.rill | sed -nE 's/.*"name":.*"bytes":([0-9]*).*/\1/p' | awk '{s += $1} END {print 8 * s}')
    tail -n 1 one | sed -E 's/.*"bits":([^}]*)\}/\1/' | awk -v b="$bits" -v n="$(wc -l <v)" '{d = $1 * n / b - 1; exit !(d * d < 1e-20)}'
}

@test "limits decide what is outside" {
    rill fixture --kind stats -n 1 --seed 1 >a.rill
    rill fixture --kind stats -n 1 --seed 2 >b.rill
    check_exit 0 rill diff --max-abs 100 a.rill b.rill
    check_exit 0 rill diff --mean-abs 100 --min-cosine -1 a.rill b.rill
    check_exit 4 rill diff --max-abs 1e-9 a.rill b.rill
    assert_stderr_line '1 differences in 1 tensors are outside the limits'
    check_exit 4 rill diff --max-abs 100 --min-cosine 0.9999 a.rill b.rill
}

@test "what is missing or of another shape counts, with and without limits" {
    rill fixture --kind stats -n 2 >a.rill
    rill fixture --kind stats -n 1 >b.rill
    check_exit 4 rill diff --max-abs 100 a.rill b.rill
    assert_stdout '*| absent*'
    check_exit 4 rill diff --max-abs 100 b.rill a.rill
    assert_stdout '*absent |*'
    rill fixture --kind stats -n 2 --elems 65 >c.rill
    check_exit 4 rill diff --max-abs 100 a.rill c.rill
    assert_stdout '*\[64\] | f32 \[65\]*'
}

@test "diff compares descriptions and batches" {
    rill cat --drop values "$(g knowledge-raw)" >k.rill
    check_exit 4 rill diff "$(g knowledge-raw)" k.rill
    assert_stdout '*values: f16 \[600, 4\] | absent*'
    check_exit 3 rill diff "$(g knowledge-raw)" "$(g tokens-raw)"
    assert_stderr_line '*this is a tokens stream, expected a knowledge stream'
    rill cat "$(g tokens-raw)" "$(g tokens-raw)" >two.rill
    check_exit 4 rill diff "$(g tokens-raw)" two.rill
    assert_stderr_line '* has more batches than *'
    rill fixture --kind stats -n 1 >s.rill
    rill fixture --kind checkpoint -n 1 >c.rill
    check_exit 3 rill diff s.rill c.rill
}
