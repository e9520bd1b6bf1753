"""The uncertainty of a figure: 95 % intervals by bootstrap over users, and the spread between seeds.

The two are separate. The interval shows how the figure would vary with other users. So users are resampled,
and each user comes with the values of all seeds and of both systems. This pairing makes a small difference
visible, because most users are easy for both systems or hopeless for both. The spread shows how the figure
would vary with another seed.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NUM_RESAMPLES = 10_000
DRAWS_AT_ONCE = 1_000_000  # 8 MB of counts
LOW, HIGH = 0.025, 0.975

Values = NDArray[np.floating]  # [seed, user]  the results of metrics.hits_at or gains_at for each seed


class Interval(NamedTuple):
    """A mean and its 95 % interval."""

    mean: float
    low: float  # 95 % of the resampled means lie between low and high
    high: float


def intervals(
    of_user: NDArray[np.floating], *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> list[Interval]:
    """The interval of the mean of each row of `of_user` [figure, user], by the percentile bootstrap.

    All rows use the same draws, so a hundred rows cost little more than one. A draw is stored as the number
    of times that each user was drawn.
    """
    num_figures, num_users = of_user.shape
    columns = np.ascontiguousarray(of_user.T, dtype=np.float64)  # [user, figure]
    rng = np.random.default_rng(seed)
    means = np.empty((num_resamples, num_figures))
    chunk = max(1, DRAWS_AT_ONCE // num_users)
    for first in range(0, num_resamples, chunk):
        part = means[first : first + chunk]
        drawn = rng.integers(0, num_users, size=(len(part), num_users), dtype=np.int32)
        drawn += np.arange(len(part), dtype=np.int32)[:, None] * np.int32(
            num_users
        )  # separate bins per resample
        count = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)  # [resample, user]
        part[:] = count.astype(np.float64) @ columns / num_users
    low, high = np.quantile(means, [LOW, HIGH], axis=0)  # [figure]
    return [
        Interval(float(mean), float(low), float(high))
        for mean, low, high in zip(of_user.mean(axis=1, dtype=np.float64), low, high, strict=True)
    ]


def spread_over_seeds(values: Values) -> float | None:
    """The standard deviation of the seeds' means, or None if there is only one seed."""
    means = values.mean(axis=1)
    return float(means.std(ddof=1)) if len(means) > 1 else None
