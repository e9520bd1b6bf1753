"""The neutral form: a folder with two files, plain or gzipped.

    items.jsonl         item_id, and any fields with text or attributes; if known, `image`, the path of a
                        JPEG, PNG or WebP file in the folder
    interactions.jsonl  user_id, and items with the oldest first; if known, their `times` in milliseconds, or
                        their `timestamps` in seconds

Broken data stops the reading with an error that names the file and the line. This holds for a missing file, a
line that is not a JSON object, an id that is missing, repeated or not a string, items that are not a list,
and an `image` that leads outside the folder or is not a string. Data that cannot be used is left out and
counted. These are pictures that are missing, unreadable or of another form, items without any text or
picture, interactions with such an item or with an unknown one, and users with fewer than two remaining items.
An item may occur several times in a user's list. An item that nobody bought stays in the catalog.
"""

import os.path
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_export.data.dataset import DataError, Dataset, Item, make_dataset
from model_export.data.jsonl import Line, read_lines
from model_export.data.picture_files import FIELD, PictureFiles, copy_pictures
from service.core.bundle import RenderSpec
from service.core.items import check_item
from service.core.json_lines import shown, write_json_lines
from service.core.limits import MAX_ITEM_CHARS
from service.core.render import item_text
from service.errors import InvalidItem

ITEMS, INTERACTIONS = "items", "interactions"
ITEMS_FILE, INTERACTIONS_FILE = f"{ITEMS}.jsonl.gz", f"{INTERACTIONS}.jsonl.gz"  # as they are written
EMPTY_ITEMS = "items without any text or picture"
EMPTY_INTERACTIONS = "interactions with items without any text or picture"
MS_OF = {"times": 1, "timestamps": 1000}  # each gives the times of a user's items, in these milliseconds
UNKNOWN_INTERACTIONS = "interactions with items that are not in the items file"


def read_folder(folder: Path) -> Dataset:
    """Read a folder in the neutral form. Raises DataError if it is broken."""
    items_path, interactions_path = _find(folder, ITEMS), _find(folder, INTERACTIONS)
    catalog = _catalog(items_path)
    left_out = Counter(catalog.exclusions)
    histories: list[tuple[str, list[int]]] = []
    times: list[NDArray[np.int64]] = []
    for line in _unique(interactions_path, "user_id"):
        known = _known(line, catalog.index_of, left_out)
        has_times = any(name in line.record for name in MS_OF)
        if histories and has_times != bool(times):
            has = "has 'times'" if has_times else "has no 'times'"
            raise line.wrong(f"{has}, unlike the lines above. Give them on every line or on none.")
        histories.append((line.record["user_id"], [index for _, index in known]))
        if has_times:
            all_times = _times(line)
            times.append(np.array([all_times[place] for place, _ in known], dtype=np.int64))
    return make_dataset(
        folder.resolve().name,
        catalog.items,
        histories,
        left_out,
        times=times or None,
        images=catalog.images,
    )


def read_items(folder: Path) -> list[Item]:
    """Read only the items, without their pictures. This serves a catalog without any purchases.

    Items without text or picture are left out. Raises DataError if the file is broken.
    """
    return _catalog(_find(folder, ITEMS)).items


def read_catalog(folder: Path) -> Dataset:
    """Read only the items, with their pictures, as a dataset without users.

    Raises DataError if the file is broken or holds no items.
    """
    catalog = _catalog(_find(folder, ITEMS))
    left_out = {what: count for what, count in catalog.exclusions.items() if count}
    if not catalog.items:
        raise DataError(f"{folder}: holds no item with a text or a picture. Give a folder with items.")
    return Dataset(folder.resolve().name, catalog.items, [], [], left_out, images=catalog.images)


def write_dataset(dataset: Dataset, folder: Path) -> None:
    """Write the neutral form, gzipped, with copies of the pictures. The same dataset gives the same bytes.

    Raises DataError if the folder holds plain files of these names or cannot be written, or if a picture
    cannot be read any more.
    """
    for name in (ITEMS, INTERACTIONS):
        if (plain := folder / f"{name}.jsonl").exists():
            raise DataError(
                f"{plain}: exists and would make the folder ambiguous. Remove it or choose another folder."
            )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = copy_pictures(dataset, folder)
        write_json_lines(
            folder / ITEMS_FILE,
            (
                item | {FIELD: names[place]} if place in names else item
                for place, item in enumerate(dataset.items)
            ),
        )
        write_json_lines(folder / INTERACTIONS_FILE, _interactions(dataset))
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be written ({error.strerror or error}). Choose another folder."
        ) from None


def _interactions(dataset: Dataset) -> Iterator[dict[str, Any]]:
    item_ids = dataset.item_ids
    for place, (user_id, sequence) in enumerate(zip(dataset.user_ids, dataset.sequences, strict=True)):
        line = {"user_id": user_id, "items": [item_ids[item] for item in sequence]}
        yield line if dataset.times is None else line | {"times": dataset.times[place].tolist()}


def _find(folder: Path, name: str) -> Path:
    if not os.path.isdir(folder):
        is_file = os.path.exists(folder)
        remedy = f"Give a folder with {ITEMS}.jsonl and {INTERACTIONS}.jsonl (or .jsonl.gz)"
        raise DataError(
            f"{folder}: is a file. {remedy}. For a log of events, write events:{folder}"
            if is_file
            else f"{folder}: not found. {remedy}."
        )
    found = [path for suffix in (".jsonl", ".jsonl.gz") if os.path.isfile(path := folder / (name + suffix))]
    if not found:
        raise DataError(
            f"{folder}: has neither {name}.jsonl nor {name}.jsonl.gz. Add one of them to the folder. If it "
            f"holds a published log of events, write events:{folder}"
        )
    if len(found) > 1:
        raise DataError(f"{found[0]}: there is also {found[1].name} in the folder. Keep only one of the two.")
    return found[0]


class _Catalog(NamedTuple):
    items: list[Item]
    index_of: dict[str, int | None]  # by item id; None for an item without text or picture
    images: dict[int, Path]  # by index
    exclusions: dict[str, int]


def _catalog(path: Path) -> _Catalog:
    pictures = PictureFiles(path.parent)
    items: list[Item] = []
    index_of: dict[str, int | None] = {}
    images: dict[int, Path] = {}
    num_empty = 0
    for line in _items(path):
        image = pictures.take(line.record, f"line {line.number}", line.wrong)
        if image is None and not item_text(line.record, RenderSpec()):
            index_of[line.record["item_id"]] = None
            num_empty += 1
            continue
        if image is not None:
            images[len(items)] = image
        index_of[line.record["item_id"]] = len(items)
        items.append(line.record)
    return _Catalog(items, index_of, images, pictures.exclusions | {EMPTY_ITEMS: num_empty})


def _items(path: Path) -> Iterator[Line]:
    """The lines of the items, which obey the rules of the service that will serve them."""
    for line in _unique(path, "item_id"):
        try:
            check_item(line.record, MAX_ITEM_CHARS)
        except InvalidItem as error:
            raise line.wrong(f"a service would refuse the item. {error}") from None
        yield line


def _unique(path: Path, field: str) -> Iterator[Line]:
    line_of: dict[str, int] = {}
    for line in read_lines(path):
        name = line.text(field)
        if name in line_of:
            raise line.wrong(
                f"{field} {shown(name)} is already in line {line_of[name]}. Keep one of the two."
            )
        line_of[name] = line.number
        yield line


def _known(line: Line, index_of: dict[str, int | None], left_out: Counter[str]) -> list[tuple[int, int]]:
    """The place in the line and the index of each item that is known."""
    item_ids = line.record.get("items")
    if not isinstance(item_ids, list):
        raise line.wrong(f"'items' is {shown(item_ids)}, which is not a list. List item ids, oldest first.")
    known = []
    for place, item_id in enumerate(item_ids):
        if not isinstance(item_id, str):
            raise line.wrong(
                f"'items' holds {shown(item_id)}, which is not a string. Write item ids in quotes."
            )
        if item_id not in index_of:
            left_out[UNKNOWN_INTERACTIONS] += 1
        elif (index := index_of[item_id]) is None:
            left_out[EMPTY_INTERACTIONS] += 1
        else:
            known.append((place, index))
    return known


def _times(line: Line) -> list[int]:
    name = next(name for name in MS_OF if name in line.record)
    times, count = line.record[name], len(line.record["items"])
    whole = isinstance(times, list) and all(isinstance(time, int) and abs(time) < 2**63 for time in times)
    if not whole or len(times) != count or times != sorted(times):
        raise line.wrong(
            f"{name!r} is {shown(times)}, which is not an ascending list with a whole number of "
            f"{'milliseconds' if MS_OF[name] == 1 else 'seconds'} for each of the {count} items. Correct it "
            "or leave it out."
        )
    return [MS_OF[name] * time for time in times]
