"""These tests say what device="auto" is."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def no_chosen_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STERNA_DEVICE")
