"""The beam of a search, level by level, out of the graph that serves.

Each level of BeamSearch (model_export/generators/beam_search.py) ends with one TopK over the scores of all
children, of one place more than the level keeps. Its two outputs are tensors inside the graph. A second
session of the same file gives them too, so it tells what the search did, and computes nothing beside it.
"""

from collections.abc import Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.core.graphs import FILLER_SCORE, GraphSpec, Neighbors
from service.core.sid import SidSpec
from service.errors import ServiceError
from service.inference.onnx_file import outputs_of
from service.inference.runtime import RecommenderSession


class BeamNotTold(ServiceError):
    """Raised if the levels of a graph's search cannot be told."""

    status = HTTPStatus.CONFLICT
    slug = "beam-not-told"

    def __init__(self, why: str) -> None:
        super().__init__(
            f"The beam of this bundle cannot be shown level by level: {why}. Recommendations are not "
            "affected. Export again with this release to see the beam."
        )


class LevelBeams(NamedTuple):
    """The best children of one level, best first, without fillers."""

    prefixes: NDArray[np.int64]  # [beam]  prefixes of this level, each as one integer
    scores: NDArray[np.float32]  # [beam]  sums of log-probabilities
    num_kept: int  # so many of them survived; the others are the best that were pruned


class LevelSession:
    """Histories and the trie's tables -> the beam after each level."""

    def __init__(self, path: Path, graph: GraphSpec, spec: SidSpec, *, threads: int) -> None:
        """Open the graph a second time. Takes as long, and as much memory, as the first time.

        Raises BeamNotTold if it does not have one TopK for each level, as a generator of its own may.
        """
        found = outputs_of(path.read_bytes(), "TopK")
        if len(found) != spec.num_levels:
            raise BeamNotTold(f"its graph has {len(found)} choices of the best for {spec.num_levels} levels")
        self._spec = spec
        self._names = [name for pair in found for name in pair]
        self._session = RecommenderSession(path, graph, threads=threads, inside=self._names)

    def run(
        self,
        history: NDArray[np.int64],
        tables: Sequence[NDArray[Any]],
        widths: Sequence[int],
        neighbors: Neighbors | None = None,
        *,
        num_pruned: int,
    ) -> list[LevelBeams]:
        """Search for one history [1, position, level], with the other arguments of RecommenderSession.run.

        The search is repeated for each level with that level alone `num_pruned` wider, so that the best of
        what it prunes are told too. The levels above are the same in each run. Raises BeamNotTold if the last
        level differs from the answer of the same run.
        """
        found = []
        for level, width in enumerate(widths):
            room = (widths[level - 1] if level else 1) * self._spec.levels[level]
            wider = (*widths[:level], min(width + num_pruned, room), *widths[level + 1 :])
            levels = self._levels(history, tables, wider, neighbors)
            found.append(levels[level]._replace(num_kept=min(width, len(levels[level].prefixes))))
        return found

    def _levels(
        self,
        history: NDArray[np.int64],
        tables: Sequence[NDArray[Any]],
        widths: Sequence[int],
        neighbors: Neighbors | None,
    ) -> list[LevelBeams]:
        codes, scores, *inside = self._session.run_inside(
            ["codes", "scores", *self._names], self._session.feeds(history, tables, widths, neighbors)
        )
        prefixes, found = np.zeros(1, np.int64), []  # the root
        pairs = zip(inside[::2], inside[1::2], strict=True)
        for width, num_codes, (best, place) in zip(widths, self._spec.levels, pairs, strict=True):
            parent, code = np.divmod(place[0].astype(np.int64), num_codes)  # [beam + 1]
            is_real = best[0] > FILLER_SCORE  # the place of a filler may have no parent
            children = prefixes[np.where(is_real, parent, 0)] * num_codes + code
            found.append(LevelBeams(children[is_real], best[0][is_real], width))
            prefixes = children[:width]
        answered = scores[0] > FILLER_SCORE  # [beam]
        last, num_answered = found[-1], int(answered.sum())
        told = self._spec.prefixes_of(codes[0][answered])[-1]
        if not (
            np.array_equal(last.prefixes[:num_answered], told)
            and np.array_equal(last.scores[:num_answered], scores[0][answered])
        ):
            raise BeamNotTold("what its levels choose is not what it answers")
        return found
