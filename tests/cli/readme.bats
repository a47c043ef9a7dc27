#!/usr/bin/env bats
# Every command of README.md and of examples/ does what the page says.
load common

@test "the README's commands print what it promises" {
    [ -f "$ROOT/examples/data/model.rill" ] || skip "without examples/data/model.rill"
    cp -r "$ROOT/examples" .
    check_exit 0 "$ROOT/tests/readme-blocks" "$ROOT/README.md"
}

@test "the README is short enough to be read" {
    [ "$(wc -l <"$ROOT/README.md")" -le 150 ]
}

# One after the other, because each page begins with files of its own; `big` is a host that ssh finds here.
@test "the recipes' commands print what the page promises" {
    [ -f "$ROOT/examples/data/model.rill" ] || skip "without examples/data/model.rill"
    cp -r "$ROOT/examples" . && mkdir bin models && cp -r "$ROOT/tests/golden/tiny-llama/sharded" models/llama
    printf '#!/bin/sh\n[ "$1" = big ] || exit 255\nshift\nexec sh -c "$*"\n' >bin/ssh && chmod +x bin/ssh
    PATH="$T/bin:$PATH" check_exit 0 "$ROOT/tests/readme-blocks" "$ROOT/docs/recipes.md"
}

# names KIND: what the README lists after "KIND:", a name a line
names() { awk -v k="$1:" '$1 == k { on = 1; $1 = "" } /^[a-z]+:|^```/ && $1 != "" { on = 0 } on' "$ROOT/README.md" | tr -s ' ' '\n' | sed '/^$/d'; }

@test "the README names all architectures, types and losses, as the registries have them" {
    assert_equal "$(names architectures)" "$(rill help architectures | awk 'NR > 1 && NF == 0 { exit } NR > 1 { print $1 }')"
    assert_equal "$(names losses)" "$(rill distill --list-losses | sed -n 's/^\([a-z0-9_]*\): .*/\1/p')"
    assert_equal "$(names types)" "$(rill quantize --help | tr -s ' \n' ' ' | sed 's/.*in upper or lower case: \([^;]*\);.*/\1/; s/ or /, /' | tr -d ' ' | tr ',' '\n')"
}

@test "the Makefile of the recipes works" {
    [ -f "$ROOT/examples/data/model.rill" ] || skip "without examples/data/model.rill"
    cp -r "$ROOT/examples" . && mkdir -p build && ln -s "$RILL_BIN" build/bin
    awk '/^```make/ { inside = 1; next } /^```/ { inside = 0 } inside' "$ROOT/docs/recipes.md" >Makefile
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
