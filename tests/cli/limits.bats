#!/usr/bin/env bats
# Under a memory limit every program works or ends within seconds with exit 1 and one line; what needs a piece of a tensor
# at a time never takes more; and what computes is named.
load common

setup_file() {
    make_inputs
    cd "$INPUTS" || return 1
    # 4 GB in one tensor, and in a file of some hundred kB
    rill-fixture -q --zeros 1073741824 --codec zstd -o huge.rill
}
setup() {
    enter_temp
    cp -r "$INPUTS/." .
}

programs() { for p in "$RILL_BIN"/rill-*; do basename "$p" | sed s/rill-//; done; }

# limited KIB COMMAND...: under ulimit -v; a program that hangs is killed
limited() { (ulimit -v "$1" && shift && exec timeout 20 "$@"); }

sanitized() { ! (ulimit -v 1000000 && rill-ls --version) >/dev/null 2>&1; } # its shadow memory fits under no limit

@test "every program says its version or fails, under any limit on memory" {
    if sanitized; then skip "a sanitizer build"; fi
    for p in $(programs); do
        for limit in 100000 16000 13000; do
            code=0
            limited $limit "rill-$p" --version >out 2>err || code=$?
            case $code in
            0) grep -q "^rill-$p [0-9.]*$" out || fail "rill-$p under $limit KiB: $(cat out)" ;;
            1) [ "$(wc -l <err)" -eq 1 ] || fail "rill-$p under $limit KiB: $(cat err)" ;;
            *) fail "rill-$p under $limit KiB: exit $code: $(cat err)" ;;
            esac
        done
        limited 100000 "rill-$p" --version >out || fail "rill-$p has no version under 100 MB"
    done
}

@test "every line of the table works under a limit on memory, or fails in one line" {
    if sanitized; then skip "a sanitizer build"; fi
    while read -r name from arguments; do
        case $name in '' | '#'*) continue ;; esac
        arguments=${arguments%'!slow'}
        case $arguments in *'!folder') arguments="${arguments%'!folder'} -o folder" ;; esac
        [ "$from" != - ] || from=/dev/null
        for limit in 100000 22000 20000 19000 17000 15000 13000; do
            code=0
            rm -rf folder
            limited $limit bash -c "exec rill-$name -q $arguments" <"$from" >out 2>err || code=$?
            [ "$code" -ne 0 ] || continue
            if [ "$code" -ne 1 ] || [ "$(wc -l <err)" -ne 1 ]; then
                fail "rill $name $arguments under $limit KiB: exit $code: $(cat err)"
            fi
        done
    done <"$BATS_TEST_DIRNAME/programs.table"
}

@test "what needs a piece of a tensor takes no more of a huge one" {
    for command in "check" "check --finite" "ls" "show" "show --stats" "show --json --stats" "cat" "cat --codec planes" \
        "cat --codec zstd" "diff huge.rill"; do
        code=0
        # shellcheck disable=SC2086
        rill ${command%% *} -q --max-memory 128M --report report.json ${command#"${command%% *}"} huge.rill >/dev/null 2>err || code=$?
        [ "$code" -eq 0 ] || fail "$command: exit $code: $(cat err)"
        peak=$(grep -o '"peak_memory_bytes":[0-9]*' report.json | cut -d: -f2)
        [ "$peak" -lt 200000000 ] || fail "$command: $peak bytes"
    done
}

@test "what needs a whole tensor says so before it takes it" {
    for command in "show --histogram" "cat --codec raw"; do
        # shellcheck disable=SC2086
        check_exit 1 rill $command --max-memory 100M huge.rill
        assert_stderr_line "*zeros*4295.0 MB of memory are needed and * MB are left of --max-memory"
    done
    check_exit 1 rill diff --max-memory 100 model.rill model.rill
    assert_stderr_line "*of --max-memory"
    check_exit 2 rill ls --max-memory 0 model.rill
    check_exit 1 bash -c 'ulimit -v 200000; rill-show --histogram huge.rill'
    assert_stderr_line "*4295.0 MB of memory are needed and * MB are left (--max-memory allows more)"
}

@test "diff reads a tensor of a map in pieces as it reads it whole" {
    for type in f32 q4_0 q6_k; do
        rill quantize -q --type "$type" --force model.rill -o a.rill 2>/dev/null
        for codec in raw zstd planes; do
            rill cat -q --codec $codec a.rill -o b.rill --force
            check_exit 0 rill diff a.rill b.rill
            rill diff model.rill b.rill >"diff.$codec" || true
        done
        assert_same diff.raw diff.zstd
        assert_same diff.raw diff.planes
    done
}

@test "what computes is named" {
    for p in $(programs); do
        check_exit 0 rill "$p" --version -v
        assert_stdout "rill-$p *CPU path: *products: f32 *BLAS: none*threads: *"
    done
    check_exit 0 rill --version -v
    assert_stdout "rill *CPU path: *"
    RILL_CPU=portable check_exit 0 rill ls -vV
    assert_stdout "*CPU path: portable *"
    check_exit 0 env RILL_CPU=portable rill ls --report report.json model.rill
    grep -q '"backend":{"cpu_path":"portable","f32":"portable","bf16":"widened","int8":"portable","blas":"none"}' report.json
}
