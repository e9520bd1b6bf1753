"""Baselines agree with a slow ranking by hand, and with published floors if the data are there."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from model_export.data.splits import Targets, leave_one_out
from model_export.data.tables import read_dataset
from model_export.evaluation.baselines.counting import Markov, Neighbors, Popularity
from model_export.evaluation.metrics import NO_ITEM, recall_at

SHARED = Path(__file__).parents[5] / "shared" / "data"


def sequences_of(*rows: list[int]) -> list[np.ndarray]:
    return [np.array(row, dtype=np.int32) for row in rows]


TRAIN = sequences_of([0, 1, 2], [0, 1, 3], [4, 1, 3], [0, 5])


def test_popularity_ranks_by_count_then_by_first_occurrence():
    ranked = Popularity().fit(TRAIN, 7).rank(sequences_of([], [1, 3]), 7)
    assert ranked.dtype == np.int32
    assert ranked.tolist() == [[0, 1, 3, 2, 4, 5, 6], [0, 2, 4, 5, 6, NO_ITEM, NO_ITEM]]


def test_markov_ranks_followers_of_the_last_item_then_popular_items():
    ranked = Markov().fit(TRAIN, 7).rank(sequences_of([1], [0], [6], [], [2, 3, 1]), 4)
    assert ranked.tolist() == [
        [3, 2, 0, 4],  # 3 followed twice, 2 once; then 0 is the most popular
        [1, 5, 3, 2],
        [0, 1, 3, 2],  # nothing ever followed 6
        [0, 1, 3, 2],
        [0, 4, 5, 6],  # the items that followed 1 are in the history
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
        assert baseline.fit(sequences_of([2]), 3).rank(sequences_of([1]), 3).tolist() == [[2, 0, NO_ITEM]]
        assert baseline.fit([], 3).rank(sequences_of([1]), 3).tolist() == [[0, 2, NO_ITEM]]


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
        # Counter.most_common keeps the order of insertion among equal counts.
        order = [item for item, _ in followed[history[-1]].most_common()] if len(history) else []
        order += [item for item, _ in popular.most_common()] + list(range(num_items))
        expected = [item for item in dict.fromkeys(order) if item not in history.tolist()][:10]
        assert row == expected + [NO_ITEM] * (10 - len(expected))


# Their lengths do not count.
VECTORS = np.array([[1, 0], [0.8, 0.6], [0, 2], [-1, 0], [0.96, 0.28], [2, 0], [0, 0]])


def test_neighbors_rank_by_cosine_with_the_last_item_and_then_by_popularity():
    ranked = Neighbors(VECTORS).fit(TRAIN, 7).rank(sequences_of([2, 1], [2], []), 5)
    assert ranked.tolist() == [
        [4, 0, 5, 6, 3],  # 0 and 5 are equal; item 2 is in the history
        [1, 4, 0, 3, 5],  # all items at right angles, by popularity
        [0, 1, 3, 2, 4],
    ]


def test_an_item_is_its_own_nearest_if_the_history_stays_in():
    ranked = Neighbors(VECTORS).fit(TRAIN, 7).rank(sequences_of([2, 4]), 2, exclude_history=False)
    assert ranked.tolist() == [[4, 0]]


@pytest.mark.parametrize("exclude", [True, False])
@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_neighbors_equal_a_sort_of_all_cosines(decay, exclude):
    rng = np.random.default_rng(0)
    vectors = rng.standard_normal((30, 4))
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    histories = [rng.integers(0, 30, rng.integers(1, 12)).astype(np.int32) for _ in range(40)]
    ranked = Neighbors(vectors, decay).fit(TRAIN, 30).rank(histories, 25, exclude_history=exclude)
    for history, row in zip(histories, ranked.tolist(), strict=True):
        score = sum(decay**age * (unit @ unit[item]) for age, item in enumerate(history[::-1]))
        order = [item for item in np.argsort(-score) if not (exclude and item in history)][:25]
        assert row == order + [NO_ITEM] * (25 - len(order))


@pytest.mark.parametrize("newest_counts", [True, False])
def test_the_decay_is_the_best_one_on_the_validation_users(newest_counts):
    """The next item is near the last item, or near the five items before it."""
    rng = np.random.default_rng(0)
    vectors = np.repeat(np.eye(8), 12, axis=0) + 0.01 * rng.standard_normal((96, 8))
    groups = np.array([rng.permutation(8)[:2] for _ in range(60)])
    histories = [
        np.array([*(old * 12 + np.arange(5)), new * 12], dtype=np.int32) for old, new in groups.tolist()
    ]
    targets = (groups[:, int(newest_counts)] * 12 + rng.integers(5, 12, 60)).astype(np.int32)
    found = Neighbors.tuned(vectors, histories, Targets(np.arange(60), histories, targets))
    assert (found.decay <= 0.3) if newest_counts else (found.decay >= 0.5)
    assert f"{found.decay:g}" in found.name


def test_vectors_of_other_items_are_refused():
    with pytest.raises(ValueError, match="7 vectors cannot rank 8 items"):
        Neighbors(VECTORS).fit(TRAIN, 8)


# (data, is the history left out): Recall@10 of popularity, of Markov, and of Markov with equal counts by
# popularity. The first two were published with the data, with the history left out.
FLOORS = {
    ("scientific", True): (0.0245, 0.0871, 0.0903),
    ("scientific", False): (0.0231, 0.0863, 0.0898),
    ("office", True): (0.0012, 0.0760, 0.0758),
    ("office", False): (0.0006, 0.0750, 0.0742),
}


@pytest.mark.parametrize("name", ["scientific", "office"])
def test_baselines_reproduce_the_published_floors(name):
    if not (SHARED / name).is_dir():
        pytest.skip(f"no {name} data. Put what `glyphrec prepare` writes of it in ../shared/data/{name}")
    dataset = read_dataset(str(SHARED / name))
    split = leave_one_out(dataset)
    baselines = [Popularity(), Markov(), Markov(ties="popularity")]
    for baseline in baselines:
        baseline.fit(split.train, dataset.num_items)
    for exclude in (True, False):
        ranked = [baseline.rank(split.test.histories, 10, exclude) for baseline in baselines]
        found = [round(recall_at(one, split.test.targets, 10), 4) for one in ranked]
        assert found == list(FLOORS[name, exclude])
