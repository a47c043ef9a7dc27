#!/usr/bin/env bats
# The templates in examples/filter: they join by their names and behave as programs of the house do.
load common

setup_file() { make_inputs; }
setup() {
    enter_inputs
    PATH="$ROOT/examples/filter:$RILL_BIN/example:$PATH"
    need rill-clip
}

@test "both are listed and found by name" {
    check_exit 0 rill
    assert_stdout "*On PATH:*halfway *clip *"
    check_exit 0 rill clip --help
    assert_stdout "Usage: rill clip*--sigmas N*default:*4)*"
    check_exit 2 rill halfway
    assert_stderr_line "*usage*" || [[ $err == "usage: rill halfway"* ]]
}

@test "clip: values are pulled in, the rest stays, by file and by pipe" {
    check_exit 0 rill clip --sigmas 1.5 --tensor '*.ffn.*' model.rill -o a.rill --report r.json
    n=$(grep -o '"clipped":[0-9]*' r.json | cut -d: -f2)
    [ "$n" -gt 0 ]
    assert_stderr_line "$n values of 9 tensors pulled in"
    rill clip -q --sigmas 1.5 --tensor '*.ffn.*' <model.rill | cat >b.rill
    check_exit 0 rill diff a.rill b.rill
    check_exit 4 rill diff --json model.rill a.rill
    [ "$(rill show --json --stats --tensor '*.attn.*' a.rill)" = "$(rill show --json --stats --tensor '*.attn.*' model.rill)" ]
    # twice the same changes less, and what came in is remembered
    limit=$(rill show --json --stats --tensor layers.0.ffn.up.weight model.rill | sed 's/.*"mean":\([^,]*\),"std":\([^,]*\),.*/\1 \2/' | awk '{ printf "%.3f", $1 + 1.5 * $2 }')
    max=$(rill show --json --stats --tensor layers.0.ffn.up.weight a.rill | grep -o '"max":[0-9.]*' | cut -d: -f2 | xargs printf %.3f)
    assert_equal "$max" "$limit"
    rill recipe a.rill | grep -q 'clip --sigmas 1.5'
    rill generate -q -m a.rill --temperature 0 --max-new 2 --text prompts.rill >/dev/null
}

@test "clip: bad input" {
    check_exit 2 rill clip --tensor nosuch model.rill -o no.rill
    assert_stderr_line "--tensor 'nosuch': no tensor of floating point has such a name"
    cut_file model.rill 5000 >cut.rill
    check_exit 3 rill clip cut.rill -o no.rill
    check_exit 3 rill clip tokens.rill -o no.rill
    assert_no_file no.rill
}

@test "halfway: programs joined under a name" {
    check_exit 0 sh -c 'rill halfway -m model.rill tokens.rill | rill ls'
    assert_stdout "*layers=2 *"
    check_exit 3 rill halfway -m tokens.rill tokens.rill
}
