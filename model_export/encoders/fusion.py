"""Early fusion: the text and the photo of an item become one feature vector, and then one vector of the head.

    text features, photo features ─ Fusion (fitted) ─▶ fused features ─ FusedHead ─▶ vector

Early fusion as in arXiv 2601.14697: both meet before the quantizer. The paper does not name its operator.
An item may lack its photo or its text. A learnt vector then stands in for it. Training hides one of the two
now and then, so an item with only one of them is near itself with both.
"""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from model_export.configs import HeadConfig
from model_export.encoders.head import ItemHead, set_principal_axes
from model_export.picture_configs import PicturesConfig

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py
NUM_FLAGS = 2  # the last two fused features: whether the item has a text, and whether it has a photo


class Photos(NamedTuple):
    """The features of a catalog's photos, and which item has which."""

    features: NDArray[np.float32]  # [photo, dim]
    photo_of: NDArray[np.int64]  # [item]  a row of `features`, or NO_PICTURE


class Fusion(nn.Module):
    """Features of text and photo -> fused features [item, text_dim + photo_dim + NUM_FLAGS].

    The text has length 1, the photo `weight`. What is missing is zero. The tokenizer graph contains this.
    """

    mean: Tensor  # [dim]  of the catalog's photos
    axes: Tensor  # [dim, photo_dim]

    def __init__(self, *, text_dim: int, dim: int, config: PicturesConfig) -> None:
        """`dim` is the number of features of a photo. A `text_dim` of 0 leaves the text out."""
        super().__init__()
        self.text_dim, self.photo_dim, self.weight = text_dim, min(config.photo_dim, dim), config.weight
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("axes", torch.zeros(dim, self.photo_dim))

    @torch.no_grad()
    def fit(self, photos: NDArray[np.float32]) -> None:
        """Fit the photos' principal axes to a catalog's photos [photo, dim]."""
        if not len(photos):
            return
        self.mean.copy_(torch.from_numpy(photos.mean(axis=0)))
        _, _, axes = torch.linalg.svd(torch.from_numpy(photos) - self.mean, full_matrices=False)
        kept = axes[: self.photo_dim]  # [axis, dim]
        self.axes[:, : len(kept)] = kept.T

    def forward(self, text: Tensor, photos: Tensor, photo_of: Tensor) -> Tensor:
        """text [item, any], photos [photo, dim], photo_of [item] -> fused features [item, feature].

        photo_of holds a row of `photos`, or NO_PICTURE.
        """
        rows = self.weight * F.normalize((photos - self.mean) @ self.axes, dim=-1)  # [photo, photo_dim]
        table = torch.cat([rows.new_zeros(1, self.photo_dim), rows])  # the first is that of NO_PICTURE
        photo = table[photo_of + 1]  # [item, photo_dim]
        words = F.normalize(text[:, : self.text_dim], dim=-1)  # [item, text_dim]
        flags = torch.stack([words.abs().sum(dim=1) > 0, photo_of >= 0], dim=1)  # [item, 2]
        return torch.cat([words, photo, flags.to(words.dtype)], dim=1)

    @torch.no_grad()
    def fuse(self, text: NDArray[np.float32], photos: Photos) -> NDArray[np.float32]:
        """The fused features of a catalog [item, feature], from text features [item, any] and its photos."""
        result: NDArray[np.float32] = self(
            torch.from_numpy(text), torch.from_numpy(photos.features), torch.from_numpy(photos.photo_of)
        ).numpy()
        return result


class FusedHead(ItemHead):
    """Fused features -> unit vectors [item, vector_dim]: both side by side, through an ItemHead."""

    def __init__(self, fusion: Fusion, config: HeadConfig, hidden_share: float) -> None:
        super().__init__(feature_dim=fusion.text_dim + fusion.photo_dim, config=config)
        self._text_dim, self._hidden_share = fusion.text_dim, hidden_share
        self.no_text = nn.Parameter(torch.zeros(fusion.text_dim))
        self.no_photo = nn.Parameter(torch.zeros(fusion.photo_dim))

    def forward(self, features: Tensor) -> Tensor:
        """Fused features [item, feature] -> unit vectors [item, vector_dim]."""
        return super().forward(torch.cat(self._both(features), dim=1))

    @torch.no_grad()
    def start_from_principal_axes(self, features: Tensor) -> None:
        """Start as the projection of both side by side on their principal axes."""
        super().start_from_principal_axes(features[:, :-NUM_FLAGS])

    def _both(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """The text [item, text_dim] and the photo [item, photo_dim], with stand-ins for what is missing."""
        text = features[:, : self._text_dim]
        photo = features[:, self._text_dim : -NUM_FLAGS]
        has_text, has_photo = features[:, -2:-1] > 0, features[:, -1:] > 0  # [item, 1]
        if self.training and self._hidden_share:
            drawn, has_both = torch.rand_like(features[:, :1]), has_text & has_photo
            has_text = has_text & ~(has_both & (drawn < self._hidden_share))
            has_photo = has_photo & ~(has_both & (drawn > 1 - self._hidden_share))
        return torch.where(has_text, text, self.no_text), torch.where(has_photo, photo, self.no_photo)


class SummedHead(FusedHead):
    """Fused features -> unit vectors: a linear projection of each of the two, and their sum."""

    def __init__(self, fusion: Fusion, config: HeadConfig, hidden_share: float) -> None:
        super().__init__(fusion, config, hidden_share)
        del self.linear, self.mlp
        self.of_text = nn.Linear(fusion.text_dim, config.vector_dim, bias=False)
        self.of_photo = nn.Linear(fusion.photo_dim, config.vector_dim, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        """Fused features [item, feature] -> unit vectors [item, vector_dim]."""
        text, photo = self._both(features)
        return F.normalize(self.of_text(self.dropout(text)) + self.of_photo(self.dropout(photo)), dim=-1)

    @torch.no_grad()
    def start_from_principal_axes(self, features: Tensor) -> None:
        """Start as the projections of each of the two on their own principal axes."""
        set_principal_axes(self.of_text, features[:, : self._text_dim])
        set_principal_axes(self.of_photo, features[:, self._text_dim : -NUM_FLAGS])


def make_head(fusion: Fusion, config: HeadConfig, pictures: PicturesConfig) -> FusedHead:
    """The head of a configuration, not trained."""
    head = SummedHead if pictures.fusion == "sum" else FusedHead
    return head(fusion, config, 0.0 if fusion.text_dim == 0 else pictures.hidden_share)


def without_photos(features: NDArray[np.float32], fusion: Fusion) -> NDArray[np.float32]:
    """Fused features [item, feature] of the same items without their photos."""
    hidden = features.copy()
    hidden[:, fusion.text_dim : -NUM_FLAGS] = 0
    hidden[:, -1] = 0
    return hidden


def without_texts(features: NDArray[np.float32], fusion: Fusion) -> NDArray[np.float32]:
    """Fused features [item, feature] of the same items without their texts."""
    hidden = features.copy()
    hidden[:, : fusion.text_dim] = 0
    hidden[:, -NUM_FLAGS] = 0
    return hidden
