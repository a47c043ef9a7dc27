#!/usr/bin/env bats
# Every program of tests/cli/programs.table, with each call that can fail made to fail: see tests/faults/run.
# takes long
load common

setup_file() { make_inputs; }
setup() {
    [ -n "${FAULTS:-}" ] || skip "FAULTS names no library (a sanitizer build, or not run by make)"
    enter_temp
    cp -r "$INPUTS/." .
}

@test "no memory" { "$ROOT/tests/faults/run" alloc; }
@test "a read fails" { "$ROOT/tests/faults/run" read; }
@test "a write fails" { "$ROOT/tests/faults/run" write; }
@test "fsync or close fails" { "$ROOT/tests/faults/run" sync; }
@test "a rename fails" { "$ROOT/tests/faults/run" rename; }
@test "an open fails" { "$ROOT/tests/faults/run" open; }
@test "reads and writes in small parts change nothing" { "$ROOT/tests/faults/run" trickle; }

@test "a distillation that any failure ended is resumed to the same bytes" {
    for kind in alloc read write sync rename open; do "$ROOT/tests/faults/resume" $kind; done
}
@test "a distillation that was killed anywhere is resumed to the same bytes" { "$ROOT/tests/faults/resume" kill; }
