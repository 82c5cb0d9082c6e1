"""What a run from the command line does without: imports that take longer than the answer."""

from __future__ import annotations

import subprocess
import sys

from oracle import model_path

RUN = """
import sys
from sterna.cli.main import main
code = main(["run", sys.argv[1], "--raw", "-n", "1", "Hello"])
heavy = {"numpy", "jinja2", "rich", "prompt_toolkit", "huggingface_hub", "sterna.chat.template", "sterna.interpreter"}
print("imported:", sorted(heavy & sys.modules.keys()), file=sys.stderr)
sys.exit(code)
"""


def test_continuing_a_text_imports_nothing_heavy() -> None:
    command = [sys.executable, "-c", RUN, str(model_path("llama3"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "imported: []" in done.stderr
