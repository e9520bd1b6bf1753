"""Sinkhorn's balancing: spread rows over columns evenly, each row by its distances, softly.

The result is a price for each column: a row goes to the column of the least distance + price. That is all
that has to be kept; the plan (how much of each row goes to which column) follows from it.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

ABOUT_THE_SAME = 0.99  # of a row's largest part


def sinkhorn_prices(distance: Floats, epsilon: float, iterations: int, start: Floats | None = None) -> Floats:
    """Prices [column] under which each column gets about as much of distance [row, column] as any other.

    The smaller `epsilon`, the closer to whole rows, and the more iterations it takes.
    """
    num_rows, num_columns = distance.shape
    price = np.zeros(num_columns, dtype=distance.dtype) if start is None else start.astype(distance.dtype)
    for _ in range(iterations):
        mass = _each_row_once(distance, price, epsilon).sum(axis=0)  # [column]
        mass = np.maximum(mass, np.finfo(mass.dtype).tiny)  # a column so dear that nothing is left of it
        price = price + distance.dtype.type(epsilon) * np.log(mass * num_columns / num_rows)
    return price


def sinkhorn_plan(distance: Floats, epsilon: float, iterations: int) -> Floats:
    """How much of each row goes to each column [row, column], 1 in all: columns get the same, rows nearly."""
    plan = _each_row_once(distance, sinkhorn_prices(distance, epsilon, iterations), epsilon)
    result: Floats = plan / plan.sum(axis=0) / distance.shape[1]
    return result


def sinkhorn_assign(
    distance: Floats, epsilon: float = 0.003, iterations: int = 50, nth: int = 0
) -> NDArray[np.int64]:
    """The column that gets most of each row of distance [row, column] -> [row].

    Distances are brought to about [-1, 1] before, so `epsilon` is relative to their range (LC-Rec). A row
    that has several columns to itself has the same of each but for rounding: of those it goes to the `nth`
    nearest, 0 being the nearest.
    """
    distance = distance.astype(np.float64)
    middle = (distance.max() + distance.min()) / 2
    scaled = (distance - middle) / (distance.max() - middle + 1e-5)
    plan = sinkhorn_plan(scaled, epsilon, iterations)  # [row, column]
    is_most = plan >= ABOUT_THE_SAME * plan.max(axis=1, keepdims=True)
    by_distance = np.where(is_most, distance, np.inf).argsort(axis=1, kind="stable")  # [row, column]
    place = np.minimum(nth, is_most.sum(axis=1) - 1)  # [row]
    result: NDArray[np.int64] = by_distance[np.arange(len(distance)), place]
    return result


def _each_row_once(distance: Floats, price: Floats, epsilon: float) -> Floats:
    """A plan [row, column] whose rows sum to 1."""
    score = (distance + price) / distance.dtype.type(-epsilon)
    plan = np.exp(score - score.max(axis=1, keepdims=True))
    result: Floats = plan / plan.sum(axis=1, keepdims=True)
    return result
