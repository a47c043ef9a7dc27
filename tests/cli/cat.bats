#!/usr/bin/env bats
load common

g() { echo "$ROOT/formats/golden/v1-$1.rill"; }

@test "cat passes on what it reads" {
    check_exit 0 rill cat --no-provenance "$(g model-zstd)" -o a.rill
    rill cat --no-provenance a.rill >b.rill
    assert_same a.rill b.rill
    check_exit 0 rill diff "$(g model-zstd)" b.rill
    assert_equal "$(rill ls b.rill | grep -c zstd)" 3
}

@test "cat joins segments as cat does" {
    rill fixture --no-provenance --seed 1 >a.rill
    rill fixture --no-provenance --seed 2 >b.rill
    cat a.rill b.rill >want.rill
    rill cat --no-provenance a.rill b.rill >got.rill
    assert_same want.rill got.rill
    cat a.rill b.rill | rill cat --no-provenance >got.rill
    assert_same want.rill got.rill
}

@test "cat is in the provenance, with its parents" {
    rill fixture --seed 1 >a.rill
    rill fixture --seed 2 >b.rill
    rill cat a.rill b.rill >c.rill
    rill show --prov c.rill >p.json
    assert_equal "$(grep -c '"tool":"fixture"' p.json)" 2
    assert_equal "$(grep -c '"tool":"cat"' p.json)" 1
    check_exit 0 rill check c.rill
}

@test "cat --codec encodes anew, and back" {
    rill cat --no-provenance --codec planes "$(g model-raw)" >p.rill
    rill cat --no-provenance --codec raw p.rill >r.rill
    rill cat --no-provenance "$(g model-raw)" >want.rill
    assert_same want.rill r.rill
    check_exit 0 rill ls p.rill
    assert_stdout '*planes*'
}

@test "a level without a codec that has one is refused" {
    check_exit 2 rill cat --level 5 "$(g model-raw)"
    assert_stderr_line '--level needs --codec zstd, --codec planes or --codec sparse'
    check_exit 2 rill cat --codec raw --level 5 "$(g model-raw)"
    check_exit 0 rill cat --codec zstd --level 5 "$(g model-raw)"
}

@test "cat does not depend on threads, nor on pipes" {
    rill fixture -n 3 --elems 3M >a.rill
    rill cat --no-provenance --codec planes -j 1 a.rill >one.rill
    rill cat --no-provenance --codec planes -j 4 a.rill >four.rill
    cat a.rill | rill cat --no-provenance --codec planes | cat >piped.rill
    assert_same one.rill four.rill
    assert_same one.rill piped.rill
}

@test "cat --select and --drop" {
    rill cat --select 'blk.*' --select codes --drop '*up*' "$(g model-raw)" >a.rill
    assert_equal "$(rill ls a.rill | awk '/^type/ {on = 1; next} on {print $NF}' | head -2 | tr '\n' ' ')" "blk.0.attn_q.weight codes "
    check_exit 0 rill ls a.rill
    assert_stdout '*2 tensors*'
    rill cat --drop '*' "$(g knowledge-planes)" >k.rill
    check_exit 0 rill ls k.rill
    assert_stdout '*tokens*lengths*4 tensors*'
}

@test "a pattern that names no tensor is a mistake" {
    check_exit 2 rill cat --select codes --select 'nosuch*' "$(g model-raw)"
    assert_stderr_line "--select 'nosuch\*': no tensor has such a name *"
    check_exit 2 rill cat --drop nosuch "$(g model-raw)" "$(g knowledge-planes)"
    assert_stderr_line "--drop 'nosuch': no tensor has such a name *"
    check_exit 2 rill show --tensor nosuch "$(g model-raw)"
    assert_stderr_line "--tensor 'nosuch': no tensor has such a name *"
    # one of several inputs is enough
    check_exit 0 rill cat --drop '*up*' "$(g knowledge-planes)" "$(g model-raw)"
}

@test "cat --merge numbers sequences through" {
    rill cat --merge "$(g tokens-raw)" "$(g tokens-zstd)" >m.rill
    check_exit 0 rill ls --batches m.rill
    assert_stdout '*batch of 2 sequences from 2, 600*batch of 1 sequence from 3 (at position 500)*4 batches, 2400 positions*'
    check_exit 0 rill check m.rill
    cat "$(g tokens-raw)" "$(g tokens-zstd)" | rill cat --merge --no-provenance >n.rill
    check_exit 0 rill diff m.rill n.rill
}

@test "cat --merge refuses what does not fit" {
    check_exit 3 rill cat --merge "$(g model-raw)" -o m.rill
    assert_stderr_line '*a model stream cannot be merged, only tokens and knowledge'
    check_exit 3 rill cat --merge "$(g tokens-raw)" "$(g knowledge-raw)" -o m.rill
    assert_stderr_line "* and * disagree in 'kind' of their descriptions: they cannot be merged"
    assert_no_file m.rill
}

@test "cat leaves nothing that looks whole when an input is cut" {
    cut_file "$(g model-raw)" 3000 >cut.rill
    check_exit 3 sh -c 'cat cut.rill | rill cat > out.rill'
    check_exit 3 rill check out.rill
    check_exit 3 rill cat cut.rill -o out2.rill
    assert_no_file out2.rill
    check_exit 3 rill cat "$(g model-raw)" cut.rill -o out2.rill
    assert_no_file out2.rill
}

@test "a full disk is an error" {
    check_exit 1 sh -c "rill cat '$(g model-raw)' > /dev/full"
    assert_stderr_line '*No space left on device'
}
