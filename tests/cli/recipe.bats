#!/usr/bin/env bats
# rill recipe: the Makefile it prints gives the same bytes again, from the leaves alone.
load common

fx() { rill fixture -q "$@"; }

# rebuild FILE LEAF...: in an empty folder with only the leaves, then FILE and every other .rill made are compared.
rebuild() {
    local file=$1 other
    shift
    rm -rf again && mkdir again
    rill recipe "$file" >again/Makefile
    for leaf in "$@"; do cp -r "$leaf" again/; done
    make -s -C again >again/log 2>&1 || fail "make: $(cat again/log again/Makefile)"
    assert_same "$file" "again/$file"
    for other in again/*.rill; do
        case $other in again/pipe-*) continue ;; esac
        assert_same "$(basename "$other")" "$other"
    done
    # nothing is left to do, and nothing is done twice
    make -s -C again -q
    [ -z "$(grep -E 'RILL\) ' again/Makefile | sort | uniq -d)" ] || fail "a step is printed twice: $(cat again/Makefile)"
}

@test "one step without inputs" {
    fx --seed 4 >a.rill
    rebuild a.rill
}

@test "a file that a rule reads twice is one prerequisite" {
    fx --kind model >m.rill
    fx -m m.rill | fx --join -m m.rill >a.rill
    rebuild a.rill
    grep -qx 'a.rill: m.rill' again/Makefile
}

@test "a chain of files" {
    fx >a.rill
    fx --join a.rill >b.rill
    fx --join <b.rill >c.rill
    fx --join c.rill -o d.rill
    rebuild d.rill
}

@test "steps joined by pipes are one rule" {
    fx | fx --join | fx --join --tag x >a.rill
    rebuild a.rill
    assert_equal "$(grep -c 'RILL)' again/Makefile)" 3
    assert_equal "$(grep -cE '^[a-z].*:( |$)' again/Makefile)" 1
}

@test "several parents: a model, data and a text" {
    fx --kind model --seed 1 >m.rill
    fx --seed 2 >a.rill
    echo "a text" >t.txt
    fx --join a.rill -m m.rill --text t.txt >b.rill
    fx --join --model=m.rill <b.rill >c.rill
    fx --join - b.rill --model m.rill <c.rill >d.rill
    rebuild d.rill t.txt
    grep -q '^#   t.txt  xxh3:' again/Makefile
    rm again/t.txt again/d.rill again/b.rill
    check_exit 2 make -s -C again
    assert_stderr "*No rule to make target 't.txt'*"
}

@test "cat and tee: pipes stay pipes, renamed files are copied" {
    fx >a.rill
    cat a.rill | fx --join | cat >b.rill # neither path is known to the programs
    rebuild b.rill
    fx --join b.rill | tee c.rill | fx --join >d.rill
    fx --join c.rill d.rill >e.rill
    rebuild e.rill
    mv e.rill f.rill
    fx --join f.rill >g.rill
    cp f.rill e.rill
    rebuild g.rill
}

@test "a file joined with plain cat" {
    fx --seed 1 >a.rill
    fx --seed 2 | cat a.rill - >ab.rill
    fx --join ab.rill >c.rill
    rebuild c.rill
    fx --seed 3 >d.rill
    cat d.rill a.rill | fx --join >e.rill
    rebuild e.rill
}

@test "a pipe that two steps read is kept in a file" {
    fx --seed 1 | tee >(fx --join --tag left | cat >l.rill) | fx --join --tag right | cat >r.rill
    wait_until test -s l.rill
    sleep 0.1
    fx --join l.rill r.rill >c.rill
    rebuild c.rill
    grep -q 'pipe-' again/Makefile
}

@test "a shell's <(...) becomes one again" {
    fx --join <(fx --seed 7) >a.rill
    rebuild a.rill
    grep -qF '<($(RILL) fixture' again/Makefile
}

@test "what came through a pipe from elsewhere is asked for" {
    mkdir d
    echo hello | fx --text - >a.rill
    check_exit 0 rill recipe a.rill
    assert_stdout "*unknown-*it came through a pipe: save it under this name*"
    name=$(grep -o 'unknown-[0-9a-f]*' <<<"$out" | head -1)
    echo hello >"d/$name"
    rill recipe a.rill >d/Makefile
    make -s -C d
    assert_same a.rill d/a.rill
}

@test "names and arguments with every kind of character" {
    mkdir 'sub dir'
    fx --tag "it's" --tag '$HOME' --tag '#no' --tag 'a\b' --tag '"q"' --tag '%x' --tag '*' --tag '~' --tag '!' \
        --tag $'new\nline' --tag $'tab\t'"'\\"'$' --tag '' --tag 'é `x` $(y)' >'sub dir/a #1 100%.rill'
    fx --join 'sub dir/a #1 100%.rill' >'b$c=d:e.rill'
    fx --join <'b$c=d:e.rill' >c.rill
    mkdir again && mkdir 'again/sub dir'
    rill recipe c.rill >again/Makefile
    make -s -C again
    assert_same c.rill again/c.rill
    assert_same 'b$c=d:e.rill' 'again/b$c=d:e.rill'
    assert_same 'sub dir/a #1 100%.rill' 'again/sub dir/a #1 100%.rill'
    fx >'a;b.rill'
    check_exit 3 rill recipe 'a;b.rill'
    assert_stderr_line "a;b.rill: the file name 'a;b.rill' cannot be written in a Makefile"
}

@test "a file that was overwritten between two steps is told apart" {
    fx --seed 1 >a.rill
    fx --join a.rill >b.rill
    fx --seed 2 -o a.rill --force
    fx --join a.rill b.rill >c.rill
    check_exit 0 rill recipe c.rill
    assert_stderr_line "warning: a.rill had two contents*"
    mkdir again && rill recipe -q c.rill >again/Makefile
    make -s -C again
    # the recorded names differ, the contents do not
    rill fixture -q --no-provenance --join c.rill >1.rill
    rill fixture -q --no-provenance --join again/c.rill >2.rill
    assert_same 1.rill 2.rill
}

@test "the target is the file asked about, wherever it lies now" {
    mkdir d
    fx -o d/a.rill
    check_exit 0 rill recipe d/a.rill
    assert_stdout "*d/a.rill:*> d/a.rill*"
    (cd d && fx >b.rill)
    check_exit 0 rill recipe d/b.rill # to be run in d
    grep -qE '^b.rill:$' <<<"$out"
    check_exit_in 0 d/a.rill rill recipe
    assert_stdout "*d/a.rill:*"
    fx | cat >p.rill
    check_exit 0 rill recipe p.rill
    assert_stdout "*| cat > p.rill*"
    check_exit_in 2 p.rill rill recipe
    assert_stderr_line "standard input: the file's name is not recorded (give it with --target NAME)"
    check_exit_in 0 p.rill rill recipe --target q.rill
    assert_stdout "*| cat > q.rill*"
}

@test "without provenance there is no recipe" {
    fx --no-provenance >a.rill
    check_exit 3 rill recipe a.rill
    assert_stderr_line "a.rill: no provenance in it (made with --no-provenance?)"
}

@test "another version's steps are marked" {
    fx >a.rill
    sed 's/"version":"0\.1\.0"/"version":"9.9.9"/' a.rill >b.rill # a damaged record is refused: the checksum covers it
    check_exit 3 rill recipe b.rill
}
