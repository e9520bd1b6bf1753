"""Clusters of equal size, and prices that make them a rule: an item goes to argmin(distance + price).

Dividing n items among k clusters of floor(n / k) or ceil(n / k) at the least total distance is a transport
problem. The dual variables of its solution are prices, one a cluster: asking each item, without a look at the
others, for its cheapest cluster gives the balanced division back. So a balanced quantizer stays a function of
the vector alone, and a new item joins by the same rule.

Items that are exactly alike cannot be told apart by any price: they stay together, and balance gives way.
"""

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from model_export.quantizers.sinkhorn import sinkhorn_prices

SAMPLE = 4096  # items that the first guess at prices is made from
ANNEALING = 0.5 ** np.arange(5)  # epsilon of that guess, in standard deviations of the distance
GUESS_ITERATIONS, ROUND_ITERATIONS = 20, 5


class Division(NamedTuple):
    cluster: NDArray[np.int64]  # [item]
    price: NDArray[np.float64]  # [cluster]  from 0 up


class Clusters(NamedTuple):
    centroids: NDArray[np.float32]  # [cluster, dim]
    cluster: NDArray[np.int64]  # [item]
    price: NDArray[np.float64]  # [cluster]


class _Path(NamedTuple):
    clusters: list[int]  # from one with too many items to one with too few
    price: NDArray[np.float64]  # [cluster]  under which every step of it is free


def balanced_kmeans(
    points: NDArray[np.float32], start: NDArray[np.float32], *, max_rounds: int, seed: int
) -> Clusters:
    """Lloyd's rounds over points [item, dim] from centroids [cluster, dim], under prices that keep balance.

    Prices go from round to round and are brought up to date by a few Sinkhorn iterations, which is balance to
    within some per cent; the last division is exact.
    """
    centroids, cluster = start, None
    with threadpool_limits(1):  # sums in one order, or codes would differ between runs
        distance = squared_distances(points, centroids)  # [item, cluster]
        price, epsilon = _first_guess(distance, seed)
        for _ in range(max_rounds):
            price = sinkhorn_prices(distance, epsilon, ROUND_ITERATIONS, price)
            before, cluster = cluster, (distance + price).argmin(axis=1)
            if before is not None and (cluster == before).all():
                break
            centroids = _means(points, cluster, centroids)
            distance = squared_distances(points, centroids)
        return Clusters(centroids, *divide(distance, price))


def divide(distance: NDArray[Any], start: NDArray[Any] | None = None) -> Division:
    """The division of distance [item, cluster] of least total for its sizes, of which `start` prices
    [cluster], where given, settle the larger ones.

    Successive shortest paths: from a cluster with an item too many one moves to another, which may push one
    of its own further on, until a cluster takes it that has too few. A good start leaves few to move.
    """
    distance = distance.astype(np.float64)
    num_items, num_clusters = distance.shape
    if num_items < num_clusters:
        raise ValueError(f"{num_items} items cannot fill {num_clusters} clusters")
    price = np.zeros(num_clusters) if start is None else start.astype(np.float64)
    cluster = (distance + price).argmin(axis=1)  # [item]
    count = np.bincount(cluster, minlength=num_clusters)
    size, num_larger = divmod(num_items, num_clusters)
    wanted = np.full(num_clusters, size)
    wanted[np.argsort(-count, kind="stable")[:num_larger]] += 1

    cost = np.full((num_clusters, num_clusters), np.inf)  # [from, to]  of the item that moves most cheaply
    mover = np.zeros((num_clusters, num_clusters), dtype=np.int64)  # [from, to]  that item
    changed: list[int] = list(range(num_clusters))
    while True:
        for here in changed:
            members = np.flatnonzero(cluster == here)
            if len(members):
                more = distance[members] - distance[members, here][:, None]  # [member, cluster]
                mover[here], cost[here] = members[more.argmin(axis=0)], more.min(axis=0)
        if (count == wanted).all():
            return Division(cluster, _middle_prices(cost))
        changed, price = _shortest_path(cost, price, count - wanted)
        for here, there in pairwise(changed):
            cluster[mover[here, there]] = there
        count[changed[0]] -= 1
        count[changed[-1]] += 1


def _shortest_path(cost: NDArray[np.float64], price: NDArray[np.float64], excess: NDArray[np.int64]) -> _Path:
    """Dijkstra over clusters; under `price` no step costs less than nothing."""
    distance = np.where(excess > 0, 0.0, np.inf)  # [cluster]
    came_from = np.full(len(cost), -1)
    done = np.zeros(len(cost), dtype=bool)
    while excess[here := int(np.where(done, np.inf, distance).argmin())] >= 0:
        done[here] = True
        step = np.maximum(cost[here] + price - price[here], 0.0)  # below 0 by rounding only
        closer = ~done & (distance[here] + step < distance)
        distance[closer] = distance[here] + step[closer]
        came_from[closer] = here
    price = price + np.maximum(distance[here] - distance, 0.0)
    clusters = [here]
    while came_from[clusters[0]] >= 0:
        clusters.insert(0, int(came_from[clusters[0]]))
    return _Path(clusters, price)


def _middle_prices(cost: NDArray[np.float64]) -> NDArray[np.float64]:
    """Prices [cluster] that no item would change its cluster for, from the cost [from, to] of changing.

    Distances from any one cluster are such prices, at their very limit for some items. The mean over all
    clusters leaves every item something to spare, so that rounding does not move it.
    """
    distance = cost.copy()  # [from, to]
    for middle in range(len(cost)):
        distance = np.minimum(distance, distance[:, middle : middle + 1] + distance[middle])
    price = -distance.mean(axis=0)
    result: NDArray[np.float64] = price - price.min()
    return result


def _first_guess(distance: NDArray[np.float32], seed: int) -> tuple[NDArray[np.float32], float]:
    """Prices [cluster] from a sample of the items, coarse to fine, and the epsilon of the finest."""
    if len(distance) > SAMPLE:
        distance = distance[np.random.default_rng(seed).choice(len(distance), SAMPLE, replace=False)]
    price = np.zeros(distance.shape[1], dtype=np.float32)
    epsilons = np.maximum(ANNEALING * float(distance.std()), 1e-6)  # 0 where all items are the same
    for epsilon in epsilons:
        price = sinkhorn_prices(distance, float(epsilon), GUESS_ITERATIONS, price)
    return price, float(epsilons[-1])


def squared_distances(points: NDArray[np.float32], centroids: NDArray[np.float32]) -> NDArray[np.float32]:
    """[item, dim], [cluster, dim] -> [item, cluster]."""
    result: NDArray[np.float32] = (
        np.square(points).sum(axis=1)[:, None] - 2 * points @ centroids.T + np.square(centroids).sum(axis=1)
    )
    return result


def _means(
    points: NDArray[np.float32], cluster: NDArray[np.int64], centroids: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The mean [cluster, dim] of each cluster's points; one without any stays where it is."""
    count = np.bincount(cluster, minlength=len(centroids))[:, None]  # [cluster, 1]
    places = (cluster, np.arange(len(points)))
    member = csr_matrix((np.ones(len(points), np.float32), places), shape=(len(centroids), len(points)))
    return np.where(count > 0, (member @ points) / np.maximum(count, 1), centroids).astype(np.float32)
