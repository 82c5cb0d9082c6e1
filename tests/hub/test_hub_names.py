"""Names of models and of files: what they mean, and which are refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from sterna.errors import ArgumentError, DownloadError, FileError
from sterna.hub import catalogue as catalogue_module
from sterna.hub import is_model_name, resolve
from sterna.hub.catalogue import catalogue
from sterna.hub.names import (
    RepositoryName,
    check_file_name,
    check_relative_path,
    choose_files,
    looks_like_path,
    parse_repository_name,
    split_shard,
)
from sterna.hub.transfer import check_redirect


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("org/repo", RepositoryName("org/repo")),
        ("org/repo:Q4_K_M", RepositoryName("org/repo", tag="Q4_K_M")),
        ("org/repo/file.gguf", RepositoryName("org/repo", file="file.gguf")),
        ("org/repo/sub/file.gguf", RepositoryName("org/repo", file="sub/file.gguf")),
        ("org", None),
        ("org/repo:", None),
        ("org/repo/file.bin", None),
        ("org/repo?x", None),
        ("what is 1/2", None),
        ("../repo", None),
        ("org/..", None),
    ],
)
def test_repository_names(text: str, expected: RepositoryName | None) -> None:
    assert parse_repository_name(text) == expected
    if expected is not None:
        assert str(expected) == text


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a/b",
        "a\\b",
        "C:x",
        "a\0b",
        "a\nb",
        "NUL",
        "nul.gguf",
        "Com1.gguf",
        "lpt9",
        "aux .gguf",
        "x" * 256,
    ]
    + [f"a{character}" for character in '. :*?|<>"'],
)
def test_unsafe_file_names_are_refused(name: str) -> None:
    with pytest.raises(DownloadError, match="unsafe"):
        check_file_name(name)


@pytest.mark.parametrize("path", ["../x.gguf", "/x.gguf", "a//x.gguf", "a/../x.gguf", "\\\\host\\x.gguf", "C:/x.gguf"])
def test_unsafe_paths_are_refused(path: str) -> None:
    with pytest.raises(DownloadError, match="unsafe"):
        check_relative_path(path)
    with pytest.raises(DownloadError, match="unsafe"):
        check_relative_path("a/" + path)


def test_safe_names_pass() -> None:
    for name in ("model.gguf", "a-b_c.Q4_K_M.gguf", "console.gguf", "commit.gguf", "モデル.gguf"):
        assert check_file_name(name) == name


def test_paths_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert not looks_like_path("org/repo")
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "repo").touch()
    assert looks_like_path("org/repo")
    assert looks_like_path("model.gguf")
    assert looks_like_path("folder/model.gguf")
    assert not looks_like_path("org/repo/model.gguf")
    assert not looks_like_path("x" * 10_000)
    assert not looks_like_path("a\0b")


def test_lone_argument_of_run() -> None:
    for model in ("model.gguf", "smollm2:135m", "smollm2", "org/repo", "org/repo:Q4_0", "org/repo/x.gguf", "./x"):
        assert is_model_name(model), model
    for prompt in ("Hello", "Why is the sky blue?", "use and/or here", "", "gemma3:9b", "What is x.py?"):
        assert not is_model_name(prompt), prompt


def test_shards() -> None:
    assert split_shard("m-00002-of-00003.gguf") == ("m.gguf", 2, 3)
    assert split_shard("m-00004-of-00003.gguf") is None
    assert split_shard("m.gguf") is None


FILES = [
    "README.md",
    "m-Q4_K_M.gguf",
    "m-Q8_0.gguf",
    "m.IQ4_XS.gguf",
    "mmproj-F16.gguf",
    "big/m-F16-00001-of-00002.gguf",
    "big/m-F16-00002-of-00002.gguf",
]


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("o/r", ["m-Q4_K_M.gguf"]),
        ("o/r:q8_0", ["m-Q8_0.gguf"]),
        ("o/r:IQ4_XS", ["m.IQ4_XS.gguf"]),
        ("o/r:F16", ["big/m-F16-00001-of-00002.gguf", "big/m-F16-00002-of-00002.gguf"]),
        ("o/r/big/m-F16-00001-of-00002.gguf", ["big/m-F16-00001-of-00002.gguf", "big/m-F16-00002-of-00002.gguf"]),
        ("o/r/mmproj-F16.gguf", ["mmproj-F16.gguf"]),
    ],
)
def test_choice_of_a_file(name: str, chosen: list[str]) -> None:
    wanted = parse_repository_name(name)
    assert wanted is not None
    assert choose_files(FILES, wanted) == chosen


@pytest.mark.parametrize(
    ("files", "name", "message"),
    [
        (FILES, "o/r:Q4", "no model with the tag Q4; it has"),
        (FILES, "o/r/x.gguf", "no file x.gguf"),
        (["README.md"], "o/r", "no GGUF file"),
        (["a-Q8_0.gguf", "b-Q8_0.gguf"], "o/r:Q8_0", "fits several models.*a-Q8_0.gguf, b-Q8_0.gguf"),
        (["m-00001-of-00002.gguf"], "o/r", "lacks part 2 of 2"),
    ],
)
def test_no_clear_choice(files: list[str], name: str, message: str) -> None:
    wanted = parse_repository_name(name)
    assert wanted is not None
    with pytest.raises((ArgumentError, DownloadError), match=message):
        choose_files(files, wanted)


def test_catalogue_is_complete() -> None:
    entries = catalogue().entries
    assert catalogue().default == "smollm2:135m"
    assert {"smollm2:135m", "gemma3:270m"} <= set(entries)
    for entry in entries.values():
        assert len(entry.sha256) == 64
        assert entry.bytes > 0
        assert entry.licence
        assert entry.packages or entry.repository


def test_catalogue_reads_repositories(tmp_path: Path) -> None:
    path = tmp_path / "catalogue.toml"
    path.write_text(
        'default = "a:1b"\n[models."a:1b"]\ntitle = "A"\nfile = "a.gguf"\nbytes = 3\nsha256 = "00"\nlicence = "MIT"\n'
        'repository = "org/repo"\nrevision = "v1"\n'
    )
    entry = catalogue_module.read_catalogue(path).entries["a:1b"]
    assert entry.repository == RepositoryName("org/repo", file="a.gguf")
    assert (entry.revision, entry.packages) == ("v1", ())


def test_resolve_of_paths(tmp_path: Path) -> None:
    for name in ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf", "other.gguf"):
        (tmp_path / name).write_bytes(b"1234")
    found = resolve(tmp_path / "m-00001-of-00002.gguf")
    assert (found.source, len(found.files), found.bytes) == ("path", 2, 8)
    with pytest.raises(FileError, match="no such file"):
        resolve(str(tmp_path / "absent.gguf"))
    with pytest.raises(OSError, match="no such file"):
        resolve("absent.gguf")


def test_unknown_name_suggests() -> None:
    with pytest.raises(ArgumentError, match="did you mean smollm2:135m"):
        resolve("smolm2:135m")


@pytest.mark.parametrize(
    ("start", "target"),
    [
        ("https://hub.example", "http://cdn.example/x"),
        ("https://93.184.216.34", "https://127.0.0.1/x"),
        ("https://93.184.216.34", "https://10.0.0.1/x"),
        ("https://93.184.216.34", "https://[::1]/x"),
        ("https://93.184.216.34", "https://169.254.169.254/latest"),
        ("https://93.184.216.34", "https://2130706433/x"),
        ("https://93.184.216.34", "file:///etc/passwd"),
        ("https://93.184.216.34", "https://x:port/x"),
        ("https://93.184.216.34", "https:///x"),
    ],
)
def test_redirects_refused(start: str, target: str) -> None:
    with pytest.raises(DownloadError, match="refusing the redirect"):
        check_redirect(start, target)


def test_redirects_allowed() -> None:
    check_redirect("https://93.184.216.34", "https://93.184.216.35/x")
    check_redirect("http://127.0.0.1:1", "http://127.0.0.1:2/x")
