#!/usr/bin/env python3
"""Golden renderings of chat templates, by transformers (5.24) itself: tests/golden/chat/cases.jsonl and published.jsonl.

    make_chat.py ROOT

Reads tests/golden/chat/*.jinja, the public templates of the families, and writes one line for each rendering:
{"template", "special": {..}, "date" or null, "prompt", "conversation": JSON text, "text", "spans": [[start, end]..] or null}.
`spans` are in bytes and come from {% generation %} blocks; null: the template has none. A conversation that the template
refuses has "refused" instead of "text".

published/ has templates as their models have them, unchanged: those that come with llama.cpp (models/templates, and
tests/test-chat-template.cpp for Phi-3 mini, Phi-4 and Mistral 7B v0.2; as vendored by llama_cpp_python 0.3.36). Of the others llama3.2,
qwen2.5 and gemma2 are the same bytes as there, smollm2 as in SmolLM2's GGUF. Fewer conversations go through these.
"""
import datetime
import glob
import json
import os
import sys

from transformers.utils import chat_template_utils
from transformers.utils.chat_template_utils import render_jinja_template

DATE = "2026-02-09"


class Fixed(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls.strptime(DATE, "%Y-%m-%d")


chat_template_utils.datetime = Fixed if not hasattr(chat_template_utils.datetime, "datetime") else datetime

LLAMA3 = {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>"}
CHATML = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
SENTENCEPIECE = {"bos_token": "<s>", "eos_token": "</s>"}
SPECIAL = {"llama3": LLAMA3, "llama3.2": LLAMA3, "gemma2": {"bos_token": "<bos>", "eos_token": "<eos>"},
           "gemma3": {"bos_token": "<bos>", "eos_token": "<eos>"}, "phi3": {"bos_token": "<s>", "eos_token": "<|endoftext|>"}}

user, assistant, system = (lambda r: lambda t: {"role": r, "content": t})("user"), \
    (lambda r: lambda t: {"role": r, "content": t})("assistant"), (lambda r: lambda t: {"role": r, "content": t})("system")
TOOL = {"type": "function", "function": {
    "name": "get_weather", "description": "Weather of a \"place\" <&> it's 'here'",
    "parameters": {"type": "object", "properties": {"place": {"type": "string", "description": "Größe, 天气\n\ttab"},
                                                     "days": {"type": "number", "default": 1.0, "minimum": -0.5e-7},
                                                     "exact": {"type": "boolean", "default": False, "enum": [True, None, 12345678901234567890.0]}},
                   "required": ["place"]}}}
CALL = {"role": "assistant", "content": "", "tool_calls": [
    {"type": "function", "id": "abcdef123", "function": {"name": "get_weather", "arguments": {"place": "São Paulo", "days": 2, "exact": True}}}]}
RESULT = {"role": "tool", "name": "get_weather", "tool_call_id": "abcdef123", "content": "{\"t\": 21.5}"}
CONVERSATIONS = [
    [user("Hello!")],
    [system("Be brief.\n"), user("  Two spaces, and a line end\n"), assistant("Fine. "), user("So?"), assistant("\nYes.")],
    [user("你好，世界 \U0001f600"), assistant("\u3000«¡Olé!» \u00a0"), user("<|im_end|> </s> [INST] {{ x }}"), assistant("It's \"quoted\" \\ {% if %}")],
    [user(""), assistant("")],
    [user("Why?"), assistant("<think>\nbecause\n</think>\n\nSo."), user("And?"), assistant("<think>hm</think>Then.")],
    [user("a"), user("b")],
    [assistant("I begin.")],
    [system("Only me.")],
    [],
    {"messages": [system("Use tools."), user("Weather?")], "tools": [TOOL]},
    {"messages": [user("Weather?"), CALL, RESULT, assistant("21.5 degrees."), user("Thanks"), assistant("Bye")], "tools": [TOOL, TOOL]},
    {"messages": [user("Weather?"), CALL, RESULT, RESULT]},
    {"messages": [user("Think."), {"role": "assistant", "content": "Done.", "reasoning_content": "\nlong\n"}, user("More"),
                  {"role": "assistant", "content": "Done 2.", "reasoning_content": "\nlonger\n"}], "chat_template_kwargs": {"enable_thinking": False}},
    {"messages": [user("Hi"), assistant("Ho")], "chat_template_kwargs": {"date_string": "1 Jan 2000", "system_message": "S", "enable_thinking": True}},
    [{"role": "user", "content": [{"type": "text", "text": "in parts "}, {"type": "text", "text": "of two"}]}, assistant("Yes")],
]


def render(template, conversation, prompt, special, want_spans):
    c = conversation if isinstance(conversation, dict) else {"messages": conversation}
    kwargs = dict(special)
    kwargs.update(c.get("chat_template_kwargs", {}))
    texts, spans = render_jinja_template(
        conversations=[c["messages"]], tools=c.get("tools"), documents=c.get("documents"), chat_template=template,
        return_assistant_tokens_mask=want_spans, add_generation_prompt=prompt, **kwargs)
    text = texts[0]
    found = [[len(text[:a].encode()), len(text[:b].encode())] for a, b in spans[0] if a < b] if want_spans else None
    return text, found


def special_tokens(name, template):
    if name in SPECIAL:
        return SPECIAL[name]
    return LLAMA3 if "<|start_header_id|>" in template else CHATML if "<|im_start|>" in template else SENTENCEPIECE


def write(folder, names, to, conversations):
    counts = [0, 0]
    with open(os.path.join(folder, to), "w") as out:
        for path in sorted(glob.glob(os.path.join(folder, names))):
            name = os.path.relpath(path, folder)[:-6]
            template = open(path).read()
            special = special_tokens(name, template)
            generation = "endgeneration" in template
            for number, conversation in enumerate(conversations):
                for prompt in (False, True) if conversations is CONVERSATIONS else (number % 2 == 0,):
                    case = {"template": name, "special": special, "date": DATE if "strftime_now" in template else None,
                            "prompt": prompt, "conversation": json.dumps(conversation, ensure_ascii=False)}
                    try:
                        case["text"], case["spans"] = render(template, conversation, prompt, special, generation)
                    except Exception as error:
                        case["refused"] = f"{type(error).__name__}: {error}"
                    counts["refused" in case] += 1
                    out.write(json.dumps(case, ensure_ascii=False) + "\n")
    print(f"{counts[0]} renderings, {counts[1]} refusals")


def main(root):
    folder = os.path.join(root, "tests/golden/chat")
    write(folder, "*.jinja", "cases.jsonl", CONVERSATIONS)
    write(folder, "published/*.jinja", "published.jsonl", [CONVERSATIONS[i] for i in (0, 1, 2, 4, 6, 9, 10, 12, 14)])


main(sys.argv[1])
