# Size and speed of storing a bf16 model as byte planes or with zstd, beside the program zstd on the same file.
# shellcheck shell=bash disable=SC2034,SC2154
about_codecs=40
run_codecs() {
    local model codec level levels=(1 3)
    model=$(model_as bf16)
    command -v zstd >/dev/null || { levels=() && missing zstd 'not on PATH'; }
    title 'size of a bf16 model: bytes before over bytes after'
    for codec in planes zstd; do ours "rill cat --codec $codec" shrunk "$model" "$codec" rill cat -q -j "$THREADS" --codec "$codec" "$model"; done
    for level in "${levels[@]}"; do peer "zstd -$level" shrunk "$model" "$level" zstd "-$level" "-T$THREADS" -c "$model"; done
    ROUNDS=1 contest x
    title 'storing it'
    for codec in planes zstd; do ours "rill cat --codec $codec" streamed "$model" rill cat -q -j "$THREADS" --codec "$codec" "$model"; done
    for level in "${levels[@]}"; do peer "zstd -$level -T$THREADS" streamed "$model" zstd "-$level" "-T$THREADS" -c "$model"; done
    contest MB/s 1e-6
    title 'reading it again'
    for codec in planes zstd; do ours "rill cat, from $codec" streamed "$model" rill cat -q -j "$THREADS" --codec raw "$WORK/out.$codec"; done
    for level in "${levels[@]}"; do peer "zstd -d, from -$level" streamed "$model" zstd -dc "-T$THREADS" "$WORK/out.$level"; done
    contest MB/s 1e-6
    rm -f "$WORK"/out.*
}
shrunk() { # MODEL NAME COMMAND...
    STDOUT=$WORK/out.$2 timed "${@:3}" && amount=$(stat -c %s "$1") seconds=$(stat -c %s "$WORK/out.$2") memory=null
}
streamed() { amount=$(stat -c %s "$1") && timed "${@:2}"; } # MODEL COMMAND...
