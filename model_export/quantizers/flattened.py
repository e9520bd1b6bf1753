"""NU-RQ-VAE (CARD, arXiv 2604.26427), and the same for each of our residual quantizers.

A transform (flattening.py) stands between the latents and the codebooks, and its inverse before the decoder:

    z = encoder(x);  y = h(z);  y' = sum of codewords;  x' = decoder(h^-1(y'))

RQ-VAE and LETTER learn the transform with everything else. RQ-k-means has no encoder. Its transform is fitted
to the standardized vectors before, and each flat dimension gets the deviation of its own dimension back, so
the weights of the directions that the head has learned stay as they are.
"""

from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from model_export.configs import FlattenedConfig, LetterConfig, QuantizerConfig, RqKMeansConfig
from model_export.quantizers.base import QuantizerReport
from model_export.quantizers.flattening import Flattening, fit_flattening, make_flattening
from model_export.quantizers.letter import train_letter
from model_export.quantizers.rq_kmeans import RqKMeans, train_rq_kmeans
from model_export.quantizers.rq_vae import Autoencoded, RqVae, train_rq_vae
from service.core.sid import SidSpec

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py
# Standardized values are scaled to the deviation of the logistic distribution, whose sigmoid is uniform.
LOGISTIC_STD = float(np.pi / np.sqrt(3))
UNIFORM_STD = float(1 / np.sqrt(12))


class FlattenedRqVae(RqVae):
    """An RQ-VAE whose codebooks divide the flat values of its latents."""

    def __init__(
        self, *, vector_dim: int, spec: SidSpec, config: QuantizerConfig, flattened: FlattenedConfig
    ):
        super().__init__(vector_dim=vector_dim, spec=spec, config=config)
        self.consistency, self.penalty = flattened.consistency, flattened.penalty
        self.flattening: Flattening = make_flattening(flattened.transform, config.latent_dim)

    def latents(self, vectors: Tensor) -> Tensor:
        """Vectors [item, dim] -> the flat values [item, latent] of the encoder's output."""
        result: Tensor = self.flattening(super().latents(vectors))
        return result

    def decode(self, codes: Tensor) -> Tensor:
        """Codes [item, level] -> the decoder's vectors [item, dim] in the original scale."""
        result: Tensor = self.decoder(self._latents_of(self.total(codes))) * self.std + self.mean
        return result

    def start_epoch(self, data: Tensor) -> None:
        """Take the range of the encoder's outputs for vectors [item, dim], the whole catalog."""
        with torch.no_grad():
            self.flattening.fit_range(super().latents(data))

    def autoencode(self, vectors: Tensor) -> Autoencoded:
        """Encode, flatten, quantize and decode vectors [item, dim]. `total` is mapped back to latents.

        The loss has two terms more than RQ-VAE's: the distance of h^-1(h(z)) from z, which keeps the latents
        off the flat ends of the transform, and a penalty on sums of codewords outside the training's range.
        """
        inputs = self.standardize(vectors)  # [item, dim]
        latents = self.encoder(inputs)  # [item, latent]
        flat = self.flattening(latents)  # [item, latent]
        quantized = self.quantize(flat)
        total = self._latents_of(flat + (quantized.total - flat).detach())  # [item, latent]
        outside = quantized.total - self.flattening.within_range(quantized.total)  # [item, latent]
        loss = F.mse_loss(self.decoder(total), inputs) + quantized.loss
        loss = loss + self.consistency * F.mse_loss(self.flattening.inverse(flat), latents)
        loss = loss + self.penalty * outside.square().mean()
        return Autoencoded(quantized.codes, total, loss)

    def _latents_of(self, total: Tensor) -> Tensor:
        """Sums of codewords [item, latent] -> the latents [item, latent] that they stand for."""
        return self.flattening.inverse(self.flattening.within_range(total))


class FlattenedRqKMeans(RqKMeans):
    """RQ-k-means on flat values. `flattening` is fitted to standardized vectors before."""

    def __init__(
        self, *, vector_dim: int, spec: SidSpec, flattening: Flattening, mean: Tensor, std: Tensor
    ) -> None:
        super().__init__(vector_dim=vector_dim, spec=spec)
        self.flattening = flattening
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", mean)
        self.register_buffer("std", std)

    def latents(self, vectors: Tensor) -> Tensor:
        """Vectors [item, dim] -> flat values [item, dim], with the deviations of the vectors."""
        flat: Tensor = self.flattening((vectors - self.mean) / self.std * LOGISTIC_STD)
        return (flat - 0.5) / UNIFORM_STD * self.std

    def decode(self, codes: Tensor) -> Tensor:
        """Codes [item, level] -> vectors [item, dim], from the sum of their codewords."""
        flat = self.total(codes) / self.std * UNIFORM_STD + 0.5
        latents = self.flattening.inverse(self.flattening.within_range(flat))
        return latents / LOGISTIC_STD * self.std + self.mean


def train_flattened(
    vectors: NDArray[np.float32],
    spec: SidSpec,
    config: FlattenedConfig,
    *,
    seed: int,
    collaborative: NDArray[np.float32] | None = None,
    progress: bool = True,
) -> tuple[FlattenedRqVae | FlattenedRqKMeans, QuantizerReport]:
    """Fit the quantizer inside `config` on flat values. Arguments and errors are that quantizer's."""
    inner = config.quantizer
    found: tuple[RqVae | RqKMeans, QuantizerReport]
    if isinstance(inner, RqKMeansConfig):
        make_rq_kmeans = partial(_fitted_rq_kmeans, vectors, config)
        found = train_rq_kmeans(vectors, spec, inner, seed=seed, progress=progress, make=make_rq_kmeans)
    elif isinstance(inner, LetterConfig):
        make = partial(FlattenedRqVae, flattened=config)
        found = train_letter(
            vectors, spec, inner, seed=seed, collaborative=collaborative, progress=progress, make=make
        )
    else:
        make = partial(FlattenedRqVae, flattened=config)
        found = train_rq_vae(vectors, spec, inner, seed=seed, progress=progress, make=make)
    model, report = found
    assert isinstance(model, FlattenedRqVae | FlattenedRqKMeans)
    return model, report


def _fitted_rq_kmeans(
    vectors: NDArray[np.float32], config: FlattenedConfig, *, vector_dim: int, spec: SidSpec
) -> FlattenedRqKMeans:
    """A model without codebooks, whose transform is fitted to vectors [item, dim]."""
    data = torch.as_tensor(vectors, dtype=torch.float32)  # [item, dim]
    std, mean = torch.std_mean(data, dim=0, correction=0)
    std = torch.where(std > 1e-6, std, 1.0)
    flattening = make_flattening(config.transform, vector_dim)
    fit_flattening(flattening, (data - mean) / std * LOGISTIC_STD)
    return FlattenedRqKMeans(vector_dim=vector_dim, spec=spec, flattening=flattening, mean=mean, std=std)
