"""Where tests find reference material: $STERNA_REFERENCE where that is set, else the subset in tests/data."""

from __future__ import annotations

import os
from pathlib import Path


def reference_dir(kind: str) -> Path:
    """The folder of one kind of material ("oracle", "vocab", "templates", "text")."""
    root = os.environ.get("STERNA_REFERENCE")
    return Path(root) / kind if root else Path(__file__).parent / "data" / kind
