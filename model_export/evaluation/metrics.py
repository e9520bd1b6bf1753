"""How good rankings and codes are. Item-level: what counts is the item, never its codes (methods: CCE).

Every figure is a mean over users, and a user whose target is missing counts as 0. `hits_at` and `gains_at`
are what each user adds to recall and NDCG, for statistics.py.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

NO_ITEM = -1  # in a ranking: nothing here

Ints = NDArray[np.integer[Any]]


def recall_at(ranked: Ints, targets: Ints, k: int) -> float:
    """The share of users whose target [user] is among the first `k` of ranked [user, rank]."""
    return _mean(hits_at(ranked, targets, k))


def ndcg_at(ranked: Ints, targets: Ints, k: int) -> float:
    """1 / log2(rank + 1) of the target, rank from 1; one target, so the ideal is 1."""
    return _mean(gains_at(ranked, targets, k))


def hits_at(ranked: Ints, targets: Ints, k: int) -> NDArray[np.float64]:
    """Of each user 1 where the target is among the first `k`, else 0. [user]"""
    return hits_of_ranks(target_ranks(ranked, targets, k), k)


def gains_at(ranked: Ints, targets: Ints, k: int) -> NDArray[np.float64]:
    """Of each user what `ndcg_at` averages. [user]"""
    return gains_of_ranks(target_ranks(ranked, targets, k), k)


def hits_of_ranks(ranks: Ints, k: int) -> NDArray[np.float64]:
    """What a target at each rank, from 0, adds to recall at `k`: 1 or 0. The shape of `ranks`."""
    return (ranks < k).astype(np.float64)


def gains_of_ranks(ranks: Ints, k: int) -> NDArray[np.float64]:
    """What a target at each rank, from 0, adds to NDCG at `k`. The shape of `ranks`."""
    return np.where(ranks < k, 1 / np.log2(ranks.astype(np.float64) + 2), 0.0)


def target_ranks(ranked: Ints, targets: Ints, k: int) -> NDArray[np.int64]:
    """Where each target stands among its first `k`, from 0; `k` where it does not. [user]"""
    if ranked.shape[1] < k:
        raise ValueError(f"a ranking of width {ranked.shape[1]} cannot tell what is among the first {k}")
    hit = ranked[:, :k] == targets[:, None]  # [user, rank]
    return np.where(hit.any(axis=1), hit.argmax(axis=1), k)


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
