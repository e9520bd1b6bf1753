"""What the pipeline asks of an encoder. Another one is another file that fills in these two classes.

    strips --body (frozen, ONNX)--> frames --Pooling (fitted, torch)--> features of items

The body is slow and fixed, so it runs once over a catalog and leaves a Reading; all fitting comes after.
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

from service.core.progress import ProgressBar
from service.core.whole_files import write_whole

# Items pooled at once from a Reading: bounds the memory of the largest intermediate.
ITEMS_PER_CHUNK = 64


@dataclass(frozen=True)
class Reading:
    """What was read of a catalog: the frames worth keeping, one item after another."""

    frames: NDArray[np.float16]  # [frame, dim]
    first_frame: NDArray[np.int64]  # [item + 1]; item i holds frames first_frame[i] to first_frame[i + 1]
    gate: NDArray[np.float32]  # [dim + 1], weights and bias of the choice which frames to keep

    @property
    def num_items(self) -> int:
        return len(self.first_frame) - 1

    def of_items(self, start: int, stop: int) -> Self:
        """The part that holds items `start` to `stop`."""
        first = self.first_frame[start : stop + 1]
        return type(self)(self.frames[first[0] : first[-1]], first - first[0], self.gate)

    def item_of_frame(self) -> NDArray[np.int64]:
        return np.repeat(np.arange(self.num_items), np.diff(self.first_frame))  # [frame]

    def save(self, path: Path) -> None:
        """Write to `path` whole or not at all."""

        def write(partial: Path) -> None:
            with partial.open("wb") as file:
                np.savez(file, frames=self.frames, first_frame=self.first_frame, gate=self.gate)

        write_whole(path, write)

    @classmethod
    def load(cls, path: Path) -> Self:
        with np.load(path) as arrays:
            return cls(arrays["frames"], arrays["first_frame"], arrays["gate"])

    @classmethod
    def join(cls, parts: Sequence["Reading"]) -> Self:
        """Readings of consecutive items as one."""
        counts = np.concatenate([np.diff(part.first_frame) for part in parts])
        first_frame = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        return cls(np.concatenate([part.frames for part in parts]), first_frame, parts[0].gate)


class Pooling(nn.Module, ABC):
    """Frames of a batch of strips -> one feature vector an item. Exported as it is."""

    feature_dim: int

    @abstractmethod
    def forward(self, strips: Tensor, frames: Tensor, first_strip: Tensor) -> Tensor:
        """strips [strip, height, width] uint8, their frames [strip, frame, dim], and first_strip [item] as in
        the contract -> features [item, feature_dim].
        """

    @abstractmethod
    def features(self, frames: Tensor, item: Tensor, num_items: int) -> Tensor:
        """Kept frames [frame, dim] of the items `item` [frame], ascending -> features [item, feature_dim]."""

    @torch.no_grad()
    def pool(self, reading: Reading) -> NDArray[np.float32]:
        """Features [item, feature_dim] of a whole catalog that was read."""
        rows = []
        for start in range(0, reading.num_items, ITEMS_PER_CHUNK):
            part = reading.of_items(start, min(start + ITEMS_PER_CHUNK, reading.num_items))
            frames = torch.from_numpy(part.frames.astype(np.float32))  # [frame, dim]
            rows.append(self.features(frames, torch.from_numpy(part.item_of_frame()), part.num_items).numpy())
        return np.concatenate(rows) if rows else np.zeros((0, self.feature_dim), np.float32)


def item_of_strip(strip: Tensor, first_strip: Tensor) -> Tensor:
    """Which item each of the strips [any] belongs to, from the first strip of each item [item]: [any]."""
    return (strip[:, None] >= first_strip).sum(dim=1) - 1


def read_in_parts(
    strips: Sequence[NDArray[np.uint8]],
    items_per_part: int,
    parts: Path | None,
    read: Callable[[Sequence[NDArray[np.uint8]], ProgressBar], Reading],
) -> Reading:
    """Read items part by part, with a progress bar. What lies in the folder `parts` is not read again."""
    found = []
    with ProgressBar(
        total=sum(map(len, strips)), desc="Reading items", unit="strip", mininterval=1.0
    ) as progress:
        for start in range(0, len(strips), items_per_part):
            path = parts / f"items_{start:08d}.npz" if parts else None
            items = strips[start : start + items_per_part]
            if path and path.is_file():
                found.append(Reading.load(path))
                progress.update(sum(map(len, items)))
                continue
            found.append(read(items, progress))
            if path:
                found[-1].save(path)
    return Reading.join(found)


class Encoder(ABC):
    """A way to read strips of pixels."""

    @abstractmethod
    def read(self, strips: Sequence[NDArray[np.uint8]], parts: Path | None = None) -> Reading:
        """Read a catalog: strips [strip, height, width] of each item. The slow step; shows its progress.

        With a folder `parts`, finished pieces stay there and an interrupted call goes on where it stopped.
        The caller names the folder after its inputs and deletes it.
        """

    @abstractmethod
    def fit(self, reading: Reading) -> Pooling:
        """Fit the pooling to what was read."""

    @abstractmethod
    def body(self) -> onnx.ModelProto:
        """The frozen part, from `strips` uint8 [strip, height, width] to `frames` [strip, frame, dim]."""
