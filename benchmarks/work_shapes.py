"""The shapes that the benchmarks of constrained decoding share: random codes, random weights.

History 20 items, three levels of 256, 50 beams; `tiger` is T5 with 4+4 layers, `tree` has 2 of width 128.
"""

import time
from collections.abc import Callable
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
from service.core.graphs import GraphSpec, recommender_graph
from service.core.sid import SidSpec

HISTORY = 20
BEAMS = 50
NUM_ITEMS = 100_000
BEAM_LIMIT = 400

Kind = Literal["tree", "tiger"]


def spec() -> SidSpec:
    return SidSpec(levels=(256, 256, 256))


def random_codes(num_items: int, seed: int, of: SidSpec | None = None) -> NDArray[np.int64]:
    """Codes [item, level], each drawn alone, by default of the shared spec; a few items share theirs."""
    levels = of.levels if of else spec().levels
    return np.random.default_rng(seed).integers(0, levels, size=(num_items, len(levels)))


def make_generator(kind: Kind, codes: NDArray[np.int64]) -> Generator:
    """Untrained, and the same at each call; `codes` [item, level] are what `tree` saw in training."""
    torch.manual_seed(0)
    if kind == "tiger":
        return TigerGenerator(config=TigerConfig(), spec=spec()).eval()
    config = TreeConfig(width=128, ffn_dim=512)
    return TreeGenerator(config=config, spec=spec(), history_length=HISTORY, seen_codes=codes).eval()


def export_cached(kind: Kind, folder: Path) -> tuple[Path, GraphSpec]:
    """The recommender of NUM_ITEMS items (random_codes with seed 0), exported unless `folder` has it."""
    path = folder / f"{kind}.onnx"
    if path.exists():
        return path, recommender_graph(spec())
    folder.mkdir(parents=True, exist_ok=True)
    generator = make_generator(kind, random_codes(NUM_ITEMS, seed=0))
    return path, export_recommender(path, generator, history_length=HISTORY, beam_limit=BEAM_LIMIT)


def median_ms(call: Callable[[], object], repeats: int) -> float:
    """Median milliseconds of a call, after a few that warm up."""
    took = []
    for _ in range(repeats + min(3, repeats)):
        started = time.perf_counter()
        call()
        took.append(time.perf_counter() - started)
    return 1000 * float(np.median(took[-repeats:]))
