# common.bash: what every tests/cli/*.bats file begins with. `make cli-tests` runs them all;
# `RILL_BIN=build/bin bats tests/cli/prune.bats` runs one.
#
#     load common
#
#     @test "prune keeps the kind" {
#         model > m.rill                                # a program of your own, say
#         rill prune --sparsity 0.5 < m.rill > p.rill
#         check_exit 3 rill ls p.rill.cut               # runs, compares the exit code
#         assert_stderr_line 'p.rill.cut: *truncated*'  # a glob over the one line on stderr, "rill NAME: " left out
#     }
#
# Every test starts in an empty folder of its own ($T, also the working directory), which is removed afterwards.
#
#   rill, rill-NAME       the programs of this build (RILL_BIN, default build/bin) lead PATH
#   rill fixture ...      makes small streams of noise, joins, fails, waits as asked (tests/fixture/fixture.c)
#   $ROOT                 the source tree: "$ROOT/examples/..."
#   check_exit CODE CMD...    runs CMD with stdin closed to /dev/null; keeps $out, $err (text) and $code; fails unless it
#                         exits with CODE. CMD may be a function; for pipes use: check_exit 3 sh -c 'a | b'
#   check_exit_in CODE FILE CMD...   the same with FILE on stdin
#   assert_stderr_line GLOB   $err is exactly one line, "rill NAME: GLOB"
#   assert_stderr GLOB        some line of $err matches GLOB
#   assert_stdout GLOB        $out as a whole matches GLOB
#   assert_quiet              nothing on stderr
#   assert_equal A B          two strings
#   assert_same FILE FILE     two files, byte for byte
#   assert_differ FILE FILE
#   assert_no_file PATH...    none of them exists (and no temporary file beside them)
#   assert_json FILE KEY VALUE  "KEY":VALUE occurs in a file of canonical JSON (no white space)
#   cut_file FILE N           FILE's first N bytes to stdout
#   flip_byte FILE OFFSET     changes one byte in place
#   file_size FILE
#   on_terminal CMD...        runs CMD with a pseudo-terminal as stdin, stdout and stderr; all of it lands in $out
#   make_inputs               for setup_file: small inputs for every program, in the folder $INPUTS (tests/cli/make-inputs)
#   enter_inputs              for setup: enter_temp with copies of the streams of $INPUTS
#   kill_at LINES SIGNAL ARGUMENTS...   rill distill ARGUMENTS with --log log.tsv among them gets a signal when its log has some
#                         lines; it may have got further then, or even to its end. Keeps $code
#   wait_until CMD...         runs CMD again and again until it succeeds; fails after ten minutes, because a test that waits for ever says nothing
#   need PROGRAM...           skips the test when one of them is not installed or not built

bats_require_minimum_version 1.5.0

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
RILL_BIN=$(cd "${RILL_BIN:-$ROOT/build/bin}" && pwd)
export ROOT RILL_BIN
export PATH="$RILL_BIN:$RILL_BIN/fixture:$RILL_BIN/bench:$PATH"
export LC_ALL=C
unset RILL_DEBUG

setup() { enter_temp; }
teardown() { leave_temp; }

# Call these from a setup() or teardown() of your own.
enter_temp() {
    T=$(mktemp -d "${BATS_TEST_TMPDIR:-/tmp}/rill.XXXXXX")
    export T
    cd "$T" || return 1
}
leave_temp() { cd / && rm -rf "$T"; }
enter_inputs() {
    enter_temp
    need rill-tokenize
    cp "$INPUTS"/*.rill .
}

make_inputs() {
    export INPUTS="$BATS_FILE_TMPDIR/inputs"
    if [ -z "${SHARED:-}" ]; then
        "$BATS_TEST_DIRNAME/make-inputs" "$INPUTS"
        return
    fi
    # a folder of tests/run-bats: made by the first file that asks, under a lock, and copied
    (
        flock 9
        [ -e "$SHARED/inputs" ] || { "$BATS_TEST_DIRNAME/make-inputs" "$SHARED/unfinished" && mv "$SHARED/unfinished" "$SHARED/inputs"; }
    ) 9>"$SHARED/lock" || return 1
    cp -r "$SHARED/inputs" "$INPUTS"
}

fail() {
    printf '%s\n' "$*" >&2
    return 1
}

check_exit() { check_exit_in "$1" /dev/null "${@:2}"; }
check_exit_in() {
    local want=$1 from=$2
    shift 2
    code=0
    "$@" <"$from" >"$T/.stdout" 2>"$T/.stderr" || code=$?
    { out=$(<"$T/.stdout"); } 2>/dev/null # the shell leaves out zeros, and says so
    err=$(<"$T/.stderr")
    [ "$code" -eq "$want" ] && return 0
    fail "$*: exit $code, expected $want"$'\n'"stdout: ${out:0:400}"$'\n'"stderr: ${err:0:2000}"
}

assert_stderr_line() {
    # shellcheck disable=SC2053
    [ "$(wc -l <"$T/.stderr")" -eq 1 ] && [[ $err == rill*": "$1 ]] && return 0
    fail "stderr is not the one line: rill NAME: $1"$'\n'"$err"
}
assert_stderr() {
    local line
    # shellcheck disable=SC2053
    while IFS= read -r line; do [[ $line == $1 ]] && return 0; done <<<"$err"
    fail "no line of stderr matches: $1"$'\n'"$err"
}
# shellcheck disable=SC2053
assert_stdout() { [[ $out == $1 ]] || fail "stdout does not match: $1"$'\n'"$out"; }
assert_quiet() { [ -z "$err" ] || fail "stderr is not empty: $err"; }
assert_equal() { [ "$1" = "$2" ] || fail "'$1' is not '$2'"; }
assert_same() { cmp "$1" "$2" || fail "$1 and $2 differ"; }
assert_differ() { if cmp -s "$1" "$2"; then fail "$1 and $2 are the same"; fi; }
assert_no_file() {
    local f
    for f in "$@"; do
        if [ -e "$f" ]; then fail "$f exists"; return 1; fi
        if compgen -G "$f.tmp.*" >/dev/null; then fail "$f has left a temporary file"; return 1; fi
    done
}
assert_json() { grep -qF "\"$2\":$3" "$1" || fail "$1: no \"$2\":$3 in: $(head -c 2000 "$1")"; }
cut_file() { head -c "$2" "$1"; }
file_size() { stat -c %s "$1"; }
flip_byte() {
    local old
    old=$(od -An -tu1 -j "$2" -N 1 "$1" | tr -d ' ')
    # shellcheck disable=SC2059
    printf "\\x$(printf %02x $((old ^ 0x55)))" | dd of="$1" bs=1 seek="$2" conv=notrunc status=none
}
wait_until() {
    local since=$SECONDS
    until "$@"; do
        [ $((SECONDS - since)) -lt 600 ] || fail "waited in vain for: $*" || return
        sleep 0.01
    done
}
log_reaches() { # LINES PROCESS, or that has ended
    [ -s log.tsv ] && [ "$(wc -l <log.tsv)" -ge "$1" ] || ! kill -0 "$2" 2>/dev/null
}
kill_at() {
    local lines=$1 signal=$2
    shift 2
    # env, because a shell's background jobs ignore INT
    env --default-signal=INT "$RILL_BIN/rill-distill" "$@" >killed 2>err &
    wait_until log_reaches "$lines" $!
    kill -"$signal" $! 2>/dev/null || true
    code=0
    wait $! || code=$?
}
need() {
    local p
    for p in "$@"; do command -v "$p" >/dev/null || skip "$p is not here"; done
}
on_terminal() {
    need script
    code=0
    out=$(script -qec "$(printf '%q ' "$@")" /dev/null </dev/null 2>&1) || code=$?
    out=${out//$'\r'/}
}
