"""Clusters of equal size, and a price for each, so that an item's cluster is argmin(distance + price).

The task is to divide n items among k clusters of floor(n / k) or ceil(n / k) items at the least total
distance. This is a transport problem. The dual variables of its solution are the prices. If each item alone
chooses its cheapest cluster, the result is the balanced division again. A balanced quantizer is therefore a
function of the vector alone, and a new item gets its cluster by the same rule.

No price can separate items that are exactly alike. They stay together, and the balance is then not exact.
"""

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from threadpoolctl import threadpool_limits

from model_export.quantizers.sinkhorn import sinkhorn_prices

SAMPLE = 4096  # items; the first guess of the prices uses no more
ANNEALING = 0.5 ** np.arange(5)  # epsilons of that guess, in standard deviations of the distance
GUESS_ITERATIONS, ROUND_ITERATIONS = 20, 5


class Division(NamedTuple):
    """A balanced division of items, and the prices that reproduce it."""

    cluster: NDArray[np.int64]  # [item]
    price: NDArray[np.float64]  # [cluster]  in the unit of the distance; the smallest is 0


class Clusters(NamedTuple):
    """The result of balanced k-means."""

    centroids: NDArray[np.float32]  # [cluster, dim]
    cluster: NDArray[np.int64]  # [item]
    price: NDArray[np.float64]  # [cluster]


class _Path(NamedTuple):
    clusters: list[int]  # from a cluster with too many items to a cluster with too few
    price: NDArray[np.float64]  # [cluster]  with these prices every step of the path costs 0


def balanced_kmeans(
    points: NDArray[np.float32], start: NDArray[np.float32], *, max_rounds: int, seed: int
) -> Clusters:
    """Lloyd's algorithm on points [item, dim] from centroids [cluster, dim], with prices that keep balance.

    Each round updates the prices of the round before by a few Sinkhorn iterations, which balances the
    clusters to within a few percent. The last division is exact.
    """
    centroids, cluster = start, None
    with threadpool_limits(1):  # several threads would sum in varying order, and codes would differ
        distance = squared_distances(points, centroids)  # [item, cluster]
        price, epsilon = _first_guess(distance, seed)
        for _ in range(max_rounds):
            price = sinkhorn_prices(distance, epsilon, ROUND_ITERATIONS, price)
            before, cluster = cluster, (distance + price).argmin(axis=1)
            if before is not None and (cluster == before).all():
                break
            centroids = means(points, cluster, centroids)
            distance = squared_distances(points, centroids)
        return Clusters(centroids, *divide(distance, price))


def divide(distance: NDArray[Any], start: NDArray[Any] | None = None) -> Division:
    """Divide items evenly among clusters at the least total of distance [item, cluster].

    If the sizes must differ by one, the clusters that are fullest under the prices `start` [cluster] get the
    extra items. Without `start` the prices begin at 0. Raises ValueError if there are fewer items than
    clusters.

    The algorithm is successive shortest paths. An item moves from a cluster with too many items to another,
    which may pass on one of its own items, until a cluster with too few takes one. With a good start few
    items move.
    """
    distance = distance.astype(np.float64)
    num_items, num_clusters = distance.shape
    if num_items < num_clusters:
        raise ValueError(f"{num_items} items cannot fill {num_clusters} clusters. Ask for fewer clusters.")
    price = np.zeros(num_clusters) if start is None else start.astype(np.float64)
    cluster = (distance + price).argmin(axis=1)  # [item]
    count = np.bincount(cluster, minlength=num_clusters)
    size, num_larger = divmod(num_items, num_clusters)
    wanted = np.full(num_clusters, size)
    wanted[np.argsort(-count, kind="stable")[:num_larger]] += 1

    cost = np.full((num_clusters, num_clusters), np.inf)  # [from, to]  of the item that is cheapest to move
    mover = np.zeros((num_clusters, num_clusters), dtype=np.int64)  # [from, to]  this item
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
    """Dijkstra's algorithm over clusters. With the prices `price` no step has a negative cost."""
    distance = np.where(excess > 0, 0.0, np.inf)  # [cluster]
    came_from = np.full(len(cost), -1)
    done = np.zeros(len(cost), dtype=bool)
    while excess[here := int(np.where(done, np.inf, distance).argmin())] >= 0:
        done[here] = True
        step = np.maximum(cost[here] + price - price[here], 0.0)  # below 0 only by rounding
        closer = ~done & (distance[here] + step < distance)
        distance[closer] = distance[here] + step[closer]
        came_from[closer] = here
    price = price + np.maximum(distance[here] - distance, 0.0)
    clusters = [here]
    while came_from[clusters[0]] >= 0:
        clusters.insert(0, int(came_from[clusters[0]]))
    return _Path(clusters, price)


def prices_of(distance: NDArray[Any], cluster: NDArray[np.int64]) -> NDArray[np.float64]:
    """The prices [cluster] with which each item chooses its own cluster alone.

    distance is [item, cluster] and cluster is [item]. No division with clusters of the same sizes may have a
    smaller total, and no cluster may be empty.
    """
    num_clusters = distance.shape[1]
    more = distance.astype(np.float64) - np.take_along_axis(distance, cluster[:, None], 1)  # [item, cluster]
    cost = np.full((num_clusters, num_clusters), np.inf)  # [from, to]
    np.minimum.at(cost, cluster, more)
    return _middle_prices(cost)


def _middle_prices(cost: NDArray[np.float64]) -> NDArray[np.float64]:
    """Prices [cluster] with which no item would change its cluster, from the cost [from, to] of a change.

    The negative shortest distances from any one cluster are such prices, but they leave some items no margin.
    Their mean over all clusters leaves every item a margin, so that rounding does not move it.
    """
    distance = cost.copy()  # [from, to]
    for middle in range(len(cost)):
        distance = np.minimum(distance, distance[:, middle : middle + 1] + distance[middle])
    price = -distance.mean(axis=0)
    result: NDArray[np.float64] = price - price.min()
    return result


def _first_guess(distance: NDArray[np.float32], seed: int) -> tuple[NDArray[np.float32], float]:
    """Prices [cluster] from a sample of the items, by epsilons from coarse to fine, and the last epsilon."""
    if len(distance) > SAMPLE:
        distance = distance[np.random.default_rng(seed).choice(len(distance), SAMPLE, replace=False)]
    price = np.zeros(distance.shape[1], dtype=np.float32)
    epsilons = np.maximum(ANNEALING * float(distance.std()), 1e-6)  # all items may be equal
    for epsilon in epsilons:
        price = sinkhorn_prices(distance, float(epsilon), GUESS_ITERATIONS, price)
    return price, float(epsilons[-1])


def squared_distances(points: NDArray[np.float32], centroids: NDArray[np.float32]) -> NDArray[np.float32]:
    """Squared distances of points [item, dim] to centroids [cluster, dim] -> [item, cluster]."""
    result: NDArray[np.float32] = (
        np.square(points).sum(axis=1)[:, None] - 2 * points @ centroids.T + np.square(centroids).sum(axis=1)
    )
    return result


def means(
    points: NDArray[np.float32], cluster: NDArray[np.int64], centroids: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The mean [cluster, dim] of each cluster's points. A cluster without points keeps its centroid."""
    count = np.bincount(cluster, minlength=len(centroids))[:, None]  # [cluster, 1]
    places = (cluster, np.arange(len(points)))
    member = csr_matrix((np.ones(len(points), np.float32), places), shape=(len(centroids), len(points)))
    return np.where(count > 0, (member @ points) / np.maximum(count, 1), centroids).astype(np.float32)
