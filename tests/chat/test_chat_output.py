"""What a model answers, taken apart: the same result however the text is cut while it streams."""


from __future__ import annotations

import random

import pytest
from sterna.chat import Message, OutputSplitter, ToolCall, split_output

CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
WEATHER = ToolCall("weather", {"city": "Rome"}, "call_0")
CASES = [
    ("Hello", False, False, Message("Hello")),
    ("", False, False, Message("")),
    ("  Hello \n", False, False, Message("  Hello \n")),
    ("<think>hm\n</think>\n\nHello ", False, False, Message("Hello ", "hm")),
    ("\n<think>\nhm\n\nah\n</think>Hello", False, False, Message("Hello", "hm\n\nah")),
    ("hm\n</think>\n\nHello", True, False, Message("Hello", "hm")),
    ("hm", True, False, Message("", "hm")),
    ("</think>Hello", True, False, Message("Hello")),
    ("<think></think>Hello", False, False, Message("Hello")),
    ("a <think>b</think> c", False, False, Message("a <think>b</think> c")),
    ("<thin", False, False, Message("<thin")),
    ("<thinking>x</thinking>", False, False, Message("<thinking>x</thinking>")),
    ("<think>a < b </thin </think>c</think>", False, False, Message("c</think>", "a < b </thin")),
    ("Hello</think>", False, False, Message("Hello</think>")),
    (CALL, False, True, Message("", None, [WEATHER])),
    (CALL, False, False, Message(CALL)),
    (f"Sure.\n{CALL}\n{CALL}", False, True, Message("Sure.", None, [WEATHER, ToolCall("weather", {"city": "Rome"}, "call_1")])),
    (f"<think>hm</think>\n{CALL}", False, True, Message("", "hm", [WEATHER])),
    ('<tool_call>{"name": "f"}</tool_call>', False, True, Message("", None, [ToolCall("f", {}, "call_0")])),
    ('<tool_call>{"name": "f", "parameters": {"a": 1}}</tool_call>', False, True, Message("", None, [ToolCall("f", {"a": 1}, "call_0")])),
    ('<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>', False, True, Message("", None, [ToolCall("f", {"a": 1}, "call_0")])),
    ("<tool_call>{}</tool_call>", False, True, Message("<tool_call>{}</tool_call>")),
    ("<tool_call>[1]</tool_call>", False, True, Message("<tool_call>[1]</tool_call>")),
    ("a <tool_call>nonsense</tool_call>", False, True, Message("a <tool_call>nonsense</tool_call>")),
    (f"{CALL} and <tool_call>", False, True, Message(f"{CALL} and <tool_call>")),
    ("a <tool_cal", False, True, Message("a <tool_cal")),
    ('<tool_call>{"name": "", "arguments": {}}</tool_call>', False, True, Message('<tool_call>{"name": "", "arguments": {}}</tool_call>')),
    ("<tool_call>" + "[" * 100_000 + "</tool_call>", False, True, Message("<tool_call>" + "[" * 100_000 + "</tool_call>")),
]  # fmt: skip


@pytest.mark.parametrize(("text", "reasoning_open", "tools", "wanted"), CASES, ids=range(len(CASES)))
def test_split(text: str, reasoning_open: bool, tools: bool, wanted: Message) -> None:
    assert split_output(text, reasoning_open=reasoning_open, tools=tools) == wanted
    generator = random.Random(len(text))
    for size in [1, 2, 3, 7] if len(text) < 1000 else [999]:
        splitter = OutputSplitter(reasoning_open=reasoning_open, tools=tools)
        reasoning = content = ""
        position = 0
        pieces = []
        while position < len(text):
            end = position + generator.randint(1, size)
            pieces += splitter.feed(text[position:end])
            position = end
        for piece in [*pieces, *splitter.finish()]:
            assert piece.text
            if piece.kind == "reasoning":
                assert not content
                reasoning += piece.text
            else:
                content += piece.text
        assert (content, reasoning or None, splitter.tool_calls) == (
            wanted.content,
            wanted.reasoning,
            wanted.tool_calls,
        )


def test_text_comes_as_soon_as_it_is_sure() -> None:
    splitter = OutputSplitter(tools=True)
    assert [piece.text for piece in splitter.feed("Hello <b")] == ["Hello <b"]
    assert [piece.text for piece in splitter.feed(" <tool")] == []
    assert [piece.text for piece in splitter.feed("s")] == [" <tools"]
    assert str(Message("x", "hm")) == "x"
