"""Measures of a ranker that predicts whether a shown item is taken (arXiv 2504.02137 §4.2 and §5.3).

An impression is a candidate that was shown after a history, with label 1 if it was taken. Probabilities are
clipped, so no figure is infinite.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
SMALLEST = 1e-7  # of a probability
HEAD, TORSO = 0.25, 0.75  # cumulative shares of the impressions, most shown items first


def cross_entropies(labels: Floats, probabilities: Floats) -> NDArray[np.float64]:
    """-(y log q + (1 - y) log(1 - q)) of each impression, in nats. All arrays have one shape."""
    q = np.clip(probabilities.astype(np.float64), SMALLEST, 1 - SMALLEST)
    return -(labels * np.log(q) + (1 - labels) * np.log1p(-q))


def normalized_entropy(labels: Floats, probabilities: Floats) -> float:
    """The mean cross-entropy divided by that of always predicting the base rate; nan without both labels.

    Both take the two-sided form. Lower is better, and 1 is as good as knowing the base rate alone.
    """
    if not labels.size or not 0 < labels.mean() < 1:
        return float("nan")
    base = np.full(labels.shape, labels.mean())
    return float(cross_entropies(labels, probabilities).mean() / cross_entropies(labels, base).mean())


def relative_change(value: float, reference: float) -> float:
    """By which share of the reference the value is higher: -0.01 for an entropy that fell by 1 %."""
    return (value - reference) / reference


class DriftWindows(NamedTuple):
    """Two parts of the training, as ranges of its events in the order of their times."""

    early: slice  # 42 to 48 hours before the end of 96 hours
    late: slice  # the last 6 hours


def drift_windows(num_events: int) -> DriftWindows:
    """The paper's windows of a training of four days, for any training: sixteenths of its events."""
    edges = [round(num_events * place / 16) for place in (8, 9, 15, 16)]
    return DriftWindows(slice(edges[0], edges[1]), slice(edges[2], edges[3]))


def drift_sensitivity(early: float, late: float) -> float:
    """The normalized entropy of the early window minus that of the late one, of one model.

    The lower, the less a model forgets of what it learned before the end.
    """
    return early - late


def aa_variance(first: Floats, second: Floats) -> float:
    """The mean of 2|p1 - p2| / (p1 + p2) over pairs of predictions for two copies of one item (AAR).

    It is 0 if every pair is equal, and at most 2.
    """
    return float((2 * np.abs(first - second) / (first + second + SMALLEST)).mean())


def click_loss(shown: Floats, swapped: Floats) -> float:
    """(CTR of the swapped items - CTR of the shown items) / CTR of the shown items.

    shown, swapped: 1 where the item was taken. Raises ValueError if no shown item was taken.
    """
    if not shown.sum():
        raise ValueError("no shown item was taken, so there is no rate to lose")
    return relative_change(float(swapped.mean()), float(shown.mean()))


def segments(impressions: NDArray[np.integer[Any]]) -> dict[str, NDArray[np.bool_]]:
    """Head, torso, tail and unseen items by how often training showed them: name -> mask [item].

    The most shown items that have the first quarter of all impressions are the head, those up to three
    quarters the torso. An item belongs to the segment in which its own impressions begin.
    """
    order = np.argsort(-impressions, kind="stable")  # most shown first
    before = np.cumsum(impressions[order]) - impressions[order]
    share = np.empty(len(impressions))
    share[order] = before / max(int(impressions.sum()), 1)
    is_seen = impressions > 0
    return {
        "head": is_seen & (share < HEAD),
        "torso": is_seen & (share >= HEAD) & (share < TORSO),
        "tail": is_seen & (share >= TORSO),
        "unseen": ~is_seen,
    }


def attention_figures(weights: Floats, is_item: NDArray[np.bool_]) -> Mapping[str, float]:
    """Where the attention to a history goes: the paper's diagnostics, means over queries and histories.

    weights [batch, head, query, position], whose last axis adds up to 1; is_item [batch, position], oldest
    first with padding on the left. `newest` is the mass on the newest item, the first of the paper's
    sequences. `itself` is there if queries are positions: the mass of an item on itself. Histories without
    items are left out.
    """
    weights, is_item = weights[is_item.any(axis=1)], is_item[is_item.any(axis=1)]
    spread = -(weights * np.log2(np.clip(weights, SMALLEST, None))).sum(axis=-1)
    found = {
        "newest": float(weights[..., -1].mean()),
        "padding": float((weights * ~is_item[:, None, None, :]).sum(axis=-1).mean()),
        "entropy_bits": float(spread.mean()),
    }
    if weights.shape[-2] == weights.shape[-1]:
        own = np.diagonal(weights, axis1=-2, axis2=-1)  # [batch, head, position]
        found["itself"] = float(own.mean())
    return found
