"""Makes the modules of this folder importable from the tests below it, and counts the cases of the reference material."""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

# Cases marked "reference" that each file has at least over the whole of $STERNA_REFERENCE. A run over a folder that lacks a part, or
# that skips one, would otherwise look as green as a complete one.
REFERENCE_CASES = {
    "api/test_real_models.py": 2,
    "chat/test_chat_injection.py": 94,
    "chat/test_chat_templates.py": 1175,
    "cpu/test_encoder_decoder.py": 17,
    "cpu/test_encoders.py": 48,
    "cpu/test_models_on_cpu.py": 404,
    "cpu/test_same_bits.py": 213,
    "gguf/test_gguf_reader.py": 89,
    "models/test_oracles.py": 209,
    "tokenizer/test_tokenizer_vocabularies.py": 30,
}

# A GPU that is there is for the tests that ask for it.
os.environ["STERNA_DEVICE"] = "cpu"

# A shell's job in the background ignores Ctrl-C, and so would the processes that tests start to send it to.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_TESTS = Path(__file__).parent
_complete: set[str] = set()  # files that were collected whole
_passed: Counter[str] = Counter()


def _name(path: Path) -> str:
    return path.relative_to(_TESTS).as_posix()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Notes which files run whole: not those of which some cases were named or chosen by an option."""
    narrowed = config.option.keyword or config.option.markexpr or any("::" in argument for argument in config.args)
    if os.environ.get("STERNA_REFERENCE") and not narrowed:
        _complete.update(_name(item.path) for item in items)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    report = yield
    if report.when == "call" and report.passed and item.get_closest_marker("reference"):
        _passed[_name(item.path)] += 1
    return report


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    if exitstatus == pytest.ExitCode.OK and not session.config.option.collectonly and _missing():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not config.option.collectonly:
        for file in _missing():
            terminalreporter.write_line(
                f"{file}: {_passed[file]} reference cases passed, {REFERENCE_CASES[file]} are listed in conftest.py",
                red=True,
            )


def _missing() -> list[str]:
    """Listed files that ran whole and passed fewer cases than they have."""
    return [file for file, count in REFERENCE_CASES.items() if file in _complete and _passed[file] < count]
