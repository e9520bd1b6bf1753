"""LETTER: an RQ-VAE that also hears which items are bought alike, and whose codewords keep their distance.

Two terms join RQ-VAE's loss. *Alignment*: the sum of an item's codewords should tell its own collaborative
vector from those of the other items of the batch, by the inner product; through the straight-through sum this
reaches the encoder and not the codebooks. *Diversity*, at each level: a codeword should have a larger inner
product with a random codeword of its own group than with any other, which spreads groups apart and items over
codes.

What comes out is an RQ-VAE: collaborative vectors shape training alone, so an item that nobody has bought
gets its codes from its text like any other.

Where we differ from the released code: groups are of equal size (balanced k-means) and made anew every few
epochs, not every one; collisions are treated afterwards, not during training.
"""

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

VERSION = 1  # of what comes out; raised with it, see pipeline/versions.py
GROUPING_ROUNDS = 20


def train_letter(
    vectors: NDArray[np.float32],
    spec: SidSpec,
    config: LetterConfig,
    *,
    seed: int,
    collaborative: NDArray[np.float32] | None = None,
    progress: bool = True,
) -> tuple[RqVae, QuantizerReport]:
    """Fit to vectors [item, dim] and collaborative vectors [item, any], learnt from the training part alone.

    A row of nan says that an item was never bought there; alignment leaves it out. Deterministic for a seed
    on a machine.
    """
    if collaborative is None or len(collaborative) != len(vectors):
        raise ValueError(
            f"LETTER needs a collaborative vector for each of the {len(vectors)} items, nan where there is "
            f"none; got {0 if collaborative is None else len(collaborative)}. Without any, train an RQ-VAE."
        )
    wanted = in_latent_dim(torch.as_tensor(collaborative, dtype=torch.float32), config.rq_vae.latent_dim)

    def loss_of(model: RqVae, data: Tensor) -> LetterLoss:
        return LetterLoss(model, data, wanted, config, seed)

    return fit_rq_vae(vectors, spec, config.rq_vae, loss_of, seed=seed, name="LETTER", progress=progress)


class LetterLoss:
    """The loss of a batch of items."""

    def __init__(
        self, model: RqVae, data: Tensor, collaborative: Tensor, config: LetterConfig, seed: int
    ) -> None:
        self.model, self.config, self.seed = model, config, seed
        self.data = data  # [item, dim]
        self.collaborative = collaborative  # [item, latent]  nan where there is none
        self.grouped_in = -config.regroup_every_epochs  # epoch
        self.mates: list[Tensor] = []  # level l: [code, code]  whether two are of one group

    def __call__(self, items: Tensor, epoch: int) -> Tensor:
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
    """Cross-entropy of finding each item's own collaborative vector by its codewords, both [item, latent]."""
    known = ~collaborative.isnan().any(dim=-1)  # [item]
    if not known.any():
        return total.new_zeros(())
    logits = total[known] @ collaborative[known].T  # [known item, known item]
    return F.cross_entropy(logits, torch.arange(len(logits)))


def diversity_loss(codebook: Tensor, code: Tensor, mates: Tensor) -> Tensor:
    """Cross-entropy of finding a random mate of each item's codeword among all others, by the inner product.

    codebook [code, latent], code [item], mates [code, code]; codes without a mate are left out.
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
    """Whether two codewords of codebook [code, latent] are different and of one group [code, code].

    Groups are equally large and of two or more, so small codebooks have fewer of them.
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
    """Vectors [item, any] -> [item, latent]: as they come where they fit, else along their principal axes,
    and zero beyond the last axis. Rows with a nan become nan throughout.
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
