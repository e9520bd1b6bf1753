"""Offline ranking agrees with a plain sort of all items."""

import numpy as np
import pytest

from model_export.evaluation.ranking import ItemsOfCodes, Ranker, SearchResult, left_padded
from model_export.generators.beam_search import NEG_INF
from service.core.graphs import PADDING
from service.core.sid import SidSpec

SPEC = SidSpec(levels=(4, 3))
NUM_ITEMS = 20
CODES = np.random.default_rng(0).integers(0, SPEC.levels, size=(NUM_ITEMS, 2))


def scores_of(history: np.ndarray) -> np.ndarray:
    """A fixed scorer of all full codes. It depends only on the newest item of the history."""
    seed = 1 + int(history[-1, 0]) * 3 + int(history[-1, 1])
    return np.random.default_rng(seed).permutation(SPEC.num_prefixes[-1]).astype(np.float32) - 100.0


def search(window, num_beams):
    """A search with a known answer. It finds only live codes and fills up with fillers."""
    history = window.history
    codes = np.zeros((len(history), num_beams, 2), dtype=np.int64)
    scores = np.full((len(history), num_beams), NEG_INF, dtype=np.float32)
    live = np.unique(SPEC.prefixes_of(CODES)[-1])
    for row, items in enumerate(history):
        score = scores_of(items)
        best = sorted(live.tolist(), key=lambda prefix: -score[prefix])[:num_beams]
        codes[row, : len(best)] = [SPEC.codes_of(prefix) for prefix in best]
        scores[row, : len(best)] = score[best]
    return SearchResult(codes, scores)


@pytest.mark.parametrize("exclude", [True, False])
def test_ranked_items_equal_a_sort_of_the_whole_catalog(exclude):
    rng = np.random.default_rng(1)
    histories = [rng.permutation(NUM_ITEMS)[: rng.integers(1, NUM_ITEMS)].astype(np.int32) for _ in range(30)]
    ranker = Ranker(
        search, ItemsOfCodes.build(SPEC, CODES), history_length=3, num_beams=2, beam_limit=16, batch_size=7
    )
    ranked = ranker.rank(histories, 5, exclude_history=exclude)
    prefixes = SPEC.prefixes_of(CODES)[-1]
    for row, history in enumerate(histories):
        score = scores_of(CODES[history])
        allowed = [item for item in range(NUM_ITEMS) if not (exclude and item in history)]
        best = sorted(allowed, key=lambda item: (-score[prefixes[item]], item))[:5]
        assert ranked[row].tolist() == best + [-1] * (5 - len(best))


def test_padding_stands_on_the_left():
    window = left_padded([np.array([1, 2], dtype=np.int32), np.array([], dtype=np.int32)])
    assert window.tolist() == [[1, 2], [-1, -1]]
    assert (ItemsOfCodes.build(SPEC, CODES).codes[window][1] == PADDING).all()
