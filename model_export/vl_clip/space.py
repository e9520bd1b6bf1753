"""The interface of a joint space: texts and photos become vectors of one length, compared by their cosine."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, arange
from torch.nn import functional as F

from model_export.vl_clip.boxes import Box, crop

Vectors = NDArray[np.float32]  # [any, dim], of length 1


class TextPhotoSpace(ABC):
    """A fitted space."""

    @abstractmethod
    def texts(self, texts: Sequence[str]) -> Vectors:
        """Vectors [text, dim] of length 1."""

    @abstractmethod
    def photos(self, photos: Sequence[Image.Image]) -> Vectors:
        """Vectors [photo, dim] of length 1, of RGB pictures of any size."""

    def regions(self, photo: Image.Image, boxes: Sequence[Box]) -> Vectors:
        """Vectors [box, dim] of parts of one photo."""
        return self.photos([crop(photo, box) for box in boxes])


def symmetric_contrastive_loss(texts: Tensor, photos: Tensor, temperature: Tensor | float) -> Tensor:
    """The loss of CLIP and VL-CLIP over pairs: the mean of both directions, in nats.

    texts [pair, dim] and photos [pair, dim] have length 1. Each text must find its photo among those of the
    batch, and each photo its text (arXiv 2103.00020, figure 3).
    """
    logits = texts @ photos.T / temperature  # [text, photo]
    answer = arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, answer) + F.cross_entropy(logits.T, answer)) / 2
