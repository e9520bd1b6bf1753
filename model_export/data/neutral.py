"""The neutral form: a folder with `items.jsonl[.gz]` (item_id, any text or attribute fields) and
`interactions.jsonl[.gz]` (user_id, items oldest first).

What is broken stops the reading, with file and line: a missing file, a line that is not a JSON object,
an id that is missing, not a string or given twice, a list of items that is not one. What is merely
useless is left out and counted: items without any text, interactions that name them or an unknown item,
users with fewer than two items left. An item may come again in a user's list; an item that nobody
bought stays in the catalog.
"""

import os.path
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from model_export.data.dataset import DataError, Dataset, Item, make_dataset
from model_export.data.jsonl import Line, read_lines
from service.core.bundle import RenderSpec
from service.core.json_lines import shown, write_json_lines
from service.core.render import item_text

ITEMS, INTERACTIONS = "items", "interactions"
EMPTY_ITEMS = "items without any text"
EMPTY_INTERACTIONS = "interactions with items without any text"
UNKNOWN_INTERACTIONS = "interactions with items that are not in the items file"


def read_folder(folder: Path) -> Dataset:
    """Read a folder in the neutral form."""
    items_path, interactions_path = _find(folder, ITEMS), _find(folder, INTERACTIONS)
    left_out: Counter[str] = Counter()
    items: list[Item] = []
    index_of: dict[str, int | None] = {}  # None: known, but without text
    for line in _unique(items_path, "item_id"):
        has_text = bool(item_text(line.record, RenderSpec()))
        index_of[line.record["item_id"]] = len(items) if has_text else None
        if has_text:
            items.append(line.record)
        else:
            left_out[EMPTY_ITEMS] += 1
    histories = [
        (line.record["user_id"], _known(line, index_of, left_out))
        for line in _unique(interactions_path, "user_id")
    ]
    return make_dataset(folder.resolve().name, items, histories, left_out)


def read_items(folder: Path) -> list[Item]:
    """Only the items, for a catalog that nobody has bought from yet. Those without text are left out."""
    return [
        line.record
        for line in _unique(_find(folder, ITEMS), "item_id")
        if item_text(line.record, RenderSpec())
    ]


def write_dataset(dataset: Dataset, folder: Path) -> None:
    """Write the neutral form, gzipped; the same dataset gives the same bytes."""
    for name in (ITEMS, INTERACTIONS):
        if (plain := folder / f"{name}.jsonl").exists():
            raise DataError(
                f"{plain}: exists, and would make the folder ambiguous. Remove it or choose another folder."
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_json_lines(folder / f"{ITEMS}.jsonl.gz", dataset.items)
        item_ids = dataset.item_ids
        write_json_lines(
            folder / f"{INTERACTIONS}.jsonl.gz",
            (
                {"user_id": user_id, "items": [item_ids[item] for item in sequence]}
                for user_id, sequence in zip(dataset.user_ids, dataset.sequences, strict=True)
            ),
        )
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be written ({error.strerror or error}). Choose another folder."
        ) from None


def _find(folder: Path, name: str) -> Path:
    if not os.path.isdir(folder):
        problem = "is a file" if os.path.exists(folder) else "not found"
        raise DataError(
            f"{folder}: {problem}. Give a folder with {ITEMS}.jsonl and {INTERACTIONS}.jsonl (or .jsonl.gz)."
        )
    found = [path for suffix in (".jsonl", ".jsonl.gz") if os.path.isfile(path := folder / (name + suffix))]
    if not found:
        raise DataError(f"{folder / name}.jsonl: not found, nor {name}.jsonl.gz. Add it to the folder.")
    if len(found) > 1:
        raise DataError(f"{found[0]}: {found[1].name} lies beside it. Keep the one that is meant.")
    return found[0]


def _unique(path: Path, field: str) -> Iterator[Line]:
    line_of: dict[str, int] = {}
    for line in read_lines(path):
        name = line.text(field)
        if name in line_of:
            raise line.wrong(
                f"{field} {shown(name)} was given in line {line_of[name]} already. Keep one of the two."
            )
        line_of[name] = line.number
        yield line


def _known(line: Line, index_of: dict[str, int | None], left_out: Counter[str]) -> list[int]:
    item_ids = line.record.get("items")
    if not isinstance(item_ids, list):
        raise line.wrong(f"'items' is {shown(item_ids)}, which is not a list. List item ids, oldest first.")
    known = []
    for item_id in item_ids:
        if not isinstance(item_id, str):
            raise line.wrong(
                f"'items' holds {shown(item_id)}, which is not a string. Write item ids in quotes."
            )
        if item_id not in index_of:
            left_out[UNKNOWN_INTERACTIONS] += 1
        elif (index := index_of[item_id]) is None:
            left_out[EMPTY_INTERACTIONS] += 1
        else:
            known.append(index)
    return known
