"""The interface of an encoder: `Encoder` and `Pooling`. A new encoder is one file with these two classes.

    strips --body (frozen, ONNX)--> frames --Pooling (fitted, torch)--> features of items

The body is slow and fixed. It runs once over a catalog and leaves a Reading. All fitting uses the Reading.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model_export.files import read_or_remove
from service.core.progress import ProgressBar
from service.core.whole_files import write_whole

# Items of a Reading that are pooled at once. It bounds the memory of the largest intermediate array.
ITEMS_PER_CHUNK = 64


@dataclass(frozen=True)
class Reading:
    """The frames that an encoder kept of a catalog, one item after another."""

    frames: NDArray[np.float16]  # [frame, dim]
    first_frame: NDArray[np.int64]  # [item + 1]; item i holds frames first_frame[i] to first_frame[i + 1]
    gate: NDArray[np.float32]  # [dim + 1], weights and bias of the linear rule that keeps a frame

    @property
    def num_items(self) -> int:
        """The number of items, also of those without any frame."""
        return len(self.first_frame) - 1

    def of_items(self, start: int, stop: int) -> Self:
        """The Reading of the items `start` to `stop`; `stop` itself is not in it."""
        first = self.first_frame[start : stop + 1]
        return type(self)(self.frames[first[0] : first[-1]], first - first[0], self.gate)

    def item_of_frame(self) -> NDArray[np.int64]:
        """The item of each frame [frame], counted from 0, ascending."""
        return np.repeat(np.arange(self.num_items), np.diff(self.first_frame))  # [frame]

    def save(self, path: Path) -> None:
        """Write a .npz file. An interrupted call leaves no partial file at `path`."""

        def write(partial: Path) -> None:
            with partial.open("wb") as file:
                np.savez(file, frames=self.frames, first_frame=self.first_frame, gate=self.gate)

        write_whole(path, write)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file that `save` wrote."""
        # Opened here, because np.load leaves a damaged file open.
        with path.open("rb") as file, np.load(file) as arrays:
            return cls(arrays["frames"], arrays["first_frame"], arrays["gate"])

    @classmethod
    def join(cls, parts: Sequence["Reading"]) -> Self:
        """Join Readings of consecutive items into one. All must have the gate of the first."""
        counts = np.concatenate([np.diff(part.first_frame) for part in parts])
        first_frame = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return cls(np.concatenate([part.frames for part in parts]), first_frame, parts[0].gate)


class Pooling(nn.Module, ABC):
    """Frames of a batch of strips -> one feature vector for each item. The tokenizer graph contains it."""

    feature_dim: int

    @abstractmethod
    def forward(self, strips: Tensor, frames: Tensor, first_strip: Tensor) -> Tensor:
        """Pool the frames [strip, frame, dim] of strips [strip, height, width] uint8 -> [item, feature_dim].

        first_strip [item] is the place of each item's first strip among the strips.
        """

    @abstractmethod
    def features(self, frames: Tensor, item: Tensor, num_items: int) -> Tensor:
        """Pool kept frames [frame, dim] -> features [item, feature_dim].

        item [frame] is the item of each frame, ascending.
        """

    def search_scale(self) -> Tensor:
        """The weight of each feature [feature_dim] where texts are compared in a search."""
        return torch.ones(self.feature_dim)

    @torch.no_grad()
    def pool(self, reading: Reading) -> NDArray[np.float32]:
        """Pool a whole catalog -> features [item, feature_dim]."""
        rows = []
        for start in range(0, reading.num_items, ITEMS_PER_CHUNK):
            part = reading.of_items(start, min(start + ITEMS_PER_CHUNK, reading.num_items))
            frames = torch.from_numpy(part.frames.astype(np.float32))  # [frame, dim]
            rows.append(self.features(frames, torch.from_numpy(part.item_of_frame()), part.num_items).numpy())
        return np.concatenate(rows) if rows else np.zeros((0, self.feature_dim), np.float32)


def item_of_strip(strip: Tensor, first_strip: Tensor) -> Tensor:
    """The item of each strip -> [any]. strip [any] holds places of strips.

    first_strip [item] is the place of each item's first strip.
    """
    return (strip[:, None] >= first_strip).sum(dim=1) - 1


def read_in_parts(
    strips: Sequence[NDArray[np.uint8]],
    items_per_part: int,
    parts: Path | None,
    read: Callable[[Sequence[NDArray[np.uint8]], ProgressBar], Reading],
) -> Reading:
    """Read the items part by part and show the progress. `read` reads one part.

    `strips` has the strips [strip, height, width] of each item. If the folder `parts` is given, finished
    parts are saved there. A part that is already there is loaded and not read again.
    """
    found = []
    with ProgressBar(
        total=sum(map(len, strips)), desc="Reading items", unit="strip", mininterval=1.0
    ) as progress:
        for start in range(0, len(strips), items_per_part):
            path = parts / f"items_{start:08d}.npz" if parts else None
            items = strips[start : start + items_per_part]
            if path and path.is_file() and (part := read_or_remove(path, Reading.load)) is not None:
                found.append(part)
                progress.update(sum(map(len, items)))
                continue
            found.append(read(items, progress))
            if path:
                found[-1].save(path)
    return Reading.join(found)


class Encoder(ABC):
    """Reads strips of pixels. A subclass is one model."""

    @abstractmethod
    def read(self, strips: Sequence[NDArray[np.uint8]], parts: Path | None = None) -> Reading:
        """Read a catalog, given as the strips [strip, height, width] of each item.

        This step is slow and shows its progress. If the folder `parts` is given, finished parts stay there,
        and the next call continues from them after an interruption. The caller must use another folder for
        other inputs, and deletes the folder in the end.
        """

    @abstractmethod
    def fit(self, reading: Reading) -> Pooling:
        """Fit the pooling to a Reading."""

    @abstractmethod
    def body(self) -> onnx.ModelProto:
        """The frozen graph: `strips` [strip, height, width] uint8 -> `frames` [strip, frame, dim] float32."""
