"""The files of an export: whether they can be written, before hours of work, and whether they are whole."""

import os
import pickle
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from service.core.progress import ProgressBar
from service.errors import GlyphrecError

T = TypeVar("T")

# What numpy and torch raise for a file that was cut, or that holds objects of an earlier release.
DAMAGED = (
    AttributeError, EOFError, ImportError, KeyError, OSError, RuntimeError, ValueError,
    pickle.UnpicklingError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip


def check_folder(folder: Path, option: str) -> None:
    """Make the folder and try to write a file in it. Raises GlyphrecError that names the option."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"\0")
    except OSError as error:
        raise _not_writable(option, folder, error, "folder") from None


def check_file(path: Path, option: str) -> None:
    """Try whether the file can be written. Its folder is made. Raises GlyphrecError that names the option."""
    check_folder(path.parent, option)
    if path.is_dir():
        raise GlyphrecError(f"{option} {path}: is a folder. Give the name of a file.")
    if path.exists() and not os.access(path, os.W_OK):
        raise _not_writable(option, path, PermissionError(0, "may not be written"), "file")


def read_or_remove(path: Path, read: Callable[[Path], T]) -> T | None:
    """What `read` finds in a file that can be made again. A damaged file is removed, and None is returned."""
    try:
        return read(path)
    except DAMAGED as error:
        ProgressBar.write(f"{path}: damaged ({type(error).__name__}), so it is made again", file=sys.stderr)
        path.unlink(missing_ok=True)
        return None


def _not_writable(option: str, path: Path, error: OSError, kind: str) -> GlyphrecError:
    return GlyphrecError(
        f"{option} {path}: cannot be written ({error.strerror or error}). Choose another {kind}."
    )
