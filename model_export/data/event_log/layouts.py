"""Where the events and the items are in a folder as it is published."""

from pathlib import Path

from model_export.data.dataset import DataError
from model_export.data.paths import expanded, matching, split_paths

# Names of the events and of the items. The first pair whose events are there is taken.
FOLDERS = (
    ("u.data", "u.item"),  # MovieLens 100K
    ("ratings.dat", "movies.dat"),  # MovieLens 1M and 10M
    ("ratings.csv", "movies.csv"),  # MovieLens latest, 20M, 25M and 32M
    ("*.inter", "*.item"),  # RecBole
    ("transactions_train.*", "articles.*"),  # H&M
    ("events.csv*", "item_properties*.csv*"),  # RetailRocket
    ("events.*", "items.*"),
    ("interactions.*", "items.*"),
)
FORM = "Write events:EVENTS or events:EVENTS,ITEMS, with files, or events:FOLDER."


def files_of(argument: str) -> tuple[list[Path], list[Path]]:
    """The files of the events and of the items that `EVENTS[,ITEMS]` or `FOLDER` names. Raises DataError."""
    parts = split_paths(argument)
    if not all(parts) or len(parts) > 2:
        missing = next((part for part in parts if part and not matching(part)), None)
        problem = f"{missing} not found" if missing and len(parts) > 2 else "not a valid source"
        raise DataError(f"events:{argument}: {problem}. {FORM}")
    events, items = [_files(part) for part in parts[:1]][0], _files(parts[1]) if len(parts) == 2 else []
    if len(events) == 1 and events[0].is_dir():
        if items:
            raise DataError(
                f"{events[0]}: is a folder. Give the file of the events beside that of the items."
            )
        return _in_folder(events[0])
    return events, items


def _files(part: str) -> list[Path]:
    found = matching(part)
    if not found:
        raise DataError(f"{expanded(part)}: not found. {FORM}")
    return found


def _in_folder(folder: Path) -> tuple[list[Path], list[Path]]:
    for events, items in FOLDERS:
        found = sorted(path for path in folder.glob(events) if path.is_file())
        described = sorted(path for path in folder.glob(items) if path.is_file())
        if len(found) == 1:
            return found, described
        if len(found) > 1 and described:
            raise DataError(
                f"{folder}: has both {found[0].name} and {found[1].name}. Name the files: events:EVENTS,ITEMS"
            )
    known = ", ".join(f"{events} with {items}" for events, items in FOLDERS)
    raise DataError(
        f"{folder}: holds no files of a known layout ({known}). Name the files: events:EVENTS,ITEMS"
    )
