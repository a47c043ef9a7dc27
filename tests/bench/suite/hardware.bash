# The limits of the machine: arithmetic in registers only, memory, a pipe.
# shellcheck shell=bash disable=SC2034,SC2154
about_hardware=10
run_hardware() {
    local name arithmetic='^(f32|bf16|int8)'
    title "arithmetic, nothing but registers, $THREADS threads"
    for name in $(bench_hardware --names | grep -E "$arithmetic"); do limit "$name" machine "$name" 1; done
    contest GFLOP/s 1e-9
    title "memory, $THREADS threads, and a pipe of 1 MiB"
    for name in $(bench_hardware --names | grep -vE "$arithmetic"); do limit "$name" machine "$name" 1; done
    contest GB/s 1e-9
}
