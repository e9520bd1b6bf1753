"""Stores each stage of an export under a key of all its inputs, so a run repeats only the stages that
changed.
"""

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
    """A folder of finished stages. A stage is written under a temporary name and then renamed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, stage: str, suffix: str, *inputs: Any) -> Path:
        """The file of `stage` for exactly these inputs. The inputs include the version of its code."""
        return self.folder / f"{stage}-{key_of(*inputs)}{suffix}"

    def make(self, path: Path, write: Callable[[Path], None]) -> bool:
        """Call `write` to make the file, unless the file exists. Returns whether `write` was called."""
        if path.exists():
            return False
        write_whole(path, write)
        return True


def key_of(*inputs: Any) -> str:
    """A hash of the inputs: 16 hex characters, equal for equal inputs.

    Arrays and files count by their content, and dataclasses by their value. Code has no value to compare, so
    the VERSION of a stage stands for its code (versions.py). Raises TypeError for a module, a class, a
    function and anything else without a value.
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
            for part in value.values():  # raises TypeError for a part without a value
                _feed(hashlib.sha256(), part)
            digest.update(json.dumps(value, sort_keys=True).encode())
        case _ if dataclasses.is_dataclass(value) and not isinstance(value, type):
            for field in dataclasses.fields(value):
                _feed(hashlib.sha256(), getattr(value, field.name))
            digest.update(repr(value).encode())  # the keys of the study's stored cells were made in this way
        case _:
            raise TypeError(
                f"{value!r} cannot be part of a key, because there is no rule for when two values of type "
                f"{type(value).__name__} are equal. Give plain values, arrays, dataclasses or files. For "
                "code, give the VERSION of its stage."
            )
