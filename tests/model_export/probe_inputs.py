"""Fixed inputs of the stages for probes.py: small, well separated and seeded.

A stage gets its input from here and not from the stage before it, so a change shows at its own stage.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits
from torch import Tensor, nn
from torch.nn import functional as F

from model_export.data.dataset import Dataset, make_dataset
from model_export.data.splits import Split, leave_one_out
from model_export.encoders.base import Pooling
from model_export.generators.base import Generator
from service.core.bundle import RenderSpec
from service.core.sid import SidSpec

SID = SidSpec(levels=(4, 6))
NUM_ITEMS, NUM_USERS, DIM = 24, 30, 16
CODES = np.array([[item % 4, item // 4] for item in range(NUM_ITEMS)], dtype=np.int64)
HISTORY_LENGTH, BEAM_LIMIT = 6, 24
RECIPE = RenderSpec(max_strips=2)
# Stored strips of TEXTS, so that a change of the drawing does not look like a change of the encoders.
STRIPS = Path(__file__).with_name("strips.npz")
TEXTS = (
    "Hex nuts, M8 zinc plated, 100 count", "Hex nuts, M6 zinc plated, 50 count", "Hex bolts, M8 x 40 mm",
    "Whole milk 1 gallon", "Skim milk 1/2 gallon", "Chocolate milk 12 fl oz",
    "Duct tape, 2 in x 60 yd, silver", "Masking tape, 1 in x 60 yd, blue", "Painter's brush 3 inch",
    "Copper wire 14 AWG, 25 ft", "Steel wire rope 1/8 in, 50 ft", "Ground coffee, dark roast 12 oz",
)  # fmt: skip

Output = Any  # lists, dicts and strings; numbers are compared with a tolerance


@contextmanager
def one_thread() -> Iterator[None]:
    """Run torch in one thread, so that sums are added up in a fixed order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        torch.set_num_threads(before)


class Lookup(Generator):
    """A minimal generator, so that code that uses a generator is pinned separately from the real ones.

    The first code of the newest item and the codes so far select the scores of the next code.
    """

    learns_every_position = False

    def __init__(self, spec: SidSpec = SID) -> None:
        super().__init__()
        self.spec = spec
        torch.manual_seed(0)
        self.tables = nn.ModuleList(
            nn.Embedding(parents * spec.levels[0], codes)
            for parents, codes in zip(spec.num_parents, spec.levels, strict=True)
        )

    def start(self, history: Tensor) -> Tensor:
        return history[:, -1, 0].clamp(min=0)  # [batch]

    def step(self, level: int, state: Tensor, prefix: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.tables[level](prefix * self.spec.levels[0] + state[:, None])
        return logits.log_softmax(dim=-1), state

    def reorder(self, state: Tensor, parent: Tensor) -> Tensor:  # noqa: ARG002  the same for all beams
        return state

    def loss(self, window: Tensor) -> Tensor:
        state, target = self.start(window[:, :-1]), window[:, -1]
        prefix, total = torch.zeros_like(state), torch.zeros(())
        for level, codes in enumerate(self.spec.levels):
            log_probs, _ = self.step(level, state, prefix[:, None])
            total = total + F.nll_loss(log_probs[:, 0], target[:, level])
            prefix = prefix * codes + target[:, level]
        return total


class Codewords(nn.Module):
    """A quantizer of two levels with fixed codewords."""

    def __init__(self) -> None:
        super().__init__()
        codewords = np.random.default_rng(3).normal(size=(2, 6, 8)).astype(np.float32)
        self.codebooks = nn.Parameter(torch.from_numpy(codewords))

    def encode(self, vectors: Tensor) -> Tensor:
        codes = []
        for codebook in self.codebooks:
            code = (vectors[:, None] - codebook).square().sum(dim=-1).argmin(dim=-1)  # [item]
            vectors = vectors - codebook[code]
            codes.append(code)
        return torch.stack(codes, dim=-1)


class Columns(nn.Module):
    """A body without weights: every pixel column of a strip is a frame."""

    def forward(self, strips: Tensor) -> Tensor:
        return 1 - strips.to(torch.float32).transpose(1, 2) / 255  # [strip, frame, dim]


class SumOfFrames(Pooling):
    """The weighted sum of an item's frames. Each column has its own weight."""

    feature_dim = RECIPE.height_px

    def forward(self, strips: Tensor, frames: Tensor, first_strip: Tensor) -> Tensor:
        strip = torch.arange(strips.shape[0])
        item = (strip[:, None] >= first_strip).sum(dim=1) - 1  # [strip]
        wave = torch.cos(0.7 * torch.arange(frames.shape[1]))[:, None]  # [frame, 1]
        return self.features((frames * wave).sum(dim=1), item, first_strip.shape[0])

    def features(self, frames: Tensor, item: Tensor, num_items: Tensor | int) -> Tensor:
        return torch.zeros(num_items, self.feature_dim).index_add(0, item, frames)


def dataset() -> Dataset:
    """Users who mostly continue with the item three places on, and items of six kinds."""
    rng = np.random.default_rng(0)
    kinds = [text.split(",")[0] for text in TEXTS[::2]]
    items = [
        {
            "item_id": f"item-{item}",
            "title": f"{kinds[item % 6]}, {item + 1} in, pack of {2 * item + 2}",
            "brand": ("Acme", "Bolt & Co", "Zenith")[item % 3],
            "description": "Made of steel, 12 oz each, 3 ft long",
        }
        for item in range(NUM_ITEMS)
    ]
    histories = []
    for user in range(NUM_USERS):
        steps = np.where(rng.random(8) < 0.7, 4, rng.integers(1, NUM_ITEMS, 8))
        histories.append((f"user-{user}", (user + np.cumsum(steps)) % NUM_ITEMS))
    return make_dataset("probe", items, histories, {})


def split() -> Split:
    return leave_one_out(dataset())


def vectors(*, dim: int = DIM, seed: int = 1) -> NDArray[np.float32]:
    """Vectors [item, dim] around six centers. Each direction has another strength, so all axes differ."""
    rng = np.random.default_rng(seed)
    scale = np.linspace(2.0, 0.2, dim)
    middles = rng.normal(size=(6, dim)) * scale
    found = middles[np.arange(NUM_ITEMS) % 6] + 0.3 * rng.normal(size=(NUM_ITEMS, dim)) * scale
    return found.astype(np.float32)


def strips() -> list[NDArray[np.uint8]]:
    with np.load(STRIPS) as arrays:
        return [arrays[str(place)] for place in range(len(TEXTS))]


def cosines(features: NDArray[np.floating]) -> Output:
    """Products [item, item], which depend neither on the signs nor on the order of the axes."""
    unit = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-9)
    return (unit @ unit.T).tolist()
