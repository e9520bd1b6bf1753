"""Each stage of an export is kept under a key of all that goes into it: a run repeats only what must be."""

import dataclasses
import hashlib
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from pydantic import BaseModel


class StageCache:
    """A folder of finished stages. A stage is written beside its name and then renamed: whole or absent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, stage: str, suffix: str, *inputs: Any) -> Path:
        """Where `stage` lies for exactly these inputs. Modules among them stand for their source code."""
        return self.folder / f"{stage}-{key_of(*inputs)}{suffix}"

    def make(self, path: Path, write: Callable[[Path], None]) -> bool:
        """Have `write` make the file unless it is there. Returns whether it had to."""
        if path.exists():
            return False
        partial = path.with_name(f"partial-{path.name}")
        write(partial)
        partial.replace(path)
        return True


def key_of(*inputs: Any) -> str:
    """16 hex characters that are equal for equal inputs: arrays by content, dataclasses by value."""
    digest = hashlib.sha256()
    for value in inputs:
        _feed(digest, value)
    return digest.hexdigest()[:16]


def _feed(digest: Any, value: Any) -> None:
    digest.update(f"<{type(value).__name__}>".encode())
    if isinstance(value, np.ndarray):
        digest.update(f"{value.dtype}{value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, ModuleType):
        digest.update(inspect.getsource(value).encode())
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        digest.update(repr(value).encode())
    elif isinstance(value, BaseModel):
        digest.update(value.model_dump_json().encode())
    elif isinstance(value, (list, tuple)):
        for part in value:
            _feed(digest, part)
    elif isinstance(value, Path):
        with value.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    else:
        digest.update(json.dumps(value, sort_keys=True).encode())
