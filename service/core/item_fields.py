"""The fields of an item as numbers, for tokenizers that read no pixels, in training and in serving.

A field is the item's id, a level of its category ("categories.2"), or any other field by its name. A bundle
has a vocabulary: the values of each field that its tokenizer knows, each with a number. Whatever an item has
beyond that is UNKNOWN: an absent field, a value that nobody has had, the id of a new item. The tokenizer has
a learnt vector for it.

Pure: the same item and vocabulary give the same numbers.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.core.render import value_text

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py
ITEM_ID, BRAND, CATEGORIES = "item_id", "brand", "categories"
UNKNOWN = 0

# The text of a field, or a path of categories with the widest first. Case matters in ids alone.
Value = str | tuple[str, ...]
FieldNumbers = NDArray[np.int64]  # [field]


class Vocabulary:
    """The values that a tokenizer knows."""

    def __init__(self, numbers: Mapping[str, Mapping[Value, int]]) -> None:
        """`numbers`: the fields in the tokenizer's order, and in each the numbers of its values, from 1.

        Several values may share a number, such as a category and the only one below it.
        """
        self.numbers = numbers

    @property
    def names(self) -> tuple[str, ...]:
        """The fields, in order."""
        return tuple(self.numbers)

    @property
    def num_values(self) -> tuple[int, ...]:
        """How many numbers each field has, UNKNOWN among them."""
        return tuple(1 + max(known.values(), default=UNKNOWN) for known in self.numbers.values())

    def read(self, item: Mapping[str, Any]) -> FieldNumbers:
        """The numbers of an item's values, UNKNOWN where the vocabulary has none -> int64 [field]."""
        found = [_number(known, values_of(item, name)) for name, known in self.numbers.items()]
        return np.array(found, dtype=np.int64)

    def unknown_in(self, item: Mapping[str, Any]) -> Iterator[str]:
        """The fields in which the item has a value that the vocabulary lacks. A new id is no surprise."""
        path = category_path(item)
        is_known = any(path in known for name, known in self.numbers.items() if is_level(name))
        for name, known in self.numbers.items():
            values = values_of(item, name)
            # A path has nothing below its end.
            is_absent = is_level(name) and (is_known or len(path) < level_of(name))
            if name != ITEM_ID and values and not is_absent and _number(known, values) == UNKNOWN:
                yield name


def values_of(item: Mapping[str, Any], name: str) -> list[Value]:
    """What an item has in a field; empty if it has nothing there.

    Only a level of the category has several: all paths from the root to a category of the item. The
    vocabulary of the level says which of them belong to it.
    """
    if name == ITEM_ID:
        item_id = item.get(ITEM_ID)
        return [item_id] if isinstance(item_id, str) and item_id else []
    if is_level(name):
        path = category_path(item)
        return [path[:depth] for depth in range(1, len(path) + 1)]
    text = value_text(name, item.get(name)).casefold()
    return [text] if text else []


def is_level(name: str) -> bool:
    """Whether the name is that of a level of the category, such as "categories.2"."""
    field, _, level = name.partition(".")
    return field == CATEGORIES and level.isdecimal() and int(level) > 0


def level_of(name: str) -> int:
    """The depth of a level of the category, from 1."""
    return int(name.partition(".")[2])


def source_of(name: str) -> str:
    """The field of the item from which a field of the vocabulary is read."""
    return CATEGORIES if is_level(name) else name


def category_path(item: Mapping[str, Any]) -> tuple[str, ...]:
    """The categories of an item, the widest first. If it has several paths, the first."""
    path = item.get(CATEGORIES) or []
    if isinstance(path, str):
        path = [path]
    if isinstance(path, Sequence) and path and isinstance(path[0], list | tuple):
        path = path[0]
    names = (value_text(CATEGORIES, name).casefold() for name in path) if isinstance(path, Sequence) else ()
    return tuple(name for name in names if name)


def _number(known: Mapping[Value, int], values: Sequence[Value]) -> int:
    return next((known[value] for value in values if value in known), UNKNOWN)
