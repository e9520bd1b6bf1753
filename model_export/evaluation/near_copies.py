"""Near copies of catalog items: the same text with another size or color. Shops add such items every day.

A good tokenizer gives a copy at least the first code of its original, so the model knows the kind of item.
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
    """The item, without its id, with another number or color in its text. If it has neither, a color is
    added.

    The rule is fixed, so rates of different exports can be compared. It tries a color in the title first,
    then the last number of the title, then the same in the other text fields, in the order of their names.
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
    """The number of leading codes that each pair shares: [pair, level] and [pair, level] -> [pair]"""
    result: NDArray[np.int64] = np.cumprod(codes == others, axis=1).sum(axis=1)
    return result
