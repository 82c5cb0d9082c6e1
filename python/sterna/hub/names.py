"""What a model's name can be, and which names may become files: the rules that every source shares."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from sterna.errors import ArgumentError, DownloadError

# owner/name as the hub allows it; the part after ':' is a quantisation tag, the part after a second '/' a file.
_REPOSITORY = re.compile(
    r"(?P<repository>[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95})"
    r"(?:(?P<tag>:[A-Za-z0-9][A-Za-z0-9._-]*)|/(?P<file>[^:\\\0]+\.gguf))?"
)
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<suffix>\.gguf)", re.IGNORECASE)
_RESERVED_ON_WINDOWS = {"con", "prn", "aux", "nul", *(f"{kind}{i}" for kind in ("com", "lpt") for i in range(10))}
_FORBIDDEN_CHARACTERS = re.compile(r'[\x00-\x1f\x7f<>:"|?*\\/]')


@dataclass(frozen=True)
class RepositoryName:
    """A model on the hub: a repository, and the quantisation tag or the file that picks from it."""

    repository: str
    tag: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        return self.repository + (f":{self.tag}" if self.tag else "") + (f"/{self.file}" if self.file else "")


def looks_like_path(name: str) -> bool:
    """Whether `name` can only be meant as a path: it exists, is anchored, or is a .gguf file of at most one folder."""
    if name.startswith(("/", "./", "../", "~", ".\\", "..\\")) or re.match(r"[A-Za-z]:[\\/]", name):
        return True
    if name.lower().endswith(".gguf") and name.count("/") < 2:
        return True
    try:
        return Path(name).exists()
    except (OSError, ValueError):  # too long for a file name, or a NUL byte
        return False


def parse_repository_name(name: str) -> RepositoryName | None:
    """`org/repo`, `org/repo:TAG` or `org/repo/file.gguf` taken apart; None where `name` is none of these."""
    match = _REPOSITORY.fullmatch(name)
    if match is None:
        return None
    tag = match["tag"]
    if match["file"] is not None:
        check_relative_path(match["file"])
    return RepositoryName(match["repository"], tag[1:] if tag else None, match["file"])


def check_file_name(name: str) -> str:
    """`name` itself, if it is a plain file name on every operating system; DownloadError otherwise."""
    stem = name.split(".")[0].rstrip(" ").lower()
    unsafe = (
        name in ("", ".", "..")
        or len(name.encode("utf-8", "surrogatepass")) > 255
        or _FORBIDDEN_CHARACTERS.search(name) is not None
        or name[-1] in ". "
        or stem in _RESERVED_ON_WINDOWS
    )
    if unsafe:
        raise DownloadError(f"refusing the unsafe file name {name!r}")
    return name


def check_relative_path(path: str) -> str:
    """`path` itself, if each of its '/'-separated parts is a plain file name; DownloadError otherwise."""
    for part in path.split("/"):
        check_file_name(part)
    return path


def split_shard(path: str) -> tuple[str, int, int] | None:
    """(path without the shard's number, number from 1, count) of `...-00001-of-00003.gguf`; None for a whole file."""
    match = _SHARD.fullmatch(path)
    if match is None:
        return None
    number, count = int(match["number"]), int(match["count"])
    return (match["stem"] + match["suffix"], number, count) if 1 <= number <= count else None


def choose_files(files: list[str], wanted: RepositoryName) -> list[str]:
    """The GGUF file of a repository that `wanted` means, with all its shards in order.

    Without a tag or a file: the only model there, else the most usual quantisation. ArgumentError names the choices
    where nothing, or more than one model, fits.
    """
    models: dict[str, dict[int, str]] = {}
    counts: dict[str, int] = {}
    for path in files:
        name = path.rsplit("/", 1)[-1].lower()
        if not name.endswith(".gguf") or name.startswith(("mmproj", "imatrix")):
            continue
        key, number, count = split_shard(path) or (path, 1, 1)
        models.setdefault(key, {})[number] = path
        counts[key] = count
    if wanted.file is not None:
        key = (split_shard(wanted.file) or (wanted.file, 1, 1))[0]
        fitting = [key] if key in models else []
        if wanted.file in files and not fitting:
            return [wanted.file]  # a projector or another special file, asked for by its name
    elif wanted.tag is not None:
        fitting = [key for key in models if _has_tag(key, wanted.tag)]
    else:
        fitting = _most_usual(list(models))
    if len(fitting) != 1:
        raise ArgumentError(_no_choice(wanted, fitting or sorted(models), bool(fitting)))
    shards, count = models[fitting[0]], counts[fitting[0]]
    missing = [number for number in range(1, count + 1) if number not in shards]
    if missing:
        raise DownloadError(f"{wanted.repository}: {fitting[0]} lacks part {missing[0]} of {count}")
    return [shards[number] for number in range(1, count + 1)]


_USUAL_TAGS = ("Q4_K_M", "Q4_K_S", "Q4_0", "Q4_1", "Q5_K_M", "Q5_0", "Q6_K", "Q8_0", "MXFP4", "F16", "BF16", "F32")


def _has_tag(path: str, tag: str) -> bool:
    return re.search(rf"(?:^|[-._/]){re.escape(tag)}(?=[-./]|$)", path[: -len(".gguf")], re.IGNORECASE) is not None


def _most_usual(models: list[str]) -> list[str]:
    if len(models) <= 1:
        return models
    for tag in _USUAL_TAGS:
        fitting = [path for path in models if _has_tag(path, tag)]
        if fitting:
            return fitting
    return models


def _no_choice(wanted: RepositoryName, names: list[str], several: bool) -> str:
    if not names:
        return f"{wanted.repository} has no GGUF file"
    shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    if several:
        return f"{wanted} fits several models; name one as {wanted.repository}/FILE: {shown}"
    what = f"no file {wanted.file}" if wanted.file else f"no model with the tag {wanted.tag}"
    return f"{wanted.repository} has {what}; it has {shown}"
