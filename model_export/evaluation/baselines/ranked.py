"""Rankings of all baselines: the first distinct candidates, or the best scores. Ties keep a given order."""

from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from model_export.evaluation.metrics import NO_ITEM

USERS_AT_ONCE = 512  # whose scores of all items are in memory at once

Sequences = Sequence[NDArray[np.int32]]  # [user][position] item indices, oldest first
Ranked = NDArray[np.int32]  # [user, k] item indices, best first; NO_ITEM in places without an item


def best_of_scores(score: NDArray[np.floating], count: int) -> NDArray[np.int64]:
    """The places of at least the `count` highest scores [item], best first. Of equal scores the first wins.

    There are more places if items tie with the last one, and fewer if there are fewer items.
    """
    count = min(count, len(score))
    least = np.partition(score, len(score) - count)[len(score) - count]
    places = np.flatnonzero(score >= least)
    return places[np.argsort(-score[places], kind="stable")]


def first_candidates(
    candidates: Iterable[tuple[Iterable[int], NDArray[np.int32]]],
    num_users: int,
    k: int,
    exclude_history: bool,
) -> Ranked:
    """The first `k` distinct candidates of each user. Items of the history are left out if excluded.

    `candidates`: for each user the items, best first, and the history.
    """
    ranked = np.full((num_users, k), NO_ITEM, dtype=np.int32)
    for row, (items, history) in enumerate(candidates):
        taken = set(history.tolist()) if exclude_history else set()
        best = list(islice(_new(items, taken), k))
        ranked[row, : len(best)] = best
    return ranked


def _new(items: Iterable[int], taken: set[int]) -> Iterable[int]:
    for item in items:
        if item not in taken:
            taken.add(item)
            yield item
