"""RQ-VAE: an item's vector becomes a few codes, each refining what the codes before it left over.

Encoder and decoder are mirrored MLPs around a residual quantiser: level l takes the codeword nearest to the
residual and hands on what is left. Of the two usual ways to train through that choice (a straight-through at
every level, or detached codewords) this is the second: the residual is taken with the *detached* codeword,
so that the commitment of every level reaches the encoder, and one straight-through over the whole sum carries
the decoder's gradient, once.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from model_export.configs import QuantizerConfig
from service.contract import SidSpec

KMEANS_ITERATIONS = 100
CLIP_NORM = 1.0
ENCODE_BATCH = 8192  # items encoded at once while measuring


class Quantized(NamedTuple):
    codes: Tensor  # [item, level]
    total: Tensor  # [item, latent]  sum of the chosen codewords
    loss: Tensor  # codebook loss + commitment, mean over levels and dimensions


class RqVae(nn.Module):
    """The quantiser. `encode` is all that the tokenizer graph takes from it.

    Nothing in `encode` looks at the other items of a batch, and equal distances go to the smallest code.
    """

    def __init__(self, *, vector_dim: int, spec: SidSpec, config: QuantizerConfig) -> None:
        super().__init__()
        self.spec = spec
        self.commitment = config.commitment
        # Raw unit vectors differ by little in each dimension and collapse to one code; see `fit_scale`.
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
        """Take mean and deviation from the training vectors [item, dim]; what is constant is only centred."""
        std, mean = torch.std_mean(vectors, dim=0, correction=0)
        self.mean.copy_(mean)
        self.std.copy_(torch.where(std > 1e-6, std, 1.0))

    def latents(self, vectors: Tensor) -> Tensor:
        """[item, dim] -> [item, latent], the space that the codebooks divide."""
        return self.encoder(self._standardise(vectors))

    def encode(self, vectors: Tensor) -> Tensor:
        """[item, dim] -> codes [item, level], int64."""
        return self.quantize(self.latents(vectors)).codes

    def decode(self, codes: Tensor) -> Tensor:
        """Codes [item, level] -> the vectors [item, dim] that they stand for."""
        total = sum(codebook[codes[:, level]] for level, codebook in enumerate(self.codebooks))
        return self.decoder(total) * self.std + self.mean

    def quantize(self, latents: Tensor) -> Quantized:
        residual, total = latents, torch.zeros_like(latents)  # [item, latent]
        codes, loss = [], latents.new_zeros(())
        for codebook in self.codebooks:  # [code, latent]
            code = _nearest(residual, codebook)  # [item]
            chosen = codebook[code]  # [item, latent]
            loss = loss + F.mse_loss(chosen, residual.detach())
            loss = loss + self.commitment * F.mse_loss(residual, chosen.detach())
            residual = residual - chosen.detach()
            total = total + chosen
            codes.append(code)
        return Quantized(torch.stack(codes, dim=-1), total, loss / len(self.codebooks))

    def loss(self, vectors: Tensor) -> Tensor:
        """Reconstruction of the standardised vectors + quantisation, both as means over dimensions."""
        inputs = self._standardise(vectors)  # [item, dim]
        latents = self.encoder(inputs)  # [item, latent]
        quantized = self.quantize(latents)
        straight_through = latents + (quantized.total - latents).detach()
        return F.mse_loss(self.decoder(straight_through), inputs) + quantized.loss

    def _standardise(self, vectors: Tensor) -> Tensor:
        return (vectors - self.mean) / self.std


def _nearest(residual: Tensor, codebook: Tensor) -> Tensor:
    """Index of the codeword nearest to each residual [item, latent] -> [item]; the first one of equals.

    The residual's own norm is the same for every codeword and left out.
    """
    distance = codebook.square().sum(dim=-1) - 2.0 * residual @ codebook.T  # [item, code]
    return distance.argmin(dim=-1)


def _mlp(dims: tuple[int, ...]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for num_in, num_out in zip(dims, dims[1:], strict=False):
        layers += [nn.Linear(num_in, num_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


@dataclass(frozen=True)
class EpochStats:
    """What one epoch left behind, measured over all items after it."""

    epoch: int
    loss: float
    use: tuple[float, ...]  # per level, share of the codes that any item has
    entropy: tuple[float, ...]  # per level, of the code distribution; 1 is uniform
    collision_rate: float  # share of the items whose codes another item has too
    num_revived: int


@dataclass(frozen=True)
class QuantizerReport:
    history: tuple[EpochStats, ...]  # one an epoch; the last is the result
    explained_variance: float  # of the standardised vectors by their reconstruction


def train_rq_vae(
    vectors: NDArray[np.float32],
    spec: SidSpec,
    config: QuantizerConfig,
    *,
    seed: int,
    progress: bool = True,
) -> tuple[RqVae, QuantizerReport]:
    """Fit an RQ-VAE to vectors [item, dim]. Deterministic for a seed on a machine."""
    if len(vectors) == 0:
        raise ValueError("there are no vectors to fit an RQ-VAE to")
    data = torch.as_tensor(vectors, dtype=torch.float32)  # [item, dim]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = RqVae(vector_dim=data.shape[1], spec=spec, config=config)
        model.fit_scale(data)
        _kmeans_init(model, data, seed)
        history = _train(model, data, config, progress)
    model.eval().requires_grad_(False)
    inputs = model._standardise(data)
    unexplained = F.mse_loss(model._standardise(model.decode(_encode_all(model, data))), inputs)
    variance = inputs.square().mean()
    return model, QuantizerReport(tuple(history), float(1 - unexplained / variance) if variance > 0 else 1.0)


def _train(model: RqVae, data: Tensor, config: QuantizerConfig, progress: bool) -> list[EpochStats]:
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    steps = config.num_epochs * -(-len(data) // config.batch_size)
    # A short warm-up, then down to nothing along a half cosine, so that codes have settled at the end.
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=config.learning_rate,
        total_steps=max(steps, 2),
        pct_start=0.05,
        cycle_momentum=False,
    )
    history = []
    bar = tqdm(range(1, config.num_epochs + 1), desc="train RQ-VAE", unit="epoch", disable=not progress)
    for epoch in bar:
        total_loss = 0.0
        for batch in torch.randperm(len(data)).split(config.batch_size):
            loss = model.loss(data[batch])
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
            optimizer.step()
            schedule.step()
            total_loss += loss.item() * len(batch)
        may_revive = epoch <= config.num_epochs - config.settle_epochs
        num_revived = 0
        if may_revive and epoch % config.revive_every_epochs == 0:
            num_revived = _revive_dead_codes(model, data, optimizer)
        stats = measure(epoch, total_loss / len(data), _encode_all(model, data), model.spec, num_revived)
        history.append(stats)
        bar.set_postfix_str(
            f"loss {stats.loss:.3f}, codes used {'/'.join(f'{use:.0%}' for use in stats.use)}, "
            f"colliding {stats.collision_rate:.1%}",
            refresh=False,
        )
    return history


def measure(epoch: int, loss: float, codes: Tensor, spec: SidSpec, num_revived: int) -> EpochStats:
    """Use, entropy and collisions of codes [item, level]."""
    use, entropy = [], []
    for level, num_codes in enumerate(spec.levels):
        count = torch.bincount(codes[:, level], minlength=num_codes).double()  # [code]
        share = count / len(codes)
        use.append(float((count > 0).double().mean()))
        bits = float(-torch.xlogy(share, share).sum())
        entropy.append(bits / float(np.log(num_codes)) if num_codes > 1 else 1.0)
    prefix = torch.from_numpy(spec.prefixes_of(codes.numpy())[-1])
    group = torch.unique(prefix, return_counts=True)[1]  # [distinct codes]
    colliding = float(group[group > 1].sum()) / len(codes)
    return EpochStats(epoch, loss, tuple(use), tuple(entropy), colliding, num_revived)


@torch.no_grad()
def _encode_all(model: RqVae, data: Tensor) -> Tensor:
    return torch.cat([model.encode(batch) for batch in data.split(ENCODE_BATCH)])  # [item, level]


@torch.no_grad()
def _kmeans_init(model: RqVae, data: Tensor, seed: int) -> None:
    """Start each codebook at the k-means centroids of the residuals that reach its level."""
    residual = model.latents(data)  # [item, latent]
    for codebook in model.codebooks:
        num_distinct = len(torch.unique(residual, dim=0))
        kmeans = KMeans(
            n_clusters=min(len(codebook), num_distinct),
            n_init=1,
            max_iter=KMEANS_ITERATIONS,
            random_state=seed,
        )
        with threadpool_limits(1):  # its threads add up in whatever order they end, and codes would differ
            found = kmeans.fit(residual.numpy())
        centroids = torch.from_numpy(found.cluster_centers_)  # [centroid, latent]
        codebook[: len(centroids)] = centroids
        if len(centroids) < len(codebook):  # fewer items than codes: the others wait near a random centroid
            near = centroids[torch.randint(len(centroids), (len(codebook) - len(centroids),))]
            codebook[len(centroids) :] = near + 0.1 * residual.std(correction=0) * torch.randn_like(near)
        residual = residual - codebook[_nearest(residual, codebook)]


@torch.no_grad()
def _revive_dead_codes(model: RqVae, data: Tensor, optimizer: torch.optim.Optimizer) -> int:
    """Move every code that no item has to the residual of an item that is badly served at that level.

    Items are drawn in proportion to their squared error, as k-means++ does, so that wide codes are split.
    """
    residual, num_revived = model.latents(data), 0  # [item, latent]
    for codebook in model.codebooks:
        code = _nearest(residual, codebook)  # [item]
        dead = torch.bincount(code, minlength=len(codebook)) == 0  # [code]
        left = residual - codebook[code]
        error = left.square().sum(dim=-1)  # [item]
        num_dead = min(int(dead.sum()), int((error > 0).sum()))
        if num_dead > 0:
            place = dead.nonzero()[:num_dead, 0]
            codebook[place] = residual[torch.multinomial(error, num_dead)]
            for moment in ("exp_avg", "exp_avg_sq"):  # the momentum of the code that was
                optimizer.state[codebook][moment][place] = 0.0
            num_revived += num_dead
            left = residual - codebook[_nearest(residual, codebook)]
        residual = left
    return num_revived
