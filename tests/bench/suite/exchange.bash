# Importing and exporting a model, against copying its bytes from file to file.
# shellcheck shell=bash disable=SC2034,SC2154
about_exchange=15
run_exchange() {
    local model
    model=$(model_as bf16)
    title 'import of a bf16 model'
    ours 'rill import, Hugging Face folder' exchange "$model" import "$(hf_folder)" -o "$WORK/out.rill" --force
    ours 'rill import, GGUF' exchange "$model" import "$(gguf_as bf16)" -o "$WORK/out.rill" --force
    limit 'cat FILE > FILE' copied "$model"
    contest MB/s 1e-6
    title 'export of a bf16 model'
    ours 'rill export --to safetensors' exchange "$model" export --to safetensors "$model" -o "$WORK/out.folder" --force
    ours 'rill export --to gguf' exchange "$model" export --to gguf "$model" -o "$WORK/out.gguf" --force
    limit 'cat FILE > FILE' copied "$model"
    contest MB/s 1e-6
    rm -rf "$WORK"/out.*
}
exchange() { # MODEL PROGRAM ARGUMENT...
    amount=$(stat -c %s "$1") && rm -rf "$WORK"/out.* && timed rill "$2" -q "${@:3}"
}
