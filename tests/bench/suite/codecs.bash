# What storing a bf16 model as byte planes or with zstd gives: how small, how fast; the program zstd on the same file.
# shellcheck shell=bash disable=SC2034,SC2154
about_codecs=40
run_codecs() {
    local model codec level levels=(1 3)
    model=$(model_as bf16)
    command -v zstd >/dev/null || { levels=() && missing zstd 'not on PATH'; }
    title 'size of a bf16 model: bytes before over bytes after'
    for codec in planes zstd; do ours "rill cat --codec $codec" pack_ours "$model" $codec ratio; done
    for level in "${levels[@]}"; do peer "zstd -$level" pack_zstd "$model" "$level" ratio; done
    ROUNDS=1 contest x
    title 'storing it'
    for codec in planes zstd; do ours "rill cat --codec $codec" pack_ours "$model" $codec speed; done
    for level in "${levels[@]}"; do peer "zstd -$level -T$THREADS" pack_zstd "$model" "$level" speed; done
    limit 'cat FILE > FILE' copied "$model"
    contest MB/s 1e-6
    title 'reading it again'
    for codec in planes zstd; do ours "rill cat, from $codec" unpacked "$model" rill cat "$WORK/out.$codec" --codec raw; done
    for level in "${levels[@]}"; do peer "zstd -d, from -$level" unpacked "$model" zstd -qdc "-T$THREADS" "$WORK/out.$level"; done
    contest MB/s 1e-6
    rm -f "$WORK"/out.*
}
packed() { # BEFORE AFTER ratio|speed
    amount=$(stat -c %s "$1")
    [ "$3" = speed ] || { seconds=$(stat -c %s "$2") && memory=null; }
}
pack_ours() { timed rill cat -q --codec "$2" "$1" --force -o "$WORK/out.$2" && packed "$1" "$WORK/out.$2" "$3"; }
pack_zstd() { timed zstd -q "-$2" "-T$THREADS" -f "$1" -o "$WORK/out.$2" && packed "$1" "$WORK/out.$2" "$3"; }
unpacked() { amount=$(stat -c %s "$1") && timed "${@:2}"; }
