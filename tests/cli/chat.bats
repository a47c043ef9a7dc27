#!/usr/bin/env bats
# Conversations: tokenize --chat, and the mask on its way to a trained student. The renderings themselves are compared
# with transformers in tests/unit/test_chat_golden.c.
load common

setup_file() { make_inputs; }
setup() {
    enter_inputs
    cp "$ROOT"/tests/golden/chat/*.jinja .
    cat >chats.jsonl <<'END'
{"messages":[{"role":"system","content":"s"},{"role":"user","content":"once"},{"role":"assistant","content":"upon a"},{"role":"user","content":"the"},{"role":"assistant","content":"end"}]}

[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]
END
}
tok() { rill tokenize -q --no-provenance -m model.rill "$@"; }
text() { tok --decode "$@"; }
# the text of the tokens of STREAM that are in its mask, one after another
learnt() {
    rill show --tensor tokens --tsv "$1" | tr '\t ' '\n\n' | grep -E '^[0-9]+$' >ids
    rill show --tensor mask --tsv "$1" | tr '\t ' '\n\n' | grep -E '^[01]$' >mask
    paste ids mask | awk '$2 == 1 { print $1 }'
}

@test "a conversation is the text that the template makes of it, and the answers are in the mask" {
    tok --chat --chat-template qwen2.jinja chats.jsonl >out
    text out >got
    printf '<|im_start|>%s<|im_end|>\n' $'system\ns' $'user\nonce' $'assistant\nupon a' $'user\nthe' $'assistant\nend' >want
    printf '\n' >>want
    printf '<|im_start|>%s<|im_end|>\n' $'system\nYou are a helpful assistant.' $'user\na' $'assistant\nb' >>want
    printf '\n' >>want
    assert_same got want
    learnt out >answers
    printf 'upon a<|im_end|>\nend<|im_end|>\nb<|im_end|>\n' >plain
    tok plain >plain.tok
    rill show --tensor tokens --tsv plain.tok | tr '\t ' '\n\n' | grep -E '^[0-9]+$' >want
    assert_same answers want
}

@test "generation blocks are the mask where a template has them" {
    printf '{%% for m in messages %%}[{%% if m.role == "assistant" %%}{%% generation %%}{{ m.content }}{%% endgeneration %%}{%% else %%}{{ m.content }}{%% endif %%}]{%% endfor %%}' >t.jinja
    tok --chat --chat-template t.jinja chats.jsonl >out
    learnt out >answers
    for t in 'upon a' end b; do printf '%s' "$t" >part && tok part >part.tok && rill show --tensor tokens --tsv part.tok; done |
        tr '\t ' '\n\n' | grep -E '^[0-9]+$' >want
    assert_same answers want
}

@test "the model's template is used, import keeps it and export writes it back" {
    need rill-export
    cp -r "$INPUTS/hf" hf
    cp phi3.jinja hf/chat_template.jinja
    rill import -q hf -o m.rill
    rill tokenize -q --no-provenance -m m.rill --chat chats.jsonl >with
    tok --chat --chat-template phi3.jinja chats.jsonl >given
    assert_same with given
    rill export -q --to safetensors m.rill -o back
    rill import -q back -o again.rill
    rill tokenize -q --no-provenance -m again.rill --chat chats.jsonl >again
    assert_same with again
    check_exit_in 3 chats.jsonl rill tokenize -m model.rill --chat
    assert_stderr_line '*the model has no chat template*'
}

@test "prompts end with what opens the answer, and have no mask" {
    printf '{"turns":[{"role":"user","content":"once"}]}\n' >p.jsonl
    tok --chat --jsonl turns --add-generation-prompt --chat-template llama3.jinja p.jsonl >out
    text out | grep -q '<|start_header_id|>assistant<|end_header_id|>'
    if rill ls out | grep -q mask; then return 1; fi
    rill generate -q -m model.rill --max-new 3 out >/dev/null
}

@test "the date is what --date says" {
    tok --chat --chat-template llama3.2.jinja chats.jsonl | text | grep -q 'Today Date: 26 Jul 2024'
    tok --chat --chat-template llama3.2.jinja --date 2026-02-03 chats.jsonl | text | grep -q 'Today Date: 03 Feb 2026'
    check_exit_in 3 chats.jsonl rill tokenize -m model.rill --chat --chat-template smollm3.jinja
    assert_stderr_line '*line 1: chat template, line 32: *strftime_now* (--date)*'
    check_exit_in 2 chats.jsonl rill tokenize -m model.rill --chat --chat-template smollm3.jinja --date tomorrow
    assert_stderr_line 'the date "tomorrow" is not YYYY-MM-DD'
}

@test "threads, packing and batches change nothing in what is learnt" {
    for _ in $(seq 200); do cat chats.jsonl; done >many.jsonl
    tok --chat --chat-template qwen2.jinja -j 1 many.jsonl >one
    tok --chat --chat-template qwen2.jinja -j 4 many.jsonl >four
    assert_same one four
    learnt one >want
    tok --chat --chat-template qwen2.jinja --batch-tokens 7 many.jsonl >cut
    learnt cut >got
    assert_same got want
    tok --chat --chat-template qwen2.jinja --context 64 many.jsonl >packed
    learnt packed >got
    assert_same got want
}

@test "the mask reaches the student: only answers are learnt" {
    tok --chat --chat-template qwen2.jinja chats.jsonl >chat.tok
    rill teacher-infer -q -m teacher.rill chat.tok >dense.kd
    rill logit-dump -q --encode sample:20 dense.kd >chat.kd
    for f in dense.kd chat.kd; do rill ls $f | grep -q '^u8 .* mask$'; done
    learnt chat.tok >want
    for f in dense.kd chat.kd; do learnt $f >got && assert_same got want; done
    rill distill -q --no-provenance -m student.rill --log log.tsv --loss ce chat.tok >masked
    text chat.tok >plain.txt
    tok plain.txt >plain.tok
    rill distill -q --no-provenance -m student.rill --loss ce plain.tok >all
    assert_differ masked all
    # of the row of a position before a token that is not in the mask, nothing is known: no label
    rill logit-dump --tsv --positions 0:1 chat.kd | awk 'NR == 2 && $4 != "-" { exit 1 }'
    rill distill -q --no-provenance -m student.rill chat.kd >one
    rill distill -q --no-provenance -m student.rill -j 3 chat.kd >two
    assert_same one two
}

@test "what is wrong is named with its line" {
    printf 'a\n{%% frob %%}' >bad.jinja
    check_exit_in 3 chats.jsonl rill tokenize -m model.rill --chat --chat-template bad.jinja
    assert_stderr_line "bad.jinja: chat template, line 2: the statement 'frob' is not supported here"
    printf '[{"role":"user","content":"a"}]\n[{"role":"assistant","content":"a"}]\n' >c.jsonl
    check_exit 3 rill tokenize -m model.rill --chat --chat-template gemma2.jinja c.jsonl
    assert_stderr_line 'c.jsonl: line 2: chat template, line 1: the template refuses: Conversation roles must alternate*'
    printf '{"text":"a"}\n' >c.jsonl
    check_exit 3 rill tokenize -m model.rill --chat --chat-template gemma2.jinja c.jsonl
    assert_stderr_line 'c.jsonl: line 1: no list of messages: *"messages"*'
    printf '{%% for i in range(99999999) %%}{%% endfor %%}' >endless.jinja
    check_exit_in 3 chats.jsonl rill tokenize -m model.rill --chat --chat-template endless.jinja
    check_exit 1 rill tokenize -m model.rill --chat --chat-template none.jinja chats.jsonl
    for o in --add-generation-prompt "--chat-template x" "--date 2026-01-01"; do
        # shellcheck disable=SC2086
        check_exit_in 2 chats.jsonl rill tokenize -m model.rill $o
        assert_stderr_line '--* needs --chat'
    done
    check_exit_in 2 chats.jsonl rill tokenize -m model.rill --chat --lines
    check_exit_in 2 chats.jsonl rill tokenize -m model.rill --chat --no-special
    check_exit_in 2 tokens.rill rill tokenize -m model.rill --chat --decode
}
