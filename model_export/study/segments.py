"""Kinds of items, to find out which kinds gain: attribute-dense or narrative, long or short, popular or rare.

For the two kinds of text, the limit is the median over the catalog, so each kind is half of the items. By
popularity, each kind has half of the purchases. With half of the items, hardly any user would have a rare
target.
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_export.study.units import is_unit

# A word ends at white space and at punctuation, except inside a number or a part number: 1/2, 0.5, M3-0.5.
_WORD = re.compile(r"\w+(?:[./-]\w+)*|[\"%°]")
_ABBREVIATION = re.compile(r"[A-Z]{2,4}")

Mask = NDArray[np.bool_]  # [item]


class Segments(NamedTuple):
    """Three pairs of masks. Every item is in exactly one mask of each pair."""

    attribute_dense: Mask
    narrative: Mask
    long: Mask
    short: Mask
    popular: Mask
    rare: Mask  # includes items that were never bought


def segments_of(texts: Sequence[str], train: Sequence[NDArray[np.int32]]) -> Segments:
    """The segments of a catalog.

    `texts`: the text of each item, as the tokenizer reads it. `train`: the sequences of item indices that
    count for popularity.
    """
    is_dense = _upper_half(np.array([attribute_share(text) for text in texts]))
    is_long = _upper_half(np.array([len(text) for text in texts]))
    is_popular = _upper_half_of_purchases(train, len(texts))
    return Segments(is_dense, ~is_dense, is_long, ~is_long, is_popular, ~is_popular)


def attribute_share(text: str) -> float:
    """The share of words that state an attribute, from 0 to 1.

    These are words with a digit (sizes, part numbers), units of measure (units.UNITS and the signs " % °),
    and abbreviations of two to four capitals. In a text all in capitals, abbreviations look like words, so
    none counts.
    """
    words = _WORD.findall(text)
    is_shouted = text.isupper()
    stated = sum(
        any(map(str.isdigit, word))
        or word in '"%°'
        or is_unit(word)
        or (not is_shouted and _ABBREVIATION.fullmatch(word) is not None)
        for word in words
    )
    return stated / max(1, len(words))


def _upper_half(measure: NDArray[np.floating]) -> Mask:
    return measure > np.median(measure) if len(measure) else np.zeros(0, dtype=bool)


def _upper_half_of_purchases(train: Sequence[NDArray[np.int32]], num_items: int) -> Mask:
    """The fewest most-bought items that have half of the purchases. Items with equal counts stay together."""
    bought = np.concatenate([*train, np.empty(0, dtype=np.int32)])
    count = np.bincount(bought, minlength=num_items)  # [item]
    descending = np.sort(count)[::-1]
    place = int(np.searchsorted(np.cumsum(descending), len(bought) / 2))
    return (count >= descending[place]) & (count > 0) if num_items else np.zeros(0, dtype=bool)
