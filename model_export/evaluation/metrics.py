"""How good rankings and codes are. Item-level: what counts is the item, never its codes (methods: CCE).

Every figure is a mean over users, and a user whose target is missing counts as 0. `hits_at` and `gains_at`
are what each user adds to recall and NDCG, for statistics.py.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

FILLER = -1  # in a ranking: nothing here

Ints = NDArray[np.integer[Any]]


def recall_at(ranked: Ints, targets: Ints, k: int) -> float:
    """The share of users whose target [user] is among the first `k` of ranked [user, rank]."""
    return _mean(hits_at(ranked, targets, k))


def ndcg_at(ranked: Ints, targets: Ints, k: int) -> float:
    """1 / log2(rank + 1) of the target, rank from 1; one target, so the ideal is 1."""
    return _mean(gains_at(ranked, targets, k))


def hits_at(ranked: Ints, targets: Ints, k: int) -> NDArray[np.float64]:
    """Of each user 1 where the target is among the first `k`, else 0. [user]"""
    return (target_ranks(ranked, targets, k) < k).astype(np.float64)


def gains_at(ranked: Ints, targets: Ints, k: int) -> NDArray[np.float64]:
    """Of each user what `ndcg_at` averages. [user]"""
    rank = target_ranks(ranked, targets, k)
    return np.where(rank < k, 1 / np.log2(rank + 2), 0.0)


def mrr(ranked: Ints, targets: Ints) -> float:
    """1 / rank of the target, rank from 1, over the whole width of `ranked`."""
    width = ranked.shape[1]
    rank = target_ranks(ranked, targets, width)
    return _mean(np.where(rank < width, 1 / (rank + 1), 0))


def ranking_metrics(ranked: Ints, targets: Ints, cutoffs: tuple[int, ...] = (5, 10, 20)) -> dict[str, float]:
    """{"recall@10": …, "ndcg@10": …, "mrr": …}, for those cutoffs that the ranking is wide enough for."""
    found: dict[str, float] = {}
    for k in cutoffs:
        if k <= ranked.shape[1]:
            found[f"recall@{k}"] = recall_at(ranked, targets, k)
            found[f"ndcg@{k}"] = ndcg_at(ranked, targets, k)
    return found | {"mrr": mrr(ranked, targets)}


def target_ranks(ranked: Ints, targets: Ints, k: int) -> NDArray[np.int64]:
    """Where each target stands among its first `k`, from 0; `k` where it does not. [user]"""
    if ranked.shape[1] < k:
        raise ValueError(f"a ranking of width {ranked.shape[1]} cannot tell what is among the first {k}")
    hit = ranked[:, :k] == targets[:, None]  # [user, rank]
    return np.where(hit.any(axis=1), hit.argmax(axis=1), k)


class CodeMetrics(NamedTuple):
    item_hit: float
    item_ndcg: float


def corrected_code_metrics(ranked: Ints, targets: Ints, num_at: Ints, k: int) -> CodeMetrics:
    """ItemHit@k and ItemNDCG@k of rankings of *codes*: the expected item-level figures when each code is
    replaced by its items in random order and the longer list is cut at `k`.

    ranked [user, rank] and targets [user] hold full codes as one integer; num_at [code] is how many items
    have them (the leaf table of a trie). A code that no item has takes one place. Where no items share codes
    these are recall_at and ndcg_at.
    """
    sizes = np.where(ranked == FILLER, 0, np.maximum(num_at[ranked].astype(np.int64), 1))  # [user, rank]
    before = np.cumsum(sizes, axis=1) - sizes  # [user, rank]  items ahead of each code
    rank = target_ranks(ranked, targets, ranked.shape[1])
    found = rank < ranked.shape[1]
    place = np.where(found, rank, 0)[:, None]
    ahead = np.take_along_axis(before, place, axis=1)[:, 0]  # [user]
    group = np.where(found, np.take_along_axis(sizes, place, axis=1)[:, 0], 1)  # [user]
    inside = np.where(found, np.clip(k - ahead, 0, group), 0)  # [user]  of the target's group, within the cut
    gains = np.append(0, np.cumsum(1 / np.log2(np.arange(k) + 2)))  # [count]  of the first so many places
    start = np.minimum(ahead, k)
    return CodeMetrics(
        item_hit=_mean(inside / group),
        item_ndcg=_mean((gains[start + inside] - gains[start]) / group),
    )


class Collisions(NamedTuple):
    shared_rate: float  # items whose codes another item has too / items
    missing_rate: (
        float  # (items - distinct codes) / items, which several papers print as their collision rate
    )
    largest_group: int  # most items at one code


def collisions(codes: Ints) -> Collisions:
    """How often items share codes [item, level]."""
    _, count = np.unique(codes, axis=0, return_counts=True)
    return Collisions(
        shared_rate=float(count[count > 1].sum() / len(codes)),
        missing_rate=float((len(codes) - len(count)) / len(codes)),
        largest_group=int(count.max()),
    )


class LevelUse(NamedTuple):
    num_codes: int  # of the codebook
    num_used: int
    entropy_bits: float  # log2(num_codes) when all are used equally


def codebook_use(codes: Ints, levels: tuple[int, ...]) -> list[LevelUse]:
    """How evenly each level's codes are used, from codes [item, level]."""
    found = []
    for level, num_codes in enumerate(levels):
        share = np.bincount(codes[:, level], minlength=num_codes) / len(codes)  # [code]
        used = share[share > 0]
        entropy = float(-(used * np.log2(used)).sum()) + 0.0  # no minus zero
        found.append(LevelUse(num_codes=num_codes, num_used=len(used), entropy_bits=entropy))
    return found


def _mean(of_user: NDArray[Any]) -> float:
    return float(np.mean(of_user)) if len(of_user) else 0.0
