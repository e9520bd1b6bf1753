"""The fields of a catalog that a model learns from, and the vocabulary of their values.

service/core/item_fields.py says what an item has in a field, for training and serving alike. This module says
which fields and which of their values get numbers. A value that only one item has tells nothing about other
items, so it gets none and is read as unknown.

The levels of the category come from the tree of all paths. A node is one level with its child if it has one
child and no items of its own. So a name that a source has torn apart at its comma, such as "Tapes" and
"Adhesives & Sealants", is one level again. Nothing is lost by this: who knows the node knows the child.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_export.data.dataset import Item
from service.core.item_fields import (
    BRAND,
    CATEGORIES,
    ITEM_ID,
    UNKNOWN,
    Value,
    Vocabulary,
    category_path,
    is_level,
    level_of,
    values_of,
)
from service.errors import GlyphrecError

MIN_ITEMS = 2  # of a value with a number
MAX_LEVELS = 3  # of the category, by default
MAX_OTHERS = 8  # further fields, by default
MIN_SHARE = 0.5  # of the items, which have a default field
ITEMS_PER_VALUE = 10  # at least, on average, in further default fields
CATEGORY = "category"  # the level of the category that serves as a code
NEVER_DEFAULT = {ITEM_ID, BRAND, CATEGORIES, "title", "description", "image"}

Path = tuple[str, ...]
Levels = Mapping[Path, int]  # each node of the tree of categories -> its level from 1


class ItemFields(NamedTuple):
    """The fields of all items of a catalog as numbers."""

    vocabulary: Vocabulary
    numbers: NDArray[np.int64]  # [item, field]


def read_fields(
    items: Sequence[Item], names: Sequence[str] = (), known: NDArray[np.bool_] | None = None
) -> ItemFields:
    """The item itself and the named fields: "brand", "categories.2" for the second level, and any other.

    Without names, the default fields of these items. `known` [item]: the items whose ids get numbers, by
    default all. Raises GlyphrecError for a field that no item has, or that all items share.
    """
    is_known = np.ones(len(items), dtype=bool) if known is None else known
    ids = (item[ITEM_ID] for item, learnt in zip(items, is_known, strict=True) if learnt)
    numbers: dict[str, Mapping[Value, int]] = {
        ITEM_ID: {item_id: number for number, item_id in enumerate(ids, start=1)}
    }
    levels = _levels_in(items)
    for name in names or default_fields(items):
        numbers[name] = _numbered(name, _values(items, name, levels))
    vocabulary = Vocabulary(numbers)
    return ItemFields(vocabulary, np.stack([vocabulary.read(item) for item in items]))


def field_as_codes(items: Sequence[Item], name: str, num_codes: int) -> ItemFields:
    """One field of all items, whose numbers are codes from 0 to `num_codes` - 1. 0 is for what is unknown.

    "category" is the deepest level of the category whose values have a code each, or else its first level
    that tells items apart. If there are more values than codes, the most frequent ones have a code. Raises
    GlyphrecError for a field that no item has, or that all items share.
    """
    levels = _levels_in(items)
    if name == CATEGORY:
        name = _fitting_level(items, levels, num_codes - 1)
    values = _values(items, name, levels)
    vocabulary = Vocabulary({name: _numbered(name, values, num_codes - 1)})
    return ItemFields(vocabulary, np.stack([vocabulary.read(item) for item in items]))


def tells_apart(items: Sequence[Item], name: str) -> bool:
    """Whether a field, or CATEGORY, has different values in these items, so that it can be a code."""
    levels = _levels_in(items)
    return any(
        len({value[-1] for value in _values(items, each, levels) if value}) > 1
        for each in (_names_of(levels) if name == CATEGORY else [name])
    )


def _fitting_level(items: Sequence[Item], levels: Levels, at_most: int) -> str:
    telling = [name for name in _names_of(levels) if _tells(_values(items, name, levels), 1)]
    fitting = [
        name for name in telling if len({*_numbered(name, _values(items, name, levels)).values()}) <= at_most
    ]
    return (fitting or telling[:1] or [f"{CATEGORIES}.1"])[-1]


def default_fields(items: Sequence[Item]) -> list[str]:
    """The brand, the first levels of the category that differ, and fields whose values come again and again.

    Half of the items must have a field. A further field has ITEMS_PER_VALUE items for each of its values, and
    its values are texts, because a number is rarely a kind.
    """
    levels = _levels_in(items)
    others = sorted({name for item in items for name, value in item.items() if _is_text(value)})
    brand, *telling = (
        [name] if _tells(_values(items, name, levels), 1) else [] for name in (BRAND, *_names_of(levels))
    )
    further = [
        name
        for name in others
        if name not in NEVER_DEFAULT and _tells(_values(items, name, levels), ITEMS_PER_VALUE)
    ]
    return [*brand, *sum(telling, [])[:MAX_LEVELS], *further[:MAX_OTHERS]]


def levels_of(paths: Sequence[Path]) -> Levels:
    """The level of each node of the tree of categories. See above for nodes with one child."""
    children: dict[Path, set[Path]] = defaultdict(set)
    ends = set(paths)
    for path in ends:
        for depth in range(1, len(path)):
            children[path[:depth]].add(path[: depth + 1])
    levels: dict[Path, int] = {}
    for node in sorted(ends | children.keys(), key=len):
        for depth in range(1, len(node) + 1):
            if (part := node[:depth]) not in levels:
                parent = part[:-1]
                is_alone = bool(parent) and len(children[parent]) == 1 and parent not in ends
                levels[part] = levels.get(parent, 0) + (0 if is_alone else 1)
    return levels


def _levels_in(items: Sequence[Item]) -> Levels:
    return levels_of([category_path(item) for item in items])


def _names_of(levels: Levels) -> list[str]:
    """The fields of all levels, the first level first."""
    return [f"{CATEGORIES}.{level}" for level in range(1, max(levels.values(), default=0) + 1)]


def first_categories(items: Sequence[Item]) -> NDArray[np.int64]:
    """The category of each item [item]: its node on the first level that tells items apart, -1 without one.

    The brand stands in for the category if no level tells items apart.
    """
    levels = _levels_in(items)
    for name in (*_names_of(levels), BRAND):
        values = [found[-1] if found else None for found in _values(items, name, levels)]
        different = sorted({value for value in values if value is not None}, key=repr)
        if len(different) > 1:
            number = {value: place for place, value in enumerate(different)}
            return np.array([-1 if value is None else number[value] for value in values], dtype=np.int64)
    return np.full(len(items), -1, np.int64)


def _is_text(value: object) -> bool:
    return isinstance(value, str) or (
        isinstance(value, list) and bool(value) and all(isinstance(part, str) for part in value)
    )


def _tells(values: Sequence[Sequence[Value]], items_per_value: int) -> bool:
    known = [value[-1] for value in values if value]
    num_values = len(set(known))
    return len(known) >= MIN_SHARE * len(values) and 1 < num_values <= len(known) / items_per_value


def _values(items: Sequence[Item], name: str, levels: Levels) -> list[list[Value]]:
    """The values of each item in a field [item]: none, one, or the nodes of its path on one level."""
    if not is_level(name):
        return [values_of(item, name) for item in items]
    level = level_of(name)
    return [
        [node for node in values_of(item, name) if isinstance(node, tuple) and levels[node] == level]
        for item in items
    ]


def _numbered(name: str, values: Sequence[Sequence[Value]], at_most: int | None = None) -> dict[Value, int]:
    """Numbers of the values that several items have, in their own order. Nodes of one level share one.

    `at_most`: how many values have a number, the most frequent first.
    """
    count = Counter(found[-1] for found in values if found)
    if len(count) < 2:
        what = "no item has" if not count else "all items share the value of"
        raise GlyphrecError(
            f"encoder.fields: {what} the field {name!r}. Choose fields that tell items apart, such as "
            f"{BRAND!r} or '{CATEGORIES}.2'."
        )
    often = [(value, num_items) for value, num_items in count.items() if num_items >= MIN_ITEMS]
    often.sort(key=lambda each: (-each[1], repr(each[0])))
    common = sorted((value for value, _ in often[:at_most]), key=repr)
    number = {value: place for place, value in enumerate(common, start=UNKNOWN + 1)}
    same = {node: found[-1] for found in values for node in found}
    return {node: number[last] for node, last in sorted(same.items(), key=repr) if last in number}
