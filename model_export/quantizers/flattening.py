"""Invertible transforms that spread the values of a latent evenly over (0, 1) (CARD, arXiv 2604.26427).

Most items crowd in the middle of each dimension, and codewords follow the crowd. A transform that is the
distribution function of a dimension makes it uniform, so the codes are used more evenly. The codebooks divide
the flat values, and the inverse leads back to the latents.

We differ from the paper's code in three ways. The parameters have bounds within which float32 can invert all
values of |z| < 6. The logistic transform keeps the range of the training items, where the paper's code takes
the range of each batch: there the codes of an item depend on the other items, and the inverse, which takes
the range of the transformed batch, is none. And a sum of codewords that no training item could have is moved
into the training items' range before the inverse, and costs a penalty (flattened.py).
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model_export.configs import Transform

EDGE = 1e-6  # the inverse takes flat values from here to 1 - EDGE, or from here in the logistic curve
# Larger latents get the same flat value as this one: logit(1 - EDGE).
LARGEST = 13.8
KUMARASWAMY_BOUNDS = (0.5, 1.5)
SLOPE_BOUNDS = (0.1, 8.0)  # of the logistic curve, over the range of the training items
FIT_STEPS, FIT_RATE, FIT_ITEMS = 100, 0.05, 2048


class Flattening(nn.Module, ABC):
    """An increasing transform of each dimension. An item's flat values depend on its own latent alone.

    `lowest` and `highest` [latent] are the range of the training items' latents.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.lowest: Tensor
        self.highest: Tensor
        self.register_buffer("lowest", -torch.ones(latent_dim))
        self.register_buffer("highest", torch.ones(latent_dim))

    @torch.no_grad()
    def fit_range(self, latents: Tensor) -> None:
        """Take the lowest and the highest value of each dimension of latents [item, latent]."""
        lowest, highest = latents.amin(dim=0), latents.amax(dim=0)
        wide = highest - lowest > EDGE  # a constant dimension needs a range too
        self.lowest.copy_(torch.where(wide, lowest, lowest - 0.5))
        self.highest.copy_(torch.where(wide, highest, lowest + 0.5))

    def within_range(self, flat: Tensor) -> Tensor:
        """Flat values [item, latent], moved into the range of the training items if they are outside.

        A sum of codewords may be outside. The inverse is steep there, and would lead far away.
        """
        return flat.clamp(self(self.lowest), self(self.highest))

    @abstractmethod
    def forward(self, latents: Tensor) -> Tensor:
        """Latents [item, latent] -> flat values [item, latent], in (0, 1) for those like the training's."""

    @abstractmethod
    def inverse(self, flat: Tensor) -> Tensor:
        """Flat values [item, latent] -> latents [item, latent]. Values outside (0, 1) are moved inside."""


class Kumaraswamy(Flattening):
    """The distribution function of Kumaraswamy (1980) on the sigmoid of a latent: 1 - (1 - sigmoid(z)^a)^b.

    All steps are in logarithms, because float32 keeps small powers of a sigmoid but not one minus them.
    """

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim)
        self.raw_a = nn.Parameter(torch.zeros(latent_dim))  # a = softplus(raw_a): .693 at first, as in CARD
        self.raw_b = nn.Parameter(torch.zeros(latent_dim))

    @property
    def a(self) -> Tensor:
        """The first exponent of each dimension [latent]."""
        return F.softplus(self.raw_a).clamp(*KUMARASWAMY_BOUNDS)

    @property
    def b(self) -> Tensor:
        """The second exponent of each dimension [latent]."""
        return F.softplus(self.raw_b).clamp(*KUMARASWAMY_BOUNDS)

    def forward(self, latents: Tensor) -> Tensor:
        """Latents [item, latent] -> flat values [item, latent]."""
        log_power = self.a * F.logsigmoid(latents.clamp(-LARGEST, LARGEST))
        return -torch.expm1(self.b * _log_one_minus_exp(log_power))

    def inverse(self, flat: Tensor) -> Tensor:
        """Flat values [item, latent] -> latents [item, latent]."""
        log_rest = torch.log1p(-flat.clamp(EDGE, 1 - EDGE)) / self.b
        log_sigmoid = _log_one_minus_exp(log_rest) / self.a
        return log_sigmoid - _log_one_minus_exp(log_sigmoid)


class ScaledLogistic(Flattening):
    """A logistic curve with its own slope and center, scaled so that the training items' range is [0, 1]."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim)
        self.raw_slope = nn.Parameter(torch.zeros(latent_dim))  # almost linear at first, as in CARD
        self.raw_center = nn.Parameter(torch.zeros(latent_dim))

    def forward(self, latents: Tensor) -> Tensor:
        """Latents [item, latent] -> flat values [item, latent]. Outside the range they leave [0, 1]."""
        bottom, top = self._curve(self.lowest), self._curve(self.highest)
        return (self._curve(latents) - bottom) / (top - bottom)

    def inverse(self, flat: Tensor) -> Tensor:
        """Flat values [item, latent] -> latents [item, latent]."""
        slope, center = self._shape()
        bottom, top = self._curve(self.lowest), self._curve(self.highest)
        return center + torch.logit(bottom + flat * (top - bottom), eps=EDGE) / slope

    def _shape(self) -> tuple[Tensor, Tensor]:
        """Slope and center of the curve of each dimension, both [latent]."""
        size = self.highest - self.lowest
        slope = F.softplus(self.raw_slope).clamp(*SLOPE_BOUNDS) / size
        return slope, self.lowest + size * self.raw_center.sigmoid()

    def _curve(self, values: Tensor) -> Tensor:
        slope, center = self._shape()
        return torch.sigmoid(slope * (values - center))


def make_flattening(transform: Transform, latent_dim: int) -> Flattening:
    """The transform of this name, as it is before any training."""
    kinds: dict[Transform, type[Kumaraswamy] | type[ScaledLogistic]] = {
        "kumaraswamy": Kumaraswamy,
        "logistic": ScaledLogistic,
    }
    return kinds[transform](latent_dim)


def fit_flattening(flattening: Flattening, latents: Tensor) -> None:
    """Fit the transform to latents [item, latent], for a quantizer without training by gradients.

    Its density, which is its slope, becomes the likeliest one (maximum likelihood). So the flat values come
    as near to uniform as the transform can make them. Evenly spaced items decide in a large catalog.
    """
    flattening.fit_range(latents)
    chosen = latents[:: -(-len(latents) // FIT_ITEMS)].clone().requires_grad_()  # [item, latent]
    optimizer = torch.optim.Adam(flattening.parameters(), lr=FIT_RATE)
    with torch.enable_grad():
        for _ in range(FIT_STEPS):
            (density,) = torch.autograd.grad(flattening(chosen).sum(), chosen, create_graph=True)
            loss = -density.clamp_min(EDGE).log().mean()
            optimizer.zero_grad()
            loss.backward(inputs=list(flattening.parameters()))
            optimizer.step()


def _log_one_minus_exp(negative: Tensor) -> Tensor:
    """log(1 - exp(x)) for x < 0, without the loss of digits of either form near the other's good end."""
    near = negative > -0.6931
    return torch.where(
        near,
        (-torch.expm1(torch.where(near, negative, -1.0))).log(),
        torch.log1p(-torch.exp(torch.where(near, -1.0, negative))),
    )
