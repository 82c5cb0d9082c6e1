"""A model's life: closing, cancelling, Ctrl-C, fork, and what an import costs."""

from __future__ import annotations

import copy
import gc
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
import sterna


def idle(llm: sterna.LLM, seconds: float = 5.0) -> bool:
    """Whether nothing runs any more, within the time."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        stats = llm.engine.stats()
        if stats.running == 0 and stats.waiting == 0:
            return True
        time.sleep(0.005)
    return False


def test_a_closed_model_says_so(tiny_path: Path) -> None:
    with sterna.load(tiny_path, context=64, chat_template="{{ messages[0].content }}") as llm:
        chat = llm.session()
        assert not llm.closed
    assert llm.closed
    assert "closed" in repr(llm)
    llm.close()  # again is fine
    for call in (llm.generate, llm.stream, llm.chat, llm.score, chat.send):
        with pytest.raises(sterna.SternaError, match="closed"):
            call("x")
    with pytest.raises(sterna.SternaError, match="closed"):
        llm.logits([5])
    assert llm.tokenize("ba") == llm.tokenize("ba")  # needs no engine
    assert llm.info.context == 64


def test_closing_ends_what_runs(tiny_path: Path) -> None:
    llm = sterna.load(tiny_path, context=512, kv_dtype="f32")
    found: list[BaseException | None] = []

    def work() -> None:
        try:
            while True:
                llm.generate([5] * 100, ignore_eos=True)
        except sterna.SternaError as error:
            found.append(error)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.1)
    llm.close()
    for thread in threads:
        thread.join(10)
    assert len(found) == 3
    assert all("closed" in str(error) for error in found)


def test_leaving_a_stream_cancels_it(llm: sterna.LLM) -> None:
    for piece in llm.stream([5], ignore_eos=True):
        if piece:
            break
    del piece
    gc.collect()
    assert idle(llm)
    before = llm.engine.stats().tokens
    time.sleep(0.05)
    assert llm.engine.stats().tokens == before


def test_closing_a_stream_cancels_it(llm: sterna.LLM) -> None:
    with llm.stream([5], ignore_eos=True) as stream:
        next(stream)
    assert idle(llm, 0.5)
    assert stream.completion.finish_reason == "cancelled"
    assert len(stream.completion.tokens) < llm.info.context - 1
    assert list(stream) == []
    with llm.chat("x", stream=True, ignore_eos=True) as answer:
        next(answer)
    assert idle(llm, 0.5)
    assert answer.message.finish_reason == "cancelled"


def test_a_stream_is_submitted_at_once(llm: sterna.LLM) -> None:
    with pytest.raises(sterna.ArgumentError):
        llm.stream([])
    stream = llm.stream([5], max_tokens=3)
    time.sleep(0.2)
    assert idle(llm)
    assert len([token for piece in stream for token in piece.tokens]) <= 3


def test_models_are_not_pickled_or_copied(llm: sterna.LLM) -> None:
    for action in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="cannot be pickled or copied"):
            action(llm)
        with pytest.raises(TypeError, match="cannot be pickled or copied"):
            action(llm.session())


def test_results_can_be_pickled(llm: sterna.LLM) -> None:
    out = llm.generate([5], max_tokens=3, logprobs=1)
    assert pickle.loads(pickle.dumps(out)) == out
    piece = list(llm.stream([5], max_tokens=1, ignore_eos=True))[-1]
    again = pickle.loads(pickle.dumps(piece))
    assert (again, again.finish_reason, again.tokens) == (piece, piece.finish_reason, piece.tokens)


def _use_in_child(llm: sterna.LLM, results: multiprocessing.Queue[str]) -> None:
    try:
        llm.generate([5], max_tokens=1)
    except sterna.SternaError as error:
        results.put(str(error))
    except BaseException as error:
        results.put(f"wrong: {error!r}")
    else:
        results.put("no error")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_gets_an_error_and_the_parent_goes_on(llm: sterna.LLM) -> None:
    expected = llm.generate([5], max_tokens=5, temperature=0).tokens
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    child = context.Process(target=_use_in_child, args=(llm, results))
    child.start()
    assert "fork" in results.get(timeout=20)
    child.join(20)
    assert child.exitcode == 0
    assert llm.generate([5], max_tokens=5, temperature=0).tokens == expected


INTERRUPTED = """
    import sterna, sys, time
    with sterna.load({path!r}, context=200_000) as llm:
        print("ready", flush=True)
        started = time.monotonic()
        try:
            {call}
        except KeyboardInterrupt:
            print("interrupted", flush=True)
            assert not llm.closed
            assert llm.generate([5], max_tokens=3).usage.prompt_tokens == 1
            sys.exit(130)
"""


@pytest.mark.parametrize(
    "call",
    [
        "llm.generate([5], ignore_eos=True)",
        "llm.generate([[5], [6]], ignore_eos=True)",
        "list(llm.stream([5], ignore_eos=True))",
        "llm.score([5] * 190_000)",
        "llm.perplexity(' '.join(__import__('random').Random(1).choices(['ba', 'da', 'fa', 'ha'], k=400_000)))",
    ],
)
def test_ctrl_c_interrupts_any_wait(tiny_path: Path, call: str) -> None:
    script = textwrap.dedent(INTERRUPTED).format(path=str(tiny_path), call=call)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        watchdog = threading.Timer(60, child.kill)
        watchdog.daemon = True
        watchdog.start()
        assert child.stdout.readline() == "ready\n"
        time.sleep(0.7)
        started = time.monotonic()
        child.send_signal(signal.SIGINT)
        assert child.stdout.readline() == "interrupted\n"
        waited = time.monotonic() - started
        assert child.wait(30) == 130
        watchdog.cancel()
    # The engine promises 100 ms; a loaded machine may be late.
    assert waited < 1.0


CANCELLED = """
import random, time, sterna
llm = sterna.load({path!r}, context=512, threads=2)
random = random.Random(1)
for i in range(1000):
    request = llm.engine.submit([5] * random.choice([1, 3, 400]), max_tokens=100)
    time.sleep(random.random() * 0.004)
    request.cancel()
    request.events(timeout=20)
out = llm.generate([5], max_tokens=3, temperature=0, ignore_eos=True)
llm.close()
print(out.tokens)
"""


def test_a_thousand_cancels_at_any_moment(llm: sterna.LLM) -> None:
    # In a process of its own: threads that wait for each other forever could not be ended here.
    script = CANCELLED.format(path=llm.info.path)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    expected = llm.generate([5], max_tokens=3, temperature=0, ignore_eos=True).tokens
    assert done.stdout == f"{expected}\n"


def test_importing_sterna_is_cheap() -> None:
    script = "import sterna, sys; print(*sys.modules, sep='\\n')"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    heavy = {"numpy", "tokenizers", "jinja2", "sentencepiece", "huggingface_hub", "click", "rich", "sterna._core"}
    assert not loaded & heavy


def test_every_public_name_is_there() -> None:
    for name in sterna.__all__:
        assert getattr(sterna, name) is not None
    assert set(sterna.__all__) <= set(dir(sterna))
    assert sterna.__version__
    with pytest.raises(AttributeError, match="no attribute 'embed'"):
        sterna.embed  # noqa: B018


def test_an_open_stream_does_not_hold_up_the_end_of_python(tiny_path: Path) -> None:
    script = f"import sterna; llm = sterna.load({str(tiny_path)!r}); s = llm.stream([5], ignore_eos=True); next(s)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
