"""Probes of codes before anything is recommended: what a prefix tells of purchases, category and popularity.

After the published audit SIDInspector, whose probes every tokenizer can be asked: code use and aliasing (the
items that share all codes) are in metrics.py, and the rest is here. Each alignment stands beside what chance
gives, because a coarse prefix is shared by many pairs anyway. ReSID (arXiv 2602.02338) adds the cosine of
directions with one code: it is high if a code means the same below every prefix.

Pure: arrays in, figures out. The names of figures end in their depth, from 1. Depths at which no pair of
items shares a prefix are left out where pairs are counted.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from model_export.evaluation.metrics import Ints

UNKNOWN_CATEGORY = -1

Floats = NDArray[np.floating]
Prefixes = list[NDArray[np.int64]]  # for each depth [item], equal numbers for equal prefixes


def probe_codes(
    codes: Ints,
    sequences: Sequence[Ints],
    categories: Ints | None = None,
    vectors: Floats | None = None,
) -> dict[str, float]:
    """All probes of codes [item, level].

    `sequences` are those of the training part, oldest first. `categories` [item]: a number for each category,
    or UNKNOWN_CATEGORY. `vectors` [item, dim]: what the quantizer divided.
    """
    prefixes = prefixes_of(codes)
    figures = co_purchases(prefixes, sequences) | popularity_spread(codes, sequences)
    if categories is not None:
        figures |= category_alignment(prefixes, categories)
    if vectors is not None:
        figures |= same_code_cosines(codes, prefixes, vectors)
    return figures


def prefixes_of(codes: Ints) -> Prefixes:
    """The prefixes of codes [item, level], numbered at each depth."""
    return [
        np.unique(codes[:, :depth], axis=0, return_inverse=True)[1].reshape(-1)
        for depth in range(1, codes.shape[1] + 1)
    ]


def co_purchases(prefixes: Prefixes, sequences: Sequence[Ints]) -> dict[str, float]:
    """How often two different items that follow each other in a sequence share their prefix.

    `chance_co_purchase_…` is the same for pairs whose two items are drawn independently, each as often as it
    occurs in such pairs. Empty without any pair.
    """
    steps = [np.stack([each[:-1], each[1:]], axis=1) for each in sequences if len(each) > 1]
    pairs = np.concatenate(steps) if steps else np.zeros((0, 2), np.int64)  # [pair, 2]
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    if not len(pairs):
        return {}
    share = np.bincount(pairs.reshape(-1), minlength=len(prefixes[0])) / pairs.size  # [item]
    of_itself = np.square(share).sum()
    figures = {}
    for depth, prefix in enumerate(prefixes, start=1):
        together = np.square(np.bincount(prefix, weights=share)).sum()
        figures[f"alignment_co_purchase_{depth}"] = float((prefix[pairs[:, 0]] == prefix[pairs[:, 1]]).mean())
        figures[f"chance_co_purchase_{depth}"] = max(0.0, float((together - of_itself) / (1 - of_itself)))
    return figures


def category_alignment(prefixes: Prefixes, categories: Ints) -> dict[str, float]:
    """Of all pairs of items with one prefix, the share that also has one category.

    `chance_category` is that share of all pairs. Items of an unknown category do not count. Empty without two
    known items.
    """
    known = categories != UNKNOWN_CATEGORY  # [item]
    if known.sum() < 2:
        return {}
    category = np.unique(categories[known], return_inverse=True)[1].reshape(-1)
    figures = {"chance_category": _num_pairs(category) / _num_pairs(np.zeros_like(category))}
    for depth, prefix in enumerate(prefixes, start=1):
        sharing = _num_pairs(prefix[known])
        if not sharing:
            break  # a deeper prefix is shared by no more items
        both = np.unique(np.stack([prefix[known], category], axis=1), axis=0, return_inverse=True)[1]
        figures[f"alignment_category_{depth}"] = _num_pairs(both.reshape(-1)) / sharing
    return figures


def popularity_spread(codes: Ints, sequences: Sequence[Ints]) -> dict[str, float]:
    """The entropy of the purchases over the codes of each level, as a share of the largest that there can be.

    It is 1 if all used codes have as many purchases. A level with one used code has 0. Empty without any
    purchase.
    """
    bought = np.concatenate([np.zeros(0, np.int64), *sequences]).astype(np.int64)
    if not len(bought):
        return {}
    figures = {}
    for level in range(codes.shape[1]):
        used = np.unique(codes[:, level], return_inverse=True)[1].reshape(-1)  # [item]
        num_used = int(used.max()) + 1
        share = np.bincount(used[bought], minlength=num_used) / len(bought)  # [code]
        share = share[share > 0]
        bits = float(-(share * np.log2(share)).sum()) + 0.0  # turns -0.0 into 0.0
        figures[f"popularity_entropy_{level + 1}"] = bits / np.log2(num_used) if num_used > 1 else 0.0
    return figures


def same_code_cosines(codes: Ints, prefixes: Prefixes, vectors: Floats) -> dict[str, float]:
    """The mean cosine of two directions with the same code, for each level from 2.

    A direction leads from the mean of a prefix to the mean of the prefix that is one code longer. Both
    directions belong to different prefixes, as below one prefix codes differ. `chance_cosine_…` is the mean
    of all pairs of directions. A level without a pair of one code is left out, with all deeper ones.
    """
    figures = {}
    for level in range(1, codes.shape[1]):
        first = np.unique(prefixes[level], return_index=True)[1]  # [node] an item of each
        step = (
            _means(prefixes[level], vectors)
            - _means(prefixes[level - 1], vectors)[prefixes[level - 1][first]]
        )  # [node, dim]
        length = np.linalg.norm(step, axis=1, keepdims=True)
        moves = length[:, 0] > 0  # an only child is where its prefix is
        direction, code = step[moves] / length[moves], codes[first, level][moves]
        same = [_sum_of_cosines(direction[code == each]) for each in np.unique(code)]
        num_pairs = sum(pairs for _, pairs in same)
        if not num_pairs:
            break
        total, all_pairs = _sum_of_cosines(direction)
        figures[f"cosine_same_code_{level + 1}"] = sum(cosines for cosines, _ in same) / num_pairs
        figures[f"chance_cosine_{level + 1}"] = total / all_pairs
    return figures


def _num_pairs(group: Ints) -> float:
    """The number of pairs of items in one group, for numbers of groups [item]."""
    count = np.bincount(group).astype(np.float64)
    return float((count * (count - 1)).sum() / 2)


def _means(group: Ints, vectors: Floats) -> NDArray[np.float64]:
    """The mean of the vectors [item, dim] of each group [item] -> [group, dim]."""
    total = np.zeros((int(group.max()) + 1, vectors.shape[1]))
    np.add.at(total, group, vectors)
    return total / np.bincount(group)[:, None]


def _sum_of_cosines(directions: NDArray[np.float64]) -> tuple[float, float]:
    """The sum of the cosines of all pairs of directions [direction, dim], and the number of pairs."""
    count = len(directions)
    total = float(np.square(directions.sum(axis=0)).sum()) - count
    return total / 2, count * (count - 1) / 2
