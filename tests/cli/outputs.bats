#!/usr/bin/env bats
# What is known about an output is known before the work begins, in every program; content and provenance are told apart;
# descriptors that do not block are waited for.
load common

setup_file() { make_inputs; }
setup() {
    enter_temp
    cp -r "$INPUTS/." .
}

# every_line FUNCTION: with $name, $from (a file), $arguments and $folder (the output is one, or "") of every line of
# programs.table
every_line() {
    local name from arguments folder
    while read -r name from arguments; do
        case $name in '' | '#'*) continue ;; esac
        arguments=${arguments%'!slow'} folder=
        if [[ $arguments == *'!folder' ]]; then arguments=${arguments%'!folder'} folder=1; fi
        command -v "rill-$name" >/dev/null || continue
        [ "$from" != - ] || from=/dev/null
        [ -e "$from" ] || continue
        "$1" || fail "in: rill $name $arguments < $from"
    done <"$BATS_TEST_DIRNAME/programs.table"
}
has_option() { rill "$name" --help-options | grep -qE -- "(^|[ -])--$1 "; }
content() { rill ls "$1" | sed -n '$s/.* //p'; }

# ---- known before ----------------------------------------------------------------------------------------------------------

@test "no program reads anything before it knows that its outputs can be written" {
    # its standard input never says anything: who reads it waits for ever
    mkfifo silent
    exec 9<>silent
    mkdir folder
    refused() { # CODE GLOB ARGUMENT...: these arguments and no others, because the first file opened may be elsewhere
        check_exit_in "$1" silent timeout 20 bash -c "rill-$name -q $arguments ${*:3}" || return 1
        assert_stderr_line "$2" || return 1
        assert_no_file x no
    }
    one() {
        if has_option output; then
            refused 1 'no/x: cannot create a * in its folder: No such file or directory' -o no/x || return 1
            refused 2 'folder *' -o folder || return 1
            if [[ $arguments != *--report* ]]; then
                refused 2 '--output and --report name the same file, ./x' -o x --report ./x || return 1
            fi
        fi
        [[ $arguments != *--report* ]] || return 0
        refused 1 'no/x: cannot create a file in its folder: No such file or directory' --report no/x || return 1
        refused 2 'folder is a folder, expected a file name' --report folder
    }
    every_line one
    exec 9>&-
}

@test "distill: checkpoint and log are known before the first step" {
    mkfifo silent
    exec 9<>silent
    run_distill() { check_exit_in "$1" silent timeout 20 rill distill -q -m student.rill "${@:2}"; }
    run_distill 1 --checkpoint /nonexistent/ck
    assert_stderr_line '/nonexistent/ck: cannot create a file in its folder: No such file or directory'
    run_distill 1 --log /nonexistent/log
    assert_stderr_line '/nonexistent/log: cannot create a file in its folder: No such file or directory'
    run_distill 2 --checkpoint x --log x
    assert_stderr_line '--log and --checkpoint name the same file, x'
    run_distill 2 --checkpoint x -o ../"$(basename "$T")"/x
    assert_stderr_line '--checkpoint and --output name the same file, *x'
    cp student.rill before
    for option in log checkpoint report; do
        run_distill 2 --$option student.rill
        assert_stderr_line "--$option student.rill would replace student.rill, which is an input"
        check_exit_in 2 corpus.kd.rill rill distill -q -m student.rill --$option corpus.kd.rill
        assert_stderr_line "--$option corpus.kd.rill would replace standard input, which is an input"
        check_exit 2 bash -c "rill distill -q -m student.rill corpus.kd.rill --$option x >x"
        assert_stderr_line "--$option x is the file that standard output goes to"
        rm x
    done
    assert_same student.rill before
    check_exit 2 rill import -q hf -o i.rill --report hf/config.json
    assert_stderr_line "--report hf/config.json would replace hf, which is an input"
    check_exit 0 rill import -q hf -o i.rill --report hf/report.json
    exec 9>&-
    # a state that is continued is read and replaced
    check_exit 0 rill distill -q -m student.rill corpus.kd.rill --steps 2 --checkpoint ck --checkpoint-every 1 -o a.rill
    check_exit 0 rill distill -q -m student.rill corpus.kd.rill --steps 2 --checkpoint ck --resume ck -o b.rill
}

@test "an output through a link: the link stays, its target is written" {
    mkdir d
    ln -s d/today.rill latest.rill
    rill fixture -q -o latest.rill
    [ -L latest.rill ] && [ -f d/today.rill ] && [ ! -L d/today.rill ]
    check_exit 2 rill fixture -q -o latest.rill
    rill fixture -q --seed 1 -o latest.rill --force
    [ -L latest.rill ]
    rill fixture -q --seed 1 >d/other.rill
    assert_equal "$(content latest.rill)" "$(content d/other.rill)"
    ln -s d/report.json report.json
    rill ls -q noise.rill --report report.json >/dev/null
    [ -L report.json ] && [ -s d/report.json ]
    ln -s d/hf-new folder
    rill export -q --to safetensors model.rill -o folder
    [ -L folder ] && [ -s d/hf-new/model.safetensors ]
    assert_equal "$(find . -name '*.tmp.*')" ""
}

@test "an output that is replaced may be the input: it has been read" {
    cp model.rill a.rill
    rill quantize -q --type q8_0 a.rill -o a.rill --force
    rill quantize -q --type q8_0 model.rill -o b.rill
    assert_equal "$(content a.rill)" "$(content b.rill)"
}

# ---- signals ------------------------------------------------------------------------------------------------------------------

@test "a signal during an export leaves neither folder nor file" {
    ulimit -c 0
    # so large that a signal comes in time: what takes longest is on the way to the disk
    rill init -q model.rill --layers 8 --hidden 512 --heads 8 --kv-heads 8 --ffn 2048 -o large.rill
    local sig to done=0
    for to in safetensors npy gguf; do
        for sig in TERM INT HUP QUIT USR1 ALRM PIPE XCPU; do
            env --default-signal=INT,QUIT rill-export -q --to $to large.rill -o out &
            local pid=$!
            wait_until compgen -G 'out*' >/dev/null
            kill -$sig $pid 2>/dev/null || true
            code=0
            wait $pid || code=$?
            if [ "$code" -eq 0 ]; then # it was done before
                rm -r out
                continue
            fi
            assert_equal "$code" $((128 + $(kill -l $sig)))
            assert_no_file out
            done=$((done + 1))
        done
    done
    [ "$done" -gt 0 ]
}

# ---- descriptors that do not block ---------------------------------------------------------------------------------------------

@test "every program waits for a pipe that does not block" {
    need perl
    # the flag belongs to the pipe: whoever comes after in the same group has it too
    nonblocking='for (STDIN, STDOUT) { fcntl($_, F_SETFL, fcntl($_, F_GETFL, 0) | O_NONBLOCK) }'
    one() {
        [ -z "$folder" ] || return 0 # nothing goes to standard output
        [[ $arguments != *--epochs* ]] || return 0 # the data is read again, which no pipe can give
        [ "$name" != distill ] || arguments="$arguments --steps 2" # asked for when the data is no file
        bash -c "cat $from | rill-$name -q $arguments | cat >want" || return 1
        { sleep 0.02; head -c 100; sleep 0.02; cat; } <"$from" |
            { perl -MFcntl -e "$nonblocking"; bash -c "exec rill-$name -q $arguments" 2>err; echo $? >status; } |
            { sleep 0.1; cat; } >got
        assert_equal "$(cat status err)" 0 && assert_same want got
    }
    every_line one
    # more than a pipe holds
    name=fixture from=/dev/null folder=
    for arguments in "--elems 1000000" "--as-text -n 65536" "--elems 1000000 --codec planes"; do one; done
    for name in $(for p in "$RILL_BIN"/rill-*; do basename "$p" | sed s/rill-//; done); do
        for arguments in --help --help-man --help-bash; do one; done
    done
    rill fixture -q -n 65000 --elems 1 -o many.rill
    name=ls from=many.rill arguments= one
    name=export from=model.rill arguments="--to npy --tensor embed.weight" one
}

# ---- content and provenance ---------------------------------------------------------------------------------------------------------

@test "the digest of the content is that of the content" {
    rill fixture -q --seed 1 -o a.rill
    rill fixture -q --seed 1 >b.rill
    rill fixture -q --seed 1 --no-provenance | cat >c.rill
    mkdir d
    (cd d && rill fixture -q --seed 1 --tag other -o e.rill)
    for f in b c d/e; do
        assert_differ a.rill $f.rill
        assert_equal "$(content $f.rill)" "$(content a.rill)"
    done
    rill fixture -q --seed 2 -o z.rill
    [ "$(content z.rill)" != "$(content a.rill)" ]
    rill cat -q a.rill a.rill -o twice.rill
    rill cat -q b.rill c.rill -o again.rill
    assert_equal "$(content twice.rill)" "$(content again.rill)"
    # check says the same, and what is recorded of an input is this too
    check_exit 0 rill check a.rill
    assert_stdout "*$(content a.rill)"
    rill fixture -q --join a.rill >j.rill
    [[ $(rill recipe j.rill) != *xxh3* ]]
    rill fixture -q --join c.rill >j.rill
    rill recipe j.rill | grep -q "^#   c.rill  $(content c.rill)$"
    # by the reader, by the map
    rill calibrate -q -m model.rill tokens.rill >read.rill
    rill prune -q --ffn 64 model.rill >mapped.rill
    for f in read mapped; do
        grep -aq "\"path\":\"model.rill\",\"digest\":\"$(content model.rill)\"" $f.rill || fail "$(strings $f.rill | tail -1)"
    done
}

@test "a run under other names gives the same content, from model to knowledge and student" {
    run_in() { # FOLDER PREFIX
        mkdir -p "$1"
        cp student.rill teacher.rill tokens.rill "$1"
        (
            cd "$1"
            rill quantize -q --type q8_0 teacher.rill -o "$2t.rill"
            rill teacher-infer -q -m "$2t.rill" tokens.rill -o "$2k.rill"
            rill logit-dump -q --encode topk:4 "$2k.rill" -o "$2e.rill"
            rill distill -q -m student.rill --batch-tokens 64 "$2e.rill" --checkpoint "$2c.rill" --checkpoint-every 1 -o "$2s.rill"
        )
    }
    run_in one a
    run_in two/deep a-longer-name-
    for f in t k e c s; do
        assert_equal "$(content one/a$f.rill)" "$(content two/deep/a-longer-name-$f.rill)" || fail "$f"
    done
}

@test "absolute names are recorded as relative ones: two folders, the same bytes, and the recipe's too" {
    run_in() {
        mkdir -p "$1/sub"
        (
            cd "$1"
            cp -r "$T/text.txt" "$T/hf" .
            rill import -q "$PWD/hf" -o "$PWD/i.rill"
            rill tokenize -q -m "$PWD/i.rill" "$PWD/text.txt" --context 32 >"$PWD/sub/tok.rill"
            rill calibrate -q --model="$PWD/i.rill" <"$PWD/sub/tok.rill" >"$PWD/stats.rill"
            rill prune -q --ffn 64 --stats "$PWD/stats.rill" -o "$PWD/p.rill" -- "$PWD/i.rill"
        )
    }
    run_in one
    run_in two/deep
    for f in i.rill sub/tok.rill stats.rill p.rill; do assert_same one/$f two/deep/$f; done
    ! grep -aq "$T" one/*.rill one/sub/*.rill
    mkdir -p three/sub && cp -r hf text.txt three
    rill recipe -q one/p.rill >three/Makefile
    make -s -C three >log 2>&1 || fail "$(cat log three/Makefile)"
    for f in i.rill sub/tok.rill stats.rill p.rill; do assert_same one/$f three/$f; done
}

@test "a file outside the working folder is named up through .." {
    mkdir -p a/b c
    cd a/b
    rill fixture -q --kind model -o ../../c/m.rill
    rill fixture -q --join -m "$T/c/m.rill" "$T/c/m.rill" -o "$T/c/j.rill"
    cd ../..
    grep -aq '"argv":\["fixture","--join","-m","../../c/m.rill","../../c/m.rill"\]' c/j.rill
    grep -aq '"output":"../../c/j.rill"' c/j.rill
    mv c/j.rill want.rill
    rm c/m.rill
    (cd a/b && rill recipe -q ../../want.rill --target ../../c/j.rill >Makefile && make -s >log 2>&1) || fail "$(cat a/b/log a/b/Makefile)"
    assert_same want.rill c/j.rill
}
