#!/usr/bin/env bats
# rill quantize, beyond what every program must do and what tests/unit/test_quant.c says.
load common

setup_file() { make_inputs; }
setup() {
    enter_temp
    cp -r "$INPUTS/." .
}

@test "says the bits per weight that came out and which tensors fell back" {
    # hidden size 64: no row is a whole number of blocks of 256
    check_exit 0 rill quantize --type q4_k_m model.rill -o q.rill --report r.json
    assert_stderr "*tensors fell back to a larger type*first 'embed.weight', now q8_0*"
    assert_stderr "*bits per weight*"
    assert_json r.json fell_back 22 # embedding and seven matrices in each of three layers
    check_exit 0 rill quantize --type q8_0 model.rill -o q8.rill --report r8.json
    assert_json r8.json fell_back 0
    [ "$(file_size q8.rill)" -lt "$(file_size model.rill)" ]
}

@test "--strict refuses, and nothing is written" {
    check_exit 3 rill quantize --strict --pure --type q4_k model.rill -o q.rill
    assert_stderr_line "tensor 'embed.weight': rows of 64 are not a whole number of q4_k's blocks of 256 (without --strict it becomes q5_0)"
    check_exit 3 rill quantize --strict --type iq2_xs model.rill -o q.rill
    assert_no_file q.rill
}

@test "a file and a pipe give the same bytes, and so do one and four threads" {
    rill quantize -q --type q4_0 --no-provenance model.rill -o a.rill -j 1
    cat model.rill | rill quantize -q --type q4_0 --no-provenance -j 4 | cat >b.rill
    assert_same a.rill b.rill
}

@test "quantized models run and keep their tokenizer" {
    for type in Q8_0 q6_k q5_k q5_1 q5_0 q4_k_m q4_k_s q4_1 q4_0 iq4_nl mxfp4 bf16 f16 f32; do
        check_exit 0 rill quantize -q --type $type model.rill -o $type.rill
        check_exit 0 rill generate -q -m $type.rill --temperature 0 --max-new 2 --text prompts.rill
        [[ $out == "once upon"* ]]
    done
}

@test "every type is written, exported, imported and run" {
    rill init -q --layers 2 --hidden 256 --heads 4 --ffn 512 model.rill -o wide.rill
    for type in q4_0 q4_1 q5_0 q5_1 q8_0 q2_k q3_k q4_k q5_k q6_k iq4_nl iq4_xs iq3_s iq3_xxs iq2_m iq2_xs iq2_xxs tq1_0 tq2_0 mxfp4; do
        check_exit 0 rill quantize -q --pure --type $type wide.rill -o q.rill --force
        rill export -q --force --to gguf q.rill -o q.gguf
        rill import -q --no-provenance q.gguf -o back.rill --force
        check_exit 0 rill diff --max-abs 0 q.rill back.rill
        for precision in f32 bf16 int8; do
            [ "$precision/${type:0:3}" != int8/iq2 ] && [ "$precision/${type:0:3}" != int8/iq3 ] && [ "$precision/$type" != int8/mxfp4 ] || continue
            check_exit 0 rill generate -q -m q.rill --precision $precision --temperature 0 --max-new 2 --text prompts.rill
        done
    done
}

@test "a plan is printed, edited and carried out" {
    check_exit 0 rill quantize --type q4_0 --dry-run model.rill
    assert_stdout "# tensor *shape *type *bytes *bpw *why*embed.weight*352x64*q8_0*23936*8.5*# q4_0: output; q6_k, but rows of 64*"
    printf '%s\n' "$out" >plan.txt
    rill quantize -q --no-provenance --type q4_0 model.rill -o a.rill
    rill quantize -q --no-provenance --plan plan.txt model.rill -o b.rill
    assert_same a.rill b.rill
    sed -i '/layers.0.ffn.up/s/ q4_0 / Q5_1 /' plan.txt
    check_exit 0 rill quantize -q --plan plan.txt model.rill -o c.rill --report r.json
    grep -q '"name":"layers.0.ffn.up.weight","from":"bf16","to":"q5_1"' r.json
    check_exit 3 rill quantize --plan plan.txt student.rill -o no.rill
    assert_stderr_line "plan.txt: line *: *the plan is for another model"
    sed -i '2s/q8_0/q9_9/' plan.txt
    check_exit 3 rill quantize --plan plan.txt model.rill -o no.rill
    assert_stderr_line "plan.txt: line 2: unknown type 'q9_9' (known: *"
    sed -i '2s/q9_9/q6_k/' plan.txt
    check_exit 3 rill quantize --plan plan.txt model.rill -o no.rill
    assert_stderr_line "plan.txt: tensor 'embed.weight': rows of 64 are not a whole number of q6_k's blocks of 256"
    check_exit 2 rill quantize model.rill -o no.rill
    assert_stderr_line "--type, --plan, --target-bpw or --target-size is required"
    assert_no_file no.rill
}

@test "rules name types by Rill's names and by GGUF's" {
    check_exit 0 rill quantize -q --type q4_0 --tensor-type 'ffn\.=q5_0' --tensor-type 'blk.1.ffn_up=q5_1' --tensor-type 'attn_v=F16' model.rill -o q.rill --report r.json
    for want in layers.0.ffn.up:q5_0 layers.1.ffn.up:q5_1 layers.2.attn.v:f16 layers.2.attn.q:q4_0; do
        grep -q "\"name\":\"${want%:*}.weight\",\"from\":\"bf16\",\"to\":\"${want#*:}\"" r.json
    done
    check_exit 2 rill quantize --type q4_0 --tensor-type 'nothing=q5_0' model.rill -o no.rill
    assert_stderr_line "'nothing' matches no matrix of this model"
    check_exit 2 rill quantize --type q4_0 --tensor-type 'ffn(=q5_0' model.rill -o no.rill
    assert_stderr_line "'ffn(' is not a regular expression: at character 4: *"
    assert_no_file no.rill
}

@test "llama.cpp's importance matrix serves as statistics" {
    rill export -q --to imatrix model.stats.rill -o model.imatrix.gguf
    rill quantize -q --no-provenance --type q4_1 --stats model.stats.rill model.rill -o a.rill
    check_exit 0 rill quantize -q --no-provenance --type q4_1 --stats model.imatrix.gguf model.rill -o b.rill
    rill quantize -q --no-provenance --type q4_1 model.rill -o c.rill
    assert_differ b.rill c.rill
    check_exit 0 rill diff --max-abs 0.05 a.rill b.rill # sums in f32 round otherwise
    rill quantize -q --no-provenance --type q4_1 --stats - model.rill -o in-d.rill <model.imatrix.gguf
    cat model.imatrix.gguf | rill quantize -q --no-provenance --type q4_1 --stats - model.rill -o in-e.rill
    cmp in-d.rill in-e.rill
    check_exit 0 rill diff --max-abs 0 b.rill in-d.rill
    mkfifo pipe && { cat model.imatrix.gguf >pipe & }
    check_exit 0 rill quantize -q --no-provenance --type q4_1 --stats pipe model.rill -o in-f.rill
    check_exit 0 rill diff --max-abs 0 b.rill in-f.rill
    cat model.stats.rill | rill quantize -q --no-provenance --type q4_1 --stats - model.rill -o in-g.rill
    check_exit 0 rill diff --max-abs 0 a.rill in-g.rill
    head -c 500 model.imatrix.gguf >cut.gguf
    check_exit_in 3 cut.gguf rill quantize --type q4_1 --stats - model.rill -o no.rill
    assert_stderr_line "standard input: *"
    check_exit 3 rill quantize --type q4_1 --stats model.imatrix.gguf student.rill -o no.rill
    assert_stderr_line "importance of 'token_embd.weight' has 64 columns, the matrix 32: of another model"
    check_exit 3 rill import model.imatrix.gguf -o no.rill
    assert_stderr_line "model.imatrix.gguf: an importance matrix, no model: quantize --stats reads it as it is"
    check_exit 3 rill quantize --type q4_1 --stats model.gguf model.rill -o no.rill
    assert_stderr_line "model.gguf: general.type is 'model', expected 'imatrix'"
    head -c 600 model.imatrix.gguf >cut.gguf
    check_exit 3 rill quantize --type q4_1 --stats cut.gguf model.rill -o no.rill
    # the older format: one entry of 64 columns
    { printf '\1\0\0\0\21\0\0\0token_embd.weight\2\0\0\0\100\0\0\0'; for _ in {1..64}; do printf '\0\0\200\77'; done; } >old.dat
    check_exit 0 rill quantize -q --type q4_0 --pure --stats old.dat model.rill -o d.rill
    truncate -s -1 old.dat
    check_exit 3 rill quantize --type q4_0 --pure --stats old.dat model.rill -o no.rill
    assert_stderr_line "old.dat: entry 1 of 1 of the importance matrix is cut or broken"
    assert_no_file no.rill
}

@test "types that need importance say so" {
    rill init -q --layers 8 --hidden 256 --heads 4 --ffn 256 model.rill -o wide.rill
    check_exit 0 rill quantize --type iq2_xs wide.rill -o q.rill
    assert_stderr "*tensors got a type that is made for weights whose importance is known: use --stats"
    check_exit 3 rill quantize --strict --type iq2_xs wide.rill -o no.rill
    assert_stderr_line "tensor 'layers.*' gets iq2_xs, which needs --stats (without --strict it does without)"
    assert_no_file no.rill
}

@test "statistics that change nothing are refused" {
    for type in q8_0 f16; do
        check_exit 2 rill quantize --type $type --stats model.stats.rill model.rill
        assert_stderr_line "statistics change nothing in $type: *"
    done
    check_exit 0 rill quantize -q --type q8_0 --head-type q4_0 --stats model.stats.rill model.rill
}

@test "an unknown type is a usage error that lists the types" {
    check_exit 2 rill quantize --type q9 model.rill -o q.rill
    assert_stderr_line "unknown type 'q9' (known: q8_0, *"
    check_exit 2 rill quantize --type q8_0 --head-type q4_k_m model.rill -o q.rill
    assert_stderr_line "--head-type: 'q4_k_m' is a mixture, not a type of one tensor*"
    check_exit 2 rill quantize --type f16 --pure model.rill -o q.rill
    assert_stderr_line "--pure: f16 is the same everywhere, it has no mixture"
    check_exit 2 rill quantize --type q8_0 --embed-type f16 model.rill -o q.rill
    assert_stderr_line "the embedding is the output matrix too, whose type --head-type names"
    assert_no_file q.rill
}

@test "the head may have a type of its own" {
    check_exit 0 rill quantize -q --type q4_0 --head-type q8_0 model.rill -o q.rill --report r.json
    grep -q '"name":"embed.weight","from":"bf16","to":"q8_0"' r.json
    grep -q '"name":"layers.0.attn.q.weight","from":"bf16","to":"q4_0"' r.json
}

@test "a weight that is no number is named, also to the programs downstream" {
    cp -r hf nan
    printf '\300\177' | dd of=nan/model.safetensors bs=1 seek=$(($(file_size nan/model.safetensors) - 400)) conv=notrunc 2>/dev/null
    check_exit 3 sh -c 'rill import -q nan | rill quantize -q --type q8_0 -o no.rill'
    assert_stderr "rill import: tensor '*': element * is not a finite number"
    assert_stderr "rill quantize: standard input: incomplete, the program that wrote it failed: *"
    assert_no_file no.rill
}

@test "what is quantized already is said, and gets no more bits without --force" {
    rill quantize -q --type q8_0 model.rill -o q8.rill
    rill quantize -q --type q4_1 --pure model.rill -o q41.rill
    check_exit 0 rill quantize --type q4_0 --pure q8.rill -o a.rill
    assert_stderr "rill quantize: tensors are quantized already (22 of q8_0): rounding them again loses more than quantizing the original would"
    check_exit 2 rill quantize --type q4_k_m q41.rill -o no.rill
    assert_stderr_line "tensor 'embed.weight' is q4_1 already, 5 bits per weight: * would take * and gain nothing (quantize the original, or --force)"
    check_exit 2 sh -c 'rill quantize --type q8_0 <q41.rill | cat >/dev/null; exit 2'
    assert_no_file no.rill
    check_exit 0 rill quantize --force --type q4_k_m q41.rill -o b.rill
    assert_stderr "*(22 of q4_1)*"
    check_exit 0 rill quantize --type f16 q41.rill -o c.rill
    assert_stderr "rill quantize: tensors are quantized already (22 of q4_1): they stay as coarse as they are"
    check_exit 0 rill quantize --type q4_1 --pure q41.rill -o same.rill # nothing to do, nothing to say
    assert_stderr_line "*bits per weight*"
    # the recipe says it, too
    check_exit 0 rill recipe b.rill
    assert_stdout '*quantize*--force*'
}

@test "the GGUF says which types it has" {
    file_type() { # the u32 that follows general.file_type's name and type
        local at
        at=$(grep -abo general.file_type "$1" | head -1 | cut -d: -f1)
        od -An -tu4 -j $((at + 17 + 4)) -N 4 "$1" | tr -d ' '
    }
    for want in f32:0 f16:1 bf16:32 q4_0:2 q4_1:3 q5_0:8 q5_1:9 q8_0:7; do
        rill quantize -q --force --type "${want%:*}" model.rill -o q.rill
        rill export --force --to gguf q.rill -o q.gguf
        assert_equal "$want" "${want%:*}:$(file_type q.gguf)"
    done
    rill init -q --layers 4 --hidden 64 --heads 4 --ffn 256 model.rill -o wide.rill
    for want in q4_k_s:14 q4_k_m:15 q5_k_s:16 q5_k:17 q6_k:18; do
        rill quantize -q --force --type "${want%:*}" wide.rill -o q.rill
        rill export --force --to gguf q.rill -o q.gguf
        assert_equal "$want" "${want%:*}:$(file_type q.gguf)"
    done
    rill prune -q --ffn 128 q.rill -o p.rill # rows stay whole blocks: most of it keeps q8_0, what q6_k fell back to
    rill export --to gguf p.rill -o p.gguf
    assert_equal 7 "$(file_type p.gguf)"
}

@test "gptq: with data, by file and by pipe, with one thread and with four, never worse" {
    for how in "" --symmetric "--sweeps 0"; do
        # shellcheck disable=SC2086
        check_exit 0 rill quantize -q --type q4_0 --method gptq --data tokens.rill --precision f32 $how model.rill -o a.rill \
            --no-provenance -j 1 --report r.json --force
        # shellcheck disable=SC2086
        cat model.rill | rill quantize -q --type q4_0 --method gptq --data tokens.rill --precision f32 $how --no-provenance -j 4 |
            cat >b.rill
        assert_same a.rill b.rill
        grep -o '"output_error_nearest":[^,]*,"output_error":[^,}]*' r.json >errors.txt
        [ "$(wc -l <errors.txt)" = 21 ] # seven matrices in each of three layers
        [ -z "$(awk -F '[:,]' '$4 + 0 > $2 + 0' errors.txt)" ]
        check_exit 0 rill generate -q -m a.rill --temperature 0 --max-new 2 --text prompts.rill
    done
}

@test "gptq in bf16 where no norm precedes the matrices, so that their inputs differ in type" {
    for arch in olmo2 bert; do
        rill init -q --arch $arch --layers 2 --hidden 64 --heads 4 --ffn 128 model.rill -o after.rill --force
        for precision in f32 bf16; do
            check_exit 0 rill quantize -q --type q4_0 --method gptq --data tokens.rill --precision $precision after.rill \
                -o after.$precision.rill --force
        done
        check_exit 0 rill diff --min-cosine 0.98 after.f32.rill after.bf16.rill
    done
}

@test "gptq takes a plan, any type, and stays within it" {
    rill quantize -q --type q3_k_m --method gptq --dry-run model.rill -o plan.txt
    check_exit 0 rill quantize -q --plan plan.txt --method gptq --data tokens.rill model.rill -o a.rill
    rill quantize -q --plan plan.txt model.rill -o b.rill
    rill ls a.rill | sed '$d' >a.txt
    rill ls b.rill | sed '$d' | cmp - a.txt
    rill ls a.rill | grep -q '^q4_0 .*layers.0.attn.q.weight$'
    rill init -q --layers 1 --hidden 256 --heads 4 --ffn 512 model.rill -o wide.rill
    for type in q2_k q3_k q6_k iq4_xs iq2_xs iq3_xxs tq2_0 mxfp4; do
        check_exit 0 rill quantize -q --strict --pure --type $type --method gptq --data tokens.rill wide.rill -o q.rill --force
    done
    check_exit 0 rill quantize -q --type q4_0 --method gptq --data tokens.rill experts.rill -o e.rill
}

@test "gptq quantizes the head, too, where statistics have its second moments" {
    rill init -q --layers 1 --hidden 256 --heads 4 --ffn 512 model.rill -o tied.rill
    rill calibrate -q -m tied.rill --precision f32 tokens.rill -o plain.stats.rill
    rill calibrate -q -m tied.rill --precision f32 --head-moments tokens.rill -o head.stats.rill
    how="--type q3_k_m --method gptq --data tokens.rill --precision f32 --no-provenance"
    # shellcheck disable=SC2086
    rill quantize -q $how --stats plain.stats.rill tied.rill -o plain.rill
    # shellcheck disable=SC2086
    check_exit 0 rill quantize -q $how --stats head.stats.rill -j 1 --report r.json tied.rill -o a.rill
    # shellcheck disable=SC2086
    cat tied.rill | rill quantize -q $how --stats head.stats.rill -j 4 >b.rill
    assert_same a.rill b.rill
    rill ls a.rill | sed '1d;$d' >a.txt # without the name of the statistics
    rill ls plain.rill | sed '1d;$d' | cmp - a.txt
    head=$(grep -o '"name":"embed.weight"[^}]*' r.json)
    awk -F '[:,]' '{ for (i = 1; i < NF; i++) { if ($i == "\"output_error_nearest\"") n = $(i + 1); if ($i == "\"output_error\"") g = $(i + 1) } exit !(g > 0 && g < n) }' <<<"$head"
    # they are what statistics change in types that weigh no errors, too
    check_exit 2 rill quantize --type q4_0 --head-type q8_0 --method gptq --data tokens.rill --stats plain.stats.rill tied.rill -o no.rill
    assert_stderr "*statistics change nothing in q4_0*"
    check_exit 0 rill quantize -q --type q4_0 --head-type q8_0 --method gptq --data tokens.rill --stats head.stats.rill --report r0.json tied.rill -o a0.rill
    grep -o '"name":"embed.weight"[^}]*' r0.json | grep -q '"to":"q8_0".*"output_error":'
    # a target counts on it: what is fed back will leave less
    target="--target-bpw 4.5 --types q3_k,q4_k,q6_k --dry-run"
    # shellcheck disable=SC2086
    rill quantize -q $target --stats head.stats.rill tied.rill -o rtn.txt
    # shellcheck disable=SC2086
    rill quantize -q $target --method gptq --stats head.stats.rill tied.rill -o gptq.txt
    [ "$(sed -n 's/.*; sum \([^,]*\),.*/\1/p' gptq.txt)" != "$(sed -n 's/.*; sum \([^,]*\),.*/\1/p' rtn.txt)" ]
    # shellcheck disable=SC2086
    check_exit 3 rill quantize $how --stats <(head -c 3000 head.stats.rill) tied.rill -o no.rill
    assert_no_file no.rill
}

@test "gptq needs no data where statistics have second moments" {
    rill calibrate -q -m model.rill --precision f32 --moments tokens.rill -o m.stats.rill
    rill calibrate -q -m model.rill --precision f32 --head-moments tokens.rill -o head.stats.rill
    how="--type q4_k_m --method gptq --no-provenance"
    # shellcheck disable=SC2086
    check_exit 0 rill quantize -q $how --stats m.stats.rill -j 1 --report r.json model.rill -o a.rill
    # shellcheck disable=SC2086
    cat model.rill | rill quantize -q $how --stats m.stats.rill -j 4 >b.rill
    assert_same a.rill b.rill
    # moments are left in the file until they are needed, where it is one
    # shellcheck disable=SC2086
    rill quantize -q $how --stats <(cat m.stats.rill) model.rill -o b.rill --force
    check_exit 0 rill diff --max-abs 0 a.rill b.rill
    # every matrix has been improved, and none is worse than to nearest
    [ "$(grep -o '"output_error_nearest"' r.json | wc -l)" -eq 22 ] # embedding and seven matrices in each of three layers
    awk -F '[:,]' 'BEGIN { RS = "}" } /output_error/ { n = g = -1
        for (i = 1; i < NF; i++) { if ($i ~ /"output_error_nearest"/) n = $(i + 1); if ($i ~ /"output_error"/) g = $(i + 1) }
        if (!(g > 0 && g < n)) bad = 1 } END { exit bad }' r.json
    # statistics are sums: those of two halves, and of the same text twice, which is what one says twice
    rill calibrate -q -m model.rill --precision f32 --moments b.tok.rill -o m2.stats.rill
    cat m.stats.rill m2.stats.rill >both.rill
    # shellcheck disable=SC2086
    check_exit 0 rill quantize -q $how --stats both.rill model.rill -o both.q.rill
    check_exit 4 rill diff -q --max-abs 0 a.rill both.q.rill
    # shellcheck disable=SC2086
    check_exit 3 rill quantize $how --stats <(cat m.stats.rill head.stats.rill) model.rill -o no.rill
    assert_stderr "*statistics with different second moments cannot be added*"
    # without them
    # shellcheck disable=SC2086
    check_exit 3 rill quantize $how --stats head.stats.rill model.rill -o no.rill
    assert_stderr "*head.stats.rill: no second moments of the inputs of all matrices, which --method gptq needs without --data*"
    check_exit 2 rill quantize --type q4_0 --method learned --stats m.stats.rill model.rill -o no.rill
    assert_stderr_line "--method learned needs --data"
    # shellcheck disable=SC2086
    check_exit 3 rill quantize $how --stats m.stats.rill student.rill -o no.rill
    assert_stderr "*statistics and model disagree: 3 layers against 1*"
    # shellcheck disable=SC2086
    check_exit 3 rill quantize $how --stats <(head -c 100000 m.stats.rill) model.rill -o no.rill
    assert_no_file no.rill
}

@test "gptq from statistics: any type and model, cached, and from some rows of wide inputs" {
    rill init -q --layers 1 --hidden 256 --heads 4 --ffn 512 model.rill -o wide.rill
    rill calibrate -q -m wide.rill --precision f32 --moments tokens.rill -o wide.stats.rill
    for type in q2_k q3_k q6_k iq4_xs; do
        check_exit 0 rill quantize -q --strict --pure --type $type --method gptq --stats wide.stats.rill wide.rill -o q.rill --force
    done
    check_exit 0 rill quantize -q --type q4_0 --tensor-type ffn=iq2_xs --method gptq --stats wide.stats.rill wide.rill -o q.rill --force
    for type in iq2_xs iq3_xxs mxfp4; do
        check_exit 2 rill quantize --pure --type $type --method gptq --stats wide.stats.rill wide.rill -o no.rill
        assert_stderr_line "error feedback by statistics changes nothing in $type: no type in it has a code for each weight"
    done
    # the embedding of an untied model is not what its tied twin's head is
    rill init -q --untied --layers 1 --hidden 256 --heads 4 --ffn 512 model.rill -o untied.rill
    rill quantize -q --type q4_0 --method gptq --stats wide.stats.rill --report r.json untied.rill -o q.rill --force
    grep -o '"name":"embed.weight"[^}]*' r.json >embed.txt
    run ! grep -q output_error embed.txt
    # what took more damping is refused when it comes from the cache, too
    for _ in {1..200}; do printf 'once '; done | rill tokenize -q -m wide.rill --context 32 -o same.rill
    rill calibrate -q -m wide.rill --precision f32 --moments same.rill -o same.stats.rill
    for data in "--stats same.stats.rill" "--data same.rill"; do
        # shellcheck disable=SC2086
        check_exit 0 rill quantize --type q3_k_m --method gptq --damp 1e-8 $data --cache damped wide.rill -o q.rill --force
        assert_stderr "*did not factor with --damp 1e-08*"
        # shellcheck disable=SC2086
        check_exit 3 rill quantize --strict --type q3_k_m --method gptq --damp 1e-8 $data --cache damped wide.rill -o no.rill
        assert_stderr "*the second moments cannot be factored with --damp 1e-08*"
    done
    for m in experts classes bert; do
        input=tokens.rill
        [ $m = experts ] || input=labelled.rill
        rill calibrate -q -m $m.rill --precision f32 --moments $input -o $m.m.rill
        check_exit 0 rill quantize -q --type q4_0 --method gptq --stats $m.m.rill $m.rill -o q.rill --force
    done
    how="--type q3_k_m --method gptq --cache blocks --no-provenance"
    for setting in "" "--damp 0.2" "--sweeps 0"; do
        # shellcheck disable=SC2086
        check_exit 0 rill quantize -q $how --stats wide.stats.rill $setting --report r.json wide.rill -o first.rill --force
        assert_json r.json from_cache 0
        # shellcheck disable=SC2086
        check_exit 0 rill quantize -q $how --stats wide.stats.rill $setting --report r.json wide.rill -o again.rill --force
        assert_json r.json from_cache 8
        assert_same first.rill again.rill
    done
    # 64 rows of inputs with more columns: every draw is another sample, and the same seed the same one
    for seed in 1 1 2; do
        check_exit 0 rill calibrate -q -m wide.rill --precision f32 --moments --rows 64 --seed $seed tokens.rill -o rows.$seed.rill --force
        rill ls rows.$seed.rill | grep -q '^f32 *\[64, 512\] .*layers.0.down_in.rows$'
        # shellcheck disable=SC2086
        rill quantize -q $how --stats rows.$seed.rill --report r.json wide.rill -o rows.$seed.q.rill --force
    done
    assert_json r.json from_cache 0
    rill quantize -q --type q3_k_m --method gptq --no-provenance --stats <(cat rows.1.rill) wide.rill -o piped.rill
    check_exit 0 rill diff --max-abs 0 rows.1.q.rill piped.rill
    # as many rows as there are positions hold all of the moments
    rill calibrate -q -m wide.rill --precision f32 --moments --rows 255 --max-tokens 128 tokens.rill -o all.rill
    rill calibrate -q -m wide.rill --precision f32 --moments --max-tokens 128 tokens.rill -o sums.rill
    for s in all sums; do rill quantize -q --type q3_k_m --method gptq --stats $s.rill wide.rill -o $s.q.rill; done
    check_exit 0 rill diff --min-cosine 0.99 all.q.rill sums.q.rill
    check_exit 2 rill calibrate -m wide.rill --rows 64 tokens.rill -o no.rill
}

@test "learned rounding: by file and by pipe, with any number of threads, never worse than gptq on what is held out" {
    rill init -q --arch gpt_neox --layers 1 --hidden 32 --heads 2 --ffn 64 model.rill -o parallel.rill
    for m in student parallel experts; do # halves of a layer; a whole layer, for both halves read the same; experts, of which nothing is learned
        for how in "" --symmetric; do
            # shellcheck disable=SC2086
            check_exit 0 rill quantize -q --type q4_0 --method learned --data tokens.rill --precision f32 $how $m.rill -o a.rill \
                --no-provenance -j 1 --report r.json --force
            # shellcheck disable=SC2086
            cat $m.rill | rill quantize -q --type q4_0 --method learned --data tokens.rill --precision f32 $how --no-provenance -j 4 |
                cat >b.rill
            assert_same a.rill b.rill
            grep -o '"block_error_before":[^,]*,"block_error":[^,}]*' r.json >errors.txt
            [ -z "$(awk -F '[:,]' '$4 + 0 > $2 + 0' errors.txt)" ]
            [ -n "$(awk -F '[:,]' '$4 + 0 < $2 + 0' errors.txt)" ] # something was learned
            check_exit 0 rill check --finite a.rill
            # shellcheck disable=SC2086
            rill quantize -q --type q4_0 --method gptq --data tokens.rill --precision f32 $how $m.rill -o g.rill --no-provenance --force
            assert_differ a.rill g.rill
            [ "$(rill ls --tsv a.rill | cut -f 1-3)" = "$(rill ls --tsv g.rill | cut -f 1-3)" ]
        done
    done
    grep -q experts r.json && ! grep 'experts' r.json | grep -o '[^{]*experts[^}]*' | grep -q block_error # not of experts
}

@test "learned rounding in any type, in bf16, after plain GPTQ" {
    rill init -q --layers 1 --hidden 256 --heads 4 --ffn 512 model.rill -o wide.rill
    for type in q2_k q3_k q6_k iq4_xs iq2_xs tq2_0 mxfp4; do
        check_exit 0 rill quantize -q --strict --pure --type $type --method learned --passes 2 --sweeps 0 --precision bf16 \
            --data tokens.rill wide.rill -o q.rill --force
    done
}

@test "learned rounding: bad input" {
    check_exit 2 rill quantize --type q4_0 --method learned model.rill -o no.rill
    assert_stderr_line "--method learned needs --data"
    check_exit 2 rill quantize --type q4_0 --method gptq --passes 2 --data tokens.rill model.rill -o no.rill
    check_exit 2 rill quantize --type q4_0 --method learned --passes 0 --data tokens.rill model.rill -o no.rill
    check_exit 3 rill quantize --type q4_0 --method learned --data model.stats.rill model.rill -o no.rill
    check_exit 1 rill quantize --type q4_0 --method learned --data tokens.rill --max-memory 400K model.rill -o no.rill
    assert_no_file no.rill
}

@test "gptq: bad input" {
    check_exit 2 rill quantize --type q4_0 --method gptq model.rill -o no.rill
    assert_stderr_line "--method gptq needs --data, or --stats from calibrate --moments"
    check_exit 2 rill quantize --type q4_0 --data tokens.rill model.rill -o no.rill
    check_exit 1 rill quantize --type q4_0 --method gptq --data missing.rill model.rill -o no.rill
    check_exit 3 rill quantize --type q4_0 --method gptq --data model.stats.rill model.rill -o no.rill
    check_exit 3 rill quantize --strict --pure --type q4_k --method gptq --data tokens.rill model.rill -o no.rill
    assert_stderr_line "tensor 'embed.weight': rows of 64 are not a whole number of q4_k's blocks of 256 (without --strict it becomes q5_0)"
    check_exit 1 rill quantize --type q4_0 --method gptq --data tokens.rill --max-memory 300K model.rill -o no.rill
    assert_stderr_line "*out of memory: * of --max-memory"
    assert_no_file no.rill
}

@test "a target: types for a size, by file and pipe, with any number of threads" {
    rill init -q --layers 2 --hidden 256 --heads 4 --ffn 512 model.rill -o wide.rill
    rill calibrate -q -m wide.rill --precision f32 tokens.rill -o wide.stats.rill
    for bits in 4.6 6; do
        set -- --types q3_k,q4_k,q6_k,q8_0 --stats wide.stats.rill
        check_exit 0 rill quantize -q --target-bpw $bits "$@" wide.rill -o a.rill --no-provenance -j 1 \
            --report r.json --force
        used=$(grep -o '"used":[0-9]*' r.json | cut -d: -f2) budget=$(grep -o '"target":{"bytes":[0-9]*' r.json | grep -o '[0-9]*$')
        assert_json r.json bytes "$used" # what was planned is what was written
        [ "$used" -le "$budget" ]
        [ "$used" -gt $((budget - 16896)) ] # from q4_k to q6_k is the smallest step of the smallest matrix: 256 rows of 66 bytes
        # its plan says the same, and is the same from a pipe; --target-size is the same in bytes
        check_exit 0 rill quantize -q --target-bpw $bits "$@" --dry-run wide.rill -o plan.txt --force
        check_exit 0 rill quantize -q --plan plan.txt --stats wide.stats.rill wide.rill -o b.rill --no-provenance -j 4 --force
        assert_same a.rill b.rill
        cat wide.rill | rill quantize -q --target-size "$budget" "$@" --dry-run -j 3 >again.txt
        assert_same plan.txt again.txt
    done
    rill quantize -q --target-bpw 6 --types q3_k,q4_k,q6_k,q8_0 --dry-run wide.rill -o blind.txt # without statistics: other errors
    assert_differ plan.txt blind.txt
    check_exit 0 rill quantize -q --target-bpw 4.6 --types q3_k,q4_k,q6_k --method gptq --data tokens.rill --stats wide.stats.rill wide.rill -o g.rill
}

@test "a target: Fisher information, a list of types, experts" {
    rill quantize -q --target-bpw 5.4 --stats model.stats.rill --dry-run model.rill -o a.txt
    check_exit 0 rill quantize -q --target-bpw 5.4 --stats model.stats.rill --fisher tokens.rill --dry-run model.rill -o b.txt
    grep -q "# errors: expected divergence" b.txt
    assert_differ a.txt b.txt
    rill quantize -q --target-bpw 5.4 --stats model.stats.rill --fisher tokens.rill --dry-run --seed 1 model.rill -o c.txt
    assert_differ b.txt c.txt # other labels are drawn
    check_exit 0 rill quantize -q --target-bpw 5.4 --types q4_0,q8_0 --dry-run model.rill -o two.txt
    [ -z "$(grep -v '^#' two.txt | grep -vE ' (q4_0|q8_0) ')" ]
    check_exit 0 rill quantize -q --target-bpw 5.4 --dry-run experts.rill -o e.txt
    # all experts of a layer are one tensor in GGUF
    [ "$(grep -oE '^layers\.[0-9]+\.experts\.[0-9]+\.[a-z]+\.weight +[0-9x]+ +[a-z0-9_]+' e.txt | sed -E 's/experts\.[0-9]+/experts/; s/ +/ /g' | sort -u | wc -l)" = \
      "$(grep -oE '^layers\.[0-9]+\.experts\.0\.[a-z]+\.weight' e.txt | wc -l)" ]
}

@test "a target: a search by the true divergence, as a plan that gives the same model" {
    divergence() { grep -o "\"$1\":[0-9.e-]*" "$2" | head -1 | cut -d: -f2; }
    how="--target-bpw 5.4 --search 12 --data tokens.rill --precision f32 --no-provenance"
    # shellcheck disable=SC2086
    rill quantize $how -j 1 --seed 5 model.rill -o a.rill --report r.json 2>said
    grep -qE '^rill quantize: divergence on the data of the search, all to nearest: [0-9.]+, found [0-9.]+ \(12 tried, [0-9]+ accepted\)$' said
    awk -v a="$(divergence before r.json)" -v b="$(divergence after r.json)" 'BEGIN { exit !(b + 0 <= a + 0) }'
    used=$(grep -o '"used":[0-9]*' r.json | cut -d: -f2) budget=$(grep -o '"target":{"bytes":[0-9]*' r.json | grep -o '[0-9]*$')
    assert_json r.json bytes "$used"
    [ "$used" -le "$budget" ]
    # with any number of threads; the plan says it, and makes the same model
    # shellcheck disable=SC2086
    for j in 2 3; do
        rill quantize -q $how -j $j --seed 5 model.rill -o b.rill --force
        assert_same a.rill b.rill
    done
    # shellcheck disable=SC2086
    rill quantize -q $how --seed 5 --dry-run model.rill -o plan.txt
    grep -qE '^# search: divergence on [0-9]+ positions [0-9.e-]+ before, [0-9.e-]+ after; 12 moves tried, [0-9]+ accepted$' plan.txt
    grep -qE '# was q[0-9]_[0-9]; error ' plan.txt
    rill quantize -q --plan plan.txt --no-provenance model.rill -o b.rill --force
    assert_same a.rill b.rill
    # shellcheck disable=SC2086
    rill quantize -q $how --seed 6 --dry-run model.rill -o other.txt
    assert_differ plan.txt other.txt
    # blocks that a search tried are in the cache for it, and for what carries its plan out
    # shellcheck disable=SC2086
    rill quantize $how --seed 5 --cache kept model.rill -o b.rill --force --report c.json
    assert_same a.rill b.rill
    [ "$(grep -o '"from_cache":[0-9]*' c.json | cut -d: -f2)" = "$(grep -vc '^#' plan.txt)" ]
    # judged with what error feedback is expected to leave, and carried out by it
    # shellcheck disable=SC2086
    check_exit 0 rill quantize $how --method gptq --seed 5 model.rill -o g.rill --report g.json
    awk -v a="$(divergence after g.json)" -v b="$(divergence before r.json)" 'BEGIN { exit !(a + 0 < b + 0) }'
    # shellcheck disable=SC2086
    rill quantize -q $how --method gptq --seed 5 --dry-run model.rill -o gptq.txt
    rill quantize -q --plan gptq.txt --method gptq --data tokens.rill --precision f32 --no-provenance model.rill -o h.rill
    assert_same g.rill h.rill

    check_exit 2 rill quantize --target-bpw 5.4 --search 5 model.rill -o no.rill
    assert_stderr_line "--search needs --data"
    check_exit 2 rill quantize --type q4_0 --search 5 --data tokens.rill model.rill -o no.rill
    assert_stderr_line "--search needs --target-bpw or --target-size"
    check_exit 2 rill quantize --target-bpw 5.4 --search 5 --data tokens.rill --sweeps 2 model.rill -o no.rill
    check_exit 2 rill quantize --target-bpw 5.4 --search 5 --data tokens.rill --search-tokens 8 --search 0 model.rill -o no.rill
    check_exit 2 rill quantize --target-bpw 2 --search 5 --data tokens.rill model.rill -o no.rill
    assert_stderr_line "*bits per weight, cannot be reached: the smallest are * bytes, * bits per weight"
    check_exit_in 0 model.rill rill quantize -q --no-provenance --target-bpw 5.4 --search 5 --data tokens.rill -o stdin.rill
    rill quantize -q --no-provenance --target-bpw 5.4 --search 5 --data tokens.rill model.rill -o operand.rill
    assert_same stdin.rill operand.rill
    check_exit 2 sh -c 'cat model.rill | rill quantize --target-bpw 5.4 --search 5 --data tokens.rill --dry-run -o no.rill'
    assert_stderr "*a target reads the model twice: from a file, or as --dry-run without --fisher and --search, then --plan*"
    rill import -q "$ROOT/tests/golden/tiny-llama" -o llama.rill
    rill tokenize -q -m llama.rill text.txt -o theirs.rill
    check_exit 3 rill quantize --target-bpw 5.4 --search 5 --data theirs.rill model.rill -o no.rill
    assert_stderr_line "*disagree: vocabulary*"
    : >empty.txt
    rill tokenize -q -m model.rill --lines empty.txt -o none.rill
    check_exit 3 rill quantize --target-bpw 5.4 --search 5 --data none.rill model.rill -o no.rill
    assert_stderr_line "none.rill: no tokens"
    assert_no_file no.rill
}

@test "a target: measured errors are kept in a cache" {
    rill quantize -q --target-bpw 5.4 --types q4_0,q8_0 --cache cache --dry-run model.rill -o a.txt
    n=$(find cache -name '*.sense' | wc -l)
    [ "$n" -ge 1 ]
    rill quantize -q --target-bpw 5.4 --types q4_0,q8_0 --cache cache --dry-run model.rill -o b.txt
    assert_same a.txt b.txt
    # what is there is taken, and not measured again
    for f in cache/*; do sed -i -E 's/^q4_0 .*/q4_0 0/' "$f"; done
    rill quantize -q --target-bpw 5.4 --types q4_0,q8_0 --cache cache --dry-run model.rill -o c.txt
    [ -z "$(grep -v '^#' c.txt | grep q8_0)" ]
    # other statistics are other errors, other types are added
    rill quantize -q --target-bpw 6 --types q5_0,q8_0 --cache cache --dry-run model.rill -o d.txt --force
    [ "$(find cache -name '*.sense' | wc -l)" = "$n" ]
    grep -q '^q5_0 ' cache/*
    rill quantize -q --target-bpw 5.4 --stats model.stats.rill --cache cache --dry-run model.rill -o e.txt
    [ "$(find cache -name '*.sense' | wc -l)" -gt "$n" ]
    for f in cache/*; do sed -i '$d' "$f"; done
    check_exit 3 rill quantize --target-bpw 5.4 --cache cache --dry-run model.rill -o no.txt
    assert_stderr_line "tensor 'embed.weight': cache/*.sense: no sensitivities, or cut: remove it"
    check_exit 1 rill quantize --target-bpw 5.4 --cache missing/cache --dry-run model.rill -o no.txt
    assert_stderr_line "missing/cache: No such file or directory"
    check_exit 1 rill quantize --target-bpw 5.4 --cache model.rill --dry-run model.rill -o no.txt
    assert_stderr_line "model.rill: not a folder"
    assert_no_file no.txt
}

@test "a run that is repeated takes from the cache what is the same, and gives the same bytes" {
    run_cached() { # NAME OPTIONS: with the cache, into NAME.rill; how much came from there
        local name=$1
        shift
        check_exit 0 rill quantize --no-provenance --cache cache "$@" -o "$name.rill" --report "$name.json" --force
    }
    cached_twice() { # MODEL OPTIONS: the second time from the cache, the same bytes, the same report as without
        local model=$1
        shift
        rm -rf cache
        rill quantize -q --no-provenance --type q4_1 "$@" "$model" -o plain.rill --force
        run_cached first --type q4_1 "$@" "$model"
        assert_json first.json from_cache 0
        run_cached second --type q4_1 "$@" "$model"
        assert_stderr "*tensors from the cache*"
        [ "$(grep -o '"from_cache":[0-9]*' second.json | cut -d: -f2)" -ge 8 ]
        assert_same plain.rill first.rill
        assert_same plain.rill second.rill
        assert_same <(grep -o '"tensors":[^]]*' first.json) <(grep -o '"tensors":[^]]*' second.json)
    }
    cached_twice model.rill
    cached_twice model.rill --method hqq
    cached_twice model.rill --stats model.stats.rill
    cached_twice model.rill --stats model.stats.rill --clip
    cached_twice model.rill --method gptq --data tokens.rill --precision f32
    cached_twice experts.rill --method gptq --data tokens.rill --precision f32 --symmetric
    cached_twice student.rill --method learned --passes 1 --data tokens.rill --precision f32
    # what comes after a change is another model's, what comes before is not
    set -- --method gptq --data tokens.rill --precision f32 model.rill
    run_cached whole --type q4_0 "$@"
    run_cached changed --type q4_0 --tensor-type 'layers.1.ffn=q5_0' "$@"
    assert_json changed.json from_cache 8 # the embedding and the first of three layers
    rill quantize -q --no-provenance --type q4_0 --tensor-type 'layers.1.ffn=q5_0' "$@" -o plain.rill --force
    assert_same plain.rill changed.rill
    run_cached other --type q4_0 --tensor-type 'layers.1.ffn=q5_0' model.rill # not by data: nothing of it is this
    assert_json other.json from_cache 0
    run_cached more --type q4_0 --tensor-type 'layers.2.ffn=q5_0' model.rill
    assert_json more.json from_cache 16 # all but 3 matrices of each of two layers
    # what is cut is not taken
    for f in cache/*.blocks; do truncate -s -1 "$f"; done
    check_exit 3 rill quantize --type q4_0 --cache cache model.rill -o no.rill
    assert_stderr_line "*cache/*.blocks: no quantized tensor, or cut: remove it"
    check_exit 2 rill quantize --type q4_0 --cache cache --dry-run model.rill -o no.rill
    assert_no_file no.rill
}

@test "the bar counts tensors, and says what goes on" {
    check_exit 0 rill quantize --progress=always --type q4_0 model.rill -o a.rill
    assert_stderr "*rill quantize: 38 tensors, *"
    check_exit 0 rill quantize --progress=always --type q4_0 --method gptq --data tokens.rill model.rill -o b.rill
    assert_stderr "*rill quantize: 100% ?====================? 38/38 tensors, *"
    check_exit 0 rill quantize --progress=always --type q4_0 --method learned --data tokens.rill student.rill -o c.rill
    assert_stderr "*rill quantize: 100%*"
}

@test "the importance that was used is noted as llama-quantize notes it, and kept" {
    rill export -q --to imatrix model.stats.rill -o model.imatrix.gguf
    rill quantize -q --type q4_1 --stats model.imatrix.gguf model.rill -o a.rill
    rill export -q --to gguf a.rill -o a.gguf
    for key in file dataset entries_count chunks_count; do grep -aq "quantize.imatrix.$key" a.gguf; done
    grep -aq "model.imatrix.gguf" a.gguf
    rill import -q a.gguf -o b.rill
    rill export -q --to gguf b.rill -o b.gguf
    assert_same a.gguf b.gguf
    rill prune -q --ffn 64 b.rill | rill export -q --to gguf -o p.gguf
    grep -aq "quantize.imatrix.chunks_count" p.gguf
    rill quantize -q --type q4_0 --stats model.stats.rill b.rill | rill export -q --to gguf -o c.gguf
    grep -aq "model.stats.rill" c.gguf
    ! grep -aq "model.imatrix.gguf" c.gguf
    rill quantize -q --type q4_1 model.rill | rill export -q --to gguf -o d.gguf
    ! grep -aq "quantize.imatrix" d.gguf
}

@test "statistics that are missing are said, and refused with --strict" {
    { printf '\1\0\0\0\21\0\0\0token_embd.weight\2\0\0\0\100\0\0\0'; for _ in {1..64}; do printf '\0\0\200\77'; done; } >one.dat
    check_exit 0 rill quantize --type q4_0 --pure --stats one.dat model.rill -o a.rill --report r.json
    assert_stderr "*no importance is known of 21 tensors, whose errors were not weighed: first 'layers.0.attn.q.weight' (--strict refuses)*"
    assert_json r.json unweighed 21
    check_exit 3 rill quantize --strict --type q4_0 --pure --stats one.dat model.rill -o no.rill
    assert_stderr_line "tensor 'layers.0.attn.q.weight': there are no statistics of it (without --strict it does without)"
    check_exit 0 rill quantize --strict --type q4_0 --pure --stats model.stats.rill model.rill -o b.rill --report r.json
    assert_json r.json unweighed 0
    # of another tokenizer
    cp -r hf other && sed -i 's/im_start/im_begin/g' other/*.json
    rill import -q other -o foreign.rill
    for program in "quantize --type q4_0" "prune --ffn 64"; do
        # shellcheck disable=SC2086
        check_exit 3 rill $program --stats model.stats.rill foreign.rill -o no.rill
        assert_stderr_line "*statistics and model disagree: tokenizer xxh3:* against xxh3:*"
    done
    assert_no_file no.rill
}

@test "a target: bad input" {
    check_exit 2 rill quantize --target-bpw 2 model.rill -o no.rill
    assert_stderr_line "*bits per weight, cannot be reached: the smallest are * bytes, * bits per weight"
    least=$(sed -E 's/.*the smallest are ([0-9]+) bytes.*/\1/' <<<"$err")
    check_exit 0 rill quantize -q --target-size "$least" model.rill -o least.rill
    check_exit 2 rill quantize --target-size $((least - 1)) model.rill -o no.rill
    check_exit 2 rill quantize --target-bpw 5 --type q4_0 model.rill -o no.rill
    check_exit 2 rill quantize --target-bpw 5 --target-size 1M model.rill -o no.rill
    check_exit 2 rill quantize --type q4_0 --types q4_0 model.rill -o no.rill
    check_exit 2 sh -c 'cat model.rill | rill quantize --target-bpw 6 -o no.rill'
    assert_stderr "*a target reads the model twice: from a file, or as --dry-run without --fisher and --search, then --plan*"
    check_exit 2 rill quantize --target-bpw 6 --types q4_k_m model.rill -o no.rill
    assert_stderr_line "--types: 'q4_k_m' is a mixture, not a type of one tensor*"
    check_exit 2 rill quantize --target-bpw 6 --types q4_0,Q4_0 model.rill -o no.rill
    assert_stderr_line "--types: 'Q4_0' is given twice"
    check_exit 2 rill quantize --target-bpw 6 --strict --types q4_k model.rill -o no.rill
    assert_stderr_line "tensor 'embed.weight', rows of 64: no type to choose from that it can have*"
    check_exit 3 rill quantize --target-bpw 6 --stats model.stats.rill student.rill -o no.rill
    check_exit 3 rill quantize --target-bpw 6 --fisher model.stats.rill model.rill -o no.rill
    head -c 20000 model.rill >cut.rill
    check_exit 3 rill quantize --target-bpw 6 cut.rill -o no.rill
    assert_no_file no.rill
    # what is quantized already stays or gets smaller
    rill quantize -q --type q4_1 --pure model.rill -o q41.rill
    check_exit 0 rill quantize -q --target-bpw 8 q41.rill -o same.rill
    check_exit 0 rill diff --max-abs 0 q41.rill same.rill
}
