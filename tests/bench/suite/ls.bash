# Start-up: the time to list a model of 270 MB (SmolLM2 in bf16). The goal is 20 ms.
# shellcheck shell=bash disable=SC2034,SC2154
about_ls=10
run_ls() {
    local model
    model=$(model_as bf16)
    title "start-up on a model of $(($(stat -c %s "$model") / 1000000)) MB"
    ours 'rill ls' timed rill ls "$model"
    ours 'rill ls, through a pipe' timed_pipe "cat '$model' | rill ls"
    ours 'rill --version' timed rill --version
    if python_with safetensors; then
        peer 'safetensors in Python: names and shapes' timed "${PEER_PYTHON:-python3}" -c \
            'import sys, safetensors; f = safetensors.safe_open(sys.argv[1], "np"); [f.get_slice(k).get_shape() for k in f.keys()]' \
            "$(hf_folder)/model.safetensors"
    else missing safetensors "$no_python"; fi
    ROUNDS=$((smoke ? 1 : 4 * REPS)) contest ms
}
