"""What is not computed twice: time to the first token with a shared prefix, and speed with drafts from the prompt.

    python tools/bench_reuse.py --prefix MODEL --drafts MODEL... --text FILE [--pairs 5] [--threads N] [--out FILE.md]

Prefix: from the call to the first token, tokenisation included, of a prompt of 2,000 tokens and a question; then of
the same beginning with another question, from memory, and in a new process from the folder of `load(prefix_cache=...)`.
Drafts: tokens per second with prompt lookup and without, in turn: for a task whose answer repeats the prompt (the model
is asked for a text again with a name changed, and its answer is begun for it; greedy), and for free text, greedy (small
models soon repeat themselves) and sampled at temperature 1. The texts must be the same. FILE is any long text.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import sterna

PREFIX_TOKENS = 2000
QUESTIONS = ("\n\nQuestion: what is this text about?\nAnswer:", "\n\nQuestion: who wrote it, and when?\nAnswer:")
GREEDY = {"temperature": 0.0, "ignore_eos": True}
SAMPLED = {"temperature": 1.0, "seed": 7, "ignore_eos": True}
FREE_PROMPTS = (
    "Once upon a time in a small village",
    "The most important thing about the sea is",
    "My favourite recipe",
)


def first_token_seconds(llm: sterna.LLM, prompt: str) -> tuple[float, int]:
    """Of one request, and how many tokens it found in the cache."""
    begin = time.perf_counter()
    stream = llm.stream(prompt, max_tokens=1, **GREEDY)
    next(stream)
    seconds = time.perf_counter() - begin
    list(stream)
    return seconds, stream.completion.usage.cached_tokens


def text_of_tokens(llm: sterna.LLM, text: str, count: int, skip: int = 0) -> str:
    return llm.detokenize(llm.tokenize(text[skip : skip + 20 * count])[:count])


def measure_prefix(model: str, text: str, threads: int | None, pairs: int) -> list[dict[str, float]]:
    rows = []
    for pair in range(pairs):
        with tempfile.TemporaryDirectory() as folder:
            with sterna.load(model, context=4096, threads=threads, prefix_cache=folder) as llm:
                llm.generate("warm", max_tokens=1, **GREEDY)
                prefix = text_of_tokens(llm, text, PREFIX_TOKENS, skip=1000 * pair)
                cold, _ = first_token_seconds(llm, prefix + QUESTIONS[0])
                warm, cached = first_token_seconds(llm, prefix + QUESTIONS[1])
            command = [sys.executable, __file__, "--child", model, folder, str(threads or 0)]
            child = subprocess.run(
                command, input=prefix + QUESTIONS[1] + " I think", capture_output=True, text=True, check=True
            )
            disk, found = (float(number) for number in child.stdout.split())
        rows.append({"cold": cold, "memory": warm, "disk": disk, "cached": cached, "from_disk": found})
    return rows


def child_main(model: str, folder: str, threads: str) -> None:
    with sterna.load(model, context=4096, threads=int(threads) or None, prefix_cache=folder) as llm:
        llm.generate("warm", max_tokens=1, **GREEDY)
        print(*first_token_seconds(llm, sys.stdin.read()))


def edit_prompt(llm: sterna.LLM, text: str, count: int) -> str:
    """A text, the wish to have it again with another name, and the beginning of the answer."""
    original = text_of_tokens(llm, text, count)
    begun = " ".join(original.split()[:8])
    return f"{original}\n\nThe same text, word for word, but the language is called Oxide:\n\n{begun}"


def measure_drafts(model: str, text: str, threads: int | None, pairs: int) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    with sterna.load(model, context=4096, threads=threads) as llm:
        edit = edit_prompt(llm, text, 300)
        tasks: list[tuple[str, Sequence[str], int, dict[str, Any]]] = [
            ("edit", [edit], 250, GREEDY),
            ("free, greedy", FREE_PROMPTS, 200, GREEDY),
            ("free, sampled", FREE_PROMPTS, 200, SAMPLED),
        ]
        for name, prompts, max_tokens, sampling in tasks:
            ratios, plain_speeds, drafted_speeds, accepted = [], [], [], 0
            for _ in range(pairs):
                seconds = {None: 0.0, 0: 0.0}
                tokens = accepted = 0
                for prompt in prompts:
                    texts = {}
                    for draft in (0, None):
                        out = llm.generate(prompt, max_tokens=max_tokens, draft_tokens=draft, **sampling)
                        seconds[draft] += out.timings.decode_seconds
                        texts[draft] = out.text
                    if texts[0] != texts[None]:
                        raise SystemExit(f"{model}, {name}: the text is not the same with drafts")
                    tokens += max_tokens - 1
                    accepted += out.timings.accepted_tokens
                plain_speeds.append(tokens / seconds[0])
                drafted_speeds.append(tokens / seconds[None])
                ratios.append(seconds[0] / seconds[None])
            rows.append(
                {
                    "model": Path(model).name,
                    "task": name,
                    "plain": statistics.median(plain_speeds),
                    "drafted": statistics.median(drafted_speeds),
                    "ratio": statistics.median(ratios),
                    "range": (min(ratios), max(ratios)),
                    "accepted": accepted,
                    "of": max_tokens * len(prompts),
                }
            )
    return rows


def markdown(prefix_model: str | None, prefix: list[dict[str, float]], drafts: list[dict[str, object]]) -> str:
    lines = []
    if prefix:
        lines += [
            f"To the first token of {PREFIX_TOKENS} tokens and a question, {Path(prefix_model or '').name}, medians of "
            f"{len(prefix)}:",
            "",
            "| | seconds | share of the first | tokens found |",
            "|---|---|---|---|",
        ]
        cold = statistics.median(row["cold"] for row in prefix)
        lines.append(f"| first request | {cold:.3f} | | 0 |")
        for name, key, found in (("from memory", "memory", "cached"), ("new process, from disk", "disk", "from_disk")):
            share = statistics.median(row[key] / row["cold"] for row in prefix)
            seconds = statistics.median(row[key] for row in prefix)
            lines.append(f"| {name} | {seconds:.3f} | {share:.1%} | {prefix[0][found]:.0f} |")
        lines.append("")
    if drafts:
        lines += [
            "| model | task | without drafts, t/s | with, t/s | ratio (range) | accepted of all tokens |",
            "|---|---|---|---|---|---|",
        ]
        for row in drafts:
            low, high = row["range"]  # type: ignore[misc]
            lines.append(
                f"| {row['model']} | {row['task']} | {row['plain']:.1f} | {row['drafted']:.1f} | {row['ratio']:.2f} "
                f"({low:.2f} to {high:.2f}) | {row['accepted']} of {row['of']} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prefix", metavar="MODEL")
    parser.add_argument("--drafts", metavar="MODEL", nargs="*", default=[])
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    text = args.text.read_text(encoding="utf-8")
    prefix = measure_prefix(args.prefix, text, args.threads, args.pairs) if args.prefix else []
    drafts = [row for model in args.drafts for row in measure_drafts(model, text, args.threads, args.pairs)]
    table = markdown(args.prefix, prefix, drafts)
    print(table)
    if args.out:
        args.out.write_text(table + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child_main(*sys.argv[2:])
    else:
        main()
