"""Exact top-k where an item's score is a sum over its parts: the beam's peers in benchmarks/exactness.py.

RecJPQ (arXiv 2312.06165) gives each item one sub-item out of 256 in each of 8 splits. The score of an item is
the sum of the scores of its sub-items, which one request computes once. `SubItemIndex.full_pass` adds up all
items (PQTopK, arXiv 2408.09992); `SubItemIndex.pruned` visits the best sub-items first and stops early
(RecJPQPrune, arXiv 2505.00560). `VectorTable` is one matrix-vector product over all items.

They take one thread and numpy alone, and blocks of items that fit into the caches. `faiss_index` is the full
pass over sub-items in compiled code.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import NotAvailable

NUM_SPLITS = 8
NUM_CODES = 256
BLOCK = 32_768  # items at once
SUB_ITEMS_AT_ONCE = 8  # as in the paper

Scores = NDArray[np.float32]


class Found(NamedTuple):
    """The best items, best first, and how many scores it took to be sure of them."""

    items: NDArray[np.int64]  # [k]
    scores: Scores  # [k]
    num_scored: int


class _Best:
    """The k best items so far."""

    def __init__(self, k: int) -> None:
        self.k = k
        self.items, self.scores = np.empty(0, np.int64), np.empty(0, np.float32)
        self.num_scored = 0

    @property
    def threshold(self) -> float:
        """What an item must exceed to be among them."""
        return float(self.scores[-1]) if len(self.scores) == self.k else -np.inf

    def add(self, scores: Scores, items: NDArray[np.integer]) -> None:
        """scores [n] of items [n]; no item occurs twice in one call, but it may be among the best already."""
        self.num_scored += len(scores)
        above = np.flatnonzero(scores > self.threshold)
        if len(above) > self.k:
            above = above[np.argpartition(scores[above], -self.k)[-self.k :]]
        new = items[above]
        is_new = ~np.isin(new, self.items)
        items_now = np.concatenate([self.items, new[is_new]])
        scores_now = np.concatenate([self.scores, scores[above][is_new]])
        order = np.argsort(-scores_now, kind="stable")[: self.k]
        self.items, self.scores = items_now[order], scores_now[order]

    def found(self) -> Found:
        return Found(self.items, self.scores, self.num_scored)


class VectorTable:
    """A vector for each item; the score is the inner product with the request's vector."""

    def __init__(self, vectors: NDArray[np.float32]) -> None:
        """vectors [item, dim]"""
        self.vectors = vectors

    @property
    def num_bytes(self) -> int:
        return self.vectors.nbytes

    def full_pass(self, query: NDArray[np.float32], k: int) -> Found:
        """Score every item for a query [dim]."""
        best = _Best(k)
        for start in range(0, len(self.vectors), BLOCK):
            scores = self.vectors[start : start + BLOCK] @ query
            best.add(scores, np.arange(start, start + len(scores)))
        return best.found()


class SubItemIndex:
    """The sub-items of each item, and for each sub-item the list of its items."""

    def __init__(self, sub_items: NDArray[np.uint8]) -> None:
        """sub_items [item, split]"""
        num_items, self.num_splits = sub_items.shape
        self.sub_items = np.ascontiguousarray(sub_items)
        self.items = np.empty((self.num_splits, num_items), np.int32)  # sorted by their sub-item
        self.first = np.zeros((self.num_splits, NUM_CODES + 1), np.int64)  # where a sub-item's list begins
        for split in range(self.num_splits):
            own = self.sub_items[:, split]
            self.items[split] = np.argsort(own, kind="stable")
            self.first[split, 1:] = np.cumsum(np.bincount(own, minlength=NUM_CODES))

    @property
    def num_bytes(self) -> int:
        """Of what the pruned search reads; a full pass needs no lists."""
        return self.sub_items.nbytes + self.items.nbytes + self.first.nbytes

    def full_pass(self, scores: Scores, k: int) -> Found:
        """Add up every item, for the scores of the sub-items [split, code]."""
        best = _Best(k)
        for start in range(0, len(self.sub_items), BLOCK):
            total = _sums(scores, self.sub_items[start : start + BLOCK])
            best.add(total, np.arange(start, start + len(total)))
        return best.found()

    def pruned(self, scores: Scores, k: int) -> Found:
        """The same items, without adding up all of them. scores [split, code]

        Lists are visited from the best sub-item on. All sub-items of an item that is in no visited list are
        still to come, so the sum of the best of them bounds its score. The search ends when that bound cannot
        enter the best k. Bound and scores are summed in the same order, and rounding keeps the order of sums,
        so the bound also holds in float32.
        """
        order = np.argsort(-scores, axis=1)  # [split, rank]
        ranked = np.take_along_axis(scores, order, axis=1)
        ranked = np.concatenate([ranked, np.full((self.num_splits, 1), -np.inf, np.float32)], axis=1)
        place = np.zeros(
            self.num_splits, np.int64
        )  # of the best sub-item of each split that is still to come
        best = _Best(k)
        while True:
            heads = ranked[np.arange(self.num_splits), place]
            bound = heads[0]
            for head in heads[1:]:
                bound = bound + head
            if bound <= best.threshold or bound == -np.inf:  # -inf: all lists of one split, so all items
                return best.found()
            split = int(heads.argmax())
            codes = order[split, place[split] : place[split] + SUB_ITEMS_AT_ONCE]
            place[split] += len(codes)
            lists = [self.items[split, self.first[split, c] : self.first[split, c + 1]] for c in codes]
            items = np.concatenate(lists)
            for start in range(0, len(items), BLOCK):
                block = items[start : start + BLOCK]
                best.add(_sums(scores, self.sub_items[block]), block)


def sub_scores(embeddings: NDArray[np.float32], query: NDArray[np.float32]) -> Scores:
    """The score of every sub-item: embeddings [split, code, part of dim], query [dim] -> [split, code]"""
    parts = query.reshape(len(embeddings), -1, 1)  # [split, part of dim, 1]
    found: Scores = (embeddings @ parts)[..., 0]
    return found


def faiss_index(embeddings: NDArray[np.float32], sub_items: NDArray[np.uint8]) -> Any:
    """faiss' full pass over the same sums. Its search takes queries [request, dim] and k.

    embeddings [split, code, part of dim], sub_items [item, split]. Raises NotAvailable without faiss.
    """
    faiss = imported_faiss()
    num_splits, _, width = embeddings.shape
    index = faiss.IndexPQ(num_splits * width, num_splits, 8, faiss.METRIC_INNER_PRODUCT)
    faiss.copy_array_to_vector(embeddings.ravel(), index.pq.centroids)
    index.is_trained = True
    index.add_sa_codes(np.ascontiguousarray(sub_items))
    return index


def imported_faiss() -> Any:
    """faiss, with one thread. Raises NotAvailable without it."""
    try:
        import faiss
    except ImportError as error:
        raise NotAvailable("faiss is missing: pip install faiss-cpu") from error
    faiss.omp_set_num_threads(1)
    return faiss


def _sums(scores: Scores, sub_items: NDArray[np.uint8]) -> Scores:
    """scores [split, code], sub_items [item, split] -> [item], added up from the first split to the last"""
    total: Scores = scores[0].take(sub_items[:, 0])
    for split in range(1, len(scores)):
        total += scores[split].take(sub_items[:, split])
    return total
