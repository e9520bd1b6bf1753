"""Stores each stage of an export under a key of all its inputs, so a run repeats only the stages that
changed.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from filelock import FileLock, Timeout
from pydantic import BaseModel

from model_export.files import check_folder, read_or_remove
from service.core.whole_files import write_whole

T = TypeVar("T")


class StageCache:
    """A folder of finished stages. Several exports may use it at once: each stage is made by one of them."""

    def __init__(self, folder: Path, say: Callable[[str], None] = lambda _line: None) -> None:
        """`say` shows the user a line. Raises GlyphrecError if the folder cannot be written."""
        self.folder = folder
        self._say = say
        check_folder(folder, "--cache")

    def path(self, stage: str, suffix: str, *inputs: Any) -> Path:
        """The file of `stage` for exactly these inputs. The inputs include the version of its code."""
        return self.folder / f"{stage}-{key_of(*inputs)}{suffix}"

    def get(self, path: Path, write: Callable[[Path], object], read: Callable[[Path], T]) -> T:
        """What `read` finds in the file of a stage.

        `write` makes the file if it is missing or damaged. If another process is making it, this one waits.
        """
        with self._lock(path):
            if path.exists() and (found := read_or_remove(path, read)) is not None:
                return found
            write_whole(path, write)
        return read(path)

    @contextmanager
    def _lock(self, path: Path) -> Iterator[None]:
        lock = FileLock(self.folder / f"{path.name}.lock")
        try:
            lock.acquire(blocking=False)
        except Timeout:
            self._say(f"      another export is making {path.name}; waiting for it")
            lock.acquire()
        try:
            yield
        finally:
            # Who waits for the removed file holds a lock that others do not see. It finds the finished stage.
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()


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
