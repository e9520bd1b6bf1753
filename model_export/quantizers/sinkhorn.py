"""Sinkhorn's algorithm (Cuturi, 2013): spread rows evenly and softly over columns by their distances.

The result is a price for each column. A row goes to the column with the least distance + price. The prices
are sufficient: the plan, which says how much of each row goes to each column, follows from them.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]

ABOUT_THE_SAME = 0.99  # of a row's largest share; shares above this count as equal


def sinkhorn_prices(distance: Floats, epsilon: float, iterations: int, start: Floats | None = None) -> Floats:
    """Prices [column] with which all columns get about the same mass. distance is [row, column].

    A smaller `epsilon` divides the rows less and needs more iterations. The prices begin at `start` [column]
    or at 0.
    """
    num_rows, num_columns = distance.shape
    price = np.zeros(num_columns, dtype=distance.dtype) if start is None else start.astype(distance.dtype)
    for _ in range(iterations):
        mass = _each_row_once(distance, price, epsilon).sum(axis=0)  # [column]
        mass = np.maximum(mass, np.finfo(mass.dtype).tiny)  # a column so expensive that its mass underflows
        price = price + distance.dtype.type(epsilon) * np.log(mass * num_columns / num_rows)
    return price


def sinkhorn_plan(distance: Floats, epsilon: float, iterations: int) -> Floats:
    """The share of the mass that goes from each row to each column -> [row, column].

    The sum is 1. All columns have the same mass, and all rows nearly the same. distance is [row, column].
    """
    plan = _each_row_once(distance, sinkhorn_prices(distance, epsilon, iterations), epsilon)
    result: Floats = plan / plan.sum(axis=0) / distance.shape[1]
    return result


def sinkhorn_assign(
    distance: Floats, epsilon: float = 0.003, iterations: int = 50, nth: int = 0
) -> NDArray[np.int64]:
    """The column that gets the largest share of each row of distance [row, column] -> [row].

    Distances are first scaled to about [-1, 1], so `epsilon` is relative to their range (LC-Rec, Zheng et
    al., 2023). A row that has several columns to itself has equal shares of them, apart from rounding. It
    goes to the `nth` nearest of these columns, counted from 0.
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
    """A plan [row, column] in which each row sums to 1."""
    score = (distance + price) / distance.dtype.type(-epsilon)
    plan = np.exp(score - score.max(axis=1, keepdims=True))
    result: Floats = plan / plan.sum(axis=1, keepdims=True)
    return result
