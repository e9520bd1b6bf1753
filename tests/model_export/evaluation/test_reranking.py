"""The order of candidates by a ranker agrees with a plain sort."""

import numpy as np

from model_export.evaluation.ranking import ItemsOfCodes, Ranker, SearchResult
from model_export.evaluation.reranking import NUM_CANDIDATES, rerank
from service.core.graphs import PADDING
from service.core.sid import SidSpec

SPEC = SidSpec(levels=(6, 4))
NUM_ITEMS = 24
CODES = np.array([SPEC.codes_of(prefix) for prefix in range(NUM_ITEMS)])  # an item for each pair of codes
HISTORIES = [np.array(items, dtype=np.int32) for items in ([0, 5], [3], [23, 1, 2], [7, 8])]
POPULARITY = np.random.default_rng(0).integers(0, 5, NUM_ITEMS)


def search(window, num_beams):
    """Every item, the last one first."""
    order = np.arange(NUM_ITEMS)[::-1][:num_beams]
    scores = -np.arange(len(order), dtype=np.float32)
    return SearchResult(
        np.stack([CODES[order]] * len(window.history)), np.stack([scores] * len(window.history))
    )


class KnownScores:
    """A ranker's session: popularity, and ten more for a first code of the history's newest item."""

    def __init__(self):
        self.num_positions = set()

    def run(self, history, candidates, popularity, neighbors=None):
        assert neighbors is None
        self.num_positions.add(history.shape[1])
        assert (popularity[candidates[..., 0] == PADDING] == 0).all()
        return popularity + 10.0 * (candidates[..., 0] == history[:, -1:, 0])


def reranked(session, history_length=2):
    ranker = Ranker(
        search,
        ItemsOfCodes.build(SPEC, CODES),
        history_length=8,
        num_beams=NUM_ITEMS,
        beam_limit=NUM_ITEMS,
        batch_size=3,
    )
    return rerank(ranker, session, HISTORIES, POPULARITY, history_length=history_length)


def test_candidates_stand_in_the_order_of_the_ranker_and_equal_scores_in_that_of_the_search():
    found = reranked(KnownScores())
    for row, history in enumerate(HISTORIES):
        candidates = [item for item in range(NUM_ITEMS)[::-1] if item not in history]
        by_ranker = sorted(
            candidates,
            key=lambda item: -(POPULARITY[item] + 10 * (CODES[item, 0] == CODES[history[-1], 0])),
        )
        filled = [-1] * (NUM_CANDIDATES - len(candidates))
        assert found.found[row].tolist() == candidates + filled
        assert found.ordered[row].tolist() == by_ranker + filled


def test_a_ranker_sees_as_many_newest_items_as_it_was_trained_for():
    session = KnownScores()
    reranked(session, history_length=2)
    assert max(session.num_positions) == 2
    assert reranked(session, history_length=8).ordered.tolist() == reranked(session).ordered.tolist()
