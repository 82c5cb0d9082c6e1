"""LoRA adapters beside a model, and soft prompts: against merged weights and embedded tokens, alone and in company."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import pytest
import sterna
from lora_files import Pairs, random_pairs, write_adapter, write_merged
from oracle import relative_rms
from sterna import _core
from sterna.adapters import open_adapters
from sterna.trace import trace

OPTIONS = {"max_tokens": 12, "temperature": 0, "ignore_eos": True}


@dataclass
class Adapted:
    llm: sterna.LLM
    plain: sterna.LLM
    files: dict[str, Path]
    pairs: dict[str, Pairs]


@pytest.fixture(scope="module")
def adapted(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Adapted]:
    """The tiny Llama with two adapters: one of all matrices, one of rank 3 of the attention alone."""
    folder = tmp_path_factory.mktemp("lora")
    pairs = {"all": random_pairs(tiny_path, 1), "attention": random_pairs(tiny_path, 2, rank=3, weights=("attn_",))}
    files = {name: write_adapter(folder / f"{name}.gguf", pairs[name]) for name in pairs}
    options = {"context": 512, "threads": 2, "kv_dtype": "f32"}
    with sterna.load(tiny_path, lora=files, **options) as llm, sterna.load(tiny_path, **options) as plain:
        yield Adapted(llm, plain, files, pairs)


@pytest.mark.parametrize(("name", "scale"), [("all", 1.0), ("all", -0.5), ("attention", 2.0)])
def test_an_adapter_does_what_merged_weights_do(
    adapted: Adapted, tiny_path: Path, tmp_path: Path, prompt: list[int], name: str, scale: float
) -> None:
    pairs = adapted.pairs[name]
    rank = next(iter(pairs.values()))[0].shape[0]
    merged_path = write_merged(tiny_path, tmp_path / "merged.gguf", pairs, scale * 8.0 / rank)
    with sterna.load(merged_path, context=512, threads=2, kv_dtype="f32") as merged:
        expected = merged.logits(prompt)
    got = adapted.llm.logits(prompt, lora=(name, scale))
    assert relative_rms([(got, expected)]) < 1e-5
    assert relative_rms([(adapted.plain.logits(prompt), expected)]) > 0.01


def test_requests_without_an_adapter_are_as_if_there_were_none(adapted: Adapted, prompt: list[int]) -> None:
    expected = adapted.plain.logits(prompt)
    assert np.array_equal(adapted.llm.logits(prompt), expected)
    assert np.array_equal(adapted.llm.logits(prompt, lora=("all", 0.0)), expected)


def test_adapters_mix_in_one_batch(adapted: Adapted, prompt: list[int]) -> None:
    llm = adapted.llm
    wanted = [None, "all", ("all", 0.5), "attention", None, ("attention", 3)]
    alone = [llm.generate(prompt, lora=lora, logprobs=0, **OPTIONS) for lora in wanted]
    streams = [llm.stream(prompt, lora=lora, logprobs=0, **OPTIONS) for lora in wanted]
    for stream, expected in zip(streams, alone, strict=True):
        list(stream)
        assert stream.completion.tokens == expected.tokens
        assert stream.completion.logprobs == expected.logprobs
    assert len({tuple(completion.tokens) for completion in alone}) == 5


def test_adapters_never_share_pages(adapted: Adapted) -> None:
    prompt = np.random.default_rng(11).integers(3, 320, 200).tolist()
    cached = {}
    for lora in [None, "all", ("all", 0.5), "attention"]:
        first = adapted.llm.generate(prompt, lora=lora, **OPTIONS).usage.cached_tokens
        cached[lora] = first, adapted.llm.generate(prompt, lora=lora, **OPTIONS).usage.cached_tokens
    assert set(cached.values()) == {(0, 192)}


def test_fused_unfused_chunked_and_stepwise_are_the_same_bits(
    adapted: Adapted, tiny_path: Path, prompt: list[int]
) -> None:
    file = _core.Gguf(str(tiny_path))
    adapters = open_adapters(adapted.files, "llama")
    program = trace(file, adapters).program
    context = _core.SequenceContext(adapter=0, adapter_scale=0.7)
    results = []
    for candidate, threads, max_tokens in [
        (program, 1, 64),
        (program.fuse(), 2, 64),
        (program.fuse(), 2, 5),
        (program.fuse(), 1, 1),
    ]:
        plan = _core.compile_cpu(
            candidate, file, threads=threads, max_tokens=max_tokens, adapters=[adapter.file for adapter in adapters]
        )
        engine = _core.Engine(plan, _core.Pieces.from_gguf(file), context=512)
        scores = engine.submit_score(prompt, logits=True, context=context, context_key=b"x").scores()
        results.append(scores)
        engine.close()
    for other in results[1:]:
        assert np.array_equal(other, results[0])


def test_the_levels_agree(adapted: Adapted, tiny_path: Path, prompt: list[int]) -> None:
    file = _core.Gguf(str(tiny_path))
    adapters = open_adapters(adapted.files, "llama")
    program = trace(file, adapters).program.fuse()
    results = []
    for isa in _core.supported_isas():
        plan = _core.compile_cpu(program, file, isa=isa, threads=1, adapters=[adapter.file for adapter in adapters])
        engine = _core.Engine(plan, _core.Pieces.from_gguf(file), context=512)
        context = _core.SequenceContext(adapter=1, adapter_scale=1.5)
        results.append(engine.submit_score(prompt, logits=True, context=context, context_key=b"x").scores())
        engine.close()
    assert all(np.array_equal(other, results[0]) for other in results)


def test_the_memory_plan_counts_adapters(adapted: Adapted, tiny_path: Path) -> None:
    floats = sum(a.size + b.size for pairs in adapted.pairs.values() for a, b in pairs.values())
    with_adapters = sterna.plan(tiny_path, context=512, lora=adapted.files).weights
    assert with_adapters - sterna.plan(tiny_path, context=512).weights == 4 * floats


# What may be wrong with them.


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        ("other", r"lora is 'other', must be a name or \(name, scale\); adapters: 'all', 'attention'"),
        (("all", float("nan")), "the scale must be a finite number"),
        (("all", "much"), "the scale must be a finite number"),
        (("all", 1.0, 2), "must be a name"),
        (7, "must be a name"),
    ],
)
def test_requests_for_what_is_not_there(adapted: Adapted, lora: object, message: str) -> None:
    with pytest.raises(sterna.ArgumentError, match=message):
        adapted.llm.generate("a", lora=lora, **OPTIONS)


def test_a_model_without_adapters_says_how_to_load_them(adapted: Adapted) -> None:
    with pytest.raises(sterna.ArgumentError, match=r"adapters: none: load\(lora="):
        adapted.plain.generate("a", lora="all", **OPTIONS)


def broken_adapters() -> dict[str, tuple[type[Exception], str]]:
    return {
        "a model": (sterna.ModelFormatError, "general.type"),
        "no counterpart": (sterna.ModelFormatError, r"blk\.0\.attn_q\.weight\.lora_a .*has no counterpart"),
        "ranks": (sterna.ModelFormatError, r"are not \[r, k\] and \[n, r\]"),
        "shape": (sterna.ModelFormatError, "features, weight lora.0/blk.0.attn_q.weight.lora_a expects"),
        "no such layer": (sterna.UnsupportedModelError, "the model has no linear layer blk.0.attn_z"),
        "embedding": (sterna.UnsupportedModelError, "the model has no linear layer token_embd"),
        "another architecture": (sterna.UnsupportedModelError, "the adapter is for 'qwen2', the model is 'llama'"),
        "another kind": (sterna.ModelFormatError, "adapter.type.* is 'ia3'"),
        "NaN": (sterna.UnsupportedModelError, "holds a NaN"),
    }


@pytest.mark.parametrize("case", broken_adapters())
def test_broken_adapters(tiny_path: Path, tmp_path: Path, case: str) -> None:
    error, message = broken_adapters()[case]
    name = "blk.0.attn_q.weight"
    pairs = random_pairs(tiny_path, 3, weights=("attn_q",))
    a, b = pairs[name]
    path = tmp_path / "adapter.gguf"
    options: dict[str, str] = {}
    if case == "a model":
        path = tiny_path
    elif case == "no counterpart":
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_string("general.type", "adapter")
        writer.add_string("adapter.type", "lora")
        writer.add_float32("adapter.lora.alpha", 1.0)
        writer.add_tensor(f"{name}.lora_a", a)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    elif case == "ranks":
        pairs[name] = a[:3], b
    elif case == "shape":
        pairs[name] = np.ascontiguousarray(a[:, ::2]), b
    elif case == "no such layer":
        pairs["blk.0.attn_z.weight"] = a, b
    elif case == "embedding":
        pairs["token_embd.weight"] = a, b
    elif case == "another architecture":
        options["architecture"] = "qwen2"
    elif case == "another kind":
        options["adapter.type"] = "ia3"
    elif case == "NaN":
        a[1, 2] = np.nan
    if not path.exists():
        write_adapter(path, pairs, **options)
    with pytest.raises(error, match=message):
        sterna.load(tiny_path, context=512, lora={"x": path})


# Soft prompts.


def table_of(path: Path) -> np.ndarray:
    return next(tensor.data for tensor in gguf.GGUFReader(path).tensors if tensor.name == "token_embd.weight")


def test_rows_of_the_embedding_table_are_its_tokens(adapted: Adapted, tiny_path: Path, prompt: list[int]) -> None:
    llm, rows = adapted.plain, table_of(tiny_path)[prompt[:7]]
    assert np.array_equal(llm.logits(prompt[7:], embeddings=rows), llm.logits(prompt)[7:])
    options = {**OPTIONS, "temperature": 1.0, "seed": 5}
    soft, hard = llm.generate(prompt[7:], embeddings=rows, **options), llm.generate(prompt, **options)
    assert soft.tokens == hard.tokens
    assert soft.usage.prompt_tokens == hard.usage.prompt_tokens == len(prompt)
    with_adapter = adapted.llm.logits(prompt[7:], embeddings=rows, lora="all")
    assert np.array_equal(with_adapter, adapted.llm.logits(prompt, lora="all")[7:])


def test_soft_prompts_share_pages_only_with_themselves(adapted: Adapted) -> None:
    random = np.random.default_rng(3)
    rows = random.normal(size=(70, adapted.plain.engine.hidden_size)).astype(np.float32)
    prompt = random.integers(3, 320, 90).tolist()
    options = {**OPTIONS, "repetition_penalty": 1.2}
    first = adapted.plain.generate(prompt, embeddings=rows, **options)
    again = adapted.plain.generate(prompt, embeddings=rows.astype(np.float64), **options)
    assert (first.usage.cached_tokens, again.usage.cached_tokens) == (0, 159)
    assert again.tokens == first.tokens
    rows[3, 2] += 1
    assert adapted.plain.generate(prompt, embeddings=rows, **options).usage.cached_tokens == 0


def test_soft_prompts_in_company(adapted: Adapted, prompt: list[int]) -> None:
    random = np.random.default_rng(4)
    softs = [random.normal(size=(n, adapted.llm.engine.hidden_size)) for n in (1, 5, 80)]
    alone = [adapted.llm.generate(prompt, embeddings=soft, logprobs=0, **OPTIONS) for soft in softs]
    streams = [adapted.llm.stream(prompt, embeddings=soft, logprobs=0, **OPTIONS) for soft in softs]
    for stream, expected in zip(streams, alone, strict=True):
        list(stream)
        assert stream.completion.logprobs == expected.logprobs


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.zeros((2, 3)), r"embeddings have shape \[2, 3\], expected \[n, \d+\]"),
        (np.zeros(64), "expected"),
        ("text", "must be an array of numbers"),
        ([[float("inf")] * 64], r"embeddings\[0, 0\] is inf|have shape"),
    ],
)
def test_soft_prompts_that_are_none(adapted: Adapted, rows: object, message: str) -> None:
    with pytest.raises(sterna.ArgumentError, match=message):
        adapted.plain.generate("a", embeddings=rows, **OPTIONS)


def test_a_soft_prompt_longer_than_the_context(adapted: Adapted) -> None:
    rows = np.zeros((600, adapted.plain.engine.hidden_size))
    with pytest.raises(sterna.ContextOverflowError, match="601 tokens; the context holds 512"):
        adapted.plain.generate([5], embeddings=rows, **OPTIONS)
