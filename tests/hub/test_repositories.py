"""Models from a hub: a small server on loopback, and sterna in processes that know it from their environment."""

from __future__ import annotations

import hashlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hub_server import HubServer, commit_of

CONTENT = random.Random(2).randbytes(700_000)
REPOSITORY = {"README.md": b"# A model", "m-Q4_K_M.gguf": CONTENT, "m-Q8_0.gguf": CONTENT[:5_000]}
SCRIPT = """
import sys
from sterna.errors import SternaError
from sterna.hub import resolve
try:
    found = resolve(sys.argv[1], refresh="refresh" in sys.argv)
except SternaError as error:
    print(type(error).__name__ + ":", error)
    sys.exit(1)
print(*found.files, sep="\\n")
"""


class Client:
    """Runs `resolve` against a server, with caches and token of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.hub_cache = folder / "hf" / "hub"
        self.environment = {**os.environ, "HF_HOME": str(folder / "hf"), "STERNA_CACHE": str(folder / "cache")}
        for name in ("HF_HUB_CACHE", "HF_TOKEN", "HF_HUB_OFFLINE"):
            self.environment.pop(name, None)
        self.environment |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DOWNLOAD_TIMEOUT": "3", "NO_PROXY": "127.0.0.1"}

    def start(self, server: HubServer | str, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        url = server if isinstance(server, str) else server.url
        command = [sys.executable, "-c", SCRIPT, *arguments]
        environment = {**self.environment, "HF_ENDPOINT": url, **environment}
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def resolve(self, server: HubServer | str, *arguments: str, **environment: str) -> list[Path]:
        process = self.start(server, *arguments, **environment)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, out + err
        return [Path(line) for line in out.splitlines()]

    def failure(self, server: HubServer | str, *arguments: str, **environment: str) -> str:
        """The one line of the error."""
        process = self.start(server, *arguments, **environment)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 1, out + err
        assert len(out.splitlines()) == 1, out
        return out.strip()

    def models(self) -> list[Path]:
        """Every file below the hub's cache that has a final name."""
        found = [path for path in self.hub_cache.rglob("*") if path.is_file() and path.suffix in (".gguf", "")]
        return [path for path in found if "refs" not in path.parts]


@pytest.fixture
def client(tmp_path: Path) -> Client:
    return Client(tmp_path)


def serve(**faults: Any) -> HubServer:
    return HubServer({"org/repo": dict(REPOSITORY)}, **faults)


@pytest.mark.parametrize(
    ("name", "file"),
    [("org/repo", "m-Q4_K_M.gguf"), ("org/repo:q8_0", "m-Q8_0.gguf"), ("org/repo/m-Q8_0.gguf", "m-Q8_0.gguf")],
)
def test_fetch_by_name(client: Client, name: str, file: str) -> None:
    with serve() as server:
        (path,) = client.resolve(server, name)
    assert path.read_bytes() == REPOSITORY[file]
    assert path == client.hub_cache / "models--org--repo" / "snapshots" / commit_of(REPOSITORY) / file
    assert path.resolve().name == hashlib.sha256(REPOSITORY[file]).hexdigest()


def test_cached_file_needs_no_server(client: Client) -> None:
    with serve() as server:
        first = client.resolve(server, "org/repo")
        requests = len(server.requests)
        assert client.resolve(server, "org/repo") == first
        assert len(server.requests) == requests
    assert client.resolve("http://127.0.0.1:9", "org/repo:Q4_K_M", HF_HUB_OFFLINE="1") == first


def test_huggingface_hub_finds_our_files(client: Client) -> None:
    with serve() as server:
        first = client.resolve(server, "org/repo")
    code = "from huggingface_hub import try_to_load_from_cache as t; print(t('org/repo', 'm-Q4_K_M.gguf'))"
    out = subprocess.check_output([sys.executable, "-c", code], env=client.environment, text=True)
    assert out.strip() == str(first[0])


def test_split_file_comes_whole(client: Client) -> None:
    files = {f"m-0000{i}-of-00003.gguf": CONTENT[i * 1000 : (i + 1) * 1000] for i in (1, 2, 3)}
    with HubServer({"org/repo": files}) as server:
        found = client.resolve(server, "org/repo/m-00002-of-00003.gguf")
    assert [path.name for path in found] == sorted(files)
    assert [path.read_bytes() for path in found] == [files[name] for name in sorted(files)]


def test_small_file_without_lfs(client: Client) -> None:
    with serve(git=True) as server:
        (path,) = client.resolve(server, "org/repo:Q8_0")
    assert path.read_bytes() == REPOSITORY["m-Q8_0.gguf"]


def test_connection_lost_is_resumed(client: Client) -> None:
    with serve(cut=200_000, cuts=2) as server:
        (path,) = client.resolve(server, "org/repo")
        ranges = [headers.get("range") for headers in server.downloads()]
        assert ranges == [None, "bytes=200000-", "bytes=400000-"]
        assert all("if-range" in headers for headers in server.downloads()[1:])
        assert len(CONTENT) <= server.sent < len(CONTENT) + 5_000  # the metadata, and no byte of the file twice
    assert path.read_bytes() == CONTENT


def test_killed_process_is_resumed(client: Client) -> None:
    with serve(cut=300_000, cuts=1_000) as server:
        process = client.start(server, "org/repo")
        deadline = time.monotonic() + 30
        while not any(path.stat().st_size for path in client.hub_cache.rglob("*.part")) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert client.models() == []
        server.faults["cuts"] = 0
        server.requests.clear()
        (path,) = client.resolve(server, "org/repo")
        assert server.downloads()[0]["range"].startswith("bytes=")
    assert path.read_bytes() == CONTENT
    assert not list(client.hub_cache.rglob("*.part*"))


@pytest.mark.parametrize(
    "fault", [{"no_range": True}, {"bad_range": True}, {"etag": '"changed"'}, {"etag": 'W/"weak"'}, {}]
)
def test_resume_that_cannot_be_trusted_starts_again(client: Client, fault: dict[str, Any]) -> None:
    with serve(**fault) as server:
        sha256 = hashlib.sha256(CONTENT).hexdigest()
        part = client.hub_cache / "models--org--repo" / "blobs" / f"{sha256}.part"
        part.parent.mkdir(parents=True)
        part.write_bytes(b"not a piece of it")
        part.with_name(part.name + ".etag").write_text(f'"{sha256}"')
        (path,) = client.resolve(server, "org/repo")
    assert path.read_bytes() == CONTENT


def test_overlong_part_starts_again(client: Client) -> None:
    with serve() as server:
        sha256 = hashlib.sha256(CONTENT).hexdigest()
        part = client.hub_cache / "models--org--repo" / "blobs" / f"{sha256}.part"
        part.parent.mkdir(parents=True)
        part.write_bytes(CONTENT + b"more")
        (path,) = client.resolve(server, "org/repo")
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ({"announce": {"m-Q4_K_M.gguf": "0" * 64}}, "is not what its server announced: sha256"),
        ({"html": True}, "is not what its server announced: sha256"),
        ({"announce": {"m-Q4_K_M.gguf": "../../x"}}, None),
        ({"status": 403}, "the server answers 403"),
        ({"status": 500}, "the server answers 500"),
        ({"cut": 0, "cuts": 1_000}, "ends after 0 of 700000"),
        ({"api_html": True}, "what answers there is no hub|cannot reach the hub"),
        ({"redirect": "file:///etc"}, "refusing the redirect|not allowed"),
        ({"redirect": "ftp://127.0.0.1"}, "refusing the redirect|not allowed"),
    ],
)
def test_faults_leave_no_model(client: Client, fault: dict[str, Any], message: str | None) -> None:
    with serve(**fault) as server:
        if message is None:  # the git checksum is what is left to trust
            assert client.resolve(server, "org/repo")[0].read_bytes() == CONTENT
            return
        line = client.failure(server, "org/repo")
    assert line.startswith("DownloadError: ")
    assert re.search(message, line), line
    assert client.models() == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("org/absent", "DownloadError: no repository org/absent"),
        ("org/repo/absent.gguf", "ArgumentError: org/repo has no file absent.gguf"),
        ("org/repo:Q2_K", "ArgumentError: org/repo has no model with the tag Q2_K"),
    ],
)
def test_missing(client: Client, name: str, message: str) -> None:
    with serve() as server:
        assert client.failure(server, name).startswith(message)
        assert server.downloads() == []


def test_unreachable_server(client: Client) -> None:
    assert "cannot reach the hub for org/repo" in client.failure("http://127.0.0.1:9", "org/repo")


def test_offline(client: Client) -> None:
    with serve() as server:
        line = client.failure(server, "org/repo", HF_HUB_OFFLINE="1")
        assert server.requests == []
    assert line.startswith("DownloadError: org/repo is not on this machine")


def test_unsafe_file_names_of_a_repository(client: Client) -> None:
    with HubServer({"org/repo": {"../../../evil.gguf": CONTENT}}) as server:
        assert "unsafe" in client.failure(server, "org/repo")
        assert server.downloads() == []
    assert not list(client.folder.rglob("evil.gguf"))


def test_token_stays_with_its_origin(client: Client) -> None:
    with serve() as storage, serve(redirect=storage.url) as server:
        (path,) = client.resolve(server, "org/repo", HF_TOKEN="hf_secret")
        assert server.downloads()[0]["authorization"] == "Bearer hf_secret"
        assert "authorization" not in storage.downloads()[0]
    assert path.read_bytes() == CONTENT


def test_redirect_loop_ends(client: Client) -> None:
    with serve() as server:
        server.faults["redirect"] = server.url
        assert "cannot fetch" in client.failure(server, "org/repo")


def test_new_commit_is_seen_on_refresh(client: Client) -> None:
    with serve() as server:
        (old,) = client.resolve(server, "org/repo")
        server.repositories["org/repo"]["m-Q4_K_M.gguf"] = CONTENT[::-1]
        assert client.resolve(server, "org/repo") == [old]
        (new,) = client.resolve(server, "org/repo", "refresh")
    assert old.read_bytes() == CONTENT
    assert new.read_bytes() == CONTENT[::-1]


def test_damaged_blob_of_another_program_is_replaced(client: Client) -> None:
    with serve() as server:
        (path,) = client.resolve(server, "org/repo")
        blob = path.resolve()
        blob.write_bytes(CONTENT[:-1] + b"!")
        os.utime(blob, ns=(1, 1))
        assert client.resolve(server, "org/repo") == [path]
    assert path.read_bytes() == CONTENT


def test_two_processes_fetch_once(client: Client) -> None:
    with serve() as server:
        running = [client.start(server, "org/repo"), client.start(server, "org/repo")]
        outputs = [process.communicate(timeout=60) for process in running]
        assert [process.returncode for process in running] == [0, 0], outputs
        assert len(server.downloads()) == 1
    assert outputs[0][0] == outputs[1][0]


def test_list_and_remove(client: Client) -> None:
    code = """
from sterna.hub.installed import list_models, remove
print([m.name for m in list_models()])
print(remove("org/repo:Q8_0"))
print([m.name for m in list_models()])
print(remove("org/repo"))
print(list_models())
"""
    with serve() as server:
        client.resolve(server, "org/repo")
        client.resolve(server, "org/repo:Q8_0")
    out = subprocess.check_output([sys.executable, "-c", code], env=client.environment, text=True).splitlines()
    assert out[0] == "['org/repo/m-Q4_K_M.gguf', 'org/repo/m-Q8_0.gguf']"
    assert out[1:] == ["5000", "['org/repo/m-Q4_K_M.gguf']", "700000", "[]"]
    assert client.models() == []
