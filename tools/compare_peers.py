"""How far sterna's numbers lie from llama.cpp's on the same file: perplexity, teacher-forced agreement, greedy texts.

    python tools/compare_peers.py MODEL TEXT [--positions 1024] [--threads 2] [--json FILE]

MODEL is anything that `sterna.load` takes. Perplexity is scored as `llama-perplexity` does (windows of 512 tokens,
second halves). Agreement is over windows of 512 tokens, each from an empty cache: the share of positions with the same
most likely token, and the mean KL divergence of sterna's distribution from the peer's. Greedy continuations of five
prompts are compared until they part, with the gap between the peer's two best logits there: near ties part first.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import sterna
from peer import Peer, PeerSettings

WINDOW = 512
PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):",
    "The three most important inventions of the twentieth century were",
    "Water boils at a lower temperature on a mountain because",
)


def log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Row-wise, in float64."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    return wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))


def agreement(llm: Any, peer: Peer, tokens: list[int], positions: int) -> dict[str, float]:
    """Top-1 agreement and mean KL(peer || sterna) over `positions` positions."""
    same = 0
    divergence = 0.0
    for start in range(0, positions, WINDOW):
        window = tokens[start : start + WINDOW]
        peer.clear()
        for begin in range(0, WINDOW, 64):  # a few rows at a time: a vocabulary may have 262,144 entries
            theirs = log_softmax(peer.logits(window[begin : begin + 64], begin))
            if begin == 0:
                all_ours = llm.logits(window)
            ours = log_softmax(all_ours[begin : begin + 64])
            same += int((theirs.argmax(-1) == ours.argmax(-1)).sum())
            divergence += float((np.exp(theirs) * (theirs - ours)).sum())
    return {"positions": positions, "top1": same / positions, "mean_kl": divergence / positions}


def greedy(llm: Any, peer: Peer, prompt: str, length: int) -> dict[str, Any]:
    """Where two greedy continuations part, and the gap between the peer's two best logits there."""
    prefix = llm.tokenize(prompt, add_special=True)
    ours = llm.generate(prefix, max_tokens=length, temperature=0).tokens
    peer.clear()
    row = peer.logits(prefix)[-1]
    for i in range(length):
        best = np.argsort(row)[-2:]
        token = int(best[1])
        if i >= len(ours) or ours[i] != token:
            gap = float(row[best[1]] - row[best[0]])
            return {"prompt": prompt, "parts_at": i, "peer_gap": gap, "sterna_ended": i >= len(ours)}
        row = peer.logits([token], len(prefix) + i)[0]
    return {"prompt": prompt, "parts_at": None, "peer_gap": None, "sterna_ended": False}


def compare(model: str, text: str, positions: int, threads: int) -> dict[str, Any]:
    """All figures for one model."""
    with sterna.load(model, context=2 * WINDOW, threads=threads) as llm:
        perplexity = llm.perplexity(text, context=WINDOW)
        peer = Peer(llm.info.path, context=2 * WINDOW, threads=threads, settings=PeerSettings(), all_logits=True)
        tokens = llm.tokenize(text, add_special=True)
        result = {
            "model": model,
            "isa": llm.info.isa,
            "peer": Peer.version(),
            "perplexity": float(perplexity),
            "agreement": agreement(llm, peer, tokens, positions),
            "greedy": [greedy(llm, peer, prompt, 64) for prompt in PROMPTS],
        }
        peer.close()
    return result


def main() -> None:
    """Prints the figures as text, and writes them as JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("text", type=Path)
    parser.add_argument("--positions", type=int, default=1024)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.positions % WINDOW:
        parser.error(f"--positions must be a multiple of {WINDOW}")
    result = compare(args.model, args.text.read_text(encoding="utf-8"), args.positions, args.threads)
    if not math.isfinite(result["perplexity"]):
        sys.exit("perplexity is not finite")
    both = result["agreement"]
    print(f"{args.model} ({result['isa']})")
    print(f"  perplexity      {result['perplexity']:.4f}")
    print(f"  top-1 agreement {both['top1']:.2%}, mean KL {both['mean_kl']:.5f} over {both['positions']} positions")
    for row in result["greedy"]:
        where = "same" if row["parts_at"] is None else f"parts at {row['parts_at']}, peer gap {row['peer_gap']:.3f}"
        print(f"  greedy          {row['prompt']!r}: {where}")
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
