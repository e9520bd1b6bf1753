"""Metrics agree with answers worked out by hand."""

import math

import numpy as np
import pytest

from model_export.evaluation.metrics import (
    NO_ITEM,
    LevelUse,
    codebook_use,
    collisions,
    ndcg_at,
    recall_at,
)

RANKED = np.array([[4, 2, 7], [1, 0, 5], [3, NO_ITEM, NO_ITEM], [6, 5, 4]])
TARGETS = np.array([4, 5, 8, 5])  # first, third, absent, second


def test_metrics_equal_the_answers_worked_out_by_hand():
    assert recall_at(RANKED, TARGETS, 1) == 1 / 4
    assert recall_at(RANKED, TARGETS, 2) == 2 / 4
    assert recall_at(RANKED, TARGETS, 3) == 3 / 4
    assert ndcg_at(RANKED, TARGETS, 2) == pytest.approx((1 + 1 / math.log2(3)) / 4)
    assert ndcg_at(RANKED, TARGETS, 3) == pytest.approx((1 + 1 / 2 + 1 / math.log2(3)) / 4)


def test_the_mean_is_over_users_and_not_over_batches():
    halves = [recall_at(RANKED[part], TARGETS[part], 1) for part in (slice(0, 3), slice(3, 4))]
    assert recall_at(RANKED, TARGETS, 1) != np.mean(halves)
    assert recall_at(RANKED, TARGETS, 1) == np.average(halves, weights=[3, 1])


def test_a_ranking_that_is_too_narrow_for_the_cutoff_is_refused():
    with pytest.raises(ValueError, match="width 3 does not show the first 4 items"):
        recall_at(RANKED, TARGETS, 4)


def test_no_users_give_zero_and_no_warning():
    nobody = np.empty((0, 3), dtype=np.int64)
    nothing = np.empty(0, dtype=np.int64)
    assert recall_at(nobody, nothing, 3) == 0
    assert ndcg_at(nobody, nothing, 3) == 0


def test_collision_rates_count_items_and_missing_codes():
    codes = np.array([[0, 1], [0, 1], [0, 1], [2, 2], [3, 3], [3, 3]])
    found = collisions(codes)
    assert found.shared_rate == pytest.approx(5 / 6)
    assert found.missing_rate == pytest.approx(3 / 6)
    assert found.largest_group == 3
    assert collisions(codes[[0, 3, 4]]) == (0, 0, 1)


def test_codebook_use_counts_codes_and_bits():
    codes = np.array([[0, 0], [1, 0], [2, 0], [3, 0]])
    assert codebook_use(codes, (8, 4)) == [
        LevelUse(num_codes=8, num_used=4, entropy_bits=2.0),
        LevelUse(num_codes=4, num_used=1, entropy_bits=0.0),
    ]
