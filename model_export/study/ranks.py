"""The rank of each test user's target, by the eager beam search of a trained generator."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from model_export.configs import RunConfig
from model_export.data.splits import Targets
from model_export.evaluation.evaluate import NUM_BEAMS
from model_export.evaluation.metrics import target_ranks
from model_export.evaluation.ranking import (
    ItemsOfCodes,
    NeighborsOfItems,
    Ranker,
    SearchFunction,
    SearchResult,
    Window,
)
from model_export.evaluation.reach import coverage
from model_export.generators.base import Generator
from model_export.generators.beam_search import eager_search
from service.core.graphs import FILLER_SCORE

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py
K = 10
BATCH = 128


class Ranks(NamedTuple):
    """Ranks from 0. A rank is K if the target is not among the first K."""

    excluded: NDArray[np.uint8]  # [user]  items of the history left out of the ranking
    included: NDArray[np.uint8]  # [user]  items of the history in the ranking
    codes: NDArray[np.uint8] | None  # [user]  rank of the target's codes among the beams, history included
    coverage: float | None  # share of the catalog among the first K of at least one user, history left out


@torch.no_grad()
def rank_targets(
    generator: Generator,
    codes: NDArray[np.int64],
    users: Targets,
    config: RunConfig,
    *,
    neighbor_weight: float = 1.0,
    neighbors: NeighborsOfItems | None = None,
) -> Ranks:
    """The ranks of the users' targets among all items. codes [item, level]"""
    generator.to("cuda" if torch.cuda.is_available() else "cpu").eval()
    catalog = ItemsOfCodes.build(generator.spec, codes)
    ranker = Ranker(
        remembered(eager_search(generator, catalog, neighbor_weight)),
        catalog,
        history_length=config.history_length,
        num_beams=min(NUM_BEAMS, config.beam_limit),
        beam_limit=config.beam_limit,
        batch_size=BATCH,
        neighbors=neighbors,
    )
    excluded, included = (
        ranker.rank(users.histories, K, exclude_history=exclude, progress="test users")
        for exclude in (True, False)
    )
    return Ranks(
        target_ranks(excluded, users.targets, K).astype(np.uint8),
        target_ranks(included, users.targets, K).astype(np.uint8),
        _code_ranks(ranker, users),
        coverage(excluded, len(codes)),
    )


def remembered(search: SearchFunction) -> SearchFunction:
    """A search that runs once per history and number of beams, and keeps the result."""
    known: dict[tuple[bytes, int], SearchResult] = {}

    def run(window: Window, num_beams: int) -> SearchResult:
        # The neighbors follow from the whole history, of which the window shows the end.
        masses = b"" if window.neighbors is None else window.neighbors.mass.tobytes()
        key = (window.history.tobytes() + masses, num_beams)
        if key not in known:
            known[key] = search(window, num_beams)
        return known[key]

    return run


def _code_ranks(ranker: Ranker, users: Targets) -> NDArray[np.uint8]:
    """The rank of the target's codes, [user]. Many papers count so: other items may have the same codes."""
    found = []
    for first in range(0, len(users.histories), BATCH):
        part = slice(first, first + BATCH)
        codes, scores = ranker.search(ranker.window(users.histories[part]), ranker.num_beams)
        same = (codes[:, :K] == ranker.catalog.codes[users.targets[part]][:, None]).all(
            axis=-1
        )  # [user, beam]
        same &= scores[:, :K] > FILLER_SCORE
        found.append(np.where(same.any(axis=1), same.argmax(axis=1), K).astype(np.uint8))
    return np.concatenate(found)
