#!/usr/bin/env bats
# What holds for every program of build/bin, run as tests/cli/programs.table says.
load common

setup_file() { make_inputs; }
setup() {
    enter_temp
    cp -r "$INPUTS/." .
}

programs() { for p in "$RILL_BIN"/rill-*; do basename "$p" | sed s/rill-//; done; }

# for_each FUNCTION: calls it with $name, $from (a file) and $arguments of every line whose program and input are here
for_each() {
    local name from arguments
    while read -r name from arguments; do
        case $name in '' | '#'*) continue ;; esac
        case $arguments in *'!folder') continue ;; esac
        arguments=${arguments%'!slow'}
        command -v "rill-$name" >/dev/null || continue
        [ "$from" != - ] || from=/dev/null
        [ -e "$from" ] || continue # see the first test
        "$1" || fail "in: rill $name $arguments < $from"
    done <"$BATS_TEST_DIRNAME/programs.table"
}
run_line() { # CODE FILE: the line with FILE on stdin; its stdout is in $T/out
    check_exit_in "$1" "$2" eval "rill-$name -q $arguments ${3:->out}"
}
# the programs whose standard input is a stream, and which are not told to read other files instead
reads_stream() { [[ $from == *.rill ]] && rill "$name" --help-man | grep -q '^\.\\" Reads standard input\.'; }

@test "every program is in the table, and its inputs can be made" {
    for p in $(programs); do
        grep -qE "^$p( |\$)" "$BATS_TEST_DIRNAME/programs.table" || fail "rill-$p is not in tests/cli/programs.table"
    done
    [ -x "$RILL_BIN/rill-tokenize" ] || skip "without tokenize some inputs cannot be made"
    while read -r name from _; do
        case $name in '' | '#'*) continue ;; esac
        [ "$from" = - ] || [ -e "$from" ] || fail "$name: make-inputs makes no $from"
    done <"$BATS_TEST_DIRNAME/programs.table"
}

@test "--help and --help-summary work, and say every option" {
    for p in $(programs); do
        check_exit 0 rill "$p" --help
        assert_quiet
        assert_stdout "Usage: rill $p *Exit status*"
        text=$out
        for o in $("rill-$p" --help-bash | grep -oE -- '--[a-z][a-z0-9-]*' | sort -u); do
            [[ $text == *"$o"* ]] || fail "$p: $o is not in --help"
        done
        [[ $text != *...\)* ]] || fail "$p: the text of an option is longer than lib/cli/help.c has room for"
        [ "$(awk 'length > 100' <<<"$text" | wc -l)" -eq 0 ] || fail "$p: --help has lines of more than 100 columns"
        check_exit 0 rill "$p" --help-summary
        [ "$(wc -l <<<"$out")" -eq 1 ]
        [[ $out == [a-z]*[!.] ]] || fail "$p: the summary begins with a capital or ends with a full stop"
        check_exit 0 rill "$p" --version
    done
}

@test "the options are those that users' Makefiles depend on" {
    # an option that is gone or has another default breaks them; a new one is recorded with: make freeze
    for p in $(programs); do
        rill "$p" --help-options >now
        diff "$ROOT/tests/golden/cli/$p" now || fail "rill $p: the options are not those of tests/golden/cli/$p (meant? make freeze)"
    done
}

@test "an unknown option is a usage error" {
    for p in $(programs); do
        check_exit 2 rill "$p" --no-such-option
        assert_stderr_line "unknown option --no-such-option*"
    done
}

@test "every line of the table succeeds, quietly, and twice the same" {
    # the same command gives the same bytes; a report's seconds are no result
    one() {
        run_line 0 "$from" && assert_quiet && mv out first && run_line 0 "$from" && assert_same first out
    }
    for_each one
}

@test "text and an empty input are malformed, a cut one too, and none leaves a valid stream" {
    one() {
        reads_stream || return 0
        : >empty
        run_line 3 "$ROOT/LICENSE" || return 1
        assert_stderr_line "*" || return 1
        run_line 3 empty || return 1
        assert_stderr_line "*" || return 1
        run_line 0 "$from" || return 1
        # a program that prints what it was asked for need not read on
        writes=$(head -c 5 out | grep -cE 'RILL|GGUF')
        for part in 1 32 64 100 50% 90%; do
            case $part in
            *%) cut_file "$from" $(($(file_size "$from") * ${part%\%} / 100)) >cut ;;
            *) cut_file "$from" "$part" >cut ;;
            esac
            run_line 3 cut || { [ "$writes" = 0 ] && [ "$code" = 0 ]; } || fail "cut at $part" || return 1
        done
        [ "$writes" = 1 ] || return 0
        cut_file "$from" $(($(file_size "$from") - 1)) >cut
        run_line 3 cut || return 1
        if rill recipe out >/dev/null 2>&1; then fail "left a valid stream"; fi
    }
    for_each one
}

@test "an output that cannot be written is an error" {
    one() {
        run_line 0 "$from" || return 1
        [ -s out ] || return 0 # told to be silent
        run_line 1 "$from" ">/dev/full" || return 1
        assert_stderr_line "*No space left on device"
    }
    for_each one
}

@test "a reader that goes away ends the program quietly" {
    one() {
        [[ $name != fixture || $arguments != *--report* ]] || return 0
        run_line 0 "$from" || return 1
        [ -s out ] || return 0
        # the pipe's reading end is closed before the first byte
        check_exit_in 0 "$from" bash -c "{ sleep 0.05; rill-$name -q $arguments; echo \$? >status; } | exec true"
        assert_quiet || return 1
        assert_equal "$(cat status)" 141
    }
    for_each one
}

@test "a terminal on standard input means usage" {
    need script
    one() {
        # shellcheck disable=SC2086
        rill "$name" --help-man | grep -q '^\.\\" Reads standard input\.' || return 0
        on_terminal rill "$name"
        assert_equal "$code" 2 || return 1
        assert_stdout "Usage: rill $name*"
    }
    for_each one
}

@test "-o writes a file, and keeps one that is there" {
    one() {
        rill "$name" --help | grep -q -- '--output' || return 0
        run_line 0 "$from" "-o out" || return 1
        [ -e out ] && cp out first
        run_line 2 "$from" "-o out" || return 1
        assert_stderr_line "out exists (--force replaces it)" || return 1
        assert_same out first || return 1
        rm out
        assert_no_file out
    }
    for_each one
}

@test "every example of every manual page runs" {
    for p in $(programs); do
        while IFS= read -r example; do
            rm -rf again && mkdir again && cp -r "$INPUTS/." again
            # what an example writes with -o must not be there; what > writes may
            for word in $(grep -oE -- '-o [^ ]+' <<<"$example" | cut -d' ' -f2); do rm -rf "again/$word"; done
            # shellcheck disable=SC2046
            [ -x "$RILL_BIN/rill-tokenize" ] || [[ $example != *tokens* && $example != *prompts* && $example != *stats* ]] || continue
            (cd again && bash -o pipefail -c "$example") >example.out 2>example.err || fail "$example: $(cat example.err)"
        done < <(rill "$p" --help | sed -n '/^Examples:/,/^$/s/^  \([^ ]\)/\1/p')
    done
}

@test "the recipe of every stream gives the same bytes" {
    one() {
        rill "$name" --help | grep -q -- '--no-provenance' || return 0
        # shellcheck disable=SC2086
        bash -c "rill-$name -q $arguments <$from >made.rill"
        head -c 5 made.rill | grep -q RILL || return 0 # told to write text
        rm -rf again && mkdir again
        rill recipe -q made.rill >again/Makefile
        for leaf in $(sed -n 's/^#   \([^ ]*\).*/\1/p' again/Makefile); do
            mkdir -p "again/$(dirname "$leaf")" && cp -r "$leaf" "again/$leaf"
        done
        make -s -C again made.rill >again/log 2>&1 || fail "$(cat again/log again/Makefile)" || return 1
        assert_same made.rill again/made.rill
    }
    for_each one
}
