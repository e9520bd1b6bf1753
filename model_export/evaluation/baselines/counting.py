"""The baselines that a model must beat: popularity, first-order Markov then popularity, and nearest vectors.

All of them count only in the sequences that they are fitted on. For the published floors this is
`Split.train`, which holds neither target. They rank every item and leave out the items of the history. Among
items with equal counts, the item that comes first in the sequences ranks first.
"""

from collections.abc import Iterator
from itertools import chain
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from model_export.data.splits import Targets
from model_export.evaluation.baselines.ranked import (
    USERS_AT_ONCE,
    Ranked,
    Sequences,
    best_of_scores,
    first_candidates,
)
from model_export.evaluation.metrics import ndcg_at

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py
DECAYS = (0.0, 0.3, 0.5, 0.7, 0.9)


class Popularity:
    """Ranks by how often an item occurs. Items that never occur come last, in the order of their index."""

    name = "popularity"

    def fit(self, sequences: Sequences, num_items: int) -> Self:
        """Count how often each item occurs in the sequences [user][position]."""
        seen = np.concatenate([*sequences, np.empty(0, np.int32)])
        items, first, count = np.unique(seen, return_index=True, return_counts=True)
        by_count = items[np.lexsort((first, -count))]
        unseen = np.setdiff1d(np.arange(num_items), items)
        self.order = np.concatenate([by_count, unseen]).tolist()  # every item, most popular first
        return self

    def rank(self, histories: Sequences, k: int, exclude_history: bool = True) -> Ranked:
        """Rank by popularity alone -> the best `k` items of each user."""
        candidates = ((self.order, history) for history in histories)
        return first_candidates(candidates, len(histories), k, exclude_history)


class Markov:
    """Ranks by how often an item came right after the last item of the history, then by popularity.

    `ties="popularity"` orders equal counts by popularity. That is the stronger baseline on most data, but the
    published floors use "first seen".
    """

    name = "first-order Markov, then popularity"

    def __init__(self, ties: Literal["first seen", "popularity"] = "first seen") -> None:
        self.ties = ties

    def fit(self, sequences: Sequences, num_items: int) -> Self:
        """Count which item follows which in the sequences [user][position]."""
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
        """Rank the followers of the newest item first, then the others by popularity."""
        order = self.popularity.order
        candidates = (
            (chain(self.successors[history[-1]].tolist() if len(history) else (), order), history)
            for history in histories
        )
        return first_candidates(candidates, len(histories), k, exclude_history)


class Neighbors:
    """Ranks by cosine with the items of the history.

    Each step into the past multiplies an item's weight by `decay`, so 0 uses the last item alone. Among items
    with equal cosines, and for users without a history, the more popular item comes first.
    """

    def __init__(self, vectors: NDArray[np.floating], decay: float = 0.0) -> None:
        """vectors [item, dim]. A vector of zeros has cosine 0 with every item."""
        length = np.linalg.norm(vectors, axis=1, keepdims=True)
        self.vectors = (vectors / np.where(length > 0, length, 1)).astype(np.float32)
        self.decay = decay
        self.name = f"nearest items by cosine, decay {decay:g}"

    @classmethod
    def tuned(cls, vectors: NDArray[np.floating], train: Sequences, validation: Targets) -> Self:
        """A fitted baseline with the best of DECAYS, by NDCG@10 on the validation users."""

        def quality(decay: float) -> float:
            ranked = cls(vectors, decay).fit(train, len(vectors)).rank(validation.histories, 10)
            return ndcg_at(ranked, validation.targets, 10)

        return cls(vectors, max(DECAYS, key=quality)).fit(train, len(vectors))

    def fit(self, sequences: Sequences, num_items: int) -> Self:
        """Take the items as they are: the vectors know all. Raises ValueError if their number differs."""
        if num_items != len(self.vectors):
            raise ValueError(
                f"{len(self.vectors)} vectors cannot rank {num_items} items. Give one vector for each item."
            )
        self.popularity = Popularity().fit(sequences, num_items)
        return self

    def rank(self, histories: Sequences, k: int, exclude_history: bool = True) -> Ranked:
        """Rank by how near items are to the history, of which newer items weigh more."""
        # A page needs one candidate for each place and each item of the history.
        candidates = zip(self._nearest(histories, k), histories, strict=True)
        return first_candidates(candidates, len(histories), k, exclude_history)

    def _nearest(self, histories: Sequences, k: int) -> Iterator[list[int]]:
        """The best candidates of each user. There are enough for `k` items that are not in the history."""
        popular = np.array(self.popularity.order)
        by_popularity = self.vectors[popular]  # a stable sort then orders ties by popularity
        for first in range(0, len(histories), USERS_AT_ONCE):
            part = histories[first : first + USERS_AT_ONCE]
            scores = np.stack([self._query(history) for history in part]) @ by_popularity.T  # [user, item]
            scores = scores.round(5)  # otherwise the last bit of a product would order ties
            for history, score in zip(part, scores, strict=True):
                yield popular[best_of_scores(score, k + len(history))].tolist()

    def _query(self, history: NDArray[np.int32]) -> NDArray[np.float32]:
        weights = self.decay ** np.arange(len(history), dtype=np.float32)[::-1]  # [position], the last is 1
        return weights.astype(np.float32) @ self.vectors[history]
