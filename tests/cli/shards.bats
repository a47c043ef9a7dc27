#!/usr/bin/env bats
# rill import --fetch: shards that are not in the folder, one on disk at a time; and on to a GGUF.
load common

setup() {
    enter_temp
    cp -r "$ROOT/tests/golden/tiny-llama/sharded" all
    few
}

# The folder "few" is "all" without its shards.
few() { rm -rf few && cp -r all few && rm few/*.safetensors; }

# reshard BYTES ORDER: the shards of "all" anew, of at most so many bytes; ORDER "saved": as transformers saves layers, or "reversed".
reshard() {
    need python3
    python3 - "$ROOT/tests/golden/tiny-llama/model.safetensors" "$@" <<'END'
import glob, json, os, struct, sys
data = open(sys.argv[1], "rb").read()
n = struct.unpack("<Q", data[:8])[0]
header = {k: v for k, v in json.loads(data[8:8 + n]).items() if k != "__metadata__"}
limit, order = int(sys.argv[2]), sys.argv[3]
parts = ["embed_tokens", "self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "gate_proj", "up_proj", "down_proj", "input_layernorm",
         "post_attention", "model.norm", "lm_head"]
def saved(name):
    kind = next(i for i, p in enumerate(parts) if p in name)
    layer = int(name.split(".")[2]) if ".layers." in name else -1 if kind == 0 else 99
    return layer, kind
shards = [[]]
for name in sorted(header, key=saved, reverse=order == "reversed"):
    begin, end = header[name]["data_offsets"]
    if shards[-1] and sum(len(d) for _, d in shards[-1]) + end - begin > limit: shards.append([])
    shards[-1].append((name, data[8 + n + begin:8 + n + end]))
for old in glob.glob("all/*.safetensors"): os.remove(old)
index = {}
for i, shard in enumerate(shards):
    file, entries, at = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors", {}, 0
    for name, d in shard:
        entries[name] = dict(header[name], data_offsets=[at, at + len(d)])
        at += len(d)
        index[name] = file
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    open("all/" + file, "wb").write(struct.pack("<Q", len(text)) + text + b"".join(d for _, d in shard))
json.dump({"metadata": {}, "weight_map": index}, open("all/model.safetensors.index.json", "w"))
END
    few
}

# What --fetch runs: notes the size of the largest file without a name that rill (the parent of the shell) has mapped, and the shard.
make_fetcher() {
    cat >fetch <<'END'
#!/bin/bash
most=0
while read -r range _ _ _ _ path; do
    [[ $path == *deleted* ]] || continue
    size=$((0x${range#*-} - 0x${range%-*}))
    [ $size -le $most ] || most=$size
done <"/proc/$1/maps"
echo "$most $2" >>fetched
cat "all/$2"
END
    chmod +x fetch
}
fetches() { awk '{print $2}' fetched | tr '\n' ' '; }

@test "shards that are fetched give the same bytes as those that are there, each once" {
    make_fetcher
    rill import -q all -o a.rill
    check_exit 0 rill import -q --fetch './fetch $PPID $FILE' few -o b.rill
    assert_equal "$(fetches)" "model-00001-of-00002.safetensors model-00002-of-00002.safetensors "
    digest() { rill show --prov "$1" | grep -o '"digest":"xxh3:[0-9a-f]*"'; }
    assert_equal "$(digest b.rill)" "$(digest a.rill)"
    rill import -q --no-provenance all -o plain.rill
    rill import -q --no-provenance --fetch 'cat "all/$FILE"' few -o c.rill
    assert_same plain.rill c.rill
    cp all/model-00002-of-00002.safetensors few/
    : >fetched
    check_exit 0 rill import --no-provenance --fetch './fetch $PPID $FILE' few -o d.rill
    assert_stderr "*fetching model-00001-of-00002.safetensors"
    assert_same plain.rill d.rill
    [ -z "$(ls few | grep 00001)" ]
}

@test "a layer in several shards: each is fetched once, and never is more on disk than one and the rest of a layer" {
    make_fetcher
    for limit in 100000 60000 20000 1; do
        reshard $limit saved
        rill import -q --no-provenance all >a.rill
        : >fetched
        check_exit 0 rill import -q --no-provenance --force --fetch './fetch $PPID $FILE' few -o b.rill
        assert_quiet
        assert_same a.rill b.rill
        assert_equal "$(sort fetched | awk '{print $2}' | sort | uniq -d)" ""
        assert_equal "$(wc -l <fetched)" "$(ls all/*.safetensors | wc -l)"
        # While one arrives, of those before it there are copies of tensors of a layer alone: the largest has 128 x 64 weights of 2 bytes,
        # and a shard with one of these has a header, too.
        [ "$(sort -n fetched | tail -1 | cut -d' ' -f1)" -le 16384 ]
    done
    grep -q '^16384 ' fetched # there were copies
}

@test "shards in another order are fetched again, and the result is the same" {
    reshard 60000 reversed
    rill import -q --no-provenance all -o a.rill
    check_exit 0 rill import --no-provenance --fetch 'cat all/$FILE' few -o b.rill
    assert_same a.rill b.rill
    assert_stderr "*warning: model-0000?-of-*.safetensors is needed again, and fetched once more"
}

@test "from shards to a quantized GGUF with one shard and the result on disk" {
    make_fetcher
    reshard 60000 saved
    rill import -q all | rill quantize -q --type q4_0 >a.rill
    rill export -q --to gguf a.rill -o a.gguf
    check_exit 0 bash -c 'rill import -q --fetch "./fetch \$PPID \$FILE" few | rill quantize -q --type q4_0 | TMPDIR=/nonexistent rill export --to gguf -o b.gguf'
    assert_same a.gguf b.gguf
    [ "$(sort -u fetched | wc -l)" -gt 3 ]
}

@test "what decides of a model's shape is looked for in the shards" {
    need python3
    # A config.json that ties the head: it is compared with the embedding, which lies in another shard.
    sed -i 's/"tie_word_embeddings": *false/"tie_word_embeddings": true/' all/config.json few/config.json
    rill import -q --no-provenance all -o a.rill
    check_exit 0 rill import --no-provenance --fetch 'cat all/$FILE' few -o b.rill
    assert_stderr "*config.json ties 'lm_head.weight' to the embedding, but the two differ: both are kept"
    assert_same a.rill b.rill
}

@test "a command that fails, and shards that are not what the index says" {
    check_exit 1 rill import -q --fetch 'exit 22' few -o out.rill
    assert_stderr_line "model-00001-of-00002.safetensors: --fetch: the command ended with exit code 22"
    check_exit 1 rill import -q --fetch 'cat all/$FILE; kill -9 $$' few -o out.rill
    assert_stderr_line "model-00001-of-00002.safetensors: --fetch: the command died of signal 9"
    check_exit 1 rill import -q --fetch 'case $FILE in *2-of*) exit 5; esac; cat all/$FILE' few -o out.rill
    assert_stderr_line "model-00002-of-00002.safetensors: --fetch: the command ended with exit code 5"
    check_exit 3 rill import -q --fetch 'true' few -o out.rill
    assert_stderr_line "model-00001-of-00002.safetensors: a safetensors file of 0 bytes"
    check_exit 3 rill import -q --fetch 'head -c 50000 all/$FILE' few -o out.rill
    assert_stderr_line "model-00001-of-00002.safetensors: tensor '*' ends at byte * of * bytes of data"
    check_exit 3 rill import -q --fetch 'cat all/*2-of-*' few -o out.rill
    assert_stderr_line "model-00001-of-00002.safetensors: it has * tensors, model.safetensors.index.json names *"
    check_exit 3 rill import -q --fetch 'echo "<html>404</html>"' few -o out.rill
    assert_stderr_line "model-00001-of-00002.safetensors: the header has * bytes*"
    sed -i 's/"model.norm.weight": "model-00002/"model.norm.weight": "model-00001/; s/"model.layers.0.input_layernorm.weight": "model-00001/"model.layers.0.input_layernorm.weight": "model-00002/' few/*.index.json
    check_exit 3 rill import -q --fetch 'cat all/$FILE' few -o out.rill
    assert_stderr_line "model-0000?-of-00002.safetensors: tensor '*' is not in it, where model.safetensors.index.json says that it is"
    assert_no_file out.rill
}

@test "a shard that changes between two fetches is an error" {
    reshard 60000 reversed
    check_exit 3 rill import -q --fetch 'cat all/$FILE | sed "s/^/&/"; echo $FILE >>seen; [ $(grep -c $FILE seen) = 1 ] || printf x' few -o out.rill
    assert_stderr "*model-*: it is another file than when it was fetched before"
    assert_no_file out.rill
}

@test "the command reads nothing of standard input, and there must be an index" {
    printf 'one\ntwo\n' >lines
    check_exit 0 bash -c 'while read -r line; do rill import -q --fetch "cat; cat all/\$FILE" few -o $line.rill; done <lines'
    [ -e one.rill ] && [ -e two.rill ]
    check_exit 2 rill import --fetch 'cat all/$FILE' "$ROOT/tests/golden/tiny-llama" -o out.rill
    assert_stderr_line "*tiny-llama: no folder with a model.safetensors.index.json, and so without shards to fetch"
    check_exit 2 rill import --fetch 'cat all/$FILE' "$ROOT/tests/golden/tiny-llama/model-f32.gguf" -o out.rill
    assert_stderr_line "*: no folder with a model.safetensors.index.json*"
    check_exit 1 rill import few -o out.rill
    assert_stderr_line "few/model-00001-of-00002.safetensors: No such file or directory"
}
