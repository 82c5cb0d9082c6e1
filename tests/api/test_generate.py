"""generate and stream: exact against the model's own logits, and the same however they are asked for."""

from __future__ import annotations

import codecs
import math
import threading

import numpy as np
import pytest
import sterna
from oracle import model_path
from sterna import _core


@pytest.mark.parametrize("name", ["llama3", "qwen2", "qwen3", "gemma3"])
def test_greedy_generation_is_the_argmax_of_the_logits(name: str, prompt: list[int]) -> None:
    with sterna.load(model_path(name), context=256) as llm:
        out = llm.generate(prompt, max_tokens=40, temperature=0, ignore_eos=True)
        assert len(out.tokens) == 40
        rows = llm.logits(prompt + out.tokens)
        assert rows.shape == (len(prompt) + 40, llm.info.vocab_size)
        assert rows.dtype == np.float32
        assert rows[len(prompt) - 1 : -1].argmax(axis=1).tolist() == out.tokens


def test_a_completion_tells_what_happened(llm: sterna.LLM, prompt: list[int]) -> None:
    out = llm.generate(prompt, max_tokens=9, ignore_eos=True, seed=3)
    assert str(out) == out.text
    assert out.finish_reason == "length"
    assert (out.usage.prompt_tokens, out.usage.completion_tokens) == (len(prompt), 9)
    again = llm.generate(prompt, max_tokens=9, ignore_eos=True, seed=3)
    assert again.usage.cached_tokens == (len(prompt) - 1 if len(prompt) > 16 else 0)
    assert again.tokens == out.tokens
    assert out.usage.total_tokens == len(prompt) + 9
    assert out.seed == 3
    assert out.logprobs is None
    assert out.timings.generated_tokens == 9
    assert out.timings.prefill_seconds > 0
    assert out.timings.decode_tokens_per_second > 0


def test_the_stream_is_the_completion(llm: sterna.LLM, prompt: list[int]) -> None:
    options = {"max_tokens": 60, "temperature": 1.5, "top_k": 0, "top_p": 1, "min_p": 0, "seed": 11}
    out = llm.generate(prompt, logprobs=2, **options)
    stream = llm.stream(prompt, logprobs=2, **options)
    pieces = list(stream)
    assert "".join(pieces) == out.text
    assert [token for piece in pieces for token in piece.tokens] == out.tokens
    assert [entry for piece in pieces for entry in piece.logprobs] == out.logprobs
    assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert pieces[-1].finish_reason == out.finish_reason
    assert stream.completion.text == out.text
    assert stream.completion.tokens == out.tokens
    with pytest.raises(StopIteration):
        next(stream)


@pytest.mark.parametrize("seed", range(5))
def test_pieces_end_where_characters_end(llm: sterna.LLM, seed: int) -> None:
    # Bytes from 0x80 on, favoured so that many characters take several tokens, some of them broken off.
    favoured = {3 + byte: 4.0 for byte in range(0x80, 0xF5)}
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    pieces = list(llm.stream([5], max_tokens=80, temperature=3, seed=seed, logit_bias=favoured, ignore_eos=True))
    shown = decoded = ""
    for piece in pieces:
        data = b"".join(llm.tokenizer.token_bytes(token) for token in piece.tokens if token > 2)
        decoded += decoder.decode(data, final=piece.finish_reason is not None)
        shown += piece
        # Python's decoder may wait for one more byte to call a broken character broken.
        assert shown.startswith(decoded)
        assert shown[len(decoded) :].strip("\ufffd") == ""
    assert shown == decoded
    assert max(len(piece.tokens) for piece in pieces) > 1


def test_a_batch_is_its_prompts_alone(llm: sterna.LLM) -> None:
    random = np.random.default_rng(1)
    prompts = [random.integers(3, 320, length).tolist() for length in (1, 5, 63, 64, 65, 90, 17, 2)]
    options = {"max_tokens": 30, "temperature": 0.9, "seed": 5, "ignore_eos": True}
    together = llm.generate(prompts, **options)
    assert [out.tokens for out in together] == [llm.generate(prompt, **options).tokens for prompt in prompts]


def test_more_prompts_than_sequences_wait_their_turn(llm: sterna.LLM) -> None:
    prompts = [[3 + i] for i in range(40)]
    together = llm.generate(prompts, max_tokens=5, temperature=0)
    assert [out.tokens for out in together] == [llm.generate(p, max_tokens=5, temperature=0).tokens for p in prompts]
    assert llm.generate([]) == []


def test_threads_may_share_a_model(llm: sterna.LLM, prompt: list[int]) -> None:
    alone = [llm.generate(prompt, max_tokens=25, seed=i).tokens for i in range(8)]
    found: dict[int, list[int]] = {}

    def work(seed: int) -> None:
        found[seed] = llm.generate(prompt, max_tokens=25, seed=seed).tokens

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[i] for i in range(8)] == alone


def test_text_is_tokenised_as_plain_text(llm: sterna.LLM) -> None:
    text = "ba</s>da"
    tokens = llm.tokenize(text, add_special=True)
    assert 2 not in tokens
    assert (
        llm.generate(text, max_tokens=8, temperature=0).tokens
        == llm.generate(tokens, max_tokens=8, temperature=0).tokens
    )
    assert 2 in llm.tokenize(text, parse_special=True)


def test_tokens_may_be_an_array(llm: sterna.LLM, prompt: list[int]) -> None:
    expected = llm.generate(prompt, max_tokens=8, temperature=0).tokens
    assert llm.generate(np.asarray(prompt, np.int64), max_tokens=8, temperature=0).tokens == expected
    assert llm.generate(tuple(prompt), max_tokens=8, temperature=0).tokens == expected  # type: ignore[call-overload]


def test_a_seed_makes_a_request_repeatable(llm: sterna.LLM, prompt: list[int]) -> None:
    first = llm.generate(prompt, max_tokens=30, temperature=2.0)
    again = llm.generate(prompt, max_tokens=30, temperature=2.0, seed=first.seed)
    assert again.tokens == first.tokens
    seeds = {llm.generate(prompt, max_tokens=1).seed for _ in range(5)} | {
        llm.generate(prompt, max_tokens=1, seed=-1).seed
    }
    assert len(seeds) == 6


def test_the_seed_of_load_holds_for_requests_without_one(llm: sterna.LLM, prompt: list[int]) -> None:
    with sterna.load(llm.info.path, context=256, seed=9) as seeded:
        assert seeded.generate(prompt, max_tokens=12).tokens == llm.generate(prompt, max_tokens=12, seed=9).tokens
        sampling = sterna.Sampling(temperature=1.5)
        assert seeded.generate(prompt, max_tokens=1, sampling=sampling).seed == 9
        assert seeded.generate(prompt, max_tokens=1, sampling=sampling, seed=4).seed == 4


def test_logprobs_are_those_of_the_raw_logits(llm: sterna.LLM, prompt: list[int]) -> None:
    out = llm.generate(prompt, max_tokens=12, temperature=0.5, seed=1, logprobs=3, ignore_eos=True)
    assert out.logprobs is not None
    rows = llm.logits(prompt + out.tokens)[len(prompt) - 1 : -1]
    for row, token, entry in zip(rows, out.tokens, out.logprobs, strict=True):
        reference = _core.log_softmax(row)
        assert entry.token == token
        assert entry.logprob == pytest.approx(float(reference[token]), abs=1e-6)
        assert [i for i, _ in entry.top] == np.argsort(-reference, kind="stable")[:3].tolist()
        assert [value for _, value in entry.top] == pytest.approx(np.sort(reference)[::-1][:3].tolist(), abs=1e-6)
    chosen_only = llm.generate(prompt, max_tokens=2, temperature=0, logprobs=True).logprobs
    assert chosen_only is not None
    assert [entry.top for entry in chosen_only] == [(), ()]


def test_stop_texts_end_the_text_before_them(llm: sterna.LLM, prompt: list[int]) -> None:
    whole = llm.generate(prompt, max_tokens=40, temperature=0, ignore_eos=True)
    middle = len(whole.text) // 2
    stop = whole.text[middle : middle + 3]
    out = llm.generate(prompt, max_tokens=40, temperature=0, ignore_eos=True, stop=["never", stop])
    assert out.text == whole.text[: whole.text.index(stop)]
    assert out.finish_reason == "stop"
    assert out.stopped_by == stop
    assert "".join(llm.stream(prompt, max_tokens=40, temperature=0, ignore_eos=True, stop=stop)) == out.text


def test_stop_tokens_and_end_tokens(llm: sterna.LLM, prompt: list[int]) -> None:
    whole = llm.generate(prompt, max_tokens=20, temperature=0, ignore_eos=True)
    token = whole.tokens[7]
    out = llm.generate(prompt, max_tokens=20, temperature=0, ignore_eos=True, stop=[token])
    assert out.tokens == whole.tokens[: whole.tokens.index(token)]
    assert (out.finish_reason, out.stopped_by) == ("stop", token)
    ended = llm.generate(prompt, max_tokens=20, temperature=0, logit_bias={2: 1e6})
    assert (ended.tokens, ended.text, ended.finish_reason, ended.stopped_by) == ([], "", "stop", 2)
    assert llm.generate(prompt, max_tokens=3, temperature=0, logit_bias={2: 1e6}, ignore_eos=True).tokens == [2, 2, 2]


def test_logit_bias_bans_tokens(llm: sterna.LLM, prompt: list[int]) -> None:
    first = llm.generate(prompt, max_tokens=1, temperature=0, ignore_eos=True).tokens[0]
    second = int(np.argsort(-llm.logits(prompt)[-1], kind="stable")[1])
    banned = llm.generate(prompt, max_tokens=1, temperature=0, ignore_eos=True, logit_bias={first: -math.inf})
    assert banned.tokens == [second]


def test_max_tokens(llm: sterna.LLM, prompt: list[int]) -> None:
    nothing = llm.generate(prompt, max_tokens=0)
    assert (nothing.tokens, nothing.text, nothing.finish_reason) == ([], "", "length")
    full = llm.generate(prompt, temperature=0, ignore_eos=True)
    assert len(prompt) + len(full.tokens) == llm.info.context
    assert full.finish_reason == "length"


def test_penalties_reach_the_sampler(llm: sterna.LLM, prompt: list[int]) -> None:
    options = {"max_tokens": 60, "temperature": 0, "ignore_eos": True}
    plain = llm.generate(prompt, **options).tokens
    penalised = llm.generate(prompt, presence_penalty=100.0, **options).tokens
    assert len(set(penalised)) == len(penalised)
    assert len(set(plain)) < len(plain)
