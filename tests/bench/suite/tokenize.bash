# Text to tokens, as a whole process, against Hugging Face's tokenizers (Rust, all threads) without their start-up.
# shellcheck shell=bash disable=SC2034,SC2154
about_tokenize=25
run_tokenize() {
    local lines=$WORK/lines.txt bytes
    repeat_text $((smoke ? 100000 : 8000000)) >"$lines"
    bytes=$(stat -c %s "$lines")
    title "$((bytes / 1000)) kB of text"
    ours 'rill tokenize --lines' tokenize_text "$bytes" "--lines -j $THREADS" "$lines"
    ours 'rill tokenize --lines -j 1' tokenize_text "$bytes" '--lines -j 1' "$lines"
    ours "rill tokenize --context $CONTEXT" tokenize_text "$bytes" "--context $CONTEXT -j $THREADS" "$lines"
    python_peer tokenizers 'HF tokenizers' hf_tokenizers --tokenizer "$(hf_folder)/tokenizer.json" --text "$lines"
    contest MB/s 1e-6
    rm "$lines"
}
tokenize_text() { # BYTES OPTIONS FILE
    # shellcheck disable=SC2086
    amount=$1 && timed rill tokenize -q -m "$INPUTS/model.rill" $2 "$3" --force -o /dev/null
}
