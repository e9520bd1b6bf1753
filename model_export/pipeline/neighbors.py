"""The items that CARD shows beside an item: its nearest by SASRec's vectors that have a picture.

CARD (arXiv 2604.26427), data preparation, in the stricter mode: SASRec learns from the training part without
its last item, and that item decides when its training stops. So neither validation nor test targets have a
say. Ours: an item that SASRec does not know has the nearest items by its content.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_export.data.dataset import ItemSequence
from model_export.data.splits import Split, Targets

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py
NUM_NEIGHBORS = 3
NUM_SCANNED = 50  # nearest items, among which those with a picture are sought
NO_ITEM = -1
ROWS_PER_BLOCK = 1024
MIN_TRAINING_ITEMS = 2  # of a user, one of which decides when the training stops


class Neighbors(NamedTuple):
    """The neighbors of each item."""

    items: NDArray[np.int64]  # [item, NUM_NEIGHBORS], the nearest first; NO_ITEM where there are fewer
    is_collaborative: NDArray[np.bool_]  # [item]; the others are by content


def nearest_with_picture(vectors: NDArray[np.float32], has_picture: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The nearest other items by cosine that have a picture [item, NUM_NEIGHBORS], see `Neighbors.items`.

    vectors [item, dim]; has_picture [item]. Only the NUM_SCANNED nearest items are looked at, with or without
    a picture. Of equally near items, those that come first in the catalog are nearer.
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    units = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)  # [item, dim]
    num_scanned = min(NUM_SCANNED, len(units) - 1)
    result = np.full((len(units), NUM_NEIGHBORS), NO_ITEM, dtype=np.int64)
    for start in range(0, len(units), ROWS_PER_BLOCK):
        rows = np.arange(start, min(start + ROWS_PER_BLOCK, len(units)))
        cosine = units[rows] @ units.T  # [row, item]
        cosine[np.arange(len(rows)), rows] = -np.inf  # not the item itself
        for row, near in zip(rows, cosine, strict=True):
            items = _nearest(near, num_scanned)
            chosen = items[has_picture[items]][:NUM_NEIGHBORS]
            result[row, : len(chosen)] = chosen
    return result


def _nearest(cosine: NDArray[np.float32], count: int) -> NDArray[np.int64]:
    """The `count` items with the largest cosine [item], the largest first and of equals the first first."""
    if not count:
        return np.zeros(0, dtype=np.int64)
    least = np.partition(cosine, -count)[-count]
    items = np.flatnonzero(cosine >= least)
    return items[np.argsort(-cosine[items], kind="stable")][:count]


def inside(train: list[ItemSequence]) -> Split:
    """A split of the training part: the last item of each user is a validation target, and none is a test."""
    users = np.array([user for user, items in enumerate(train) if len(items) >= MIN_TRAINING_ITEMS], np.int64)
    chosen = set(users.tolist())
    return Split(
        train=[items[:-1] if user in chosen else items for user, items in enumerate(train)],
        validation=Targets(
            users=users,
            histories=[train[user][:-1] for user in users],
            targets=np.array([train[user][-1] for user in users], dtype=np.int32),
        ),
        test=Targets(users[:0], [], np.zeros(0, dtype=np.int32)),
    )
