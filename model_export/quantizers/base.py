"""What quantizers have in common: the interface, the nearest codeword, the k-means start, the report."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from torch import Tensor, nn

from service.core.sid import SidSpec

KMEANS_ROUNDS = 100
ENCODE_BATCH = 8192  # items encoded at once while measuring


class ResidualQuantizer(nn.Module, ABC):
    """A vector becomes a few codes, each for what the codewords before it left over.

    `encode` is all that the tokenizer graph takes. Nothing in it looks at the other items of a batch, and of
    equal distances the smallest code wins, so an item posted later gets the codes that the catalog's had.
    """

    spec: SidSpec
    codebooks: nn.ParameterList  # level l: [code, latent]

    @abstractmethod
    def latents(self, vectors: Tensor) -> Tensor:
        """[item, dim] -> [item, latent], the space that the codebooks divide."""

    @abstractmethod
    def encode(self, vectors: Tensor) -> Tensor:
        """[item, dim] -> codes [item, level], int64."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Codes [item, level] -> the vectors [item, dim] that they stand for."""

    def total(self, codes: Tensor) -> Tensor:
        """Codes [item, level] -> the sum of their codewords [item, latent]."""
        chosen = [codebook[codes[:, level]] for level, codebook in enumerate(self.codebooks)]
        return torch.stack(chosen).sum(dim=0)


@dataclass(frozen=True)
class EpochStats:
    """What one epoch left behind, measured over all items after it."""

    epoch: int
    loss: float
    use: tuple[float, ...]  # per level, share of the codes that any item has
    entropy: tuple[float, ...]  # per level, of the code distribution; 1 is uniform
    fullest: tuple[float, ...]  # per level, items of the fullest code / items per code; 1 is balanced
    collision_rate: float  # share of the items whose codes another item has too
    num_revived: int = 0


@dataclass(frozen=True)
class QuantizerReport:
    history: tuple[EpochStats, ...]  # one an epoch where there are any; the last is the result


def measure(epoch: int, loss: float, codes: Tensor, spec: SidSpec, num_revived: int = 0) -> EpochStats:
    """Use, entropy, balance and collisions of codes [item, level]."""
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
    return torch.cat([model.encode(batch) for batch in data.split(ENCODE_BATCH)])  # [item, level]


def nearest(residual: Tensor, codebook: Tensor, price: Tensor | None = None) -> Tensor:
    """Index of the codeword nearest to each residual [item, latent] -> [item]; the first one of equals.

    A code's price [code] is added to its squared distance. The residual's own norm is the same for every
    codeword and left out.
    """
    offset = codebook.square().sum(dim=-1)  # [code]
    if price is not None:
        offset = offset + price
    return (offset - 2.0 * residual @ codebook.T).argmin(dim=-1)


def kmeans_centroids(residual: Tensor, num_codes: int, *, seed: int, num_starts: int = 1) -> Tensor:
    """The k-means centroids of residuals [item, latent] -> [code, latent].

    Where there are fewer different items than codes, the codes left over wait near random centroids.
    """
    num_distinct = len(torch.unique(residual, dim=0))
    kmeans = KMeans(
        n_clusters=min(num_codes, num_distinct),
        n_init=num_starts,
        max_iter=KMEANS_ROUNDS,
        random_state=seed,
    )
    with threadpool_limits(1):  # its threads add up in whatever order they end, and codes would differ
        found = kmeans.fit(residual.numpy())
    centroids = torch.from_numpy(found.cluster_centers_)  # [centroid, latent]
    near = centroids[torch.randint(len(centroids), (num_codes - len(centroids),))]
    waiting = near + 0.1 * residual.std(correction=0) * torch.randn_like(near)
    return torch.cat([centroids, waiting])
