"""TGH, a baseline without training: the neighborhood of the last item in the graph of transitions.

Source: arXiv 2605.07125. An item is a candidate if it lies one to three transitions of the training sequences
after the last item of the history. The candidates are ranked by the cosine of their text plus half of the
logarithm of how often they came right after the last item. The other items follow, ranked by the cosine.

A ranking ring by ring, in which a nearer ring always comes first, is worse on the validation users of
`scientific` and `office`. So the rings only decide what is a candidate. The text is compared with the items
of the history. As in `Neighbors`, the validation users choose how fast older items lose weight.
"""

from collections.abc import Iterator, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from model_export.data.splits import Targets
from model_export.evaluation.baselines import counts
from model_export.evaluation.baselines.counting import DECAYS, Popularity
from model_export.evaluation.baselines.ranked import (
    USERS_AT_ONCE,
    Ranked,
    Sequences,
    best_of_scores,
    first_candidates,
)
from model_export.evaluation.baselines.text_cosines import text_cosines
from model_export.evaluation.metrics import ndcg_at

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py
NUM_HOPS = 3
WEIGHT_OF_COUNT = 0.5  # of the paper
OUTSIDE = 100.0  # more than any score, so that items outside of the rings come last


class TransitionHops:
    """Ranks the items one to three transitions after the last item by text and count, then all others."""

    name = "transition graph, three hops"

    def __init__(self, texts: Sequence[str], decay: float = 0.0) -> None:
        """`texts`: of each item. Each step into the past multiplies the weight of an item by `decay`."""
        self.cosines = text_cosines(texts, "words")
        self.decay = decay

    @classmethod
    def tuned(cls, texts: Sequence[str], train: Sequences, validation: Targets) -> Self:
        """A fitted baseline with the best of DECAYS, by NDCG@10 on the validation users."""
        found = cls(texts).fit(train, len(texts))
        quality = {}
        for decay in DECAYS:
            found.decay = decay
            quality[decay] = ndcg_at(found.rank(validation.histories, 10), validation.targets, 10)
        found.decay = max(DECAYS, key=quality.__getitem__)
        return found

    def fit(self, sequences: Sequences, num_items: int) -> Self:
        """Count the transitions of the sequences [user][position].

        Raises ValueError if the number of items is not that of the texts.
        """
        if num_items != len(self.cosines):
            raise ValueError(
                f"{len(self.cosines)} texts cannot rank {num_items} items. Give each item a text."
            )
        self.popular = np.array(Popularity().fit(sequences, num_items).order)
        self.following = counts.transitions(sequences, num_items)
        return self

    def rank(self, histories: Sequences, k: int, exclude_history: bool = True) -> Ranked:
        """Rank every item for each history. Of equal scores the more popular item wins."""
        candidates = zip(self._best(histories, k), histories, strict=True)
        return first_candidates(candidates, len(histories), k, exclude_history)

    def _best(self, histories: Sequences, k: int) -> Iterator[list[int]]:
        num_items = len(self.cosines)
        for first in range(0, len(histories), USERS_AT_ONCE):
            part = histories[first : first + USERS_AT_ONCE]
            weights = counts.weights_of_items(part, num_items, self.decay)
            total = np.maximum(np.asarray(weights.sum(axis=1)), 1e-9)  # [user, 1]; 0 without a history
            last = counts.weights_of_items(part, num_items, 0.0)
            score = (weights @ self.cosines) / total  # [user, item], at most 1
            score += WEIGHT_OF_COUNT * np.log1p((last @ self.following).toarray())
            score = score.round(5) - OUTSIDE * ~self._within_hops(last)
            for history, row in zip(part, score[:, self.popular], strict=True):
                yield self.popular[best_of_scores(row, k + len(history))].tolist()

    def _within_hops(self, last: csr_matrix) -> NDArray[np.bool_]:
        """Whether each item lies within NUM_HOPS transitions of the last item, [user, item]."""
        step = (self.following > 0).astype(np.float32)
        reached = last
        within = np.zeros(last.shape, dtype=np.bool_)
        for _ in range(NUM_HOPS):
            reached = ((reached @ step) > 0).astype(np.float32)
            within |= reached.toarray() > 0
        return within
