"""chat, its events and sessions, over a model that talks nonsense: what counts is which tokens it is given."""

from __future__ import annotations

import gc
import json
from pathlib import Path
from typing import Any

import pytest
import sterna
from sterna import ArgumentError, ContextOverflowError, FileError, Session, TemplateError

BOS, EOS = 1, 2
GREEDY: dict[str, Any] = {"temperature": 0, "ignore_eos": True}


def rendered_tokens(llm: sterna.LLM, content: str) -> list[int]:
    return [BOS, *llm.tokenize(f"[user]{content}"), EOS, *llm.tokenize("[assistant]")]


def test_chat_continues_the_rendered_template(llm: sterna.LLM) -> None:
    message = llm.chat("ba da", max_tokens=20, **GREEDY)
    expected = llm.generate(rendered_tokens(llm, "ba da"), max_tokens=20, **GREEDY)
    # The template's two parts of text are encoded apart, as a control token is between them.
    assert message.content == expected.text.removeprefix(" ")
    assert str(message) == message.content
    assert message.role == "assistant"
    assert message.finish_reason == "length"
    assert message.usage == expected.usage
    listed = llm.chat([{"role": "user", "content": "ba da"}], max_tokens=20, **GREEDY)
    assert listed.content == message.content


def test_text_of_messages_never_becomes_a_control_token(llm: sterna.LLM) -> None:
    message = llm.chat("ba</s>da<s>", max_tokens=1, **GREEDY)
    tokens = rendered_tokens(llm, "ba</s>da<s>")
    assert tokens.count(EOS) == 1
    assert message.usage.prompt_tokens == len(tokens)


def test_events_tell_the_message(llm: sterna.LLM) -> None:
    message = llm.chat("ha", max_tokens=30, **GREEDY)
    stream = llm.chat("ha", stream=True, max_tokens=30, **GREEDY)
    events = list(stream)
    assert "".join(map(str, events)) == message.content
    assert [event.kind for event in events[:-1]] == ["content"] * (len(events) - 1)
    assert events[-1].kind == "end"
    assert events[-1].message == message == stream.message
    assert len(stream.completion.tokens) == 30


def test_reasoning_is_told_apart(llm: sterna.LLM) -> None:
    # A prompt that opens <think> makes the whole answer reasoning until it is closed.
    template = llm.template.source.replace("{{ prefix | default('') }}", "<think>")  # type: ignore[union-attr]
    with sterna.load(llm.info.path, chat_template=template, context=256) as thinking:
        message = thinking.chat("ha", max_tokens=12, **GREEDY)
        kinds = {event.kind for event in thinking.chat("ha", stream=True, max_tokens=12, **GREEDY)}
    assert message.content == ""
    assert message.reasoning
    assert kinds == {"reasoning", "end"}


def test_arguments_for_the_template(llm: sterna.LLM) -> None:
    assert llm.apply_chat_template("x") == "<s>[user]x</s>[assistant]"
    assert llm.apply_chat_template("x", add_generation_prompt=False) == "<s>[user]x</s>"
    assert llm.apply_chat_template("x", prefix="da") == "<s>[user]x</s>[assistant]da"
    plain = llm.chat("x", max_tokens=1, **GREEDY)
    longer = llm.chat("x", max_tokens=1, template_kwargs={"prefix": "#" * 9}, **GREEDY)
    assert longer.usage.prompt_tokens == plain.usage.prompt_tokens + 9
    with pytest.raises(ArgumentError, match="messages"):
        llm.chat("x", template_kwargs={"messages": []})


def test_a_model_without_template_says_so(tiny_path: Path) -> None:
    with sterna.load(tiny_path, context=64) as plain:
        assert plain.info.template_source is None
        with pytest.raises(TemplateError, match="no chat template"):
            plain.chat("x")
        with pytest.raises(TemplateError, match="no chat template"):
            plain.apply_chat_template("x")


def test_bos_is_put_before_a_template_that_forgets_it(llm: sterna.LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(llm.tokenizer, "_add_bos", True)
    with_bos = llm.chat("x", max_tokens=1, **GREEDY).usage.prompt_tokens
    assert with_bos == len(rendered_tokens(llm, "x"))  # the template writes it: once is enough
    monkeypatch.setattr(llm, "template", sterna.chat.ChatTemplate("{{ messages[0].content }}"))
    assert llm.chat("###", max_tokens=1, **GREEDY).usage.prompt_tokens == 1 + len(llm.tokenize("###"))


def test_a_session_computes_only_what_is_new(llm: sterna.LLM) -> None:
    chat = llm.session(system="ba ja ka")
    first = chat.send("da fa", max_tokens=20, **GREEDY)
    second = chat.send("ha", max_tokens=20, **GREEDY)
    assert second.usage.cached_tokens >= first.usage.prompt_tokens
    assert [m["role"] for m in chat.messages] == ["system", "user", "assistant", "user", "assistant"]
    assert chat.messages[2]["content"] == first.content
    # The cache changes no token.
    assert llm.chat(chat.messages[:-1], max_tokens=20, **GREEDY).content == second.content


def test_sessions_fork(llm: sterna.LLM) -> None:
    chat = llm.session()
    chat.send("badafa" * 30, max_tokens=10, **GREEDY)  # more than a page of tokens
    branch = chat.fork()
    one = chat.send("ha", max_tokens=10, **GREEDY)
    two = branch.send("ja", max_tokens=10, **GREEDY)
    assert len(chat.messages) == len(branch.messages) == 4
    assert chat.messages[:2] == branch.messages[:2]
    assert one.usage.cached_tokens >= 64
    assert two.usage.cached_tokens >= 64
    assert two.content == llm.chat(branch.messages[:-1], max_tokens=10, **GREEDY).content


def test_messages_of_a_session_are_copies(llm: sterna.LLM) -> None:
    given = [{"role": "user", "content": "ba"}, {"role": "assistant", "content": "da"}]
    chat = llm.session(messages=given)
    given[0]["content"] = "changed"
    chat.messages[0]["content"] = "changed"
    assert chat.messages[0]["content"] == "ba"


def test_sessions_are_saved_and_read_back(llm: sterna.LLM, tmp_path: Path) -> None:
    chat = llm.session(system="ba")
    chat.send("é€😀", max_tokens=8, **GREEDY)
    chat.save(tmp_path / "chat.json")
    again = Session.load(llm, tmp_path / "chat.json")
    assert again.messages == chat.messages
    assert again.send("ha", max_tokens=8, **GREEDY).content == chat.send("ha", max_tokens=8, **GREEDY).content
    chat.save(tmp_path / "chat.json")
    assert [path.name for path in tmp_path.iterdir()] == ["chat.json"]
    with pytest.raises(FileError, match="no-such-folder"):
        chat.save(tmp_path / "no-such-folder" / "chat.json")


def broken(data: dict[str, Any], **changes: Any) -> str:
    return json.dumps({**data, **changes})


def test_a_saved_session_is_not_trusted(llm: sterna.LLM, tmp_path: Path) -> None:
    """The JSON of version 1, which is still read; tests/storage has the faults of version 2."""
    path = tmp_path / "chat.json"
    model = {"name": llm.info.name, "fingerprint": llm.info.fingerprint}
    messages = [{"role": "user", "content": "ba"}]
    data = {"format": "sterna-session", "version": 1, "model": model, "messages": messages}
    path.write_text(json.dumps(data))
    assert Session.load(llm, path).messages == messages
    for text, problem in [
        ("", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "not a saved session"),
        (broken(data, format="other"), "not a saved session"),
        (broken(data, version=2), "version 2 is not 1"),
        (broken(data, model={**model, "fingerprint": "0" * 64}), "another model"),
        (broken(data, model=None), "another model"),
        (broken(data, messages={}), "no list"),
        (broken(data, messages=[1]), r"messages\[0\]"),
        (broken(data, messages=[{"role": "root", "content": ""}]), r"messages\[0\].role"),
        (broken(data, messages=[{"role": "user", "content": 7}]), r"messages\[0\].content"),
        (broken(data, messages=[{"role": "user"}]), "content"),
    ]:
        path.write_text(text)
        with pytest.raises(ArgumentError, match=problem):
            Session.load(llm, path)
    path.write_bytes(b'{"format": "\xff"}')
    with pytest.raises(ArgumentError, match="no JSON"):
        Session.load(llm, path)
    with pytest.raises(FileError):
        Session.load(llm, tmp_path / "missing.json")
    with pytest.raises(FileError):
        Session.load(llm, tmp_path)


def test_a_failed_turn_leaves_the_conversation_as_it_was(llm: sterna.LLM) -> None:
    chat = llm.session()
    chat.send("ba", max_tokens=5, **GREEDY)
    before = chat.messages
    for message, error in [("x" * 600, ContextOverflowError), ({"role": "user"}, ArgumentError), (7, ArgumentError)]:
        with pytest.raises(error):
            chat.send(message)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="did you mean 'max_tokens'"):
        chat.send("x", max_token=5)  # type: ignore[call-overload]
    assert chat.messages == before


def test_a_streamed_answer_that_is_left_stays_as_far_as_it_came(llm: sterna.LLM) -> None:
    chat = llm.session()
    seen = ""
    for event in chat.stream("ba", **GREEDY):
        seen += str(event)
        if len(seen) > 20:
            break
    del event
    gc.collect()
    assert [m["role"] for m in chat.messages] == ["user", "assistant"]
    assert chat.messages[1]["content"].startswith(seen)
    kept = chat.stream("da", **GREEDY)
    next(kept)
    chat.send("fa", max_tokens=5, **GREEDY)
    assert [m["content"] for m in chat.messages if m["role"] == "user"] == ["ba", "da", "fa"]
    assert list(kept)[-1:] == [] or kept.message.finish_reason == "cancelled"


def test_results_of_tools_can_be_sent(llm: sterna.LLM) -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    chat = llm.session(messages=[{"role": "assistant", "content": "", "tool_calls": [call]}])
    chat.send([{"role": "tool", "content": "1", "tool_call_id": "c"}, {"role": "user", "content": "x"}], max_tokens=3)
    assert [m["role"] for m in chat.messages] == ["assistant", "tool", "user", "assistant"]
