"""What the benchmarks of constrained decoding share: random codes, random weights, exported graphs.

A history of 20 items, 50 beams. FULL has 100,000 items and three levels of 256 codes; `tiger` is T5 with 4+4
layers, `tree` has 2 layers of width 128. TINY has fewer levels, layers and items: its export takes seconds.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from model_export.bundle.recommender import export_recommender
from model_export.configs import TigerConfig, TreeConfig
from model_export.generators.base import Generator
from model_export.generators.tiger import TigerGenerator
from model_export.generators.tree import TreeGenerator
from service.core.graphs import GraphSpec, beam_widths, recommender_graph
from service.core.sid import SidSpec

HISTORY = 20
BEAMS = 50
BEAM_LIMIT = 400

Kind = Literal["tree", "tiger"]
Codes = NDArray[np.int64]  # [item, level]


@dataclass(frozen=True)
class Shapes:
    """How many items there are, and how large the two models."""

    name: str
    spec: SidSpec
    num_items: int
    tree: TreeConfig
    tiger: TigerConfig

    @property
    def codes(self) -> Codes:
        """Of all items, the same at each call."""
        return random_codes(self.num_items, seed=0, of=self.spec)

    @property
    def widths(self) -> tuple[int, ...]:
        """How many beams are kept after each level."""
        return beam_widths(self.spec, BEAMS)


FULL = Shapes(
    "full", SidSpec(levels=(256, 256, 256)), 100_000, TreeConfig(width=128, ffn_dim=512), TigerConfig()
)
TINY = Shapes(
    "tiny",
    SidSpec(levels=(64, 64)),
    3_000,  # of which 1 % still fill a page
    TreeConfig(width=16, num_layers=1, ffn_dim=32, likeness=0.0),
    TigerConfig(width=16, num_layers=1, num_heads=2, head_dim=8, ffn_dim=32),
)


def random_codes(num_items: int, seed: int, of: SidSpec) -> Codes:
    """Codes [item, level], each drawn alone; a few items share theirs."""
    return np.random.default_rng(seed).integers(0, of.levels, size=(num_items, of.num_levels))


def random_histories(codes: Codes, batch: int, seed: int) -> Codes:
    """Codes [batch, position, level] of random items."""
    return codes[np.random.default_rng(seed).integers(0, len(codes), size=(batch, HISTORY))]


def make_generator(kind: Kind, shapes: Shapes) -> Generator:
    """Untrained, and the same at each call; `tree` has seen every item in training."""
    torch.manual_seed(0)
    if kind == "tiger":
        return TigerGenerator(config=shapes.tiger, spec=shapes.spec).eval()
    return TreeGenerator(
        config=shapes.tree, spec=shapes.spec, history_length=HISTORY, seen_codes=shapes.codes
    ).eval()


def export_cached(kind: Kind, folder: Path, shapes: Shapes) -> tuple[Path, GraphSpec]:
    """The recommender's graph, exported unless `folder` has it."""
    path = folder / f"{kind}-{shapes.name}.onnx"
    if path.exists():
        return path, recommender_graph(shapes.spec)
    folder.mkdir(parents=True, exist_ok=True)
    generator = make_generator(kind, shapes)
    return path, export_recommender(path, generator, history_length=HISTORY, beam_limit=BEAM_LIMIT)
