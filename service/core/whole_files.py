"""A file is written beside its name and then renamed, so that under its name it is whole or absent."""

import os
from collections.abc import Callable
from pathlib import Path


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` make the file under another name in the same folder, and rename it to `path`.

    That name ends in .partial, and no other process uses it: of several writers, the last one wins. If
    `write` fails, the file is removed, and an older file stays as it was.
    """
    partial = path.with_name(f"{path.name}.{os.getpid()}-{os.urandom(4).hex()}.partial")
    try:
        write(partial)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    partial.replace(path)
