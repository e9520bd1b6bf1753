"""Our joint space: text read as a picture on one side, the photo on the other (after arXiv 2507.17080).

    drawn text ─ compact reader, letter grams ─▶ features ─ Projection ─┐
    photo ────── PhotoReader ──────────────────▶ features ─ Projection ─┴─▶ cosine

Both readers are frozen. The projections are trained on pairs with the symmetric contrastive loss. Their
linear parts start at the canonical correlations, so the training improves on the best linear space.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from model_export.encoders.compact.letter_grams import LetterGrams
from model_export.picture_configs import SpaceConfig
from model_export.vl_clip.boxes import Box, on_square
from model_export.vl_clip.linear_space import fit_linear_space
from model_export.vl_clip.photo_reader import PhotoReader, cell_session, features_of
from model_export.vl_clip.retrieval import figures_of, ranks_of_pairs
from model_export.vl_clip.space import TextPhotoSpace, Vectors, symmetric_contrastive_loss
from model_export.vl_clip.text_reader import pooled
from service.core import pictures
from service.core.bundle import RenderSpec
from service.core.progress import ProgressBar

VERSION = 2  # raised when the output changes; see model_export/pipeline/versions.py
MIN_DEVIATION = 1e-3
START_SPREAD = 1e-3  # of the MLP's last layer, which adds almost nothing at first

Features = NDArray[np.float32]  # [pair, feature]


class TextPhotoPairs(NamedTuple):
    """The features of pairs. A photo has a long text and a short one."""

    texts: Features  # [pair, feature]
    short_texts: Features  # [pair, feature]
    photos: Features  # [pair, feature]


class Projection(nn.Module):
    """Features [any, feature_dim] -> vectors [any, dim] of length 1: a linear map plus an MLP."""

    mean: Tensor  # [feature]
    scale: Tensor  # []

    def __init__(self, feature_dim: int, config: SpaceConfig) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(feature_dim))
        self.register_buffer("scale", torch.ones(()))
        self.linear = nn.Linear(feature_dim, config.dim, bias=False)
        hidden, last = nn.Linear(feature_dim, config.hidden_dim), nn.Linear(config.hidden_dim, config.dim)
        self.mlp = nn.Sequential(hidden, nn.GELU(), nn.Dropout(config.dropout), last)
        self.dropout = nn.Dropout(config.dropout)
        nn.init.normal_(last.weight, std=START_SPREAD)
        nn.init.zeros_(last.bias)

    def forward(self, features: Tensor) -> Tensor:
        """See the class."""
        seen = self.dropout((features - self.mean) * self.scale)
        return F.normalize(self.linear(seen) + self.mlp(seen), dim=-1)

    @torch.no_grad()
    def center(self, features: Features) -> None:
        """Fit mean and scale to features [pair, feature], so that their mean variance is 1.

        All features have one scale. With one for each, narrow features, which are mostly noise, would count
        as much as wide ones.
        """
        self.mean.copy_(torch.from_numpy(features.mean(axis=0)))
        self.scale.fill_(1 / max(MIN_DEVIATION, float(features.var(axis=0).mean()) ** 0.5))

    @torch.no_grad()
    def vectors(self, features: Features) -> Vectors:
        """Vectors [any, dim] without dropout."""
        found: Vectors = self.eval()(torch.from_numpy(features)).numpy()
        return found


@dataclass(frozen=True)
class Projections:
    """The trained part of the space."""

    text: Projection
    photo: Projection
    curve: tuple[float, ...]  # the validation MRR before the first epoch and after each one


def train_projections(
    train: TextPhotoPairs, validation: TextPhotoPairs, config: SpaceConfig, seed: int
) -> Projections:
    """Train on pairs, and keep the epoch whose validation MRR is best.

    Without validation pairs all epochs run.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        text = Projection(train.texts.shape[1], config)
        photo = Projection(train.photos.shape[1], config)
        _start(text, photo, train, config)
        curve = _train(text, photo, train, validation, config)
    return Projections(text.eval(), photo.eval(), tuple(curve))


@torch.no_grad()
def _start(text: Projection, photo: Projection, train: TextPhotoPairs, config: SpaceConfig) -> None:
    """Start at the canonical correlations of the centered features."""
    both = np.concatenate([train.texts, train.short_texts])
    text.center(both)
    photo.center(train.photos)
    sides = [
        (features - side.mean.numpy()) * side.scale.item()
        for side, features in ((text, train.texts), (photo, train.photos))
    ]
    linear = fit_linear_space(sides[0], sides[1], config.dim, config.ridge)
    for side, start in ((text, linear.left), (photo, linear.right)):
        side.linear.weight.zero_()
        side.linear.weight[: start.shape[1]] = torch.from_numpy(start.T)


def _train(
    text: Projection,
    photo: Projection,
    train: TextPhotoPairs,
    validation: TextPhotoPairs,
    config: SpaceConfig,
) -> list[float]:
    long, short, photos = (torch.from_numpy(features) for features in train)
    weights = [*text.parameters(), *photo.parameters()]
    optimizer = torch.optim.AdamW(weights, config.learning_rate, weight_decay=config.weight_decay)
    batch_size = min(config.batch_size, len(photos))
    curve, best, since_best = [_quality(text, photo, validation)], _copy(text, photo), 0
    progress = ProgressBar(range(config.max_epochs), desc="Training the joint space", unit="epoch")
    for _epoch in progress:
        text.train(), photo.train()
        for batch in torch.randperm(len(photos)).split(batch_size):
            if len(batch) < 2:  # one pair has nothing to be told apart from
                continue
            is_short = torch.rand(len(batch), 1) < config.short_share
            read = torch.where(is_short, short[batch], long[batch])  # [pair, feature]
            loss = symmetric_contrastive_loss(text(read), photo(photos[batch]), config.temperature)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        curve.append(_quality(text, photo, validation))
        progress.set_postfix(mrr=f"{curve[-1]:.3f}")
        if not len(validation.photos):
            continue
        if curve[-1] > max(curve[:-1]):
            best, since_best = _copy(text, photo), 0
        elif (since_best := since_best + 1) >= config.patience:
            break
    if len(validation.photos):
        text.load_state_dict(best[0])
        photo.load_state_dict(best[1])
    return curve


def _copy(*modules: nn.Module) -> list[dict[str, Tensor]]:
    return [{name: value.clone() for name, value in each.state_dict().items()} for each in modules]


def _quality(text: Projection, photo: Projection, pairs: TextPhotoPairs) -> float:
    """The MRR of long texts, 0 without pairs."""
    found = figures_of(ranks_of_pairs(text.vectors(pairs.texts), photo.vectors(pairs.photos)))
    return found.get("mrr", 0.0)


class JointSpace(TextPhotoSpace):
    """The readers and the projections, for new texts and photos."""

    def __init__(
        self,
        projections: Projections,
        pooling: LetterGrams,
        config: SpaceConfig,
        render: RenderSpec,
        *,
        region_px: int = 384,
    ) -> None:
        """`region_px`: side of the square of which regions are read."""
        self.projections, self.pooling, self.config, self.render = projections, pooling, config, render
        self._region_px = region_px

    def texts(self, texts: Sequence[str]) -> Vectors:
        """See the base."""
        return self.projections.text.vectors(pooled(texts, self.pooling, self.render))

    def photos(self, photos: Sequence[Image.Image]) -> Vectors:
        """See the base."""
        return self.projections.photo.vectors(self.photo_features(photos))

    def photo_features(self, photos: Sequence[Image.Image]) -> Features:
        """Features [photo, feature]."""
        session = cell_session(self.config.size_px)
        rows = [session.features(photo) for photo in photos]
        return np.array(rows, np.float32).reshape(-1, PhotoReader.feature_dim)

    def regions(self, photo: Image.Image, boxes: Sequence[Box]) -> Vectors:
        """See the base. The photo is read once, and each region is an average over its cells."""
        cells = cell_session(self._region_px).cells(pictures.on_square(photo, self._region_px))
        num_cells = cells.shape[0]
        sums = np.zeros((num_cells + 1, num_cells + 1, cells.shape[-1]))
        sums[1:, 1:] = cells.cumsum(axis=0, dtype=np.float64).cumsum(axis=1)
        rows = []
        for box in boxes:
            square = on_square(box, *photo.size)
            left, right = _span(square.left, square.right, num_cells)
            top, bottom = _span(square.top, square.bottom, num_cells)
            total = sums[bottom, right] - sums[top, right] - sums[bottom, left] + sums[top, left]
            rows.append(total / ((bottom - top) * (right - left)))
        return self.projections.photo.vectors(_features(np.array(rows, np.float32)))


def _span(start: float, stop: float, num_cells: int) -> tuple[int, int]:
    """The cells between two places of a side, at least one."""
    first = min(num_cells - 1, max(0, round(start * num_cells)))
    return first, max(first + 1, min(num_cells, round(stop * num_cells)))


def _features(averages: NDArray[np.float32]) -> Features:
    found: Features = features_of(torch.from_numpy(averages)).numpy()
    return found
