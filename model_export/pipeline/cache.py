"""Each stage of an export is kept under a key of all that goes into it: a run repeats only what must be."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from service.core.whole_files import write_whole


class StageCache:
    """A folder of finished stages. A stage is written beside its name and then renamed: whole or absent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, stage: str, suffix: str, *inputs: Any) -> Path:
        """Where `stage` lies for exactly these inputs, the versions of the code that makes it among them."""
        return self.folder / f"{stage}-{key_of(*inputs)}{suffix}"

    def make(self, path: Path, write: Callable[[Path], None]) -> bool:
        """Have `write` make the file unless it is there. Returns whether it had to."""
        if path.exists():
            return False
        write_whole(path, write)
        return True


def key_of(*inputs: Any) -> str:
    """16 hex characters that are equal for equal inputs: arrays and files by content, dataclasses by value.

    Raises TypeError for anything else: a module, a class and a function have no value to compare. The VERSION
    of a stage stands for its code (versions.py).
    """
    digest = hashlib.sha256()
    for value in inputs:
        _feed(digest, value)
    return digest.hexdigest()[:16]


def _feed(digest: Any, value: Any) -> None:
    digest.update(f"<{type(value).__name__}>".encode())
    match value:
        case np.ndarray() if value.dtype != object:
            digest.update(f"{value.dtype}{value.shape}".encode())
            digest.update(np.ascontiguousarray(value).tobytes())
        case BaseModel():
            digest.update(value.model_dump_json().encode())
        case list() | tuple():
            for part in value:
                _feed(digest, part)
        case Path():
            with value.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        case None | bool() | int() | float() | str():
            digest.update(json.dumps(value).encode())
        case dict():
            for part in value.values():  # refuses what is no value
                _feed(hashlib.sha256(), part)
            digest.update(json.dumps(value, sort_keys=True).encode())
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            for field in dataclasses.fields(value):
                _feed(hashlib.sha256(), getattr(value, field.name))
            digest.update(repr(value).encode())  # the study's cells hold keys that are made so
        case _:
            raise TypeError(
                f"{value!r} cannot be part of a key, as nothing says when two of {type(value).__name__} are "
                "equal. Give plain values, arrays, dataclasses or files; for code, the VERSION of its stage."
            )
