"""The templates of real model files render as plain jinja2 renders them, byte for byte, or raise the same error."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import plain_jinja
import pytest
from reference import reference_dir
from sterna.chat import CHATML, ChatTemplate, Message, ToolCall, choose_template
from sterna.errors import TemplateError

TEMPLATES = sorted(reference_dir("templates").glob("*.jinja"))
SYSTEM = {"role": "system", "content": "You are <b>kind</b>."}
TALK = [
    {"role": "user", "content": "  Grüß dich! \n"},
    {"role": "assistant", "content": "<think>\nhm\n</think>\n\nHello."},
    {"role": "user", "content": "What's the weather in 東京?"},
]
CALL = {
    "name": "weather",
    "arguments": {"city": "東京", "days": 2, "units": ["C", None], "deep": {"a": 1.5, "b": True}},
}
TOOL_TALK = [
    *TALK,
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "call12345", "type": "function", "function": CALL}],
    },
    {"role": "tool", "name": "weather", "tool_call_id": "call12345", "content": '{"rain": "no & <none>"}'},
    {"role": "assistant", "content": "Dry."},
    {"role": "user", "content": "Thanks."},
]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather & <such>",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "Where?"},
                    "days": {"type": "integer", "enum": [1, 2]},
                    "units": {"type": "array", "items": {"type": "string"}},
                },
                "required": ["city"],
            },
        },
    }
]
CONVERSATIONS: dict[str, tuple[list[dict[str, Any]], Any, dict[str, Any]]] = {
    "talk": (TALK, None, {}),
    "system": ([SYSTEM, *TALK], None, {}),
    "one question": (TALK[:1], None, {}),
    "thinking off": ([SYSTEM, *TALK], None, {"enable_thinking": False}),
    "thinking on": ([SYSTEM, *TALK], None, {"enable_thinking": True, "reasoning_effort": "high"}),
    "reasoning": ([*TALK[:1], {**TALK[1], "reasoning_content": "deep", "thinking": "deep"}, TALK[2]], None, {}),
    "tools offered": ([SYSTEM, *TALK], TOOLS, {}),
    "tools used": ([SYSTEM, *TOOL_TALK], TOOLS, {}),
    "tools used, nothing said": (
        [SYSTEM, *TOOL_TALK[:3], {**TOOL_TALK[3], "content": None}, *TOOL_TALK[4:]],
        TOOLS,
        {},
    ),
    "not alternating": ([TALK[0], TALK[0]], None, {}),
    "system late": ([*TALK, SYSTEM], None, {}),
    "nobody": ([], None, {}),
}


def _json_arguments(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    messages = copy.deepcopy(messages)
    for message in messages:
        for call in message.get("tool_calls", ()):
            call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    return messages


@cache
def _loaded(path: Path) -> tuple[str, ChatTemplate, bool]:
    source = path.read_text(encoding="utf-8")
    template = ChatTemplate(source, bos_token="<s>", eos_token="</s>")
    template.check()
    return source, template, _wants_json(source)


@pytest.mark.reference
@pytest.mark.parametrize("add_generation_prompt", [True, False], ids=["prompt", "no-prompt"])
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_renders_like_jinja2(path: Path, conversation: str, add_generation_prompt: bool) -> None:
    messages, tools, kwargs = CONVERSATIONS[conversation]
    source, template, wants_json = _loaded(path)
    arguments = {"tools": tools, "add_generation_prompt": add_generation_prompt, **kwargs}

    def compare(given: list[dict[str, Any]], seen_by_jinja2: list[dict[str, Any]]) -> None:
        wanted = error = None
        try:
            wanted = plain_jinja.render(source, copy.deepcopy(seen_by_jinja2), **arguments)
        except Exception as raised:
            error = str(getattr(raised, "message", None) or raised)
        if error is None:
            rendered = template.render(given, now=plain_jinja.NOW, **arguments)
            assert rendered.text == wanted
            assert "".join(text for text, _ in rendered.spans) == wanted
        else:
            with pytest.raises(TemplateError) as found:
                template.render(given, now=plain_jinja.NOW, **arguments)
            assert error in str(found.value)

    # However a request writes the arguments of a call, the template sees them as it needs them.
    compare(messages, _json_arguments(messages) if wants_json else messages)
    compare(_json_arguments(messages), _json_arguments(messages) if wants_json else messages)


def _wants_json(source: str) -> bool:
    """Whether plain jinja2 renders a tool call with JSON text, but not one with a dict."""
    for content in ("", None):
        call = {"id": "call00000", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}
        messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": content, "tool_calls": [call]}]
        try:
            plain_jinja.render(source, messages)
        except Exception:
            try:
                plain_jinja.render(source, _json_arguments(messages))
            except Exception:
                return False
            return True
    return False


@pytest.mark.reference
@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
def test_content_parts(path: Path) -> None:
    """Text parts render as the template renders lists, or, where it cannot, as the texts joined by a newline."""
    _, template, _ = _loaded(path)
    parts = [{"type": "text", "text": "zeroth part"}, {"type": "text", "text": "first part"}]
    try:
        text = template.render([{"role": "user", "content": parts}], now=plain_jinja.NOW).text
    except TemplateError:  # one template cannot do without tools
        text = template.render([{"role": "user", "content": parts}], tools=TOOLS, now=plain_jinja.NOW).text
    assert "zeroth part" in text
    assert "first part" in text
    assert "'type': 'text'" not in text


def test_a_template_that_takes_only_parts_gets_parts() -> None:
    template = ChatTemplate("{% for m in messages %}{% for p in m.content %}[{{ p['text'] }}]{% endfor %}{% endfor %}")
    assert template.render("hello").text == "[hello]"


def test_a_string_is_one_user_message() -> None:
    assert ChatTemplate(CHATML).render("Hi").text == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"


def test_a_message_can_be_sent_back() -> None:
    source = (
        "{% for m in messages %}{{ m.role }}:{{ m.content }}:{{ m.reasoning_content }}:{{ m.tool_calls }}|{% endfor %}"
    )
    answer = Message("Dry.", "hm", [ToolCall("weather", {"city": "x"}, "call_0")])
    call = {"id": "call_0", "type": "function", "function": {"name": "weather", "arguments": {"city": "x"}}}
    assert ChatTemplate(source).render([answer]).text == f"assistant:Dry.:hm:{[call]}|"


def test_reasoning_has_three_names() -> None:
    source = "{% for m in messages %}{{ m.reasoning_content }}/{{ m.thinking }}|{% endfor %}"
    for name in ("reasoning_content", "thinking", "reasoning"):
        rendered = ChatTemplate(source).render([{"role": "assistant", "content": "", name: "hm"}])
        assert rendered.text == "hm/hm|"


def test_opens_reasoning() -> None:
    template = ChatTemplate("{{ messages[0].content }}{% if add_generation_prompt %}<think>\n{% endif %}")
    assert template.render("x").opens_reasoning
    assert not template.render("x", add_generation_prompt=False).opens_reasoning
    assert not template.render("<think>", add_generation_prompt=False).opens_reasoning
    assert not ChatTemplate("").render("x").opens_reasoning


def test_choose_template() -> None:
    chatml = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    own = choose_template(
        {
            "tokenizer.chat_template": "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ unk_token }}",
            "tokenizer.ggml.tokens": chatml,
            "tokenizer.ggml.bos_token_id": 1,
            "tokenizer.ggml.eos_token_id": 2,
            "tokenizer.ggml.padding_token_id": 0,
            "tokenizer.ggml.unknown_token_id": 99,
        }
    )
    assert own is not None
    assert own.template_source == "file"
    assert own.render("x").spans == [("<|im_start|><|im_end|><|endoftext|>", True)]
    default = choose_template({"tokenizer.ggml.tokens": chatml})
    assert default is not None
    assert default.template_source == "default (ChatML)"
    assert default.source == CHATML
    assert choose_template({"tokenizer.ggml.tokens": ["a"]}) is None
    assert choose_template({}) is None


def test_jinja2_is_imported_only_when_a_template_renders() -> None:
    program = (
        f"import sys; sys.path[:] = {sys.path!r}; import sterna.chat; t = sterna.chat.ChatTemplate('x'); "
        "assert 'jinja2' not in sys.modules; t.check(); assert 'jinja2' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
