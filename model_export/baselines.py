"""What a model must beat: popularity, and first-order Markov with popularity behind it.

Both count in the sequences they are fitted on and nowhere else (for the published floors: `Split.train`, so
without either target), rank every item, and leave out what the history holds. Of equal counts, the one that
was seen first, reading the sequences in order, comes first.
"""

from collections.abc import Iterable, Sequence
from itertools import chain, islice
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

FILLER = -1

Sequences = Sequence[NDArray[np.int32]]  # [user][position] item indices, oldest first
Ranked = NDArray[np.int32]  # [user, k] item indices, best first; FILLER where nothing is left


class Popularity:
    """Ranks by how often an item occurs; items that never occur come last, by index."""

    name = "popularity"

    def fit(self, sequences: Sequences, num_items: int) -> Self:
        seen = np.concatenate([*sequences, np.empty(0, np.int32)])
        items, first, count = np.unique(seen, return_index=True, return_counts=True)
        by_count = items[np.lexsort((first, -count))]
        unseen = np.setdiff1d(np.arange(num_items), items)
        self.order = np.concatenate([by_count, unseen]).tolist()  # every item, most popular first
        return self

    def rank(self, histories: Sequences, k: int, exclude_history: bool = True) -> Ranked:
        return _rank(((self.order, history) for history in histories), len(histories), k, exclude_history)


class Markov:
    """Ranks by how often an item came right after the history's last one, then by popularity.

    `ties="popularity"` orders equal counts by popularity instead: the stronger baseline on most data, but not
    the one of the published floors.
    """

    name = "first-order Markov, then popularity"

    def __init__(self, ties: Literal["first seen", "popularity"] = "first seen") -> None:
        self.ties = ties

    def fit(self, sequences: Sequences, num_items: int) -> Self:
        self.popularity = Popularity().fit(sequences, num_items)
        none = np.empty(0, np.int64)
        last = np.concatenate([*(sequence[:-1] for sequence in sequences), none])
        following = np.concatenate([*(sequence[1:] for sequence in sequences), none])
        pair, first, count = np.unique(last * num_items + following, return_index=True, return_counts=True)
        last, following = np.divmod(pair, num_items)
        if self.ties == "popularity":
            first = np.argsort(self.popularity.order)[following]
        best_first = np.lexsort((first, -count, last))
        ends = np.cumsum(np.bincount(last, minlength=num_items))
        self.successors = np.split(following[best_first], ends[:-1])  # [item][rank]
        return self

    def rank(self, histories: Sequences, k: int, exclude_history: bool = True) -> Ranked:
        order = self.popularity.order
        candidates = (
            (chain(self.successors[history[-1]].tolist() if len(history) else (), order), history)
            for history in histories
        )
        return _rank(candidates, len(histories), k, exclude_history)


def _rank(
    candidates: Iterable[tuple[Iterable[int], NDArray[np.int32]]],
    num_users: int,
    k: int,
    exclude_history: bool,
) -> Ranked:
    """The first `k` different candidates of each user that the history does not hold."""
    ranked = np.full((num_users, k), FILLER, dtype=np.int32)
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
