"""Models in repositories of the Hugging Face hub, kept in its own cache layout; every file is verified before use."""

from __future__ import annotations

import errno
import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sterna.errors import DownloadError
from sterna.hub.cache import Progress, cache_dir, locked
from sterna.hub.names import RepositoryName, check_relative_path, choose_files
from sterna.hub.transfer import Checksum, Source, download

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Snapshot:
    """One commit of a repository as it lies in the hub's cache; `files` are those present, by their path in it."""

    repository: str
    commit: str
    files: dict[str, Path]


def hub_cache() -> Path:
    """The cache folder of huggingface-hub, where HF_HUB_CACHE, HF_HOME and the rest put it."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE forbids the network."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def cached_snapshot(repository: str, revision: str = "main") -> Snapshot | None:
    """What is on this machine of `repository` at `revision`; None where nothing is."""
    folder = _folder(repository)
    commit = revision
    if not _COMMIT.fullmatch(revision):
        try:
            commit = (folder / "refs" / check_relative_path(revision)).read_text("ascii").strip()
        except (OSError, ValueError):
            return None
    root = folder / "snapshots" / commit
    if not _COMMIT.fullmatch(commit) or not root.is_dir():
        return None
    files = {path.relative_to(root).as_posix(): path for path in sorted(root.rglob("*.gguf")) if path.is_file()}
    return Snapshot(repository, commit, files)


def cached_files(wanted: RepositoryName, revision: str = "main") -> list[Path] | None:
    """The files of `wanted`, all on this machine and right; None where one is missing or damaged."""
    snapshot = cached_snapshot(wanted.repository, revision)
    if snapshot is None:
        return None
    try:
        chosen = choose_files(list(snapshot.files), wanted)
    except (ValueError, DownloadError):
        return None
    paths = [snapshot.files[name] for name in chosen]
    return paths if all(_is_verified(path) for path in paths) else None


def fetch(
    wanted: RepositoryName, *, revision: str = "main", sha256: str | None = None, progress: Progress | None = None
) -> list[Path]:
    """The files of `wanted` (several where it is split), fetched from the hub where they are missing or outdated.

    `sha256` is what a single file must have, whatever the hub says. DownloadError in one line; ArgumentError where the
    name does not pick exactly one model.
    """
    info = _model_info(wanted, revision)
    commit = str(info.sha)
    if not _COMMIT.fullmatch(commit):
        raise DownloadError(f"{wanted.repository}: the server names no commit")
    siblings = {file.rfilename: file for file in info.siblings or ()}
    chosen = [check_relative_path(name) for name in choose_files(list(siblings), wanted)]
    sources = {name: _source(wanted.repository, commit, siblings[name]) for name in chosen}
    if sha256 is not None and [source.checksum.value for source in sources.values()] != [sha256]:
        raise DownloadError(f"{wanted} on the hub is not the file of the catalogue (sha256 {sha256})")
    everything = sum(source.size for source in sources.values())
    paths, before = [], 0
    for name, source in sources.items():
        paths.append(_fetch_file(wanted.repository, commit, name, source, _shifted(progress, before, everything)))
        before += source.size
    _write_ref(wanted.repository, revision, commit)
    return paths


def _shifted(progress: Progress | None, before: int, everything: int) -> Progress | None:
    if progress is None:
        return None
    return lambda stage, done, _total: progress(stage, before + done, everything)


def _folder(repository: str) -> Path:
    return hub_cache() / ("models--" + repository.replace("/", "--"))


def _model_info(wanted: RepositoryName, revision: str) -> ModelInfo:
    from huggingface_hub import HfApi, errors

    name = wanted.repository
    if is_offline():
        raise DownloadError(f"{wanted} is not on this machine, and HF_HUB_OFFLINE forbids to fetch it")
    try:
        return HfApi(library_name="sterna").model_info(name, revision=revision, files_metadata=True, timeout=30)
    except errors.GatedRepoError:
        raise DownloadError(f"{name} is gated: accept its terms on the hub and log in with `hf auth login`") from None
    except errors.RevisionNotFoundError:
        raise DownloadError(f"{name} has no revision {revision} on the hub") from None
    except errors.RepositoryNotFoundError:
        raise DownloadError(f"no repository {name} on the hub (or a private one, and the token does not fit)") from None
    except errors.HFValidationError as error:
        raise DownloadError(f"{name} is not a repository's name: {error}") from None
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", "an error")
        raise DownloadError(f"cannot ask the hub about {name}: it answers {status}") from None
    except json.JSONDecodeError:
        raise DownloadError(f"cannot ask the hub about {name}: what answers there is no hub") from None
    except Exception as error:
        # The HTTP client below huggingface-hub has changed twice, and its exceptions with it.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DownloadError(f"cannot reach the hub for {name}: {reason}") from error


def _source(repository: str, commit: str, file: Any) -> Source:
    from huggingface_hub import constants, get_token, hf_hub_url

    if file.lfs is not None and _SHA256.fullmatch(file.lfs.sha256 or ""):
        checksum, size = Checksum("sha256", file.lfs.sha256), file.lfs.size
    elif _COMMIT.fullmatch(file.blob_id or ""):
        checksum, size = Checksum("git", file.blob_id), file.size
    else:
        raise DownloadError(f"{repository}/{file.rfilename}: the hub gives no checksum")
    if not isinstance(size, int) or size < 0:
        raise DownloadError(f"{repository}/{file.rfilename}: the hub gives no size")
    url = hf_hub_url(repository, file.rfilename, revision=commit)
    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return Source(f"{repository}/{file.rfilename}", url, size, checksum, headers)


def _fetch_file(repository: str, commit: str, name: str, source: Source, progress: Progress | None) -> Path:
    folder = _folder(repository)
    pointer = folder / "snapshots" / commit / name
    # huggingface-hub names a blob by its ETag, which is this checksum: its downloads and ours find each other.
    blob = folder / "blobs" / source.checksum.value
    try:
        with locked(cache_dir() / ".locks" / f"{source.checksum.value}.lock"):
            if pointer.is_file() and _is_verified(pointer):
                return pointer
            if not (blob.is_file() and _is_verified(blob)):
                blob.unlink(missing_ok=True)
                blob.parent.mkdir(parents=True, exist_ok=True)
                _check_space(source, blob.parent)
                download(source, blob, progress=progress)
                _mark_verified(blob)
            pointer.parent.mkdir(parents=True, exist_ok=True)
            _point(pointer, blob)
            return pointer
    except OSError as error:
        if isinstance(error, DownloadError):
            raise
        raise DownloadError(f"cannot keep {source.name} below {folder}: {error.strerror or error}") from error


def _check_space(source: Source, folder: Path) -> None:
    import shutil

    free = shutil.disk_usage(folder).free
    part = folder / (source.checksum.value + ".part")
    needed = source.size - (part.stat().st_size if part.is_file() else 0)
    if free < needed:
        raise DownloadError(
            f"no space left for {source.name} below {folder}: {needed / 1e6:.1f} MB needed, {free / 1e6:.1f} MB free"
        )


def _point(pointer: Path, blob: Path) -> None:
    temporary = pointer.with_name(f".{pointer.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(os.path.relpath(blob, pointer.parent))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EACCES):
            raise
        os.link(blob, temporary)  # no symlinks here (Windows without the privilege)
    os.replace(temporary, pointer)


def _write_ref(repository: str, revision: str, commit: str) -> None:
    if _COMMIT.fullmatch(revision):
        return
    path = _folder(repository) / "refs" / check_relative_path(revision)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(commit, "ascii")
    os.replace(temporary, path)


def _is_verified(path: Path) -> bool:
    """Whether a file of the hub's cache has the checksum that its blob is named by.

    Other programs fill this cache too, some without checking: a file is hashed once, then remembered by size and time.
    """
    blob = path.resolve()
    if _SHA256.fullmatch(blob.name):
        checksum = Checksum("sha256", blob.name)
    elif _COMMIT.fullmatch(blob.name):
        checksum = Checksum("git", blob.name)
    else:
        return True  # a cache without blobs (no symlinks): its names promise nothing that could be checked
    if _stamp_file(blob.name).is_file() and _stamp_file(blob.name).read_text("ascii") == _stamp(blob):
        return True
    try:
        with blob.open("rb") as file:
            right = checksum.of(file, blob.stat().st_size) == checksum.value
    except OSError:
        return False
    if right:
        _mark_verified(blob)
    return right


def _mark_verified(blob: Path) -> None:
    stamp = _stamp_file(blob.name)
    try:
        stamp.parent.mkdir(parents=True, exist_ok=True)
        stamp.write_text(_stamp(blob), "ascii")
    except OSError:
        return  # a read-only cache: the file will be hashed again, no more


def _stamp_file(name: str) -> Path:
    return cache_dir() / ".verified" / name


def _stamp(blob: Path) -> str:
    status = blob.stat()
    return f"{status.st_size} {status.st_mtime_ns}"
