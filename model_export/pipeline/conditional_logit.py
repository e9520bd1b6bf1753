"""Weights of a sum of scores by maximum likelihood: the conditional logit (McFadden, 1974).

Each user chooses one of some items. The probability of an item is the softmax of the weighed sum of its
scores. The likelihood of the choices is concave in the weights, so there is one best answer. It uses every
score of every user, where a hit rate uses only who is among the first ten, so a few hundred users suffice.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

PRIOR_USERS = 10.0  # the weights to start from count as much as this many users


class Fitted(NamedTuple):
    """The best weights."""

    weights: NDArray[np.float64]  # [score], none below 0
    log_likelihood: float  # mean over the users, in nats


def fit(scores: NDArray[np.float32], chosen: NDArray[np.int64], start: NDArray[np.float64]) -> Fitted:
    """Find the weights of scores [user, item, score] under which the users' choices [user] are likely.

    `start` [score]: where to begin, above 0. Weights far from it need evidence. An item that cannot be chosen
    has a first score of -inf.
    """
    num_users = len(chosen)
    if not num_users:
        return Fitted(start, 0.0)
    can = np.isfinite(scores[..., 0])
    scores = np.where(can[..., None], scores, 0.0)
    user = np.arange(num_users)

    def loss(ratio: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        total = np.where(can, scores @ (ratio * start).astype(np.float32), -np.inf)  # [user, item]
        total -= total.max(axis=1, keepdims=True)
        share = np.exp(total)
        sums = share.sum(axis=1, keepdims=True)
        share /= sums
        log_prob = total[user, chosen] - np.log(sums[:, 0])
        expected = np.einsum("ui,uis->us", share, scores)
        slope = (expected - scores[user, chosen]).mean(axis=0, dtype=np.float64) * start
        prior = PRIOR_USERS / num_users * (ratio - 1)
        return float(-log_prob.mean(dtype=np.float64) + (prior @ (ratio - 1)) / 2), slope + prior

    found = minimize(
        loss, np.ones(len(start)), jac=True, method="L-BFGS-B", bounds=[(0.0, None)] * len(start)
    )
    return Fitted(found.x * start, -float(found.fun))
