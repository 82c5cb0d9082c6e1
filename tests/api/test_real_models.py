"""The two real models, end to end."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import sterna
from reference import reference_dir
from sterna.hub import resolve

pytestmark = pytest.mark.real_model


def test_smollm2_answers(smollm2: sterna.LLM) -> None:
    out = smollm2.generate("The capital of France is", max_tokens=8, temperature=0)
    assert "Paris" in out.text
    answer = smollm2.chat("What is 2 + 2?", max_tokens=60, temperature=0)
    assert "4" in answer.content
    assert answer.finish_reason in ("stop", "length")


def test_gemma3_continues(gemma3: sterna.LLM) -> None:
    out = gemma3.generate("One, two, three, four,", max_tokens=8, temperature=0)
    assert out.text.startswith(" five, six")


def test_a_real_batch_is_its_prompts_alone(smollm2: sterna.LLM) -> None:
    prompts = ["Once upon a time", "The three primary colours are", "def fibonacci(n):", "1, 2, 3, 4,"]
    together = smollm2.generate(prompts, max_tokens=16, seed=1)
    assert [out.text for out in together] == [smollm2.generate(p, max_tokens=16, seed=1).text for p in prompts]


def test_a_real_session_keeps_its_turns(smollm2: sterna.LLM) -> None:
    chat = smollm2.session()
    first = chat.send("Write one sentence about the sea.", max_tokens=40, temperature=0)
    second = chat.send("And one about birds.", max_tokens=40, temperature=0)
    # All but the tokens around the answer's end are found in the cache.
    assert second.usage.cached_tokens >= first.usage.prompt_tokens + first.usage.completion_tokens - 2
    assert smollm2.chat(chat.messages[:-1], max_tokens=40, temperature=0).content == second.content


@pytest.mark.reference
@pytest.mark.parametrize(("model", "expected"), [("smollm2", 15.66), ("gemma3", 16.90)])
def test_perplexity(model: str, expected: float, request: pytest.FixtureRequest) -> None:
    path = reference_dir("text") / "rust-book.txt"
    if not path.exists():
        pytest.skip("the text is not in tests/data")
    llm: sterna.LLM = request.getfixturevalue(model)
    found = llm.perplexity(path.read_text(encoding="utf-8"))
    assert float(found) <= expected * 1.005


MEASURE = """
import sys

def status(name):
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(lines[name].split()[0]) * 1024

import numpy  # what Python takes is not the model's; so is the tokenizer
from sterna import _core, hub
from sterna.memory import PlanSettings
from sterna.trace import trace
name, context = sys.argv[1], int(sys.argv[2])
file = _core.Gguf(hub.resolve(name).path)
traced = trace(file)
program = traced.program.fuse()
settings = PlanSettings.choose(vocab_size=traced.config.vocab_size, threads=2, kv_dtype="f16", max_sequences=16)
pieces = _core.Pieces.from_gguf(file)
before = status("VmRSS")
plan = _core.compile_cpu(
    program, file, threads=2, max_tokens=settings.max_tokens, max_outputs=settings.max_outputs
)
engine = _core.Engine(plan, pieces, context=context)
engine.submit_score([5] * context).scores()
print(status("VmHWM") - before)
engine.close()
del plan
print(status("VmRSS") - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
@pytest.mark.parametrize(("model", "context"), [("smollm2:135m", 2048), ("gemma3:270m", 512)])
def test_memory_is_as_planned(model: str, context: int) -> None:
    plan = sterna.plan(model, context=context, threads=2)
    done = subprocess.run([sys.executable, "-c", MEASURE, model, str(context)], capture_output=True, text=True, check=True)
    peak, closed = map(int, done.stdout.split())
    assert peak == pytest.approx(plan.total, rel=0.05)
    assert peak <= 1.15 * resolve(model).bytes + plan.kv
    assert closed < 0.03 * plan.total


def test_sampling_follows_the_distribution(smollm2: sterna.LLM) -> None:
    # 64 draws of the first token at temperature 1, without cuts: the mean log-probability is minus the entropy.
    prompt = smollm2.tokenize("My favourite colour is")
    row = smollm2.logits(prompt)[-1].astype(np.float64)
    logp = row - row.max() - np.log(np.exp(row - row.max()).sum())
    entropy, spread = (
        -(np.exp(logp) * logp).sum(),
        np.sqrt((np.exp(logp) * logp**2).sum() - (np.exp(logp) * logp).sum() ** 2),
    )
    outs = [
        smollm2.generate(prompt, max_tokens=1, temperature=1, top_k=0, top_p=1, min_p=0, seed=i, logprobs=True)
        for i in range(64)
    ]
    drawn = [out.logprobs[0].logprob for out in outs if out.logprobs]
    assert abs(np.mean(drawn) + entropy) < 4 * spread / 8
