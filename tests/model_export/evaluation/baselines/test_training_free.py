"""The training-free sum agrees with a sum by hand, and its search with trying everything."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_export.data.splits import Targets
from model_export.evaluation.baselines import training_free
from model_export.evaluation.baselines.text_cosines import text_cosines
from model_export.evaluation.baselines.training_free import DECAYS, WEIGHTS, SumWeights, TrainingFreeSum
from model_export.evaluation.metrics import NO_ITEM, ndcg_at

NUM_ITEMS = 9
TEXTS = [
    "hex nut M8", "hex nut M6", "hex bolt M8", "whole milk", "skim milk", "chocolate milk", "copper wire", "",
    "tape",
]  # fmt: skip

Rows = list[list[int]]


def sequences_of(rows: Rows) -> list[np.ndarray]:
    return [np.array(row, dtype=np.int32) for row in rows]


def near(train: Rows, one: int, other: int) -> float:
    """The co-purchases of a pair of items, by the definition."""
    count = [sum(row.count(item) for row in train) for item in (one, other)]
    total = 0.0
    for row in train:
        for i, j in product(range(len(row)), repeat=2):
            if 0 < abs(i - j) <= 5 and (row[i], row[j]) == (one, other):
                total += 1 / abs(i - j)
    return total / np.sqrt(max(count[0], 1) * max(count[1], 1))


def score_by_hand(train: Rows, history: list[int], item: int, weights: SumWeights) -> float:
    cosines = text_cosines(TEXTS, weights.terms)
    total = weights.popularity * np.log1p(sum(row.count(item) for row in train))
    for age, old in enumerate(reversed(history)):
        followed = sum(pair == (old, item) for row in train for pair in zip(row, row[1:], strict=False))
        total += weights.co_purchases * weights.co_purchases_decay**age * near(train, old, item)
        total += weights.transitions * weights.transitions_decay**age * np.log1p(followed)
        total += weights.text_decay**age * cosines[old, item]
    return total


rows = st.lists(st.lists(st.integers(0, NUM_ITEMS - 1), max_size=8), min_size=1, max_size=6)


@settings(max_examples=15, deadline=None)
@given(
    train=rows,
    histories=rows,
    weights=st.builds(
        SumWeights,
        **dict.fromkeys(("co_purchases", "transitions", "popularity"), st.sampled_from(WEIGHTS)),
        **dict.fromkeys(("co_purchases_decay", "transitions_decay", "text_decay"), st.sampled_from(DECAYS)),
        terms=st.sampled_from(["words", "letters"]),
    ),
)
def test_scores_are_the_weighted_sum_of_the_parts(train, histories, weights):
    model = TrainingFreeSum(TEXTS, weights).fit(sequences_of(train), NUM_ITEMS)
    found = model.scores(sequences_of(histories))[:, np.argsort(model.popular)]
    expected = [
        [score_by_hand(train, history, item, weights) for item in range(NUM_ITEMS)] for history in histories
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-3)  # each part has five decimals


@settings(max_examples=15, deadline=None)
@given(train=rows, histories=rows, exclude=st.booleans())
def test_a_ranking_is_the_sorted_scores_and_ties_are_ordered_by_popularity(train, histories, exclude):
    model = TrainingFreeSum(TEXTS).fit(sequences_of(train), NUM_ITEMS)
    found = model.rank(sequences_of(histories), 5, exclude_history=exclude)
    for history, score, row in zip(histories, model.scores(sequences_of(histories)), found, strict=True):
        by_score = model.popular[np.argsort(-score, kind="stable")].tolist()
        order = [item for item in by_score if not (exclude and item in history)][:5]
        assert row.tolist() == order + [NO_ITEM] * (5 - len(order))


def world(newest_counts: bool) -> tuple[list[str], list[np.ndarray], Targets]:
    """Items of eight kinds. The next item has the kind of the last one, or of the five before it."""
    rng = np.random.default_rng(0)
    texts = [f"kind{item // 12} number{item}" for item in range(96)]
    groups = np.array([rng.permutation(8)[:2] for _ in range(60)])
    histories = [
        np.array([*(old * 12 + np.arange(5)), new * 12], dtype=np.int32) for old, new in groups.tolist()
    ]
    targets = (groups[:, int(newest_counts)] * 12 + rng.integers(5, 12, 60)).astype(np.int32)
    return texts, histories, Targets(np.arange(60), histories, targets)


@pytest.mark.parametrize("newest_counts", [True, False])
def test_the_search_finds_whether_old_items_count(newest_counts):
    """With a decay of .5 the last item weighs as much as all items before it."""
    texts, _, users = world(newest_counts)
    weights = TrainingFreeSum.tuned(texts, [], users).weights
    assert (weights.text_decay <= 0.5) if newest_counts else (weights.text_decay > 0.5)


def test_no_change_of_a_single_field_ranks_the_validation_targets_better():
    rng = np.random.default_rng(1)
    texts = [f"kind{item % 5} size{item % 7}" for item in range(40)]
    train = [np.cumsum(rng.integers(1, 4, 9)).astype(np.int32) % 40 for _ in range(30)]
    users = Targets(
        np.arange(30), [row[:-1] for row in train], np.array([row[-1] for row in train], dtype=np.int32)
    )
    known = [row[:-1] for row in train]
    model = TrainingFreeSum.tuned(texts, known, users)
    best = model.weights

    def quality(weights: SumWeights) -> float:
        model.weights = weights
        return ndcg_at(model.rank(users.histories, 10), users.targets, 10)

    reached = quality(best)
    assert reached > quality(SumWeights())
    others = [replace(best, **{step.field: value}) for step in training_free.STEPS for value in step.grid]
    assert reached == pytest.approx(max(map(quality, others)), abs=1e-9)


def test_the_search_looks_at_every_nth_user_of_many(monkeypatch):
    texts, train, users = world(newest_counts=True)
    fitted = TrainingFreeSum.tuned(
        texts, train[::3], Targets(users.users[::3], users.histories[::3], users.targets[::3])
    )
    monkeypatch.setattr(training_free, "MAX_CELLS", 20 * len(texts))
    assert TrainingFreeSum.tuned(texts, train[::3], users).weights == fitted.weights


def test_without_validation_users_the_weights_stay_as_they_are():
    none = Targets(np.empty(0, np.int64), [], np.empty(0, np.int32))
    model = TrainingFreeSum.tuned(TEXTS, sequences_of([[0, 1]]), none)
    assert model.weights == SumWeights()
    assert model.rank(sequences_of([[0]]), 2).shape == (1, 2)
    assert model.rank([], 2).shape == (0, 2)


def test_an_item_without_any_purchase_is_found_by_its_text():
    model = TrainingFreeSum(TEXTS).fit(sequences_of([[3, 6], [6, 3, 8]]), NUM_ITEMS)
    assert model.rank(sequences_of([[0]]), 2).tolist() == [[1, 2]]


def test_texts_of_other_items_are_refused():
    with pytest.raises(ValueError, match="9 texts cannot rank 8 items"):
        TrainingFreeSum(TEXTS).fit(sequences_of([[0, 1]]), 8)


@pytest.mark.parametrize("terms", ["words", "letters"])
def test_cosines_of_texts(terms):
    cosines = text_cosines(TEXTS, terms)
    assert cosines.shape == (9, 9)
    np.testing.assert_allclose(np.diag(cosines), [1] * 7 + [0, 1], atol=1e-6)
    assert cosines[3, 4] > 0
    assert cosines[3, 6] == 0
    assert not text_cosines(["", " "], terms).any()
