# prepare.bash: the inputs of the benchmarks, made on first use and kept in BENCH_OUT/inputs: the model in the forms that we
# and the peers read, the text, its tokens, a teacher's knowledge.
#
#   model_as TYPE         path of the model as a stream of that element type (f32, bf16, q8_0, q4_k_m, ...)
#   gguf_as TYPE          the same as GGUF; hf_folder: as a Hugging Face folder, bf16
#   tokens N [CONTEXT]    a token stream of N tokens in sequences of CONTEXT (512); knowledge N: the model's predictions for
#                         them, sample:50
#   small_tokens N        the same for $SMALL, the embedded model
#   operations CONTEXT    floating-point operations per token of a forward pass, for sequences of CONTEXT tokens
#   precision PROGRAM bf16|f32    the options for that precision; nothing if PROGRAM has only one
# shellcheck shell=bash disable=SC2154

find_model() {
    local source=${MODEL:-${SMOLLM2_GGUF:-}} key
    SMALL=$ROOT/examples/data/model.rill
    if [ -z "$source" ] && [ -f "$ROOT/models/smollm2.gguf" ]; then source=$ROOT/models/smollm2.gguf; fi
    if [ "$smoke" -eq 1 ]; then source=$ROOT/tests/golden/tiny-llama; fi
    [ -z "$source" ] || [ -e "$source" ] || die "run: $source: no such model"
    key=$(stat -c '%n %s %Y' "${source:-$ROOT/tests/bench/make-vocabulary}" ${CORPUS:+"$CORPUS"} | cksum | cut -d' ' -f1)
    INPUTS=$BENCH_OUT/inputs/$key
    mkdir -p "$INPUTS"
    MODEL_NAME=${source:-"the shape of SmolLM2-135M, random weights"}
    [ -s "$INPUTS/model.rill" ] || make_model "$source" || die 'run: no model'
    read_shape
    CONTEXT=$((shape_context < 512 ? shape_context : 512))
    [ "$smoke" -eq 0 ] || CONTEXT=32
    json kind model model "$MODEL_NAME" parameters "$matrix_elements" context "$CONTEXT" operations "$(operations "$CONTEXT")"
    printf 'model: %s, %s M weights in products, %s MFLOP a token at context %s\n' "$MODEL_NAME" $((matrix_elements / 1000000)) \
        $(($(operations "$CONTEXT") / 1000000)) "$CONTEXT"
}

make_model() {
    local made=$INPUTS/made
    case $1 in
    *.rill) cp "$1" "$made" ;;
    '')
        "$ROOT/tests/bench/make-vocabulary" "$WORK/vocabulary" && rill import -q "$WORK/vocabulary" -o "$WORK/vocabulary.rill" &&
            rill init -q --layers 30 --hidden 576 --heads 9 --kv-heads 3 --ffn 1536 --context 8192 --rope-theta 100000 \
                "$WORK/vocabulary.rill" --force -o "$made"
        ;;
    *) rill import -q "$1" --force -o "$made" ;;
    esac && mv "$made" "$INPUTS/model.rill"
}

# Sums over the model's matrices. A tied embedding is multiplied once, as the head, an untied one not at all.
read_shape() {
    local list
    list=$(rill ls "$INPUTS/model.rill") || die 'run: cannot read the model'
    eval "$(sed -n '1s/.*/&/p' <<<"$list" | tr ' ' '\n' | sed -nE 's/^(layers|hidden|heads|kv_heads|head_dim|context|tied|vocab_size)=([a-z0-9]+)$/shape_\1=\2/p')"
    matrix_elements=$(awk -v tied="${shape_tied:-false}" '
        match($0, /\[[0-9]+, [0-9]+\]/) && !(tied == "false" && $NF == "embed.weight") {
            split(substr($0, RSTART + 1, RLENGTH - 2), d, ", "); n += d[1] * d[2] } END { printf "%.0f", n }' <<<"$list")
}

operations() { # two per weight, and four per channel of a head and key, for the mean number of keys
    echo $((2 * matrix_elements + 4 * shape_layers * shape_heads * shape_head_dim * $1 / 2))
}

# kept NAME COMMAND...: prints NAME's path in INPUTS; if it is missing, COMMAND makes it, with the path after -o
kept() {
    local path=$INPUTS/$1
    shift
    [ -e "$path" ] || "$@" -o "$path" >&2 || die "run: cannot prepare $path"
    echo "$path"
}
model_as() { kept "model.$1.rill" rill quantize -q --type "$1" "$INPUTS/model.rill"; }
gguf_as() { kept "model.$1.gguf" rill export -q --to gguf "$(model_as "$1")"; }
hf_folder() { kept model-hf rill export -q --to safetensors "$(model_as bf16)"; }

text_file() { kept text.txt write_text; }
write_text() { # -o PATH
    cat "${CORPUS:-$ROOT/examples/data/heldout.txt}" >"$2"
    [ -n "${CORPUS:-}" ] || cat "$ROOT"/README.md "$ROOT"/formats/*.md "$ROOT"/lib/*/*.[ch] "$ROOT"/tools/*.c >>"$2"
}
# repeat_text BYTES: repeats the text until it has this size
repeat_text() {
    local text
    text=$(text_file)
    while cat "$text" 2>/dev/null; do :; done | head -c "$1"
}
pack() { # MODEL N CONTEXT -o PATH
    repeat_text $((8 * $2 + 10000)) | rill tokenize -q -m "$1" --context "$3" --max-tokens "$2" "${@:4}"
}
tokens() { kept "tokens.$1.${2:-$CONTEXT}.rill" pack "$INPUTS/model.rill" "$1" "${2:-$CONTEXT}"; }
small_tokens() { kept "small.$1.rill" pack "$SMALL" "$1" 256; }
knowledge() { kept "knowledge.$1.rill" teach "$(tokens "$1")"; }
teach() { rill teacher-infer -q -m "$(model_as bf16)" "$1" | rill logit-dump -q "${@:2}"; }

knows() { "rill-$1" --help-options | grep -q -- "--$2 "; }
precision() { if knows "$1" precision; then echo "--precision $2"; fi; }
or_f32() { if knows "$1" precision; then echo ", $2"; else echo ', f32 only'; fi; }
# precisions PROGRAM: the precisions that it supports
precisions() { if knows "$1" precision; then echo bf16 f32; else echo f32; fi; }
