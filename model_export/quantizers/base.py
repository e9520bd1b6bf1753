"""The common parts of quantizers: the interface, the nearest codeword, the k-means start and the report."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from service.core.sid import SidSpec

KMEANS_ROUNDS = 100
ENCODE_BATCH = 8192  # items that are encoded at once for the statistics


class ResidualQuantizer(nn.Module, ABC):
    """Turns a vector into a few codes. Each code describes the residual that the codewords before it leave.

    The tokenizer graph uses only `encode`. It never looks at the other items of a batch, and of equal
    distances the smallest code wins. An item therefore gets the same codes in a catalog and when it is posted
    later.
    """

    spec: SidSpec
    codebooks: nn.ParameterList  # level l: [code, latent]

    @abstractmethod
    def latents(self, vectors: Tensor) -> Tensor:
        """Vectors [item, dim] -> latents [item, latent]. The codebooks divide this space."""

    @abstractmethod
    def encode(self, vectors: Tensor) -> Tensor:
        """Vectors [item, dim] -> codes [item, level] int64."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Codes [item, level] -> the vectors [item, dim] that the codes represent."""

    def total(self, codes: Tensor) -> Tensor:
        """Codes [item, level] -> the sum of their codewords [item, latent]."""
        chosen = [codebook[codes[:, level]] for level, codebook in enumerate(self.codebooks)]
        return torch.stack(chosen).sum(dim=0)


@dataclass(frozen=True)
class EpochStats:
    """The state after one epoch, measured over all items."""

    epoch: int
    loss: float
    use: tuple[float, ...]  # per level, the share of codes that at least one item has
    entropy: tuple[float, ...]  # per level, of the distribution of codes; 1 is uniform
    fullest: tuple[float, ...]  # per level, items of the fullest code / mean items per code; 1 is balanced
    collision_rate: float  # the share of items that share all codes with another item
    num_revived: int = 0  # dead codes that got a new place in this epoch


@dataclass(frozen=True)
class QuantizerReport:
    """The statistics of a training."""

    history: tuple[EpochStats, ...]  # one per epoch, or one in all without epochs; the last is the result


def measure(epoch: int, loss: float, codes: Tensor, spec: SidSpec, num_revived: int = 0) -> EpochStats:
    """Measure use, entropy, balance and collisions of codes [item, level]."""
    use, entropy, fullest = [], [], []
    for level, num_codes in enumerate(spec.levels):
        count = torch.bincount(codes[:, level], minlength=num_codes).double()  # [code]
        share = count / len(codes)
        use.append(float((count > 0).double().mean()))
        bits = float(-torch.xlogy(share, share).sum())
        entropy.append(bits / float(np.log(num_codes)) if num_codes > 1 else 1.0)
        fullest.append(float(share.max()) * num_codes)
    prefix = torch.from_numpy(spec.prefixes_of(codes.numpy())[-1])
    group = torch.unique(prefix, return_counts=True)[1]  # [distinct codes]
    colliding = float(group[group > 1].sum()) / len(codes)
    return EpochStats(epoch, loss, tuple(use), tuple(entropy), tuple(fullest), colliding, num_revived)


@torch.no_grad()
def encode_all(model: ResidualQuantizer, data: Tensor) -> Tensor:
    """Vectors [item, dim] of a whole catalog -> codes [item, level], batch by batch."""
    return torch.cat([model.encode(batch) for batch in data.split(ENCODE_BATCH)])  # [item, level]


@torch.no_grad()
def lost_variance(model: ResidualQuantizer, data: Tensor, codes: Tensor) -> float:
    """The share of the variance of vectors [item, dim] that their codes [item, level] do not keep.

    It is 0 without any variance.
    """
    error = (model.decode(codes) - data).square().mean()
    variance = (data - data.mean(dim=0)).square().mean()
    return float(error / variance) if variance > 0 else 0.0


def nearest(residual: Tensor, codebook: Tensor, price: Tensor | None = None) -> Tensor:
    """The code of the codeword [code, latent] nearest to each residual [item, latent] -> [item].

    Of equal distances the first code wins. A code's price [code] is added to its squared distance. The
    residual's own norm is left out, because it is the same for every codeword.
    """
    offset = codebook.square().sum(dim=-1)  # [code]
    if price is not None:
        offset = offset + price
    return (offset - 2.0 * residual @ codebook.T).argmin(dim=-1)


def kmeans_centroids(residual: Tensor, num_codes: int, *, seed: int, num_starts: int = 1) -> Tensor:
    """The k-means centroids of residuals [item, latent] -> [code, latent].

    If there are fewer different items than codes, the remaining codes get places near random centroids.
    """
    num_distinct = len(torch.unique(residual, dim=0))
    kmeans = KMeans(
        n_clusters=min(num_codes, num_distinct),
        n_init=num_starts,
        max_iter=KMEANS_ROUNDS,
        random_state=seed,
    )
    with threadpool_limits(1):  # several threads would sum in varying order, and codes would differ
        found = kmeans.fit(residual.numpy())
    centroids = torch.from_numpy(found.cluster_centers_)  # [centroid, latent]
    near = centroids[torch.randint(len(centroids), (num_codes - len(centroids),))]
    waiting = near + 0.1 * residual.std(correction=0) * torch.randn_like(near)
    return torch.cat([centroids, waiting])
