"""RQ-VAE (Lee et al., 2022; TIGER, Rajput et al., 2023): a vector becomes a few codes, from coarse to fine.

Encoder and decoder are mirrored MLPs around a residual quantizer. Each level chooses the codeword nearest to
the residual and passes on the rest. There are two usual ways to train through this choice: a straight-through
estimator at every level, or detached codewords. We use the second. The residual subtracts the *detached*
codeword, so the commitment loss of every level reaches the encoder. One straight-through estimator over the
whole sum carries the decoder's gradient to the encoder once.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from model_export.configs import QuantizerConfig
from model_export.quantizers.base import (
    EpochStats,
    QuantizerReport,
    ResidualQuantizer,
    encode_all,
    kmeans_centroids,
    measure,
    nearest,
)
from service.core.progress import ProgressBar
from service.core.sid import SidSpec

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py
CLIP_NORM = 1.0

# (items [item] of a batch, epoch counted from 1) -> loss
BatchLoss = Callable[[Tensor, int], Tensor]


class Quantized(NamedTuple):
    """The codes of latents, and the loss of the quantizer."""

    codes: Tensor  # [item, level]
    total: Tensor  # [item, latent]  sum of the chosen codewords
    loss: Tensor  # codebook loss + commitment loss, mean over levels, items and dimensions


class Autoencoded(NamedTuple):
    """The codes of vectors, and the whole loss."""

    codes: Tensor  # [item, level]
    total: Tensor  # [item, latent]  sum of the chosen codewords; its gradient goes to the latents
    loss: Tensor  # reconstruction loss of the standardized vectors + loss of the quantizer


class RqVae(ResidualQuantizer):
    """An MLP encoder, one codebook for each level, and an MLP decoder."""

    def __init__(self, *, vector_dim: int, spec: SidSpec, config: QuantizerConfig) -> None:
        super().__init__()
        self.spec = spec
        self.commitment = config.commitment
        # Raw unit vectors differ little in each dimension and would collapse to one code; see `fit_scale`.
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.zeros(vector_dim))
        self.register_buffer("std", torch.ones(vector_dim))
        dims = (vector_dim, *config.hidden_dims, config.latent_dim)
        self.encoder = _mlp(dims)
        self.decoder = _mlp(dims[::-1])
        self.codebooks = nn.ParameterList(
            nn.Parameter(torch.randn(num_codes, config.latent_dim)) for num_codes in spec.levels
        )  # level l: [code, latent]

    def fit_scale(self, vectors: Tensor) -> None:
        """Set mean and deviation from training vectors [item, dim]. Constant dimensions are only centered."""
        std, mean = torch.std_mean(vectors, dim=0, correction=0)
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std > 1e-6, std, 1.0))

    def latents(self, vectors: Tensor) -> Tensor:
        """Vectors [item, dim] -> the encoder's output [item, latent]."""
        result: Tensor = self.encoder(self.standardize(vectors))
        return result

    def encode(self, vectors: Tensor) -> Tensor:
        """Vectors [item, dim] -> codes [item, level] int64."""
        return self.quantize(self.latents(vectors)).codes

    def decode(self, codes: Tensor) -> Tensor:
        """Codes [item, level] -> the decoder's vectors [item, dim] in the original scale."""
        result: Tensor = self.decoder(self.total(codes)) * self.std + self.mean
        return result

    def quantize(self, latents: Tensor) -> Quantized:
        """Choose a codeword at each level for latents [item, latent]."""
        residual, total = latents, torch.zeros_like(latents)  # [item, latent]
        codes, loss = [], latents.new_zeros(())
        for codebook in self.codebooks:  # [code, latent]
            code = nearest(residual, codebook)  # [item]
            chosen = codebook[code]  # [item, latent]
            loss = loss + F.mse_loss(chosen, residual.detach())
            loss = loss + self.commitment * F.mse_loss(residual, chosen.detach())
            residual = residual - chosen.detach()
            total = total + chosen
            codes.append(code)
        return Quantized(torch.stack(codes, dim=-1), total, loss / len(self.codebooks))

    def autoencode(self, vectors: Tensor) -> Autoencoded:
        """Encode, quantize and decode vectors [item, dim]. Training minimizes the loss."""
        inputs = self.standardize(vectors)  # [item, dim]
        latents = self.encoder(inputs)  # [item, latent]
        quantized = self.quantize(latents)
        total = latents + (quantized.total - latents).detach()
        return Autoencoded(quantized.codes, total, F.mse_loss(self.decoder(total), inputs) + quantized.loss)

    def start_epoch(self, data: Tensor) -> None:
        """Does nothing. It is called with all vectors [item, dim] before an epoch, until codes settle."""

    def standardize(self, vectors: Tensor) -> Tensor:
        """Scale vectors [item, dim] to mean 0 and standard deviation 1 in each dimension."""
        return (vectors - self.mean) / self.std


def _mlp(dims: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for num_in, num_out in zip(dims, dims[1:], strict=False):
        layers += [nn.Linear(num_in, num_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def train_rq_vae(
    vectors: NDArray[np.float32],
    spec: SidSpec,
    config: QuantizerConfig,
    *,
    seed: int,
    collaborative: NDArray[np.float32] | None = None,  # noqa: ARG001 - all quantizers have this signature
    progress: bool = True,
    make: Callable[..., RqVae] = RqVae,
) -> tuple[RqVae, QuantizerReport]:
    """Fit an RQ-VAE to vectors [item, dim]. `make` makes the untrained model.

    On one machine the result depends only on the inputs and the seed. Raises ValueError without any vectors.
    """

    def loss_of(model: RqVae, data: Tensor) -> BatchLoss:
        return lambda items, _epoch: model.autoencode(data[items]).loss

    return fit_rq_vae(vectors, spec, config, loss_of, seed=seed, name="RQ-VAE", progress=progress, make=make)


def fit_rq_vae(
    vectors: NDArray[np.float32],
    spec: SidSpec,
    config: QuantizerConfig,
    loss_of: Callable[[RqVae, Tensor], BatchLoss],
    *,
    seed: int,
    name: str,
    progress: bool,
    make: Callable[..., RqVae] = RqVae,
) -> tuple[RqVae, QuantizerReport]:
    """Train an RQ-VAE on vectors [item, dim]. `loss_of` makes the loss from the model and the vectors.

    `name` stands in the progress bar and in messages. Raises ValueError without any vectors.
    """
    if len(vectors) == 0:
        raise ValueError(f"there are no vectors to fit {name} to. Give at least one item.")
    data = torch.as_tensor(vectors, dtype=torch.float32)  # [item, dim]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make(vector_dim=data.shape[1], spec=spec, config=config)
        model.fit_scale(data)
        model.start_epoch(data)
        _kmeans_init(model, data, seed)
        history = _train(model, data, config, loss_of(model, data), name, progress)
    model.eval().requires_grad_(False)
    return model, QuantizerReport(tuple(history))


def _train(
    model: RqVae, data: Tensor, config: QuantizerConfig, batch_loss: BatchLoss, name: str, progress: bool
) -> list[EpochStats]:
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    steps = config.num_epochs * -(-len(data) // config.batch_size)
    # The rate warms up briefly, then falls to almost 0 along a half cosine, so that codes settle at the end.
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=config.learning_rate,
        total_steps=max(steps, 2),
        pct_start=0.05,
        cycle_momentum=False,
    )
    history = []
    bar = ProgressBar(
        range(1, config.num_epochs + 1), desc=f"train {name}", unit="epoch", disable=not progress
    )
    for epoch in bar:
        total_loss = 0.0
        may_revive = epoch <= config.num_epochs - config.settle_epochs
        if may_revive:
            model.start_epoch(data)
        for batch in torch.randperm(len(data)).split(config.batch_size):
            loss = batch_loss(batch, epoch)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
            optimizer.step()
            schedule.step()
            total_loss += loss.item() * len(batch)
        num_revived = 0
        if may_revive and epoch % config.revive_every_epochs == 0:
            num_revived = _revive_dead_codes(model, data, optimizer)
        stats = measure(epoch, total_loss / len(data), encode_all(model, data), model.spec, num_revived)
        history.append(stats)
        bar.set_postfix_str(
            f"loss {stats.loss:.3f}, codes used {'/'.join(f'{use:.0%}' for use in stats.use)}, "
            f"collisions {stats.collision_rate:.1%}",
            refresh=False,
        )
    return history


@torch.no_grad()
def _kmeans_init(model: RqVae, data: Tensor, seed: int) -> None:
    """Set each codebook to the k-means centroids of the residuals at its level."""
    residual = model.latents(data)  # [item, latent]
    for codebook in model.codebooks:
        codebook.copy_(kmeans_centroids(residual, len(codebook), seed=seed))
        residual = residual - codebook[nearest(residual, codebook)]


@torch.no_grad()
def _revive_dead_codes(model: RqVae, data: Tensor, optimizer: torch.optim.Optimizer) -> int:
    """Move every dead code, which no item has, to the residual of an item with a large error at this level.

    Items are drawn in proportion to their squared error, as in k-means++, so that wide codes are split.
    Returns the number of moved codes.
    """
    residual, num_revived = model.latents(data), 0  # [item, latent]
    for codebook in model.codebooks:
        code = nearest(residual, codebook)  # [item]
        dead = torch.bincount(code, minlength=len(codebook)) == 0  # [code]
        left = residual - codebook[code]
        error = left.square().sum(dim=-1)  # [item]
        num_dead = min(int(dead.sum()), int((error > 0).sum()))
        if num_dead > 0:
            place = dead.nonzero()[:num_dead, 0]
            codebook[place] = residual[torch.multinomial(error, num_dead)]
            for moment in ("exp_avg", "exp_avg_sq"):  # the optimizer's state belongs to the old code
                optimizer.state[codebook][moment][place] = 0.0
            num_revived += num_dead
            left = residual - codebook[nearest(residual, codebook)]
        residual = left
    return num_revived
