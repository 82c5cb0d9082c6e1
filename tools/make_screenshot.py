"""Makes docs/chat.svg, the picture of README.md: a real `sterna chat` on a pseudo-terminal, drawn as it looks."""

from __future__ import annotations

import argparse
import io
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

QUESTIONS = ["Why is the sky blue? Answer in one sentence.", "And why is the sunset red?"]
WIDTH = 84
_TIMEOUT_SECONDS = 120


def record(questions: list[str], arguments: list[str]) -> str:
    """What a terminal shows of a chat: `sterna chat` with `arguments`, asked `questions`."""
    master, slave = pty.openpty()
    # A terminal without a line editor echoes what is typed, and shows nothing that would have to be interpreted.
    environment = {**os.environ, "TERM": "dumb", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "sterna", "chat", *arguments]
    process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=environment)
    os.close(slave)
    seen = b""

    def wait_for_prompt() -> None:
        nonlocal seen
        deadline = time.monotonic() + _TIMEOUT_SECONDS
        while not seen.endswith(b"\n> "):
            if time.monotonic() > deadline or process.poll() is not None:
                raise SystemExit(f"no prompt: {seen.decode('utf-8', 'replace')}")
            if select.select([master], [], [], 0.2)[0]:
                seen += os.read(master, 65536)

    for question in questions:
        wait_for_prompt()
        os.write(master, question.encode() + b"\n")
        while not seen.endswith(b"\n> " + question.encode() + b"\r\n"):
            seen += os.read(master, 65536)
    wait_for_prompt()
    process.kill()
    process.wait()
    os.close(master)
    return seen.decode("utf-8").replace("\r\n", "\n").removesuffix("> ").rstrip("\n")


def draw(shown: str, command: str) -> str:
    """The terminal's text as SVG."""
    console = Console(
        record=True,
        width=WIDTH,
        file=io.StringIO(),
        force_terminal=True,
        color_system="truecolor",
        legacy_windows=False,
    )
    console.print(Text(f"$ {command}", style="bold"))
    for line in shown.splitlines():
        console.print(Text(line, style="bold cyan" if line.startswith("> ") else ""))
    svg = console.export_svg(title="sterna", font_aspect_ratio=0.61)
    # A picture in a repository loads nothing from elsewhere: the reader's own monospaced font will do.
    svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
    return re.sub(r"[ \t]+\n", "\n", svg.replace("Fira Code", "ui-monospace, Menlo, Consolas"))


def main() -> None:
    """Writes the picture; the answers are those of the model, with a seed so that they can be had again."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2:135m")
    parser.add_argument("--seed", default="1")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent.parent / "docs" / "chat.svg")
    options = parser.parse_args()
    arguments = [options.model, "--temp", "0.2", "--seed", options.seed]
    shown = record(QUESTIONS, arguments)
    options.output.parent.mkdir(exist_ok=True)
    options.output.write_text(draw(shown, "sterna chat " + " ".join(arguments)), "utf-8")
    print(shown)


if __name__ == "__main__":
    main()
