"""Models inside packages: real wheels from a local folder through pip, with every way this can go wrong."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from sterna.errors import DownloadError
from sterna.hub import cache as cache_module
from sterna.hub import packages, resolve
from sterna.hub.catalogue import Catalogue, CatalogueEntry, Package
from sterna.hub.installed import list_models, remove
from wheels import make_wheel

CONTENT = random.Random(1).randbytes(300_000)


@pytest.fixture
def entry(wheelhouse: Path, cache: Path) -> CatalogueEntry:
    """A model in three parts, each in a wheel of its own."""
    parts = [CONTENT[:100_000], CONTENT[100_000:250_000], CONTENT[250_000:]]
    found = []
    for i, part in enumerate(parts):
        wheel = make_wheel(wheelhouse, f"tiny-model-part{i}", "1.2.0", {f"tiny_model_part{i}/data/m.part{i}": part})
        member = f"tiny_model_part{i}/data/m.part{i}"
        found.append(Package(f"tiny-model-part{i}", "1.2.0", member, wheel.stat().st_size))
    sha256 = hashlib.sha256(CONTENT).hexdigest()
    return CatalogueEntry("tiny:1m", "Tiny", "m.gguf", len(CONTENT), sha256, "MIT", tuple(found))


def leftovers(cache: Path) -> list[str]:
    """Everything in the cache that is not a lock."""
    return [str(path.relative_to(cache)) for path in cache.rglob("*") if ".locks" not in path.parts]


def test_parts_are_joined(entry: CatalogueEntry, cache: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    path = packages.fetch(entry, progress=lambda *event: seen.append(event))
    assert path.read_bytes() == CONTENT
    assert seen[-1] == ("verify", len(CONTENT), len(CONTENT))
    assert all(total is not None and done <= total for _, done, total in seen)
    assert sorted(leftovers(cache)) == [entry.folder, f"{entry.folder}/m.gguf"]


def test_second_fetch_asks_nobody(entry: CatalogueEntry, wheelhouse: Path) -> None:
    path = packages.fetch(entry)
    before = path.stat().st_mtime_ns
    shutil.rmtree(wheelhouse)
    assert packages.fetch(entry) == path
    assert path.stat().st_mtime_ns == before


def test_truncated_file_is_fetched_again(entry: CatalogueEntry) -> None:
    path = packages.fetch(entry)
    path.write_bytes(CONTENT[:-1])
    assert packages.installed_path(entry) is None
    assert packages.fetch(entry).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sha256": "0" * 64}, "damaged: sha256"),
        ({"bytes": len(CONTENT) - 1}, "longer than"),
        ({"bytes": len(CONTENT) + 1}, "instead of"),
        ({"packages": (Package("absent-model", "1.0", "m", 1),)}, "Could not find a version"),
        ({"packages": (Package("tiny-model-part0", "9.9", "m", 1),)}, "Could not find a version"),
        ({"packages": (Package("tiny-model-part0", "1.2.0", "no/such", 1),)}, "does not hold no/such"),
    ],
)
def test_faults_leave_nothing(entry: CatalogueEntry, cache: Path, change: dict[str, object], message: str) -> None:
    with pytest.raises(DownloadError, match=message) as caught:
        packages.fetch(replace(entry, **change))
    assert "\n" not in str(caught.value)
    assert leftovers(cache) == []


def test_damaged_archive(entry: CatalogueEntry, wheelhouse: Path, cache: Path) -> None:
    wheel = next(wheelhouse.glob("*part1*"))
    content = bytearray(wheel.read_bytes())
    content[5_000:5_100] = bytes(100)
    wheel.write_bytes(content)
    with pytest.raises(DownloadError):
        packages.fetch(entry)
    assert leftovers(cache) == []


def test_source_packages_never_run(entry: CatalogueEntry, wheelhouse: Path, tmp_path: Path) -> None:
    folder = tmp_path / "evil-1.0"
    folder.mkdir()
    mark = tmp_path / "ran"
    (folder / "setup.py").write_text(f"open({str(mark)!r}, 'w').close()\n")
    shutil.make_archive(str(wheelhouse / "evil-1.0"), "gztar", tmp_path, "evil-1.0")
    with pytest.raises(DownloadError):
        packages.fetch(replace(entry, packages=(Package("evil", "1.0", "m", 1),)))
    assert not mark.exists()


def test_pip_py_in_the_working_directory_is_not_run(
    entry: CatalogueEntry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pip.py").write_text("open('ran', 'w').close()\n")
    monkeypatch.chdir(tmp_path)
    assert packages.fetch(entry).read_bytes() == CONTENT
    assert not (tmp_path / "ran").exists()


def test_without_pip(entry: CatalogueEntry, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DownloadError, match=r"ensurepip.*tiny-model-part0==1\.2\.0"):
        packages.fetch(entry)
    assert leftovers(cache) == []


def test_full_disk_while_joining(entry: CatalogueEntry, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cache_module, "sync", full)
    with pytest.raises(DownloadError, match=r"no space left for m\.gguf"):
        packages.fetch(entry)
    assert leftovers(cache) == []


def test_symlink_at_the_unfinished_file(cache: Path, tmp_path: Path) -> None:
    target = tmp_path / "precious"
    target.write_text("keep")
    cache.mkdir()
    (cache / "m.gguf.part").symlink_to(target)
    with pytest.raises(DownloadError, match="cannot write"):
        cache_module.write_verified(cache / "m.gguf", [b"x"], size=1, sha256=hashlib.sha256(b"x").hexdigest())
    assert target.read_text() == "keep"


def test_cache_may_be_a_symlink(
    entry: CatalogueEntry, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    cache.symlink_to(tmp_path / "elsewhere")
    assert packages.fetch(entry).read_bytes() == CONTENT


def test_unwritable_cache(entry: CatalogueEntry, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(DownloadError, match="cannot write tiny:1m"):
        packages.fetch(entry)


SCRIPT = """
import sys
from sterna.hub import packages
from sterna.hub.catalogue import CatalogueEntry, Package
entry = eval(sys.argv[1])
print(packages.fetch(entry), flush=True)
"""


def start(entry: CatalogueEntry) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", SCRIPT, repr(entry)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)


def test_two_processes_at_once(entry: CatalogueEntry, cache: Path) -> None:
    running = [start(entry), start(entry)]
    outputs = [process.communicate(timeout=60) for process in running]
    assert [process.returncode for process in running] == [0, 0], outputs
    assert outputs[0][0] == outputs[1][0]
    assert packages._final_path(entry).read_bytes() == CONTENT
    assert sorted(leftovers(cache)) == [entry.folder, f"{entry.folder}/m.gguf"]


def test_killed_at_any_point(entry: CatalogueEntry, cache: Path) -> None:
    generator = random.Random(7)
    for _ in range(5):
        process = start(entry)
        time.sleep(generator.uniform(0.05, 1.2))
        process.send_signal(signal.SIGKILL)
        process.communicate()
        final = packages._final_path(entry)
        if final.exists():
            assert final.read_bytes() == CONTENT
            final.unlink()
    assert packages.fetch(entry).read_bytes() == CONTENT
    assert sorted(leftovers(cache)) == [entry.folder, f"{entry.folder}/m.gguf"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs user namespaces for a small file system")
def test_truly_full_disk(entry: CatalogueEntry, tmp_path: Path) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    command = 'mount -t tmpfs -o size=400k tmpfs "$0" && exec env STERNA_CACHE="$0/cache" "$@"'
    inner = [str(mount), sys.executable, "-c", SCRIPT, repr(entry)]
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-rm", "true"], check=False).returncode != 0:
        pytest.skip("no user namespaces here")
    shell = ["unshare", "-rm", "sh", "-c", command, *inner]
    process = subprocess.run(shell, capture_output=True, text=True, timeout=60, check=False)
    assert process.returncode == 1
    assert "no space left" in process.stderr.splitlines()[-1]


def test_catalogue_names_resolve_list_and_remove(
    entry: CatalogueEntry, cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def fake() -> Catalogue:
        return Catalogue("tiny:1m", {"tiny:1m": entry})

    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr("sterna.hub.catalogue.catalogue", fake)
    monkeypatch.setattr("sterna.hub.installed.catalogue", fake)
    monkeypatch.setattr("sterna.hub.repositories.hub_cache", lambda: tmp_path / "hf")
    with pytest.raises(DownloadError, match="not on this machine"):
        resolve("tiny:1m", offline=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DownloadError, match="not on this machine"):
        resolve("tiny:1m")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    found = resolve("tiny")
    assert (found.name, found.source, found.bytes, found.licence) == ("tiny:1m", "package", len(CONTENT), "MIT")
    assert [(model.name, model.bytes) for model in list_models()] == [("tiny:1m", len(CONTENT))]
    assert remove("tiny:1m") == len(CONTENT)
    assert list_models() == []
    assert leftovers(cache) == []
