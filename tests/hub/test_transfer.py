"""One download at a time: lengths that lie, pieces that are wrong, and a disk that is full."""

from __future__ import annotations

import errno
import hashlib
import os
import random
from pathlib import Path

import pytest
from hub_server import HubServer
from sterna.errors import DownloadError
from sterna.hub import transfer
from sterna.hub.transfer import Checksum, Source, download

CONTENT = random.Random(3).randbytes(400_000)


def source_of(server: HubServer, size: int = len(CONTENT)) -> Source:
    checksum = Checksum("sha256", hashlib.sha256(CONTENT).hexdigest())
    return Source("org/repo/m.gguf", server.url + "/org/repo/resolve/main/m.gguf", size, checksum)


def serve(**faults: object) -> HubServer:
    return HubServer({"org/repo": {"m.gguf": CONTENT}}, **faults)


def test_progress_and_nothing_left_over(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int | None]] = []
    with serve() as server:
        download(source_of(server), tmp_path / "m", progress=lambda *event: seen.append(event), timeout=5)
    assert (tmp_path / "m").read_bytes() == CONTENT
    assert [path.name for path in tmp_path.iterdir()] == ["m"]
    assert {stage for stage, _, _ in seen} == {"download", "verify"}
    assert seen[-1] == ("verify", len(CONTENT), len(CONTENT))


@pytest.mark.parametrize(("extra", "size"), [(b"more", len(CONTENT)), (b"", len(CONTENT) - 1)])
def test_longer_than_announced(tmp_path: Path, extra: bytes, size: int) -> None:
    with serve(extra=extra) as server, pytest.raises(DownloadError, match=r"the server sends|longer than"):
        download(source_of(server, size), tmp_path / "m", timeout=5)
    assert not (tmp_path / "m").exists()


def test_shorter_than_announced(tmp_path: Path) -> None:
    with serve() as server, pytest.raises(DownloadError, match="ends after 400000 of 400001"):
        download(source_of(server, len(CONTENT) + 1), tmp_path / "m", timeout=5)
    assert not (tmp_path / "m").exists()


def test_whole_but_wrong_piece_is_fetched_again(tmp_path: Path) -> None:
    (tmp_path / "m.part").write_bytes(CONTENT[::-1])
    (tmp_path / "m.part.etag").write_text('"any"')
    with serve() as server:
        download(source_of(server), tmp_path / "m", timeout=5)
    assert (tmp_path / "m").read_bytes() == CONTENT


def test_symlink_in_place_of_the_piece(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("keep")
    (tmp_path / "m.part").symlink_to(tmp_path / "precious")
    with serve() as server, pytest.raises(DownloadError, match="cannot write"):
        download(source_of(server), tmp_path / "m", timeout=5)
    assert (tmp_path / "precious").read_text() == "keep"


def test_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(transfer, "sync", full)
    with serve() as server, pytest.raises(DownloadError, match=r"no space left for org/repo/m\.gguf"):
        download(source_of(server), tmp_path / "m", timeout=5)
    assert list(tmp_path.iterdir()) == []


def test_silent_server(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/x"
        source = Source("m", url, 1, Checksum("sha256", "0" * 64))
        with pytest.raises(DownloadError, match=r"cannot fetch m: .*timed out"):
            download(source, tmp_path / "m", timeout=0.2)
