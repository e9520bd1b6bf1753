"""Read a dataset from a named source or from a folder in the neutral form (neutral.py). A source is one of:

events:EVENTS[,ITEMS]           amazon:REVIEWS,METADATA[,CORE]
completejourney[:FOLDER]        movielens-100k[:FOLDER]        FOLDER
"""

import os.path
from collections.abc import Callable
from pathlib import Path

from model_export.data.amazon import DEFAULT_CORE, read_amazon
from model_export.data.completejourney import read_complete_journey
from model_export.data.dataset import DataError, Dataset
from model_export.data.event_log.options import EventOptions
from model_export.data.event_log.read import EventLog, read_event_log
from model_export.data.movielens import read_movielens
from model_export.data.neutral import (
    INTERACTIONS_FILE,
    ITEMS_FILE,
    read_folder,
    read_items,
    write_dataset,
)
from model_export.data.paths import expanded, matching, split_paths

__all__ = ["SOURCES", "DataError", "Dataset", "read_dataset", "read_events", "read_items", "write_dataset"]


def _amazon(argument: str) -> Dataset:
    files, _, core = argument.rpartition(",")
    if not files or not core.isdecimal():
        files, core = argument, str(DEFAULT_CORE)
    parts = split_paths(files)
    if len(parts) != 2 or not all(parts) or int(core) < 1:
        raise DataError(
            f"amazon:{argument}: not a valid source. Write amazon:REVIEWS,METADATA. For another core than "
            f"{DEFAULT_CORE}, write amazon:REVIEWS,METADATA,CORE."
        )
    return read_amazon(expanded(parts[0]), expanded(parts[1]), int(core))


# Each reads a source from the text after its colon, which may be empty.
SOURCES: dict[str, Callable[[str], Dataset]] = {
    "completejourney": lambda folder: read_complete_journey(expanded(folder) if folder else None),
    "movielens-100k": lambda folder: read_movielens(expanded(folder) if folder else None),
    "amazon": _amazon,
    "events": lambda argument: read_event_log(argument).dataset,
}


def read_events(source: str, options: EventOptions) -> EventLog | None:
    """Read an event log with the options of its user. None if the source is another kind.

    Raises DataError with the file, the line and a remedy.
    """
    name, _, argument = source.partition(":")
    return read_event_log(argument, options) if name == "events" else None


def read_dataset(source: str) -> Dataset:
    """Read a source. Write ./NAME for a folder that has the name of a source.

    Raises DataError with the file, the line and a remedy. The result's `summary()` says what was left out.
    """
    name, _, argument = source.partition(":")
    if name in SOURCES:
        return SOURCES[name](argument)
    folder = expanded(source)
    if not os.path.exists(folder):
        known = ", ".join(SOURCES)
        raise DataError(f"{source}: no such folder or source. Give a folder, or one of {known}.")
    return read_folder(folder)


def check_apart(source: str, out: Path) -> None:
    """Raise DataError if writing the neutral form to `out` would replace files that `source` names."""
    written = [path for path in (out / ITEMS_FILE, out / INTERACTIONS_FILE) if path.exists()]
    named = [
        *matching(source),
        *(path for part in split_paths(source.partition(":")[2]) for path in matching(part)),
    ]
    for path in named:
        if any(os.path.samefile(path, each) or os.path.samefile(path, out) for each in written):
            raise DataError(f"--out {out}: holds the data that are read from. Choose another folder.")
