"""The catalogue: short names such as `smollm2:135m`, read from models/catalogue.toml."""

from __future__ import annotations

import difflib
import importlib.util
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sterna.hub.names import RepositoryName, check_file_name


@dataclass(frozen=True)
class Package:
    """A Python package that carries a model or one part of it; `download_bytes` is the size of its wheel."""

    name: str
    version: str
    member: str
    download_bytes: int


@dataclass(frozen=True)
class CatalogueEntry:
    """One model of the catalogue; `bytes` and `sha256` are those of the GGUF file."""

    name: str
    title: str
    file: str
    bytes: int
    sha256: str
    licence: str
    packages: tuple[Package, ...] = ()
    repository: RepositoryName | None = None
    revision: str = "main"

    @property
    def folder(self) -> str:
        """Folder of the model below the cache: a new version of the file never meets an old one there."""
        return f"{self.name.replace(':', '-')}-{self.sha256[:12]}"


@dataclass(frozen=True)
class Catalogue:
    """All entries by name, and the name of the model that `sterna run` uses by itself."""

    default: str
    entries: dict[str, CatalogueEntry]

    def find(self, name: str) -> CatalogueEntry | None:
        """The entry called `name`; `family` alone finds `family:size` where there is only one of that family."""
        if name in self.entries:
            return self.entries[name]
        family = [entry for key, entry in self.entries.items() if key.split(":")[0] == name]
        return family[0] if len(family) == 1 else None

    def suggest(self, name: str) -> list[str]:
        """Names of the catalogue that `name` may have been meant to be."""
        return difflib.get_close_matches(name, self.entries, n=3, cutoff=0.6)


@cache
def catalogue() -> Catalogue:
    """The catalogue that was installed with sterna."""
    # Found by its spec: importing sterna.models would load every architecture.
    spec = importlib.util.find_spec("sterna.models")
    if spec is None or spec.origin is None:
        raise RuntimeError("sterna.models is not installed")
    return read_catalogue(Path(spec.origin).with_name("catalogue.toml"))


def read_catalogue(path: Path) -> Catalogue:
    """The catalogue in the TOML file `path`."""
    import tomllib

    with path.open("rb") as file:
        document = tomllib.load(file)
    return Catalogue(document["default"], {name: _entry(name, fields) for name, fields in document["models"].items()})


def _entry(name: str, fields: dict[str, Any]) -> CatalogueEntry:
    fields = dict(fields)
    packages = tuple(Package(**package) for package in fields.pop("packages", ()))
    repository = fields.pop("repository", None)
    check_file_name(fields["file"])
    return CatalogueEntry(
        name=name,
        packages=packages,
        repository=RepositoryName(repository, file=fields["file"]) if repository else None,
        **fields,
    )
