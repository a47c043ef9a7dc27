#!/usr/bin/env bats
# What lib/cli promises, shown with the fixture.
load common

fx() { rill fixture -q "$@"; }
has_temporary() { compgen -G "$1.tmp.*" >/dev/null; }

# ---- options ----------------------------------------------------------------------------------------------------------

@test "an unknown option is refused with the nearest name" {
    check_exit 2 rill fixture --tensrs 3
    assert_stderr_line "unknown option --tensrs (did you mean --tensors?)"
    check_exit 2 rill fixture --tensor 3 # no abbreviations
    assert_stderr_line "unknown option --tensor (did you mean --tensors?)"
}

@test "options come in any order and --opt=value is --opt value" {
    fx --seed 5 --tensors 3 --no-provenance >a.rill
    fx --tensors=3 --no-provenance --seed=5 >b.rill
    assert_same a.rill b.rill
}

@test "rill help common explains the options that --help of a program only names" {
    check_exit 0 rill help common
    common=$out
    assert_stdout "*--codec CODEC*one of raw, zstd,*planes, sparse;*default: raw*"
    for p in fixture recipe ls; do
        for o in $(rill $p --help | sed -n '/^Options that programs share/,/^$/p' | grep -oE -- '--[a-z-]+'); do
            grep -qE "^ +(-[a-zA-Z], )?$o( |$)" <<<"$common" || fail "$p: $o is not in rill help common"
            # ... and each is an option of the program
            rill $p --help-options | grep -qE -- "^(-[a-zA-Z] )?$o " || fail "$p has no $o"
        done
    done
    # an option whose text is the program's own is explained there
    check_exit 0 rill quantize --help
    assert_stdout '*--force *let tensors*more bits*Options that programs share (see rill help common)*'
    [ "$(awk 'length > 100' <<<"$common" | wc -l)" -eq 0 ]
}

@test "--help goes to stdout, a wrong option's message to stderr" {
    check_exit 0 rill fixture --help
    assert_quiet
    assert_stdout "Usage: rill fixture*--tensors N*default: 2*--codec,*"
    check_exit 2 rill fixture --nonsense
    [ -z "$out" ]
}

@test "--version names program and version" {
    check_exit 0 rill fixture --version
    assert_stdout "rill-fixture 0.*"
    check_exit 0 rill --version
    assert_stdout "rill 0.*"
}

# ---- exit codes and messages -------------------------------------------------------------------------------------------

@test "an error's kind is the exit code, and stderr has one line" {
    for pair in usage:2 data:3 check:4; do
        check_exit "${pair#*:}" rill fixture -q --fail "${pair%:*}" --as-text
        assert_stderr_line "it was to fail"
    done
}

@test "control characters of a message do not reach the terminal" {
    check_exit 1 rill fixture -q --fail io --as-text
    assert_stderr_line 'it was to fail\\nwith \\u001b\[31m controls \\u009b'
}

@test "a check that fails silently prints nothing and exits with 4" {
    check_exit 4 rill fixture -q --fail silent --as-text
    assert_quiet
    assert_stdout "line 0*"
}

@test "-q silences notes and warnings, -v adds information" {
    check_exit 0 rill fixture --as-text
    assert_equal "$err" $'rill fixture: warning: a warning\nrill fixture: a note'
    check_exit 0 rill fixture -q --as-text
    assert_quiet
    check_exit 0 rill fixture -v --as-text
    assert_stderr "rill fixture: some information"
    RILL_DEBUG=1 check_exit 0 rill fixture --as-text
    assert_stderr "rill fixture: debug: a detail"
    check_exit 2 rill fixture -v -q
    assert_stderr_line "--verbose has no effect with --quiet"
}

# ---- output -------------------------------------------------------------------------------------------------------------

@test "-o writes what stdout would have got" {
    fx --seed 1 >a.rill
    mkdir d && cd d && fx --seed 1 -o a.rill
    assert_same a.rill ../a.rill # the provenance has the same name for both ways
    cd .. && fx --seed 1 -o "$T/d/./b.rill" && (cd d && fx --seed 1 >c.rill)
    fx --seed 1 -o - >d.rill
    fx --seed 1 --no-provenance >e.rill
    fx --seed 1 --no-provenance | cat >f.rill
    assert_same e.rill f.rill
}

@test "an existing file is kept without --force, and replaced with it" {
    echo precious >a.rill
    check_exit 2 rill fixture -q -o a.rill
    assert_stderr_line "a.rill exists (--force replaces it)"
    assert_equal "$(cat a.rill)" precious
    chmod 640 a.rill
    check_exit 0 rill fixture -q -o a.rill --force
    [ "$(file_size a.rill)" -gt 1000 ]
    assert_equal "$(stat -c %a a.rill)" 640
    [ "$(find . -name '*.tmp.*' | wc -l)" -eq 0 ]
}

@test "a file that appears while the program runs is kept" {
    rill fixture -q --steps 5 --delay 100 -o a.rill 2>err &
    sleep 0.2
    echo precious >a.rill
    if wait $!; then false; fi
    assert_equal "$(cat a.rill)" precious
    grep -q "a.rill exists" err
    rm a.rill && assert_no_file a.rill
}

@test "a new file has the mode the umask says" {
    umask 027
    fx -o a.rill
    assert_equal "$(stat -c %a a.rill)" 640
}

@test "a link is followed, a device is written in place" {
    fx -o real.rill && ln -s real.rill link.rill
    fx --seed 9 -o link.rill --force
    [ -L link.rill ]
    check_exit 0 rill fixture -q -o /dev/null
    [ -c /dev/null ]
    check_exit 1 rill fixture -q -o /dev/full
    assert_stderr_line "*No space left on device"
}

@test "a failure leaves neither the file nor a temporary one" {
    for kind in io data late; do
        check_exit_in $((kind_code = $([ $kind = data ] && echo 3 || echo 1))) /dev/null rill fixture -q --fail $kind -o a.rill
        assert_no_file a.rill
    done
    check_exit 1 rill fixture -q -o no/such/folder/a.rill
    assert_stderr_line "no/such/folder/a.rill: *: No such file or directory"
    mkdir d
    check_exit 2 rill fixture -q -o d
    assert_stderr_line "d is a folder, expected a file name"
}

@test "a signal leaves neither the file nor a temporary one" {
    ulimit -c 0
    for sig in INT TERM HUP QUIT USR1 USR2 ALRM VTALRM PROF XCPU PIPE IO BUS ABRT RTMIN; do
        # a background job of this shell ignores INT and QUIT: env gives them back
        env --default-signal=INT,QUIT rill-fixture -q --steps 1000 --delay 20 -o a.rill &
        local pid=$!
        wait_until has_temporary a.rill
        kill -$sig $pid
        code=0
        wait $pid || code=$?
        assert_equal "$code" $((128 + $(kill -l $sig)))
        assert_no_file a.rill
    done
}

@test "a program may be told of a signal instead, end in order, and still die of it" {
    for sig in INT TERM; do
        env --default-signal=INT rill-fixture --catch-signals --steps 1000 --delay 20 -o a.rill 2>err &
        local pid=$!
        wait_until has_temporary a.rill
        kill -USR1 $pid
        wait_until grep -q 'SIGUSR1 has come' err
        kill -$sig $pid
        code=0
        wait $pid || code=$?
        assert_equal "$code" $((128 + $(kill -l $sig)))
        grep -qx "rill fixture: stopped by signal $(kill -l $sig)" err
        assert_no_file a.rill
    done
    # the second one does not wait
    env --default-signal=INT rill-fixture -q --catch-signals --steps 2 --delay 20000 -o a.rill &
    pid=$!
    wait_until has_temporary a.rill
    for _ in 1 2 3; do kill -INT $pid 2>/dev/null || true; sleep 0.1; done
    code=0
    wait $pid || code=$?
    assert_equal "$code" 130
    assert_no_file a.rill
}

@test "a signal that the parent has blocked is heeded, one that it ignores is not" {
    env --block-signal=TERM rill-fixture -q --steps 1000 --delay 20 -o a.rill &
    wait_until has_temporary a.rill
    kill -TERM $!
    code=0
    wait $! || code=$?
    assert_equal "$code" 143
    assert_no_file a.rill
    env --ignore-signal=TERM rill-fixture -q --steps 1000 --delay 20 -o a.rill &
    wait_until has_temporary a.rill
    kill -TERM $!
    kill -VTALRM $! # which it dies of, not of the first one, whose number is lower: it would come first
    code=0
    wait $! || code=$?
    assert_equal "$code" $((128 + $(kill -l VTALRM)))
}

@test "a program that fails tells the next one why" {
    check_exit 3 bash -c 'rill fixture -q --fail io | rill fixture -q --join >b.rill'
    assert_stderr "rill fixture: standard input: *it was to fail*"
}

@test "binary output does not go to a terminal" {
    need script
    on_terminal rill fixture -q
    assert_equal "$code" 2
    assert_stdout "rill fixture: the output is binary and would go to a terminal*"
    on_terminal rill fixture -q --as-file
    assert_equal "$code" 2
    on_terminal rill fixture -q --as-text
    assert_equal "$code" 0
    on_terminal bash -c 'rill fixture -q --force | wc -c'
    assert_equal "$code" 0
}

@test "a full disk is an error wherever the bytes meet it" {
    check_exit 1 bash -c 'rill fixture -q >/dev/full'
    assert_stderr_line "standard output: *No space left on device"
    check_exit 1 bash -c 'rill fixture -q --as-text >/dev/full'
    assert_stderr_line "standard output: No space left on device"
    check_exit 1 bash -c 'rill fixture -q --as-text -n 65536 >/dev/full'
    check_exit 1 bash -c 'ulimit -f 8; rill fixture -q --elems 100000 -o a.rill'
    assert_stderr_line "*File too large"
    assert_no_file a.rill
}

@test "standard descriptors that are closed are errors, and no file takes their place" {
    check_exit 1 bash -c 'rill fixture -q >&-'
    assert_stderr_line "standard output: *Bad file descriptor"
    check_exit 1 bash -c 'rill fixture -q --join <&-'
    assert_stderr_line "standard input: *Bad file descriptor"
    check_exit 0 bash -c 'rill fixture -q -o a.rill <&- >&- 2>&-'
    [ "$(file_size a.rill)" -gt 1000 ]
}

@test "a second output is named when it is committed" {
    fx --also b.txt >a.rill
    assert_equal "$(cat b.txt)" also
    check_exit 2 rill fixture -q --also b.txt
    assert_stderr_line "b.txt exists (--force replaces it)"
}

# ---- input --------------------------------------------------------------------------------------------------------------

@test "an input that is the output is refused before it is damaged" {
    fx >a.rill
    cp a.rill b.rill
    check_exit 2 bash -c 'rill fixture -q --join a.rill >>a.rill'
    assert_stderr_line "a.rill is the output too*"
    assert_same a.rill b.rill
    check_exit_in 2 a.rill bash -c 'rill recipe >>a.rill'
    assert_same a.rill b.rill
    fx --join a.rill -o a.rill --force # through a rename this is fine
}

@test "standard input is read once, and a folder is no stream" {
    fx >a.rill
    check_exit_in 2 a.rill rill fixture -q --join - -
    assert_stderr_line "standard input is used twice*"
    check_exit 1 rill fixture -q --join /
    assert_stderr_line "/ is a folder, expected a file"
    check_exit 1 rill fixture -q --join nowhere.rill
    assert_stderr_line "nowhere.rill: No such file or directory"
}

@test "a cut input is noticed, and nothing valid comes out" {
    fx >a.rill
    cut_file a.rill 1500 >cut.rill
    check_exit 3 rill fixture -q --join cut.rill -o b.rill
    assert_stderr_line "cut.rill: *"
    assert_no_file b.rill
}

# ---- provenance ----------------------------------------------------------------------------------------------------------

entries() { rill recipe "$1" 2>/dev/null | grep -c 'RILL) '; }

@test "provenance keeps what changes the bytes and nothing else" {
    fx --seed 2 -o a.rill
    cp a.rill first.rill
    rill fixture -q -j1 --seed 2 --progress=never --report r.json -o a.rill --force
    assert_same a.rill first.rill
    check_exit 0 rill recipe a.rill
    assert_stdout "*RILL) fixture --seed 2 > a.rill*"
}

@test "every entry is inherited once" {
    fx -o a.rill
    fx --join a.rill -o b.rill
    fx --join a.rill b.rill -o c.rill
    assert_equal "$(strings -n 20 c.rill | grep -o '"id":"xxh3:[0-9a-f]*"' | sort | uniq -c | awk '{ print $1 }' | tr '\n' ' ')" "1 1 1 "
}

@test "--no-provenance writes none, and file and pipe are the same bytes" {
    fx -o a.rill
    fx --no-provenance --join a.rill >b.rill
    fx --no-provenance --join <a.rill | cat >c.rill
    assert_same b.rill c.rill
    if grep -q '"tool"' b.rill; then false; fi
}

@test "the same command gives the same bytes, whatever the threads" {
    fx --codec planes --elems 100000 -j1 >a.rill
    mkdir d && cd d && fx --codec planes --elems 100000 -j4 >a.rill
    assert_same a.rill ../a.rill
}

# ---- report and progress ------------------------------------------------------------------------------------------------

@test "--report and -o name two files" {
    check_exit 2 rill fixture -o x --report x
    assert_stderr_line '--output and --report name the same file, x'
    assert_no_file x
}

@test "--report says what was done, also after a failure" {
    echo text >t.txt
    fx --text t.txt --report r.json -o a.rill
    assert_json r.json program '"fixture"'
    assert_json r.json exit_code 0
    assert_json r.json tensors 2
    assert_json r.json path '"a.rill"'
    grep -qE '"peak_memory_bytes":[0-9]{6,}' r.json
    check_exit 3 rill fixture -q --fail data --report r.json -o b.rill
    assert_json r.json exit_code 3
    assert_json r.json message '"it was to fail"'
    check_exit 1 rill fixture -q --report no/folder/r.json -o c.rill
    assert_no_file c.rill
    check_exit 2 rill fixture -q --report -
}

@test "progress is drawn on a terminal only, and wiped" {
    check_exit 0 rill fixture -q --as-text --steps 20 --delay 10
    assert_quiet
    need script
    on_terminal bash -c 'rill fixture -n 1 --steps 20 --delay 20 >a.rill'
    [[ $out == *"steps"*"left"*$'\e[K' ]]
    on_terminal bash -c 'rill fixture -q -n 1 --steps 20 --delay 20 >a.rill'
    assert_equal "$out" ""
    on_terminal bash -c 'rill fixture -n 1 --progress=never --steps 20 --delay 20 >a.rill'
    [[ $out != *left* ]]
    on_terminal bash -c 'rill fixture -n 1 --steps 20 --delay 20 | cat >a.rill' # not the last of its pipeline
    [[ $out != *left* ]]
}

@test "a signal ends the line of the bar" {
    need script
    on_terminal bash -c 'timeout --foreground -s INT 0.6 rill fixture -n 1 --steps 200 --delay 20 >a.rill; echo end'
    [[ $out == *left*$'\nend' ]]
}

@test "--progress=always writes whole lines, few of them, without a terminal" {
    check_exit 0 rill fixture --as-text --progress=always --steps 50 --delay 5
    assert_stderr "rill fixture: 100% * 50/50 steps*"
    [ "$(grep -c steps <<<"$err")" -le 2 ]
    [[ $err != *$'\e'* && $err != *$'\r'* ]]
}

# ---- the dispatcher ---------------------------------------------------------------------------------------------------------

@test "rill lists the programs and runs them by name" {
    check_exit 0 rill
    assert_stdout "*recipe *print a Makefile*"
    check_exit 0 rill help recipe
    assert_stdout "Usage: rill recipe*"
    check_exit 2 rill recipee
    assert_stderr_line "there is no program 'recipee' (did you mean recipe?)"
    check_exit 2 rill --nonsense
}

@test "a foreign rill-foo on PATH is rill foo" {
    mkdir bin
    printf '#!/bin/sh\necho "foo: $*"\nexit 7\n' >bin/rill-foo
    chmod +x bin/rill-foo
    PATH="$T/bin:$PATH" check_exit 7 rill foo --some 'thing else'
    assert_equal "$out" "foo: --some thing else"
    PATH="$T/bin:$PATH" check_exit 0 rill
    assert_stdout "*On PATH:*foo *"
}

@test "installed, the programs are found in libexec" {
    mkdir -p usr/bin usr/libexec/rill
    cp "$RILL_BIN/rill" usr/bin/ && cp "$RILL_BIN/rill-recipe" usr/libexec/rill/
    PATH=/usr/bin:/bin check_exit 0 usr/bin/rill recipe --version
    PATH=/usr/bin:/bin check_exit 0 usr/bin/rill
    assert_stdout "*recipe *"
}
