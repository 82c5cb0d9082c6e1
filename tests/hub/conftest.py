"""Fixtures of the hub's tests: a cache of their own, and a folder of wheels."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """$STERNA_CACHE in a new folder."""
    path = tmp_path / "cache"
    monkeypatch.setenv("STERNA_CACHE", str(path))
    return path


@pytest.fixture
def wheelhouse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels that is all of pip's world."""
    path = tmp_path / "wheels"
    path.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    return path
