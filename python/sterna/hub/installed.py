"""What `sterna list` and `sterna rm` work on: the models that were fetched to this machine."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from sterna.errors import ArgumentError
from sterna.hub import packages, repositories
from sterna.hub.cache import cache_dir
from sterna.hub.catalogue import catalogue
from sterna.hub.names import RepositoryName, choose_files, parse_repository_name, split_shard


@dataclass(frozen=True)
class InstalledModel:
    """A fetched model: `name` loads it, `modified` is in seconds since 1970, `source` is "package" or "hub"."""

    name: str
    source: str
    files: tuple[Path, ...]
    bytes: int
    modified: float
    licence: str | None = None


def list_models() -> list[InstalledModel]:
    """All models on this machine that sterna fetched, and every other GGUF file in the cache of huggingface-hub."""
    found = []
    for entry in catalogue().entries.values():
        path = packages.installed_path(entry) if entry.packages else None
        if path is not None:
            found.append(_model(entry.name, "package", (path,), entry.licence))
    for repository in _cached_repositories():
        snapshot = repositories.cached_snapshot(repository)
        if snapshot is None:
            continue
        groups: dict[str, list[Path]] = {}
        names: dict[str, str] = {}
        for name, path in snapshot.files.items():
            key = (split_shard(name) or (name, 1, 1))[0]
            groups.setdefault(key, []).append(path)
            names.setdefault(key, name)
        found += [_model(f"{repository}/{names[key]}", "hub", tuple(groups[key])) for key in groups]
    return found


def remove(name: str) -> int:
    """Deletes a fetched model, by the name that fetched it or that `list_models` shows; the bytes that became free.

    `org/repo` removes every GGUF file of the repository. ArgumentError where nothing of that name is here.
    """
    entry = catalogue().find(name)
    if entry is not None and entry.packages:
        folder = cache_dir() / entry.folder
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
        if not size:
            raise ArgumentError(f"{entry.name} is not on this machine")
        shutil.rmtree(folder)
        return size
    wanted = entry.repository if entry is not None else parse_repository_name(name)
    if wanted is None:
        raise ArgumentError(f"{name!r} is not the name of a fetched model; `sterna list` shows those")
    return _remove_from_hub(wanted)


def _model(name: str, source: str, files: tuple[Path, ...], licence: str | None = None) -> InstalledModel:
    status = [path.stat() for path in files]
    return InstalledModel(name, source, files, sum(s.st_size for s in status), max(s.st_mtime for s in status), licence)


def _cached_repositories() -> list[str]:
    names = (path.name for path in sorted(repositories.hub_cache().glob("models--*--*")))
    return [name.removeprefix("models--").replace("--", "/", 1) for name in names]


def _remove_from_hub(wanted: RepositoryName) -> int:
    snapshot = repositories.cached_snapshot(wanted.repository)
    names = list(snapshot.files) if snapshot is not None else []
    if snapshot is not None and (wanted.tag or wanted.file):
        names = choose_files(names, wanted) if names else []
    if snapshot is None or not names:
        raise ArgumentError(f"{wanted} is not on this machine")
    freed = 0
    for name in names:
        pointer = snapshot.files[name]
        blob = pointer.resolve()
        size = blob.stat().st_size
        pointer.unlink()
        if not _is_used(blob, repositories.hub_cache()):
            blob.unlink(missing_ok=True)
            freed += size
    return freed


def _is_used(blob: Path, cache: Path) -> bool:
    """Whether another snapshot still points to `blob`."""
    snapshots = blob.parent.parent / "snapshots"
    if cache not in blob.parents and cache.resolve() not in blob.parents:
        return True  # a link out of the cache: not ours to delete
    return any(os.path.realpath(path) == str(blob) for path in snapshots.rglob("*") if path.is_symlink())
