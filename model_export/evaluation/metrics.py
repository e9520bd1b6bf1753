"""Metrics of rankings and of codes. Rankings are judged by items, never by their codes (methods: CCE).

Every figure is a mean over users. A user whose target is missing counts as 0. `hits_at` and `gains_at` are
the contributions of each user to recall and NDCG, for statistics.py.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

NO_ITEM = -1  # in a ranking: a place without an item

Ints = NDArray[np.integer[Any]]


def recall_at(ranked: Ints, targets: Ints, k: int) -> float:
    """The share of users whose target [user] is among the first `k` of ranked [user, rank]."""
    return _mean(hits_at(ranked, targets, k))


def ndcg_at(ranked: Ints, targets: Ints, k: int) -> float:
    """The mean of 1 / log2(rank + 1) of the target, with rank from 1. With one target, the ideal DCG is 1.

    ranked [user, rank], targets [user]
    """
    return _mean(gains_at(ranked, targets, k))


def hits_at(ranked: Ints, targets: Ints, k: int) -> NDArray[np.float64]:
    """For each user 1 if the target is among the first `k`, else 0: [user]. ranked [user, rank]"""
    return hits_of_ranks(target_ranks(ranked, targets, k), k)


def gains_at(ranked: Ints, targets: Ints, k: int) -> NDArray[np.float64]:
    """For each user the value that `ndcg_at` averages: [user]. ranked [user, rank]"""
    return gains_of_ranks(target_ranks(ranked, targets, k), k)


def hits_of_ranks(ranks: Ints, k: int) -> NDArray[np.float64]:
    """The contribution of a target to recall at `k`, 1 or 0, for ranks from 0. Same shape as `ranks`."""
    return (ranks < k).astype(np.float64)


def gains_of_ranks(ranks: Ints, k: int) -> NDArray[np.float64]:
    """The contribution of a target to NDCG at `k`, for ranks from 0. Same shape as `ranks`."""
    return np.where(ranks < k, 1 / np.log2(ranks.astype(np.float64) + 2), 0.0)


def target_ranks(ranked: Ints, targets: Ints, k: int) -> NDArray[np.int64]:
    """The rank of each target from 0, or `k` if it is not among the first `k`: [user]

    ranked [user, rank], targets [user]. Raises ValueError if the ranking is shorter than `k`.
    """
    if ranked.shape[1] < k:
        raise ValueError(f"a ranking of width {ranked.shape[1]} does not show the first {k} items")
    hit = ranked[:, :k] == targets[:, None]  # [user, rank]
    return np.where(hit.any(axis=1), hit.argmax(axis=1), k)


class Collisions(NamedTuple):
    """How many items share their codes with others."""

    shared_rate: float  # the share of items with the codes of another item
    missing_rate: float  # (items - distinct codes) / items; some papers call this the collision rate
    largest_group: int  # the most items with the same codes


def collisions(codes: Ints) -> Collisions:
    """How often items share codes [item, level]."""
    _, count = np.unique(codes, axis=0, return_counts=True)
    return Collisions(
        shared_rate=float(count[count > 1].sum() / len(codes)),
        missing_rate=float((len(codes) - len(count)) / len(codes)),
        largest_group=int(count.max()),
    )


class LevelUse(NamedTuple):
    """How evenly the codes of one level are used."""

    num_codes: int  # of the codebook
    num_used: int
    entropy_bits: float  # log2(num_codes) if all codes are used equally


def codebook_use(codes: Ints, levels: tuple[int, ...]) -> list[LevelUse]:
    """How evenly each level's codes are used, from codes [item, level]."""
    found = []
    for level, num_codes in enumerate(levels):
        share = np.bincount(codes[:, level], minlength=num_codes) / len(codes)  # [code]
        used = share[share > 0]
        entropy = float(-(used * np.log2(used)).sum()) + 0.0  # turns -0.0 into 0.0
        found.append(LevelUse(num_codes=num_codes, num_used=len(used), entropy_bits=entropy))
    return found


def _mean(of_user: NDArray[Any]) -> float:
    return float(np.mean(of_user)) if len(of_user) else 0.0
