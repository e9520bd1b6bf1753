"""GAOQ (ReSID, arXiv 2602.02338): a tree of balanced clusters in which equal codes mean equal directions.

Level one is balanced k-means of all items, and a code is the number of its cluster. At each further level
every node divides its items by balanced k-means of their own. The codes of plain hierarchical k-means mean
nothing across nodes. Here each level has one set of orthonormal anchors, shared by all nodes. The Hungarian
algorithm gives each child of a node one anchor, so that the directions from the node to its children have the
largest sum of cosines to their anchors. The code of a child is the number of its anchor.

At the last level a node has at most as many different items as codes, if the levels are large enough. Then
each item is a child of its own, and the codes are unique by construction, except those of exact copies.

Balanced k-means finds the least total distance with sizes of floor(n / k) or ceil(n / k). The paper does it
with `k-means-constrained`, a minimum-cost flow of OR-Tools. The same optimum is an assignment problem with
one column for each place in a cluster, which SciPy solves without a further package. Its time grows with the
third power of the items, so from EXACT_ITEMS on only the last division is exact (balanced.py).

The prices of that division are part of the tree. So an item walks down by its vector alone, the catalog's
items find their own codes, and a new item finds the nearest child by the same rule. If it gets the codes of
another item, slots tell the two apart. Where the paper leaves it open, vectors are not normalized, and there
are as many anchors as codes.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import kmeans_plusplus
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from model_export.configs import GaoqConfig
from model_export.quantizers.balanced import Clusters, balanced_kmeans, means, prices_of, squared_distances
from model_export.quantizers.base import QuantizerReport, ResidualQuantizer, encode_all, measure
from service.core.progress import ProgressBar
from service.core.sid import SidSpec

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py
EXACT_ITEMS = 1024  # a node with more items balances its rounds approximately, and its last division exactly
WALK_ITEMS = 1024  # that walk at once, outside of a graph: each looks at all children of its node

Floats = NDArray[np.float32]


class _Level(NamedTuple):
    """The children of the nodes of one level."""

    child: Tensor  # [node, code] int64  a row of `centroid`; 0 where there is no child
    price: Tensor  # [node, code]  infinite where there is no child
    centroid: Tensor  # [child, dim]


class Gaoq(ResidualQuantizer):
    """The tree. Before `fit` every node has one child, at 0.

    `codebooks` are zero but for the anchors of the last level. So the treatment of collisions moves an item
    to the free code whose anchor is nearest to the item's direction from its node.
    """

    def __init__(self, *, vector_dim: int, spec: SidSpec) -> None:
        super().__init__()
        self.spec = spec
        self.middle = nn.Parameter(torch.zeros(vector_dim), requires_grad=False)  # of all items
        self.anchors = nn.ParameterList(
            nn.Parameter(torch.zeros(k, vector_dim), requires_grad=False) for k in spec.levels
        )
        self.codebooks = nn.ParameterList(
            nn.Parameter(torch.zeros(k, vector_dim), requires_grad=False) for k in spec.levels
        )
        self.children_of, self.prices, self.centroids = (nn.ParameterList() for _ in range(3))
        for num_codes in spec.levels:
            price = torch.full((1, num_codes), torch.inf)
            price[0, 0] = 0.0
            child = torch.zeros(1, num_codes, dtype=torch.int64)
            for parts, tensor in self._parts(_Level(child, price, torch.zeros(1, vector_dim))):
                parts.append(nn.Parameter(tensor, requires_grad=False))

    def set_level(self, level: int, found: _Level) -> None:
        """Set the children of the nodes of a level."""
        for parts, tensor in self._parts(found):
            parts[level] = nn.Parameter(tensor, requires_grad=False)

    def _parts(self, level: _Level) -> Iterator[tuple[nn.ParameterList, Tensor]]:
        return zip((self.children_of, self.prices, self.centroids), level, strict=True)

    def latents(self, vectors: Tensor) -> Tensor:
        """Vectors [item, dim] -> their directions [item, dim] from the nodes whose children they are."""
        if self.spec.num_levels == 1:
            return vectors - self.middle
        _, node = self._walk(vectors, self.spec.num_levels - 1)  # [item]
        above: Tensor = self.centroids[-2][node]  # [item, dim]
        return vectors - above

    def encode(self, vectors: Tensor) -> Tensor:
        """Vectors [item, dim] -> codes [item, level] int64."""
        return self._walk(vectors, self.spec.num_levels)[0]

    def total(self, codes: Tensor) -> Tensor:
        """Codes [item, level] -> the centroid [item, dim] of the last node on their way.

        Codes of a reassigned item may lead to no child. They stand for the last node before.
        """
        found = self.middle.expand(len(codes), -1)  # [item, dim]
        node = torch.zeros(len(codes), dtype=torch.int64)  # [item]
        exists = torch.ones(len(codes), dtype=torch.bool)  # [item]
        for level in range(self.spec.num_levels):
            code = codes[:, level]
            exists = exists & self.prices[level][node, code].isfinite()
            node = torch.where(exists, self.children_of[level][node, code], 0)
            found = torch.where(exists[:, None], self.centroids[level][node], found)
        return found

    def decode(self, codes: Tensor) -> Tensor:
        """Codes [item, level] -> the centroids [item, dim] that they lead to."""
        return self.total(codes)

    def step(self, level: int, node: Tensor, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """From nodes [item] to their children nearest to vectors [item, dim]: codes and children [item]."""
        child = self.children_of[level][node]  # [item, code]
        centroid = self.centroids[level][child]  # [item, code, dim]
        product = (centroid @ vectors[:, :, None])[..., 0]  # [item, code]
        distance = centroid.square().sum(dim=-1) - 2.0 * product + self.prices[level][node]  # [item, code]
        code = distance.argmin(dim=-1)  # [item]
        return code, child.gather(1, code[:, None])[:, 0]

    def _walk(self, vectors: Tensor, num_levels: int) -> tuple[Tensor, Tensor]:
        """The first codes [item, level] of vectors [item, dim], and the nodes [item] where they lead."""
        if not torch.compiler.is_compiling() and len(vectors) > WALK_ITEMS:
            parts = [self._walk(part, num_levels) for part in vectors.split(WALK_ITEMS)]
            codes, nodes = zip(*parts, strict=True)
            return torch.cat(codes), torch.cat(nodes)
        node = torch.zeros_like(vectors[:, 0], dtype=torch.int64)  # [item]
        found = []
        for level in range(num_levels):
            code, node = self.step(level, node, vectors)
            found.append(code)
        return torch.stack(found, dim=-1), node


@torch.no_grad()
def train_gaoq(
    vectors: Floats,
    spec: SidSpec,
    config: GaoqConfig,
    *,
    seed: int,
    collaborative: Floats | None = None,  # noqa: ARG001 - all quantizers have this signature
    progress: bool = True,
) -> tuple[Gaoq, QuantizerReport]:
    """Fit a tree to vectors [item, dim]. The order of the items does not matter.

    On one machine the result depends only on the inputs and the seed. Raises ValueError without any vectors.
    """
    if len(vectors) == 0:
        raise ValueError("there are no vectors to fit GAOQ to. Give at least one item.")
    points = np.ascontiguousarray(vectors, dtype=np.float32)
    points = points[np.lexsort(points.T[::-1])]  # [item, dim]
    data = torch.from_numpy(points)
    model = Gaoq(vector_dim=points.shape[1], spec=spec).eval()
    model.middle.copy_(data.mean(dim=0))
    rng = np.random.default_rng(seed)
    node = torch.zeros(len(data), dtype=torch.int64)  # [item]
    middles = model.middle.numpy()[None]  # [node, dim]
    for level in ProgressBar(range(spec.num_levels), desc="fit GAOQ", unit="level", disable=not progress):
        model.anchors[level].copy_(torch.from_numpy(anchors(spec.levels[level], points.shape[1], rng)))
        found = _divide_nodes(model, level, points, node.numpy(), middles, config, seed)
        model.set_level(level, found)
        # The items go where the graph sends them, so exact copies stay together.
        nodes = [
            model.step(level, *part)[1]
            for part in zip(*(each.split(WALK_ITEMS) for each in (node, data)), strict=True)
        ]
        node = torch.cat(nodes)
        middles = found.centroid.numpy()
    model.codebooks[-1].copy_(model.anchors[-1])
    codes = encode_all(model, data)
    stats = measure(1, float((model.decode(codes) - data).square().mean()), codes, spec)
    return model, QuantizerReport((stats,))


def anchors(num_codes: int, dim: int, rng: np.random.Generator) -> Floats:
    """Random orthonormal anchors [code, dim].

    Beyond `dim` anchors this is impossible. Then their opposites follow, and then further random sets.
    """
    found: list[NDArray[np.float64]] = []
    while sum(map(len, found)) < num_codes:
        basis, upper = np.linalg.qr(rng.normal(size=(dim, min(dim, num_codes))))
        basis = (basis * np.sign(np.diag(upper))).T  # [anchor, dim]; libraries differ in the signs
        found += [basis, -basis]
    return np.concatenate(found)[:num_codes].astype(np.float32)


def align(directions: Floats, anchors: Floats) -> NDArray[np.int64]:
    """The anchor of each direction [child, dim] -> [child], with the largest sum of cosines.

    Each of the anchors [code, dim], which have length 1, goes to at most one child.
    """
    length = np.maximum(np.linalg.norm(directions, axis=1, keepdims=True), 1e-9)
    result: NDArray[np.int64] = linear_sum_assignment(directions / length @ anchors.T, maximize=True)[1]
    return result


def balanced_clusters(points: Floats, num_clusters: int, config: GaoqConfig, seed: int) -> Clusters:
    """Balanced k-means of points [item, dim], the best of several starts.

    If there are no more different points than clusters, each is a cluster of its own.
    """
    different, cluster = np.unique(points, axis=0, return_inverse=True)
    if len(different) <= num_clusters:
        return Clusters(different, cluster.reshape(-1), np.zeros(len(different)))
    best, least = None, np.inf
    for start in range(config.num_starts):
        centroids, _ = kmeans_plusplus(points, num_clusters, random_state=(seed + start) % 2**32)
        if len(points) > EXACT_ITEMS:
            found = balanced_kmeans(points, centroids, max_rounds=config.max_rounds, seed=seed)
        else:
            found = _exact_kmeans(points, centroids, config.max_rounds)
        distance = float(np.square(points - found.centroids[found.cluster]).sum())
        if distance < least:
            best, least = found, distance
    assert best is not None
    return best


def _exact_kmeans(points: Floats, centroids: Floats, max_rounds: int) -> Clusters:
    """Balanced k-means from centroids [cluster, dim], with the best balanced division in each round."""
    before: NDArray[np.int64] | None = None
    for _ in range(max_rounds):
        cluster = best_division(squared_distances(points, centroids))
        if before is not None and (cluster == before).all():
            break
        before, centroids = cluster, means(points, cluster, centroids)
    distance = squared_distances(points, centroids)
    cluster = best_division(distance)
    return Clusters(centroids, cluster, prices_of(distance, cluster))


def best_division(distance: Floats) -> NDArray[np.int64]:
    """The clusters [item] of the least total of distance [item, cluster], with sizes that differ by one."""
    num_items, num_clusters = distance.shape
    size = num_items // num_clusters
    cost = np.tile(distance.astype(np.float64), size + 1)  # [item, place]; a cluster has size + 1 places
    # All places but the last of each cluster must be taken. One more of them outweighs all distances.
    cost[:, : size * num_clusters] -= (num_items + 1) * (np.ptp(distance) + 1.0)
    result: NDArray[np.int64] = linear_sum_assignment(cost)[1] % num_clusters
    return result


def _divide_nodes(
    model: Gaoq,
    level: int,
    points: Floats,
    node: NDArray[np.int64],
    middles: Floats,
    config: GaoqConfig,
    seed: int,
) -> _Level:
    """Divide points [item, dim] of the nodes `node` [item], whose centroids are middles [node, dim]."""
    num_codes = model.spec.levels[level]
    child = np.zeros((len(middles), num_codes), dtype=np.int64)  # [node, code]
    price = np.full((len(middles), num_codes), np.inf, dtype=np.float32)  # [node, code]
    centroids: list[Floats] = []
    num_children = 0
    order = np.argsort(node, kind="stable")
    ends = np.searchsorted(node[order], np.arange(len(middles)), side="right")
    with threadpool_limits(1):  # several threads would sum in varying order, and codes would differ
        for place, (first, last) in enumerate(zip([0, *ends[:-1]], ends, strict=True)):
            own = points[order[first:last]]  # [own item, dim]
            if not len(own):  # copies in two clusters, of which the walk takes the first
                own = middles[place : place + 1]
            found = balanced_clusters(own, num_codes, config, seed)
            rows = np.arange(num_children, num_children + len(found.centroids))
            codes = rows - num_children
            if level > 0:
                codes = align(found.centroids - middles[place], model.anchors[level].numpy())
            child[place, codes], price[place, codes] = rows, found.price
            centroids.append(found.centroids)
            num_children += len(rows)
    return _Level(
        torch.from_numpy(child), torch.from_numpy(price), torch.from_numpy(np.concatenate(centroids))
    )
