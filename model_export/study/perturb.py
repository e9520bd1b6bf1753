"""Changes that write the same item in another way. They should change an item's codes as little as possible.

The changes are typos, other units, capitals, another order of the fields, and half of the words. Each is a
pure function of an item and random numbers. CHANGES has a function for each that returns the line of text
that a tokenizer reads. near_copies.py does the opposite: it makes another item.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from model_export.study.units import with_other_units
from service.core.bundle import RenderSpec
from service.core.render import item_text

LETTERS_PER_TYPO = 40
KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
BESIDE = {
    letter: list(row[max(0, place - 1) : place] + row[place + 1 : place + 2])
    for row in KEYS
    for place, letter in enumerate(row)
}

Item = Mapping[str, Any]
Change = Callable[[Item, RenderSpec, np.random.Generator], str]


def mistyped(item: Item, rng: np.random.Generator) -> dict[str, Any]:
    """The item with one typo per LETTERS_PER_TYPO letters of its title, and at least one.

    A typo swaps two neighboring letters or hits the key beside the right one.
    """
    title = list(str(item.get("title") or ""))
    letters = [place for place, letter in enumerate(title) if letter.lower() in BESIDE]
    if not letters:
        return _without_id(item)
    count = max(1, round(len(letters) / LETTERS_PER_TYPO))
    # From the left, so that no typo undoes the one before.
    for place in sorted(rng.choice(letters, size=count, replace=False).tolist()):
        letter, following = title[place], "".join(title[place + 1 : place + 2])
        if following.isalpha() and following != letter and rng.random() < 0.5:
            title[place], title[place + 1] = following, letter
        else:
            title[place] = _key_beside(letter, rng)
    return _without_id(item) | {"title": "".join(title)}


def with_units_rewritten(item: Item, rng: np.random.Generator) -> dict[str, Any]:
    """The item with every quantity of every text in another unit or spelling (units.py)."""
    result: dict[str, Any] = _in_all_texts(_without_id(item), lambda text: with_other_units(text, rng))
    return result


def in_capitals(item: Item) -> dict[str, Any]:
    """The item with every text in capitals."""
    result: dict[str, Any] = _in_all_texts(_without_id(item), str.upper)
    return result


def cut_to_half(item: Item) -> dict[str, Any]:
    """The item with only the first half of the words of each text field.

    Each field is cut, because the second half of the whole line may lie beyond the part that is read.
    """

    def half(text: str) -> str:
        words = text.split()
        return " ".join(words[: -(-len(words) // 2)])

    copy = _without_id(item)
    return copy | {name: half(value) for name, value in copy.items() if isinstance(value, str)}


def _short_fields_shuffled(item: Item, spec: RenderSpec, rng: np.random.Generator) -> str:
    """The text with its fields in another order. The description stays in place.

    A description that moves forward could push the fields after it out of the part that is read.
    """
    short = [field for field in spec.fields if field != "description"]
    others = short
    while others == short and len(short) > 1:
        others = rng.permutation(short).tolist()
    following = iter(others)
    order = tuple(field if field == "description" else next(following) for field in spec.fields)
    return item_text(item, spec.model_copy(update={"fields": order}))


def _description_first(item: Item, spec: RenderSpec, rng: np.random.Generator) -> str:  # noqa: ARG001  a Change
    others = [field for field in spec.fields if field != "description"]
    return item_text(item, spec.model_copy(update={"fields": ("description", *others)}))


CHANGES: dict[str, Change] = {
    "typos": lambda item, spec, rng: item_text(mistyped(item, rng), spec),
    "other units": lambda item, spec, rng: item_text(with_units_rewritten(item, rng), spec),
    "capitals": lambda item, spec, _: item_text(in_capitals(item), spec),
    "short fields shuffled": _short_fields_shuffled,
    "description first": _description_first,
    "half of the words": lambda item, spec, _: item_text(cut_to_half(item), spec),
}


def _without_id(item: Item) -> dict[str, Any]:
    return {name: value for name, value in item.items() if name != "item_id"}


def _in_all_texts(value: Any, change: Callable[[str], str]) -> Any:
    """The JSON value with each text in it changed. The names of fields stay."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {name: _in_all_texts(part, change) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_in_all_texts(part, change) for part in value]
    return value


def _key_beside(letter: str, rng: np.random.Generator) -> str:
    """A neighbor on the keyboard, in the same case. A letter of another alphabet is doubled."""
    beside = str(rng.choice(BESIDE.get(letter.lower(), [2 * letter])))
    return beside.upper() if letter.isupper() else beside
