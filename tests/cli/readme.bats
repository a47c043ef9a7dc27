#!/usr/bin/env bats
# Every command of README.md and of examples/ does what the page says.
load common

@test "the README's commands print what it promises" {
    [ -f "$ROOT/examples/data/model.rill" ] || skip "without examples/data/model.rill"
    cp -r "$ROOT/examples" .
    check_exit 0 "$ROOT/tests/readme-blocks" "$ROOT/README.md"
}

@test "the README's Makefile works" {
    [ -f "$ROOT/examples/data/model.rill" ] || skip "without examples/data/model.rill"
    cp -r "$ROOT/examples" . && mkdir -p build && ln -s "$RILL_BIN" build/bin
    awk '/^```make/ { inside = 1; next } /^```/ { inside = 0 } inside' "$ROOT/README.md" >Makefile
    check_exit 0 make -s
    [[ $(cat student.q8_0.eval.json) == *'"perplexity":'[1-9]* ]]
    # recipe prints one that gives the same bytes
    check_exit 0 rill recipe student.rill
    mv student.rill first.rill && printf '%s\n' "$out" >Recipe.mk
    check_exit 0 make -s -f Recipe.mk student.rill
    assert_same first.rill student.rill
}

@test "make's targets that the README names are there" {
    for target in demo test help; do
        make -s -C "$ROOT" help | grep -q "^ *$target " || fail "make $target"
    done
    for program in $(sed -n 's/^| \([a-z, -]*\) | .* | .* | .* |$/\1/p' "$ROOT/README.md" | tr ',' ' '); do
        case $program in program | -*) continue ;; esac
        [ -x "$RILL_BIN/rill-$program" ] || fail "the table names $program"
    done
    for program in "$RILL_BIN"/rill-*; do
        grep -q "^|.*\b$(basename "$program" | sed 's/rill-//')\b.*|" "$ROOT/README.md" || fail "$program is not in the table"
    done
}
