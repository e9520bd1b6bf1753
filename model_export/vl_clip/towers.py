"""Both towers of our joint space as ONNX graphs, so that a query needs no torch and no text tokenizer.

    strips [strip, height, width] uint8, first_strip [item] ─ text tower ──▶ vector [item, dim]
    pictures [picture, size_px, size_px, 3] uint8 ────────── photo tower ─▶ vector [picture, dim]

The inputs are those of a bundle's tokenizer (service/core/graphs.py), and vectors have length 1.
"""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn

from model_export.encoders.compact import reader as compact
from model_export.encoders.compact.letter_grams import LetterGrams
from model_export.onnx_graphs import to_onnx
from model_export.vl_clip.joint_space import JointSpace, Projection
from model_export.vl_clip.photo_reader import PhotoReader
from service.errors import ContractMismatch

TEXT_TOWER, PHOTO_TOWER = "text_tower.onnx", "photo_tower.onnx"
# Sizes for tracing are 2 or more, because the exporter takes 0 and 1 for constants.
TRACED_STRIPS, TRACED_FIRST, TRACED_PHOTOS = 5, (0, 2, 3), 2
CHECKED_FIRST = ((0,), (0, 1, 4))
TOLERANCE = 1e-3  # of a vector's entry


class TextTower(nn.Module):
    """Drawn texts -> vectors."""

    def __init__(self, pooling: LetterGrams, projection: Projection) -> None:
        super().__init__()
        self.network = compact.load_weights(compact.weights_file())
        self.pooling, self.projection = pooling, projection

    def forward(self, strips: Tensor, first_strip: Tensor) -> Tensor:
        """Strips [strip, height, width] uint8, first_strip [item] -> vectors [item, dim]."""
        features = self.pooling(strips, self.network(strips), first_strip)
        found: Tensor = self.projection(features)
        return found


class PhotoTower(nn.Module):
    """Photos -> vectors."""

    def __init__(self, size_px: int, projection: Projection) -> None:
        super().__init__()
        self.reader, self.projection = PhotoReader(size_px), projection

    def forward(self, pictures: Tensor) -> Tensor:
        """Pixels [picture, size_px, size_px, 3] uint8 -> vectors [picture, dim]."""
        found: Tensor = self.projection(self.reader(pictures))
        return found


def write_towers(space: JointSpace, folder: Path) -> float:
    """Write both graphs, and compare them with PyTorch. Returns the largest difference of an entry.

    Raises ContractMismatch if a graph computes something else.
    """
    text = TextTower(space.pooling, space.projections.text).eval()
    photo = PhotoTower(space.config.size_px, space.projections.photo).eval()
    height, width, side = space.render.height_px, space.render.width_px, space.config.size_px
    strip, item, picture = (torch.export.Dim(name) for name in ("strip", "item", "picture"))
    onnx.save(
        to_onnx(
            text,
            (torch.zeros(TRACED_STRIPS, height, width, dtype=torch.uint8), torch.tensor(TRACED_FIRST)),
            inputs=["strips", "first_strip"],
            outputs=["vector"],
            dynamic_shapes=({0: strip}, {0: item}),
        ),
        folder / TEXT_TOWER,
    )
    onnx.save(
        to_onnx(
            photo,
            (torch.zeros(TRACED_PHOTOS, side, side, 3, dtype=torch.uint8),),
            inputs=["pictures"],
            outputs=["vector"],
            dynamic_shapes=({0: picture},),
        ),
        folder / PHOTO_TOWER,
    )
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for first in CHECKED_FIRST:
        strips = _drawn((first[-1] + 2, height, width), generator)
        worst = max(
            worst, _apart(folder / TEXT_TOWER, text, {"strips": strips, "first_strip": torch.tensor(first)})
        )
    for count in (1, 3):
        pixels = torch.randint(0, 256, (count, side, side, 3), generator=generator, dtype=torch.uint8)
        worst = max(worst, _apart(folder / PHOTO_TOWER, photo, {"pictures": pixels}))
    return worst


def _drawn(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Strips with some ink."""
    ink = torch.rand(shape, generator=generator) < 0.3
    return torch.where(ink, 0, 255).to(torch.uint8)


@torch.no_grad()
def _apart(path: Path, tower: nn.Module, inputs: dict[str, Tensor]) -> float:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    feeds: dict[str, Any] = {name: value.numpy() for name, value in inputs.items()}
    found = session.run(["vector"], feeds)[0]
    apart = float(np.abs(found - tower(*inputs.values()).numpy()).max())
    if not apart <= TOLERANCE:
        raise ContractMismatch(
            f"{path}: vectors differ by {apart:.2g} from PyTorch (allowed: {TOLERANCE}). Use the versions of "
            "constraints.txt and run the command again."
        )
    return apart
