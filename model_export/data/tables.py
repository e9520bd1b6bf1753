"""Read a dataset from a named source or from a folder in the neutral form (neutral.py). A source is one of:

completejourney[:FOLDER]        movielens-100k[:FOLDER]        amazon:REVIEWS,METADATA[,CORE]        FOLDER
"""

import os.path
from collections.abc import Callable
from pathlib import Path

from model_export.data.amazon import DEFAULT_CORE, read_amazon
from model_export.data.completejourney import read_complete_journey
from model_export.data.dataset import DataError, Dataset
from model_export.data.movielens import read_movielens
from model_export.data.neutral import (
    INTERACTIONS_FILE,
    ITEMS_FILE,
    read_folder,
    read_items,
    write_dataset,
)

__all__ = ["SOURCES", "DataError", "Dataset", "check_apart", "read_dataset", "read_items", "write_dataset"]


def _amazon(argument: str) -> Dataset:
    parts = argument.split(",")
    if len(parts) == 2:
        parts.append(str(DEFAULT_CORE))
    if len(parts) != 3 or not all(parts) or not parts[2].isdecimal() or int(parts[2]) < 1:
        raise DataError(
            f"amazon:{argument}: not a valid source. Write amazon:REVIEWS,METADATA. For another core than "
            f"{DEFAULT_CORE}, write amazon:REVIEWS,METADATA,CORE."
        )
    return read_amazon(Path(parts[0]), Path(parts[1]), int(parts[2]))


# Each reads a source from the text after its colon, which may be empty.
SOURCES: dict[str, Callable[[str], Dataset]] = {
    "completejourney": lambda folder: read_complete_journey(Path(folder) if folder else None),
    "movielens-100k": lambda folder: read_movielens(Path(folder) if folder else None),
    "amazon": _amazon,
}


def read_dataset(source: str) -> Dataset:
    """Read a source. Write ./NAME for a folder that has the name of a source.

    Raises DataError with the file, the line and a remedy. The result's `summary()` says what was left out.
    """
    name, _, argument = source.partition(":")
    if name in SOURCES:
        return SOURCES[name](argument)
    if not os.path.exists(source):
        known = ", ".join(SOURCES)
        raise DataError(f"{source}: no such folder or source. Give a folder, or one of {known}.")
    return read_folder(Path(source))


def check_apart(source: str, out: Path) -> None:
    """Raise DataError if writing the neutral form to `out` would replace files that `source` names."""
    written = [path for path in (out / ITEMS_FILE, out / INTERACTIONS_FILE) if path.exists()]
    named = [Path(source), *map(Path, source.partition(":")[2].split(","))]
    for path in filter(os.path.exists, named):
        if any(os.path.samefile(path, each) or os.path.samefile(path, out) for each in written):
            raise DataError(f"--out {out}: holds the data that are read from. Choose another folder.")
