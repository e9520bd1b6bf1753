"""Near copies of catalog items: the same text in another size or color, as shops add them every day.

A good tokenizer gives a copy at least the first code of its original, so that the model knows what it is.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

COLORS = ("Red", "Blue", "Green", "Black", "White", "Silver", "Yellow", "Brown")
_NUMBER = re.compile(r"\d+")
_COLOR = re.compile(rf"\b({'|'.join(COLORS)})\b", re.IGNORECASE)


def near_copy(item: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
    """The item with one number or color of its text changed; where it has neither, with a color added.

    A fixed rule, so that the rate it measures compares between exports: a color in the title first, then
    the last number of the title, then the same in other text fields, by name.
    """
    copy = {name: value for name, value in item.items() if name != "item_id"}
    fields = sorted(
        (name for name, value in copy.items() if isinstance(value, str)), key=lambda n: (n != "title", n)
    )
    for name in fields:
        changed = _other_color(copy[name], rng) or _other_number(copy[name], rng)
        if changed:
            return copy | {name: changed}
    name = fields[0] if fields else "title"
    return copy | {name: f"{copy.get(name, '')} {rng.choice(COLORS)}".strip()}


def _other_color(text: str, rng: np.random.Generator) -> str | None:
    found = _COLOR.search(text)
    if not found:
        return None
    others = [color for color in COLORS if color.lower() != found[0].lower()]
    return text[: found.start()] + str(rng.choice(others)) + text[found.end() :]


def _other_number(text: str, rng: np.random.Generator) -> str | None:
    numbers = list(_NUMBER.finditer(text))
    if not numbers:
        return None
    last = numbers[-1]
    other = str(int(last[0]) + int(rng.integers(1, 10)))
    return text[: last.start()] + other + text[last.end() :]


def shared_levels(codes: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.int64]:
    """How many leading codes each pair shares: [pair, level] twice -> [pair]"""
    result: NDArray[np.int64] = np.cumprod(codes == others, axis=1).sum(axis=1)
    return result
