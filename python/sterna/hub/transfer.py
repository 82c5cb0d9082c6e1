"""One file over HTTP: resumed where that is safe, credentials kept to their origin, verified before it has a name."""

from __future__ import annotations

import email.message
import hashlib
import http.client
import ipaddress
import os
import socket
import ssl
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, BinaryIO
from urllib.parse import urlsplit

from sterna.errors import DownloadError
from sterna.hub.cache import Progress, disk_error, open_part, publish, read_chunks, sync

_CHUNK = 1 << 18
_TIMEOUT_SECONDS = 30.0
_ATTEMPTS_WITHOUT_PROGRESS = 4


@dataclass(frozen=True)
class Checksum:
    """What a file's bytes must hash to: `sha256`, or `git` for the SHA-1 of a git blob with its header."""

    algorithm: str
    value: str

    def of(self, file: BinaryIO, size: int, progress: Progress | None = None) -> str:
        """The checksum of the rest of `file`, which has `size` bytes, by this algorithm."""
        if self.algorithm == "sha256":
            digest = hashlib.sha256()
        else:
            digest = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
        done = 0
        for chunk in read_chunks(file):
            digest.update(chunk)
            done += len(chunk)
            if progress is not None:
                progress("verify", done, size)
        return digest.hexdigest()


@dataclass(frozen=True)
class Source:
    """A file on a server: `name` is for messages, `headers` (with credentials) go to the URL's own origin only."""

    name: str
    url: str
    size: int
    checksum: Checksum
    headers: dict[str, str] = field(default_factory=dict)


def download(source: Source, final: Path, *, progress: Progress | None = None, timeout: float | None = None) -> Path:
    """Fetches `source` to `final`, which exists only once the checksum is right.

    An unfinished file stays beside it as `.part` with the server's ETag and is resumed by the next call if the server
    still has the same. `timeout` is in seconds for each connection and read; HF_HUB_DOWNLOAD_TIMEOUT and then 30 s are
    the default. The caller holds a lock on `final`. DownloadError says in one line what went wrong.
    """
    part = final.with_name(final.name + ".part")
    seconds = timeout or float(os.environ.get("HF_HUB_DOWNLOAD_TIMEOUT") or _TIMEOUT_SECONDS)
    try:
        resumed = _transfer(source, part, progress, seconds)
        actual = _hash(source, part, progress)
        if actual != source.checksum.value and resumed:
            # The earlier piece may be the bad one: once more, from the start.
            part.unlink()
            _transfer(source, part, progress, seconds)
            actual = _hash(source, part, progress)
        if actual != source.checksum.value:
            _discard(part)
            raise DownloadError(
                f"{source.name} is not what its server announced: "
                f"{source.checksum.algorithm} {actual} instead of {source.checksum.value}"
            )
        publish(part, final)
        _etag_file(part).unlink(missing_ok=True)
    except DownloadError:
        raise
    except OSError as error:
        _discard(part)
        raise disk_error(source.name, final.parent, error, source.size) from error
    return final


def _first_line(text: object) -> str:
    return (str(text).splitlines() or [""])[0]


def _discard(part: Path) -> None:
    part.unlink(missing_ok=True)
    _etag_file(part).unlink(missing_ok=True)


def _etag_file(part: Path) -> Path:
    return part.with_name(part.name + ".etag")


def _hash(source: Source, part: Path, progress: Progress | None) -> str:
    with part.open("rb") as file:
        return source.checksum.of(file, source.size, progress)


def _transfer(source: Source, part: Path, progress: Progress | None, timeout: float) -> bool:
    """Brings `part` to its full length; whether any of it is from an earlier call."""
    furthest = failures = 0
    with open_part(part, keep=True) as file:
        earlier = file.tell()
        while True:
            problem: object = None
            try:
                earlier = min(earlier, _receive(source, file, _etag_file(part), progress, timeout))
            except urllib.error.HTTPError as error:
                raise DownloadError(
                    f"cannot fetch {source.name}: the server answers {error.code} {_first_line(error.msg)}"
                ) from None
            except (
                urllib.error.URLError,
                http.client.HTTPException,
                ConnectionError,
                TimeoutError,
                ssl.SSLError,
            ) as error:
                problem = error.reason if isinstance(error, urllib.error.URLError) else error
                problem = _first_line(problem) or type(error).__name__
            if file.tell() == source.size:
                sync(file)
                return earlier > 0
            # Only what goes beyond every earlier attempt is progress: a server may send the same piece for ever.
            failures = 1 if file.tell() > furthest else failures + 1
            furthest = max(furthest, file.tell())
            if failures >= _ATTEMPTS_WITHOUT_PROGRESS:
                reason = problem or f"it ends after {furthest} of {source.size} bytes"
                raise DownloadError(f"cannot fetch {source.name}: {reason}")
            time.sleep(0.1 * 2**failures)


def _receive(source: Source, file: BinaryIO, etag_file: Path, progress: Progress | None, timeout: float) -> int:
    """One request, appended to `file`; the offset that it continued from (0: from the start)."""
    offset = file.tell()
    etag = _read_etag(etag_file)
    if offset > source.size or (offset and not etag):
        _restart(file)
        offset = 0
    if offset == source.size:
        return offset
    headers = {**source.headers, "Accept-Encoding": "identity", "User-Agent": "sterna"}
    if offset:
        headers |= {"Range": f"bytes={offset}-", "If-Range": etag}
    try:
        response = _open(source.url, headers, timeout)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not offset:
            raise
        _restart(file)  # what we have is not a piece of what the server has
        return 0
    with response:
        if offset and not _continues(response, offset, source.size):
            _restart(file)
            offset = 0
            if response.status == 206:
                return 0
        length = response.headers.get("Content-Length", "")
        if length.isdigit() and offset + int(length) > source.size:
            raise DownloadError(
                f"{source.name} should have {source.size} bytes, the server sends {offset + int(length)}"
            )
        if offset == 0:
            _write_etag(etag_file, response.headers.get("ETag"))
        while chunk := response.read1(_CHUNK):
            if file.tell() + len(chunk) > source.size:
                raise DownloadError(f"{source.name} is longer than the {source.size} bytes it should have")
            file.write(chunk)
            if progress is not None:
                progress("download", file.tell(), source.size)
    return offset


def _restart(file: BinaryIO) -> None:
    file.seek(0)
    file.truncate(0)


def _continues(response: http.client.HTTPResponse, offset: int, size: int) -> bool:
    if response.status != 206:
        return False
    return response.headers.get("Content-Range", "").replace(" ", "") == f"bytes{offset}-{size - 1}/{size}"


def _read_etag(path: Path) -> str:
    try:
        return path.read_text("ascii")
    except (OSError, ValueError):
        return ""


def _write_etag(path: Path, etag: str | None) -> None:
    # A weak ETag promises the same meaning, not the same bytes: no base for a resume.
    if etag and etag.startswith('"') and etag.isascii():
        path.write_text(etag, "ascii")
    else:
        path.unlink(missing_ok=True)


def _open(url: str, headers: dict[str, str], timeout: float) -> http.client.HTTPResponse:
    if urlsplit(url).scheme not in ("http", "https"):
        raise DownloadError(f"refusing the address {url!r}: neither http nor https")
    opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=_tls_context()), _Redirects(url))
    return opener.open(urllib.request.Request(url, headers=headers), timeout=timeout)  # type: ignore[no-any-return]


def _tls_context() -> ssl.SSLContext:
    context = ssl.create_default_context()
    if not context.cert_store_stats()["x509_ca"] and "SSL_CERT_FILE" not in os.environ:
        # Some builds of Python find no certificates of their own; huggingface-hub's HTTP client brings these.
        import certifi

        context.load_verify_locations(certifi.where())
    return context


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects by Rule L: no credentials to another origin, no step down to http, none into private nets."""

    max_redirections = 5

    def __init__(self, start: str) -> None:
        self.start = start

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: email.message.Message,
        newurl: str,
    ) -> urllib.request.Request | None:
        check_redirect(self.start, newurl)
        request = super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]
        if request is not None and origin(newurl) != origin(req.full_url):
            for name in list(request.headers):
                if name.lower() not in ("range", "if-range", "accept-encoding", "user-agent"):
                    request.remove_header(name)
        return request


def origin(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port of `url`: credentials for one origin go to no other."""
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or {"http": 80, "https": 443}.get(parts.scheme)


def check_redirect(start: str, target: str) -> None:
    """DownloadError if a download from `start` must not be led to `target`.

    A hub that is itself reached over http, or lies in a private network, may name its like.
    """
    try:
        scheme, host, port = origin(target)
    except ValueError:
        raise DownloadError(f"refusing the redirect to {target!r}: not an address") from None
    if scheme != "https" and not (scheme == "http" and urlsplit(start).scheme == "http"):
        raise DownloadError(f"refusing the redirect to {target!r}: not https")
    if not host or (_is_private(host, port) and not _is_private(*origin(start)[1:])):
        raise DownloadError(f"refusing the redirect to {target!r}: an address in a private network")


def _is_private(host: str, port: int | None) -> bool:
    try:
        addresses: list[Any] = [entry[4][0] for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError):
        return False  # resolves to nothing, or only at a proxy: the connection itself will tell
    return any(not ipaddress.ip_address(str(address).split("%")[0]).is_global for address in addresses)
