"""LETTER (Wang et al., 2024): an RQ-VAE that also learns from purchases and spreads its codewords.

Two terms are added to RQ-VAE's loss. *Alignment*: by the inner product, the sum of an item's codewords should
find the item's own collaborative vector among those of the batch. The gradient passes straight through the
sum, so it reaches the encoder and not the codebooks. *Diversity*, at each level: a codeword should have a
larger inner product with a random codeword of its own group than with any other codeword. This moves the
groups apart and spreads the items over the codes.

The result is an RQ-VAE. Only the training uses collaborative vectors, so an item that nobody has bought gets
its codes from its text, like any other item.

We differ from the released code in two ways. Groups have equal sizes (balanced k-means), and they are
computed every few epochs instead of every epoch. Collisions are treated after the training and not during it.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from model_export.configs import LetterConfig
from model_export.quantizers.balanced import balanced_kmeans
from model_export.quantizers.base import QuantizerReport, kmeans_centroids
from model_export.quantizers.rq_vae import RqVae, fit_rq_vae
from service.core.sid import SidSpec

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py
GROUPING_ROUNDS = 20


def train_letter(
    vectors: NDArray[np.float32],
    spec: SidSpec,
    config: LetterConfig,
    *,
    seed: int,
    collaborative: NDArray[np.float32] | None = None,
    progress: bool = True,
    make: Callable[..., RqVae] = RqVae,
) -> tuple[RqVae, QuantizerReport]:
    """Fit to vectors [item, dim] and collaborative vectors [item, any]. `make` makes the untrained model.

    The collaborative vectors must be learned from the training part alone. An item that was never bought
    there has a row of nan, and alignment leaves it out. On one machine the result depends only on the inputs
    and the seed. Raises ValueError unless there is a collaborative vector for each item.
    """
    if collaborative is None or len(collaborative) != len(vectors):
        raise ValueError(
            f"LETTER needs a collaborative vector for each of the {len(vectors)} items, but got "
            f"{0 if collaborative is None else len(collaborative)}. Give nan for an item without one. "
            "If there are none at all, train an RQ-VAE."
        )
    wanted = in_latent_dim(torch.as_tensor(collaborative, dtype=torch.float32), config.rq_vae.latent_dim)

    def loss_of(model: RqVae, data: Tensor) -> LetterLoss:
        return LetterLoss(model, data, wanted, config, seed)

    return fit_rq_vae(
        vectors, spec, config.rq_vae, loss_of, seed=seed, name="LETTER", progress=progress, make=make
    )


class LetterLoss:
    """The loss of a batch: RQ-VAE's loss, plus alpha times the alignment, plus beta times the diversity."""

    def __init__(
        self, model: RqVae, data: Tensor, collaborative: Tensor, config: LetterConfig, seed: int
    ) -> None:
        """Take the vectors `data` [item, dim] and the collaborative vectors [item, latent] of all items."""
        self.model, self.config, self.seed = model, config, seed
        self.data = data  # [item, dim]
        self.collaborative = collaborative  # [item, latent]  nan for an item without one
        self.grouped_in = -config.regroup_every_epochs  # the epoch of the current groups
        self.mates: list[Tensor] = []  # level l: [code, code]  whether two codes are in one group

    def __call__(self, items: Tensor, epoch: int) -> Tensor:
        """The loss of the items [item] of a batch. Regroups the codewords if it is time."""
        if epoch >= self.grouped_in + self.config.regroup_every_epochs:
            self.mates = [
                group_mates(codebook, self.config.num_groups, self.seed) for codebook in self.model.codebooks
            ]
            self.grouped_in = epoch
        found = self.model.autoencode(self.data[items])
        levels = zip(self.model.codebooks, found.codes.unbind(dim=-1), self.mates, strict=True)
        diversity = torch.stack([diversity_loss(*level) for level in levels]).mean()
        alignment = alignment_loss(found.total, self.collaborative[items])
        return found.loss + self.config.alpha * alignment + self.config.beta * diversity


def alignment_loss(total: Tensor, collaborative: Tensor) -> Tensor:
    """The cross-entropy of finding each item's collaborative vector from the sum of its codewords.

    Both are [item, latent]. Items with nan in their collaborative vector are left out.
    """
    known = ~collaborative.isnan().any(dim=-1)  # [item]
    if not known.any():
        return total.new_zeros(())
    logits = total[known] @ collaborative[known].T  # [known item, known item]
    return F.cross_entropy(logits, torch.arange(len(logits)))


def diversity_loss(codebook: Tensor, code: Tensor, mates: Tensor) -> Tensor:
    """The cross-entropy of finding a random mate of each item's codeword among all other codewords.

    codebook is [code, latent], code is [item], mates is [code, code]. The inner product decides. Codes
    without a mate are left out.
    """
    code = code[mates.any(dim=-1)[code]]
    if len(code) == 0:
        return codebook.new_zeros(())
    mate = torch.multinomial(mates[code].float(), 1)[:, 0]  # [item]
    itself = F.one_hot(code, len(codebook)).bool()  # [item, code]
    logits = (codebook[code] @ codebook.T).masked_fill(itself, -torch.inf)  # [item, code]
    return F.cross_entropy(logits, mate)


@torch.no_grad()
def group_mates(codebook: Tensor, num_groups: int, seed: int) -> Tensor:
    """True for two different codewords of one group -> [code, code]. codebook is [code, latent].

    Groups have nearly equal sizes of at least two, so a small codebook has fewer groups.
    """
    num_codes = len(codebook)
    if num_codes < 2:
        return torch.zeros(num_codes, num_codes, dtype=torch.bool)
    points = codebook.detach()
    start = kmeans_centroids(points, min(num_groups, num_codes // 2), seed=seed)
    found = balanced_kmeans(points.numpy(), start.numpy(), max_rounds=GROUPING_ROUNDS, seed=seed)
    group = torch.from_numpy(found.cluster)  # [code]
    return (group[:, None] == group) & ~torch.eye(num_codes, dtype=torch.bool)


def in_latent_dim(collaborative: Tensor, latent_dim: int) -> Tensor:
    """Vectors [item, any] -> [item, latent].

    Vectors of the right width do not change. Others are projected on their principal axes and, if these are
    too few, filled with zeros. A row that contains a nan becomes nan everywhere.
    """
    known = ~collaborative.isnan().any(dim=-1)  # [item]
    found = torch.full((len(collaborative), latent_dim), torch.nan)
    if collaborative.shape[1] == latent_dim:
        found[known] = collaborative[known]
    elif known.any():
        centered = collaborative[known] - collaborative[known].mean(dim=0)
        axes = torch.linalg.svd(centered, full_matrices=False).Vh[:latent_dim]  # [axis, any]
        found[known] = F.pad(centered @ axes.T, (0, latent_dim - len(axes)))
    return found
