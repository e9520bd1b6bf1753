"""Where data comes from: a source's name, or a folder in the neutral form, becomes a Dataset.

completejourney[:FOLDER]        movielens-100k[:FOLDER]        amazon:REVIEWS,METADATA[,CORE]        FOLDER
"""

import os.path
from collections.abc import Callable
from pathlib import Path

from model_export.data.amazon import DEFAULT_CORE, read_amazon
from model_export.data.completejourney import read_complete_journey
from model_export.data.dataset import DataError, Dataset
from model_export.data.movielens import read_movielens
from model_export.data.neutral import read_folder, read_items, write_dataset

__all__ = ["SOURCES", "DataError", "Dataset", "read_dataset", "read_items", "write_dataset"]


def _amazon(argument: str) -> Dataset:
    parts = argument.split(",")
    if len(parts) == 2:
        parts.append(str(DEFAULT_CORE))
    if len(parts) != 3 or not all(parts) or not parts[2].isdecimal() or int(parts[2]) < 1:
        raise DataError(
            f"amazon:{argument}: not understood. Write amazon:REVIEWS,METADATA, or with a core other than "
            f"{DEFAULT_CORE} amazon:REVIEWS,METADATA,CORE."
        )
    return read_amazon(Path(parts[0]), Path(parts[1]), int(parts[2]))


# Each takes what follows the colon, or nothing.
SOURCES: dict[str, Callable[[str], Dataset]] = {
    "completejourney": lambda folder: read_complete_journey(Path(folder) if folder else None),
    "movielens-100k": lambda folder: read_movielens(Path(folder) if folder else None),
    "amazon": _amazon,
}


def read_dataset(source: str) -> Dataset:
    """Read a source; a folder that bears the name of one is reached as ./NAME.

    Raises DataError with file, line and remedy. `summary()` of the result says what was left out.
    """
    name, _, argument = source.partition(":")
    if name in SOURCES:
        return SOURCES[name](argument)
    if not os.path.exists(source):
        known = ", ".join(SOURCES)
        raise DataError(f"{source}: no such folder, nor a source. Give a folder, or one of {known}.")
    return read_folder(Path(source))
