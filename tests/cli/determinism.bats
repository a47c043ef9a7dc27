#!/usr/bin/env bats
# The same bytes whatever the threads, and again: every program that computes, in each of its ways, on a model wide enough
# that work is cut into pieces (every.bats runs the rest twice on tiny inputs). MALLOC_PERTURB_ fills fresh memory with
# other bytes each time: what is read before it is written differs too.
load common

setup_file() {
    make_inputs
    cd "$INPUTS" || return 1
    rill init -q --layers 3 --hidden 256 --heads 8 --kv-heads 2 --ffn 768 --context 128 --seed 1 model.rill -o wide.rill
    rill tokenize -q -m wide.rill --context 96 --max-tokens 1600 <(for i in {1..9}; do cat text.txt; done) -o wide.tok.rill
    rill tokenize -q -m wide.rill --lines --max-tokens 300 text.txt -o lines.tok.rill
    rill quantize -q --type q4_k_m wide.rill -o wide.q4.rill
    rill calibrate -q -m wide.rill wide.tok.rill -o wide.stats.rill
    rill teacher-infer -q -m wide.rill wide.tok.rill -o wide.dense.rill
    rill teacher-infer -q -m wide.rill --encode sample:20 wide.tok.rill -o wide.kd.rill
    rill init -q --layers 2 --hidden 128 --heads 4 --kv-heads 2 --ffn 384 --context 128 --seed 2 model.rill -o small.rill
}
setup() { enter_temp && ln -s "$INPUTS"/* .; }

# same COMMAND: one text for the shell; its standard output with -j 1, 2, 5
same() {
    local threads
    rill "$(cut -d' ' -f2 <<<"$1")" --help | grep -q -- --no-provenance && set -- "$1 --no-provenance" # which records -j
    for threads in 1 2 5; do
        MALLOC_PERTURB_=$((37 * threads)) bash -o pipefail -c "$1 -q -j $threads" >"out.$threads" 2>err ||
            fail "$1: $(cat err)" || return 1
    done
    [ -s out.1 ] || fail "$1 writes nothing" || return 1
    cmp out.1 out.2 && cmp out.1 out.5 || fail "$1"
}

@test "teacher-infer" {
    for precision in f32 bf16; do
        for how in '' --logits '--encode topk:10' '--encode ghost:10' '--encode sample:20' '--weights stream --block-tokens 200' '--batch-tokens 100'; do
            same "rill teacher-infer --precision $precision $how -m wide.rill wide.tok.rill"
        done
        same "rill teacher-infer --precision $precision -m wide.q4.rill lines.tok.rill"
    done
    same "rill teacher-infer --precision int8 -m wide.q4.rill lines.tok.rill"
}

@test "teacher-infer, weights resident and layer by layer" {
    # in one batch, of which several passes go through a layer; a path that this CPU lacks is the best it has
    for path in portable avx2 avx512 avx512bf16 amx; do
        export RILL_CPU=$path
        for precision in f32 bf16; do
            local how=(-q --no-provenance --precision $precision --batch-tokens 1600 -m wide.rill wide.tok.rill)
            rill teacher-infer "${how[@]}" >resident
            rill teacher-infer "${how[@]}" --weights stream >streamed
            assert_same resident streamed
        done
    done
}

@test "logit-dump" {
    for how in topk:10 ghost:10 sample:20 'sample:20 --temperature 2'; do same "rill logit-dump --encode $how wide.dense.rill"; done
}

@test "distill" {
    for precision in f32 bf16; do
        for how in '' --recompute '--micro-tokens 96' '--optimizer-state bf16' '--loss kl:weight=0.5 --loss ce:weight=0.5'; do
            same "rill distill --precision $precision $how --steps 3 --epochs 100 --batch-tokens 384 -m small.rill wide.kd.rill"
        done
        same "rill distill --precision $precision --steps 2 --epochs 100 --batch-tokens 384 -m small.rill wide.dense.rill"
    done
}

@test "generate" {
    for precision in f32 bf16; do
        for how in '--seed 3' '--temperature 0' '--seed 3 --top-k 5 --top-p 0.9' '--seed 3 --repeat 3'; do
            same "rill generate --precision $precision $how --max-new 12 --past-eos -m wide.rill lines.tok.rill"
        done
    done
    same "rill generate --max-new 12 --past-eos -m wide.q4.rill lines.tok.rill"
    same "rill generate --precision int8 --max-new 12 --past-eos -m wide.q4.rill lines.tok.rill"
}

@test "eval and calibrate" {
    for precision in f32 bf16; do
        same "rill eval --precision $precision --context 64 -m wide.rill wide.tok.rill"
        same "rill eval --precision $precision -m small.rill --reference wide.dense.rill"
        same "rill eval --precision $precision -m small.rill --reference wide.kd.rill --task pairs.jsonl"
        same "rill calibrate --precision $precision -m wide.rill wide.tok.rill"
    done
}

@test "prune and quantize" {
    for how in '--sparsity 0.3' '--drop-layers 1 --kv-heads 1 --ffn 500' '--layers 2 --ffn 500 --stats wide.stats.rill'; do same "rill prune $how wide.rill"; done
    for type in q8_0 q6_k q4_k_m q4_0; do
        same "rill quantize --type $type wide.rill"
        [ "$type" = q8_0 ] || same "rill quantize --type $type --stats wide.stats.rill wide.rill"
    done
}
