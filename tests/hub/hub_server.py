"""A small hub on loopback for the tests: repositories in memory, and the faults that real servers show."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class HubServer:
    """Serves `repositories` ({"org/repo": {"file": bytes}}) as the hub's API does; `faults` change its behaviour.

    Of the metadata: `announce` {file: sha256}, `git` (files without LFS), `api_html` (a page instead). Of downloads: `cut`
    (bytes of a body before the connection closes) and `cuts` (how often), `no_range` (ignores Range), `bad_range` (206
    for another offset), `etag`, `extra` (bytes after the body), `html` (a page instead), `status` (a code for each),
    `redirect` (the base URL to go to).
    """

    def __init__(self, repositories: dict[str, dict[str, bytes]], **faults: Any) -> None:
        self.repositories = repositories
        self.faults = faults
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.sent = 0
        handler = type("Handler", (_Handler,), {"hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def downloads(self) -> list[dict[str, str]]:
        """Headers of the requests for files, in order."""
        return [headers for path, headers in self.requests if "/resolve/" in path]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> HubServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def commit_of(files: dict[str, bytes]) -> str:
    return hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:
        return

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.hub.requests.append((self.path, {name.lower(): value for name, value in self.headers.items()}))
        path = self.path.split("?")[0]
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            self._metadata(match[1])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._file(match[1], match[3])
        else:
            self._reply(404, b"")

    def _metadata(self, repository: str) -> None:
        if self.hub.faults.get("api_html"):
            return self._reply(200, b"<html>sign in to this network</html>", {"Content-Type": "text/html"})
        files = self.hub.repositories.get(repository)
        if files is None:
            return self._reply(404, b'{"error":"Repository not found"}', {"X-Error-Code": "RepoNotFound"})
        siblings = []
        for name, content in files.items():
            sha256 = self.hub.faults.get("announce", {}).get(name, hashlib.sha256(content).hexdigest())
            blob = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
            lfs = {"sha256": sha256, "size": len(content), "pointerSize": 130}
            sibling = {"rfilename": name, "size": len(content), "blobId": blob}
            siblings.append(sibling if self.hub.faults.get("git") else {**sibling, "lfs": lfs})
        body = {"id": repository, "modelId": repository, "sha": commit_of(files), "siblings": siblings}
        body |= {"private": False, "downloads": 0, "likes": 0, "tags": []}
        self._reply(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _file(self, repository: str, name: str) -> None:
        faults = self.hub.faults
        content = self.hub.repositories.get(repository, {}).get(name)
        if "redirect" in faults:
            return self._reply(302, b"", {"Location": faults["redirect"] + self.path})
        if content is None:
            return self._reply(404, b"", {"X-Error-Code": "EntryNotFound"})
        if "status" in faults:
            return self._reply(faults["status"], b"")
        if faults.get("html"):
            content = b"<!doctype html><title>Not a model</title>".ljust(len(content))
        etag = faults.get("etag", '"' + hashlib.sha256(content).hexdigest() + '"')
        headers, start, code = {"ETag": etag, "Accept-Ranges": "bytes"}, 0, 200
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if match and not faults.get("no_range") and self.headers.get("If-Range", etag) == etag:
            start, code = int(match[1]), 206
            if faults.get("bad_range"):
                start = max(0, start - 7)
            if start >= len(content):
                return self._reply(416, b"")
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        body, cut = content[start:] + faults.get("extra", b""), None
        if faults.get("cuts", 0) > 0:
            faults["cuts"] -= 1
            cut = faults["cut"]
        self._reply(code, body, headers, cut)

    def _reply(self, code: int, body: bytes, headers: dict[str, str] | None = None, cut: int | None = None) -> None:
        self.send_response(code)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        sent = body if cut is None else body[:cut]
        try:
            self.wfile.write(sent)
            self.wfile.flush()
        except OSError:
            self.close_connection = True
        self.hub.sent += len(sent)
        if cut is not None:
            self.close_connection = True
