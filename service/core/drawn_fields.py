"""The fields of an item as pictures, for tokenizers that read each field by what is drawn of it.

The text of the item stands for its id, and the value of every other field is drawn as a text of its own. So
nothing is unknown to such a tokenizer but a field that an item lacks: new items, new brands and new
categories are read like all others.

Pure: the same item and vocabulary give the same pixels.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.core.bundle import RenderSpec
from service.core.item_fields import CATEGORIES, ITEM_ID, Vocabulary, is_level, level_of, values_of
from service.core.render import Rendered, item_text, render_text, value_text


class DrawnFields(NamedTuple):
    """The fields of one item as strips."""

    text: Rendered  # of the item, which stands for its id
    strips: NDArray[np.uint8]  # [strip, height, width] of all fields, in their order; blank if there are none
    counts: NDArray[np.int64]  # [field]  how many of the strips each field has; 0: the item lacks it


def draw_fields(item: Mapping[str, Any], vocabulary: Vocabulary, render: RenderSpec) -> DrawnFields:
    """Draw an item's text, and the value of each of its other fields."""
    texts = {name: text_of(item, name, vocabulary, render) for name in vocabulary.names}
    drawn = {name: render_text(text, render) for name, text in texts.items() if text}
    whole = drawn.get(ITEM_ID) or render_text("", render)
    counts = [len(drawn[name].strips) if name in drawn else 0 for name in vocabulary.names]
    strips = [each.strips for each in drawn.values()] or [whole.strips]
    return DrawnFields(whole, np.concatenate(strips), np.array(counts, dtype=np.int64))


def text_of(item: Mapping[str, Any], name: str, vocabulary: Vocabulary, render: RenderSpec) -> str:
    """What is drawn of an item for a field; empty if it has no value.

    On a level of the category that is the path to its node. If the vocabulary does not know the node, it is
    as much of the path as the level is deep.
    """
    if name == ITEM_ID:
        return item_text(item, render)
    values = values_of(item, name)
    if not is_level(name):
        return str(values[0]) if values else ""
    known = [value for value in values if value in vocabulary.numbers[name]]
    if known:
        return value_text(CATEGORIES, known[-1])
    return value_text(CATEGORIES, values[level_of(name) - 1]) if len(values) >= level_of(name) else ""
