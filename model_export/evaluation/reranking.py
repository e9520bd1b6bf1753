"""What reranking buys: the generator's page, and the same candidates in the order of the bundle's ranker."""

from collections.abc import Sequence
from time import perf_counter
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from model_export.evaluation.metrics import NO_ITEM
from model_export.evaluation.ranking import Ranker
from service.core.graphs import PADDING
from service.inference.runtime import RankerSession

NUM_CANDIDATES = 50  # of the generator, which the ranker orders
BATCH = 32  # histories scored at once
NUM_TIMED = 100  # histories that are timed, one at a time


class Reranked(NamedTuple):
    """Two orders of the same candidates."""

    found: NDArray[np.int32]  # [user, rank]  as the generator found them, filled up with NO_ITEM
    ordered: NDArray[np.int32]  # [user, rank]  by the ranker
    search_ms: float  # median time of finding the candidates of one history
    ranker_ms: float  # median time of the ranker's graph for one history and its candidates


def rerank(
    ranker: Ranker,
    session: RankerSession,
    histories: list[NDArray[np.int32]],
    popularity: NDArray[np.integer],
    *,
    history_length: int,
) -> Reranked:
    """Order the best candidates of each history, without its own items, by the ranker's score.

    Candidates of equal scores keep the generator's order. popularity [item]: as training counted it;
    `history_length`: the newest items that the ranker gets to see.
    """
    found = ranker.rank(histories, NUM_CANDIDATES)
    ordered = np.empty_like(found)
    for first in range(0, len(histories), BATCH):
        part = slice(first, first + BATCH)
        scores = _scores(ranker, session, histories[part], found[part], popularity, history_length)
        scores[found[part] == NO_ITEM] = -np.inf
        order = np.argsort(-scores, axis=1, kind="stable")
        ordered[part] = np.take_along_axis(found[part], order, axis=1)
    search_ms, ranker_ms = [], []
    for user in range(min(NUM_TIMED, len(histories))):
        one = slice(user, user + 1)
        started_at = perf_counter()
        ranker.rank(histories[one], NUM_CANDIDATES)
        found_at = perf_counter()
        _scores(ranker, session, histories[one], found[one], popularity, history_length)
        search_ms.append(1e3 * (found_at - started_at))
        ranker_ms.append(1e3 * (perf_counter() - found_at))
    return Reranked(found, ordered, float(np.median(search_ms)), float(np.median(ranker_ms)))


def _scores(
    ranker: Ranker,
    session: RankerSession,
    histories: Sequence[NDArray[np.int32]],
    candidates: NDArray[np.int32],
    popularity: NDArray[np.integer],
    history_length: int,
) -> NDArray[np.float32]:
    """[user, candidate]"""
    window = ranker.window(histories)
    seen = window.history[:, -history_length:]
    codes = np.where((candidates == NO_ITEM)[..., None], PADDING, ranker.catalog.codes[candidates])
    counts = np.where(candidates == NO_ITEM, 0, popularity[candidates]).astype(np.float32)
    return session.run(seen, codes, counts, window.neighbors)
