"""Baselines against a slow ranking by hand, and against published floors where the data is at hand."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from model_export.baselines import FILLER, Markov, Popularity
from model_export.data.splits import leave_one_out
from model_export.data.tables import read_dataset
from model_export.metrics import recall_at

SHARED = Path(__file__).parents[3] / "shared" / "data"


def sequences_of(*rows: list[int]) -> list[np.ndarray]:
    return [np.array(row, dtype=np.int32) for row in rows]


TRAIN = sequences_of([0, 1, 2], [0, 1, 3], [4, 1, 3], [0, 5])


def test_popularity_ranks_by_count_then_by_who_was_seen_first():
    ranked = Popularity().fit(TRAIN, 7).rank(sequences_of([], [1, 3]), 7)
    assert ranked.dtype == np.int32
    assert ranked.tolist() == [[0, 1, 3, 2, 4, 5, 6], [0, 2, 4, 5, 6, FILLER, FILLER]]


def test_markov_ranks_what_followed_the_last_item_then_the_popular():
    ranked = Markov().fit(TRAIN, 7).rank(sequences_of([1], [0], [6], [], [2, 3, 1]), 4)
    assert ranked.tolist() == [
        [3, 2, 0, 4],  # 3 followed twice, 2 once; then 0 leads the popular
        [1, 5, 3, 2],
        [0, 1, 3, 2],  # nothing ever followed 6
        [0, 1, 3, 2],
        [0, 4, 5, 6],  # what followed 1 is in the history
    ]


def test_history_stays_in_when_asked():
    assert Popularity().fit(TRAIN, 7).rank(sequences_of([0, 1]), 2, exclude_history=False).tolist() == [
        [0, 1]
    ]
    assert Markov().fit(TRAIN, 7).rank(sequences_of([3, 1]), 2, exclude_history=False).tolist() == [[3, 2]]


def test_ties_by_popularity_put_the_more_popular_successor_first():
    train = sequences_of([0, 1], [0, 2], [3, 2])
    assert Markov().fit(train, 4).rank(sequences_of([0]), 2).tolist() == [[1, 2]]
    assert Markov(ties="popularity").fit(train, 4).rank(sequences_of([0]), 2).tolist() == [[2, 1]]


def test_a_baseline_without_training_data_ranks_by_index():
    for baseline in (Popularity(), Markov()):
        assert baseline.fit(sequences_of([2]), 3).rank(sequences_of([1]), 3).tolist() == [[2, 0, FILLER]]
        assert baseline.fit([], 3).rank(sequences_of([1]), 3).tolist() == [[0, 2, FILLER]]


@pytest.mark.parametrize("seed", range(5))
def test_markov_equals_counting_by_hand(seed):
    rng = np.random.default_rng(seed)
    num_items = 15
    train = [rng.integers(0, num_items, rng.integers(1, 9)).astype(np.int32) for _ in range(20)]
    histories = [rng.integers(0, num_items, rng.integers(0, 6)).astype(np.int32) for _ in range(20)]
    popular = Counter(item for row in train for item in row.tolist())
    followed: dict[int, Counter[int]] = {item: Counter() for item in range(num_items)}
    for row in train:
        for last, item in zip(row.tolist(), row.tolist()[1:], strict=False):
            followed[last][item] += 1
    ranked = Markov().fit(train, num_items).rank(histories, 10)
    for history, row in zip(histories, ranked.tolist(), strict=True):
        # Counter.most_common keeps the order of insertion among equals
        order = [item for item, _ in followed[history[-1]].most_common()] if len(history) else []
        order += [item for item, _ in popular.most_common()] + list(range(num_items))
        expected = [item for item in dict.fromkeys(order) if item not in history.tolist()][:10]
        assert row == expected + [FILLER] * (10 - len(expected))


@pytest.mark.parametrize(
    ("name", "popularity", "markov"), [("scientific", 0.0245, 0.0871), ("office", 0.0012, 0.0760)]
)
def test_baselines_reproduce_the_published_floors(name, popularity, markov):
    if not (SHARED / name).is_dir():
        pytest.skip(f"needs {name} in the neutral form, as ../shared/data/{name} beside the repository")
    dataset = read_dataset(str(SHARED / name))
    split = leave_one_out(dataset)
    for baseline, floor in ((Popularity(), popularity), (Markov(), markov)):
        ranked = baseline.fit(split.train, dataset.num_items).rank(split.test.histories, 10)
        assert round(recall_at(ranked, split.test.targets, 10), 4) == floor
