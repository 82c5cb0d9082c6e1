"""A model repository as Hugging Face lays it out: JSON files with typed reads, and the tensors of all its shards."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn

from sterna.conversion.files import read_file
from sterna.conversion.safetensors import SafetensorsFile, StoredTensor
from sterna.errors import FileError, ModelFormatError, UnsupportedModelError
from sterna.typed_reads import TypedReads, shown

_MAX_JSON_BYTES = 64 << 20  # the largest tokenizers have half of it
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


class JsonFile(TypedReads):
    """One JSON object with typed, range-checked reads. Errors name the file, the key and the value."""

    # The normal numbers of float32.
    smallest = math.nextafter(2.0**-126, 0.0)
    largest = 2.0**128 - 2.0**104

    def __init__(self, path: Path, values: dict[str, Any], prefix: str = "") -> None:
        self.path = path
        self.values = values
        self._prefix = prefix

    @classmethod
    def read(cls, path: Path) -> JsonFile:
        """FileError where there is none, ModelFormatError where it holds no JSON object."""
        data = read_file(path, _MAX_JSON_BYTES)
        try:
            values = json.loads(data.decode("utf-8"))
            if b"\\ud" in data or b"\\uD" in data:
                json.dumps(values, ensure_ascii=False).encode()  # half of a surrogate pair is no text
        except (ValueError, RecursionError) as error:
            raise ModelFormatError(f"{path}: is not JSON ({error})", str(path)) from None
        if not isinstance(values, dict):
            raise ModelFormatError(f"{path}: is not a JSON object", str(path))
        return cls(path, values)

    def key(self, name: str) -> str:
        """The key as messages name it, with the objects around it."""
        return f"{self._prefix}{name if len(name) <= 80 else shown(name)}"

    def fail(self, name: str, problem: str) -> NoReturn:
        raise ModelFormatError(f"{self.path}: {self.key(name)} {problem}", str(self.path), self.key(name))

    def unsupported(self, name: str, why: str) -> NoReturn:
        """UnsupportedModelError about the value of a key."""
        raise UnsupportedModelError(f"{self.path}: {self.key(name)} is {shown(self.values.get(name))}: {why}")

    def has(self, name: str) -> bool:
        """Whether there is a value, null not counted."""
        return self.values.get(name) is not None

    def value(self, name: str) -> Any:
        return self.values.get(name)

    def items(self, name: str) -> list[Any]:
        """A list; empty where there is none."""
        value = self.value_or(name, [])
        if not isinstance(value, list):
            self.fail(name, f"is {shown(value)}, expected a list")
        return value

    def object(self, name: str) -> JsonFile | None:
        """The object below a key, with the same reads; None where there is none."""
        value = self.values.get(name)
        if value is None:
            return None
        if not isinstance(value, dict):
            self.fail(name, f"is {shown(value)}, expected an object")
        return JsonFile(self.path, value, f"{self.key(name)}.")


class Repository:
    """A folder with config.json and safetensors files; close it, or use it in a `with` block.

    FileError, ModelFormatError; UnsupportedModelError where the weights are in another kind of file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files: dict[str, SafetensorsFile] = {}
        if not folder.is_dir():
            raise FileError(f"{folder}: is no folder", str(folder))
        self.config = JsonFile.read(folder / "config.json")
        try:
            self.tensors = self._open_tensors()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Repository:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()

    def json(self, name: str) -> JsonFile | None:
        """A JSON file of the folder; None where there is none."""
        path = self.folder / name
        return JsonFile.read(path) if path.is_file() else None

    def tensor(self, name: str) -> StoredTensor:
        """The tensor of that name. ModelFormatError where there is none."""
        found = self.tensors.get(name)
        if found is None:
            raise ModelFormatError(f"{self.folder}: tensor {name} is missing", str(self.folder), name)
        return found

    def _open_tensors(self) -> dict[str, StoredTensor]:
        if (self.folder / _SINGLE).is_file():
            return dict(self._open(_SINGLE).tensors)
        index = self.json(_INDEX)
        if index is None:
            others = sorted(path.name for path in self.folder.glob("*") if path.suffix in (".bin", ".pt", ".pth"))
            if others:
                raise UnsupportedModelError(
                    f"{self.folder}: no {_SINGLE}; the weights are in {others[0]}, a pickle, which can run code: "
                    "save them as safetensors first"
                )
            raise FileError(f"{self.folder / _SINGLE}: there is no such file", str(self.folder / _SINGLE))
        places = index.object("weight_map")
        if places is None:
            index.fail("weight_map", "is missing")
        found = {}
        for name in places.values:
            shard = places.text(name)
            if shard != Path(shard).name or shard in ("", ".", "..") or "\0" in shard:
                places.fail(name, f"is {shown(shard)}, expected the name of a file beside it")
            tensor = self._open(shard).tensors.get(name)
            if tensor is None:
                places.fail(name, f"says {shard}, which has no such tensor")
            found[name] = tensor
        return found

    def _open(self, name: str) -> SafetensorsFile:
        if name not in self._files:
            self._files[name] = SafetensorsFile(self.folder / name)
        return self._files[name]
