"""How sure a figure is: 95 % intervals by bootstrap over users, and the spread between seeds.

The two are kept apart. An interval asks what other users would have given, so users are drawn anew, each with
what all seeds and both systems made of them. That pairing is what makes a small difference visible: most
users are easy, or hopeless, for both. The spread asks what another seed would have given.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

NUM_RESAMPLES = 10_000
DRAWS_AT_ONCE = 1_000_000  # 8 MB of counts
LOW, HIGH = 0.025, 0.975

Values = NDArray[np.floating]  # [seed, user], as metrics.hits_at and gains_at give them for each seed


class Interval(NamedTuple):
    mean: float
    low: float  # 95 % of the resampled means lie between low and high
    high: float


def intervals(
    of_user: NDArray[np.floating], *, num_resamples: int = NUM_RESAMPLES, seed: int = 0
) -> list[Interval]:
    """Of the mean of each row of [figure, user], all from the same draws: a hundred cost little more than
    one. Users are drawn as counts, how often each is among the drawn ones.
    """
    num_figures, num_users = of_user.shape
    columns = np.ascontiguousarray(of_user.T, dtype=np.float64)  # [user, figure]
    rng = np.random.default_rng(seed)
    means = np.empty((num_resamples, num_figures))
    chunk = max(1, DRAWS_AT_ONCE // num_users)
    for first in range(0, num_resamples, chunk):
        part = means[first : first + chunk]
        drawn = rng.integers(0, num_users, size=(len(part), num_users), dtype=np.int32)
        drawn += np.arange(len(part), dtype=np.int32)[:, None] * np.int32(num_users)  # one place a resample
        count = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)  # [resample, user]
        part[:] = count.astype(np.float64) @ columns / num_users
    low, high = np.quantile(means, [LOW, HIGH], axis=0)  # [figure]
    return [
        Interval(float(mean), float(low), float(high))
        for mean, low, high in zip(of_user.mean(axis=1, dtype=np.float64), low, high, strict=True)
    ]


def spread_over_seeds(values: Values) -> float | None:
    """Standard deviation of the seeds' means; None where there is one seed, which tells nothing."""
    means = values.mean(axis=1)
    return float(means.std(ddof=1)) if len(means) > 1 else None
