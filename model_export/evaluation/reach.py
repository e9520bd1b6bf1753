"""Which items a recommender reaches: how much of the catalog, and for which targets it is right.

An average over users hides that a model lives from popular items, or from transitions that it has seen. So
hits are also counted by kind of target. Each kind is a mask over the test users.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_export.data.splits import Split
from model_export.evaluation.baselines import counts
from model_export.evaluation.baselines.ranked import Sequences
from model_export.evaluation.metrics import NO_ITEM

Mask = NDArray[np.bool_]  # [user]


class Kinds(NamedTuple):
    """The kinds of targets. A test user is in one of the first two masks, and in one of the other three."""

    seen_transition: Mask  # the target came right after the last item of the history in the training part
    unseen_transition: Mask
    head: Mask  # the target is one of the fewest items that have a third of the purchases
    middle: Mask
    tail: Mask  # includes items that were never bought


def coverage(ranked: NDArray[np.integer], num_items: int) -> float:
    """The share of the catalog that is in at least one row of ranked [user, rank]."""
    return float((np.unique(ranked) != NO_ITEM).sum() / num_items)


def kinds_of_targets(split: Split, num_items: int) -> Kinds:
    """The kind of each test target. Both transitions and purchases are counted in the training part only."""
    test = split.test
    seen = _seen_transitions(split, num_items)
    third = popularity_thirds(split.train, num_items)[test.targets]  # [user]
    return Kinds(seen, ~seen, third == 0, third == 1, third == 2)


def popularity_thirds(train: Sequences, num_items: int) -> NDArray[np.int64]:
    """The third of the purchases that each item belongs to: 0 for the most popular items, to 2. [item]

    Items with equal counts stay together, so a third can have more than its share.
    """
    count = counts.purchases(train, num_items)  # [item]
    descending = np.sort(count)[::-1]
    total = np.cumsum(descending, dtype=np.float64)
    ends = np.searchsorted(total, [total[-1] / 3, 2 * total[-1] / 3])
    least = descending[ends]  # the count of the last item of the first and of the second third
    third = (count < least[0]).astype(np.int64) + (count < least[1])
    return np.where(count > 0, third, 2)


def _seen_transitions(split: Split, num_items: int) -> Mask:
    last = np.array([history[-1] for history in split.test.histories], dtype=np.int64)
    times = counts.transitions(split.train, num_items)[last, split.test.targets]
    return np.asarray(times).ravel() > 0
