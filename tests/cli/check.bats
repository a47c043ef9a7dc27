#!/usr/bin/env bats
load common

@test "check says OK with totals, -q nothing" {
    rill fixture -n 3 >a.rill
    check_exit 0 rill check a.rill
    assert_stdout 'a.rill: OK, 3 tensors, * bytes of data, * bytes in all, xxh3:*'
    assert_quiet
    check_exit 0 rill check -q a.rill
    assert_equal "$out" ""
    check_exit_in 0 a.rill rill check
    assert_stdout 'standard input: OK, 3 tensors*'
}

@test "check accepts every golden file" {
    check_exit 0 rill check "$ROOT"/formats/golden/*.rill
    assert_equal "$(wc -l <<<"$out")" "$(ls "$ROOT"/formats/golden/*.rill | wc -l)"
}

@test "check finds any changed byte and any cut" {
    rill fixture -n 2 >a.rill
    size=$(file_size a.rill)
    for i in $(seq 0 97 $((size - 1))) $((size - 1)); do
        cp a.rill b.rill
        flip_byte b.rill "$i"
        check_exit 3 rill check b.rill
        cut_file a.rill "$i" >b.rill
        check_exit 3 rill check b.rill
        check_exit 3 sh -c 'cat b.rill | rill check'
    done
}

@test "check names file, record and byte" {
    rill fixture -n 2 >a.rill
    flip_byte a.rill 70
    check_exit 3 rill check a.rill
    assert_stderr_line 'a.rill: record 0 at byte 64: record header: checksum mismatch'
}

@test "check --finite finds a NaN" {
    cp "$ROOT/tests/golden/stream/nan.rill" .
    check_exit 0 rill check nan.rill
    check_exit 4 rill check --finite nan.rill
    assert_stderr_line "nan.rill: tensor 'x': element 5 is not finite"
}

@test "check goes through all files up to the first bad one" {
    rill fixture >a.rill
    cut_file a.rill 200 >b.rill
    check_exit 3 rill check a.rill b.rill a.rill
    assert_equal "$(wc -l <<<"$out")" 1
}
