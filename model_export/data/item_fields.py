"""Fields of items as numbers: the item itself, its brand, the levels of its category.

A value that only one item has cannot tell what items have in common, so such values count as one, "other".
Items without a value share one too.
"""

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_export.data.dataset import Item
from service.errors import GlyphrecError

ITEM_ID, BRAND, CATEGORIES = "item_id", "brand", "categories"
MISSING, OTHER, FIRST_VALUE = 0, 1, 2  # numbers of a field's values
MIN_ITEMS = 2  # of a value with a number of its own
MAX_LEVELS = 3  # of the category, by default
MIN_SHARE = 0.5  # of the items, which have a default field

# Category names of Amazon (2014) that a source has torn apart at their comma, which shifts all levels below.
TORN = {
    "Tapes": "Adhesives & Sealants",
    "Test": "Measure & Inspect",
    "Hydraulics": "Pneumatics & Plumbing",
    "Labels": "Indexes & Stamps",
    "Envelopes": "Mailers & Shipping Supplies",
    "Tape": "Adhesives & Fasteners",
    "Platforms": "Stands & Shelves",
    "Calendars": "Planners & Personal Organizers",
    "Forms": "Recordkeeping & Money Handling",
    "Card Files": "Holders & Racks",
}


class ItemField(NamedTuple):
    """One field of all items."""

    name: str
    value: NDArray[np.int64]  # [item]
    num_values: int  # numbers that `value` may have


def read_fields(items: Sequence[Item], names: Sequence[str] = ()) -> list[ItemField]:
    """The item itself and the named fields: "brand", "categories.2" for the second level, and any other.

    Without names, the default fields of these items. Raises GlyphrecError for a field that no item has, or
    that all items share.
    """
    itself = ItemField(ITEM_ID, np.arange(len(items)), len(items))
    chosen = list(names) if names else default_fields(items)
    return [itself, *(_numbered(name, _values(items, name)) for name in chosen)]


def default_fields(items: Sequence[Item]) -> list[str]:
    """The brand, and the first levels of the category that differ, if half of the items have them."""
    deepest = max((len(_levels(item)) for item in items), default=0)
    levels = [f"{CATEGORIES}.{level}" for level in range(1, deepest + 1)]
    brand, *telling = (
        [name] if _tells(_values(items, name), len(items)) else [] for name in (BRAND, *levels)
    )
    return [*brand, *sum(telling, [])[:MAX_LEVELS]]


def _tells(values: Sequence[Hashable], num_items: int) -> bool:
    known = [value for value in values if value is not None]
    return len(known) >= MIN_SHARE * num_items and len(set(known)) > 1


def _values(items: Sequence[Item], name: str) -> list[Hashable]:
    """The value of each item [item], None where it has none. A level's value is the path to it."""
    field, _, level = name.partition(".")
    if field == CATEGORIES and level.isdecimal():
        paths = [_levels(item) for item in items]
        return [path[: int(level)] if len(path) >= int(level) > 0 else None for path in paths]
    return [_plain(item.get(name)) for item in items]


def _plain(value: Any) -> Hashable:
    if isinstance(value, list):
        return tuple(map(_plain, value)) or None
    return " ".join(str(value).split()).casefold() or None if value is not None else None


def _levels(item: Item) -> tuple[str, ...]:
    """The names on the path of the category, with torn names joined."""
    found: list[str] = []
    names = item.get(CATEGORIES)
    for name in names if isinstance(names, list) else []:
        if found and TORN.get(found[-1]) == name:
            found[-1] += f", {name}"
        else:
            found.append(str(name))
    return tuple(found)


def _numbered(name: str, values: Sequence[Hashable]) -> ItemField:
    count = Counter(value for value in values if value is not None)
    if len(count) < 2:
        what = "no item has" if not count else "all items share the value of"
        raise GlyphrecError(
            f"encoder.fields: {what} the field {name!r}. Choose fields that tell items apart, such as "
            f"{BRAND!r} or '{CATEGORIES}.2'."
        )
    common = sorted((value for value, num_items in count.items() if num_items >= MIN_ITEMS), key=repr)
    number = {value: place for place, value in enumerate(common, start=FIRST_VALUE)}
    found = [MISSING if value is None else number.get(value, OTHER) for value in values]
    return ItemField(name, np.array(found, dtype=np.int64), FIRST_VALUE + len(common))
