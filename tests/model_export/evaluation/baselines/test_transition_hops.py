"""The transition graph of three hops agrees with a walk by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model_export.data.splits import Targets
from model_export.evaluation.baselines.text_cosines import text_cosines
from model_export.evaluation.baselines.transition_hops import TransitionHops
from model_export.evaluation.metrics import NO_ITEM

NUM_ITEMS = 8
TEXTS = ["hex nut", "hex bolt", "whole milk", "skim milk", "hex", "milk", "wire", ""]


def sequences_of(*rows: list[int]) -> list[np.ndarray]:
    return [np.array(row, dtype=np.int32) for row in rows]


def test_items_within_three_hops_come_before_all_others():
    # 0 -> 6 -> 3 -> 7, and 7 -> 2 is a fourth hop. Item 1 has the text of 0, and nothing leads to it.
    train = sequences_of([0, 6, 3, 7, 2])
    ranked = TransitionHops(TEXTS).fit(train, NUM_ITEMS).rank(sequences_of([0]), NUM_ITEMS)[0].tolist()
    assert ranked[0] == 6, "the only one that followed it"
    assert set(ranked[:3]) == {6, 3, 7}
    assert set(ranked[3:5]) == {1, 4}, "then by text"
    assert ranked[-1] == NO_ITEM


def test_half_of_the_logarithm_of_the_count_is_added_to_the_cosine():
    texts = ["red nut", "red nut", "wire", "tape"]
    train = sequences_of([0, 1], *[[0, 2]] * 3)
    ranked = TransitionHops(texts).fit(train, 4).rank(sequences_of([0]), 2)
    assert ranked.tolist() == [[1, 2]]  # 1 + .5 log 2 against .5 log 4
    train += sequences_of(*[[0, 2]] * 20)
    assert TransitionHops(texts).fit(train, 4).rank(sequences_of([0]), 2).tolist() == [[2, 1]]


rows = st.lists(st.lists(st.integers(0, NUM_ITEMS - 1), max_size=6), min_size=1, max_size=6)


@settings(max_examples=30, deadline=None)
@given(train=rows, histories=rows, decay=st.sampled_from([0.0, 0.5]))
def test_a_ranking_equals_a_walk_by_hand(train, histories, decay):
    model = TransitionHops(TEXTS, decay).fit(sequences_of(*train), NUM_ITEMS)
    cosines = text_cosines(TEXTS, "words")
    followers = {
        item: [b for row in train for a, b in zip(row, row[1:], strict=False) if a == item]
        for item in range(8)
    }
    for history, row in zip(histories, model.rank(sequences_of(*histories), 8).tolist(), strict=True):
        ring = {history[-1]} if history else set()
        within: set[int] = set()
        for _ in range(3):
            ring = {after for item in ring for after in followers[item]}
            within |= ring
        total = sum(decay**age for age in range(len(history))) or 1

        def score(
            item: int, history: list[int] = history, within: set[int] = within, total: float = total
        ) -> float:
            text = sum(decay**age * cosines[old, item] for age, old in enumerate(reversed(history))) / total
            count = followers[history[-1]].count(item) if history else 0
            return float(text + 0.5 * np.log1p(count) - (0 if item in within else 100))

        found = [item for item in row if item != NO_ITEM]
        assert sorted(found) == sorted(set(range(8)) - set(history))
        scores = [score(item) for item in found]
        assert all(a >= b - 2e-5 for a, b in zip(scores, scores[1:], strict=False))


def test_the_decay_is_the_best_one_on_the_validation_users():
    rng = np.random.default_rng(0)
    texts = [f"kind{item // 12} number{item}" for item in range(96)]
    groups = np.array([rng.permutation(8)[:2] for _ in range(60)])
    histories = [np.array([*(old * 12 + np.arange(5)), new * 12], dtype=np.int32) for old, new in groups]
    for newest_counts in (True, False):
        targets = (groups[:, int(newest_counts)] * 12 + rng.integers(5, 12, 60)).astype(np.int32)
        found = TransitionHops.tuned(texts, [], Targets(np.arange(60), histories, targets))
        assert (found.decay <= 0.3) if newest_counts else (found.decay >= 0.5)


def test_texts_of_other_items_are_refused():
    with pytest.raises(ValueError, match="8 texts cannot rank 9 items"):
        TransitionHops(TEXTS).fit(sequences_of([0, 1]), 9)
