"""Metrics against answers worked out by hand, and code-level ones against every order of the items."""

import math
from itertools import permutations, product

import numpy as np
import pytest

from model_export.evaluation.metrics import (
    FILLER,
    LevelUse,
    codebook_use,
    collisions,
    corrected_code_metrics,
    mrr,
    ndcg_at,
    ranking_metrics,
    recall_at,
)

RANKED = np.array([[4, 2, 7], [1, 0, 5], [3, FILLER, FILLER], [6, 5, 4]])
TARGETS = np.array([4, 5, 8, 5])  # first, third, absent, second


def test_metrics_equal_the_answers_worked_out_by_hand():
    assert recall_at(RANKED, TARGETS, 1) == 1 / 4
    assert recall_at(RANKED, TARGETS, 2) == 2 / 4
    assert recall_at(RANKED, TARGETS, 3) == 3 / 4
    assert ndcg_at(RANKED, TARGETS, 2) == pytest.approx((1 + 1 / math.log2(3)) / 4)
    assert ndcg_at(RANKED, TARGETS, 3) == pytest.approx((1 + 1 / 2 + 1 / math.log2(3)) / 4)
    assert mrr(RANKED, TARGETS) == pytest.approx((1 + 1 / 3 + 1 / 2) / 4)


def test_all_metrics_come_for_the_cutoffs_that_fit_the_ranking():
    found = ranking_metrics(RANKED, TARGETS, cutoffs=(1, 3, 10))
    assert list(found) == ["recall@1", "ndcg@1", "recall@3", "ndcg@3", "mrr"]
    assert found["recall@3"] == 3 / 4


def test_the_mean_is_over_users_and_not_over_batches():
    halves = [recall_at(RANKED[part], TARGETS[part], 1) for part in (slice(0, 3), slice(3, 4))]
    assert recall_at(RANKED, TARGETS, 1) != np.mean(halves)
    assert recall_at(RANKED, TARGETS, 1) == np.average(halves, weights=[3, 1])


def test_a_ranking_that_is_too_narrow_for_the_cutoff_is_refused():
    with pytest.raises(ValueError, match="width 3 cannot tell what is among the first 4"):
        recall_at(RANKED, TARGETS, 4)


def test_no_users_give_zero_and_no_warning():
    nobody = np.empty((0, 3), dtype=np.int64)
    assert ranking_metrics(nobody, np.empty(0, dtype=np.int64), cutoffs=(3,)) == {
        "recall@3": 0,
        "ndcg@3": 0,
        "mrr": 0,
    }


def over_all_orders(ranked: list[int], target: int, num_at: np.ndarray, k: int) -> tuple[float, float]:
    """The slow truth: lay out the items of each code in every order, and look for one of the target's.

    Each of the target's items is as likely to be the one that was bought.
    """
    groups = [[(code, n) for n in range(max(1, num_at[code]))] for code in ranked if code != FILLER]
    hits, gains, cases = 0.0, 0.0, 0
    for orders in product(*(permutations(group) for group in groups)):
        shelf = [item for group in orders for item in group][:k]
        for n in range(max(1, num_at[target])):
            cases += 1
            if (target, n) in shelf:
                hits += 1
                gains += 1 / math.log2(shelf.index((target, n)) + 2)
    return hits / cases, gains / cases


@pytest.mark.parametrize("seed", range(12))
def test_corrected_metrics_equal_the_average_over_all_orders_of_the_items(seed):
    rng = np.random.default_rng(seed)
    num_at = rng.integers(0, 4, size=9)
    ranked = np.stack([rng.permutation(9)[:4] for _ in range(6)])
    ranked[rng.random(ranked.shape) < 0.15] = FILLER
    targets = np.where(
        rng.random(6) < 0.8, ranked[np.arange(6), rng.integers(0, 4, 6)], rng.integers(0, 9, 6)
    )
    targets = np.where(targets == FILLER, 0, targets)
    for k in (1, 2, 3, 5, 20):
        pairs = zip(ranked, targets, strict=True)
        truth = [over_all_orders(list(row), target, num_at, k) for row, target in pairs]
        found = corrected_code_metrics(ranked, targets, num_at, k)
        assert found == pytest.approx(np.mean(truth, axis=0))


def test_corrected_metrics_equal_the_plain_ones_where_no_codes_are_shared():
    rng = np.random.default_rng(0)
    ranked = np.stack([rng.permutation(50)[:20] for _ in range(100)])
    targets = rng.integers(0, 50, 100)
    found = corrected_code_metrics(ranked, targets, np.ones(50, dtype=np.uint16), 10)
    assert found.item_hit == pytest.approx(recall_at(ranked, targets, 10))
    assert found.item_ndcg == pytest.approx(ndcg_at(ranked, targets, 10))


def test_a_code_hit_counts_only_for_the_share_of_its_items_that_fits_the_page():
    num_at = np.array(
        [6, 10], dtype=np.uint16
    )  # 6 items are ahead, so 4 of the target's 10 are on a page of 10
    assert corrected_code_metrics(np.array([[0, 1]]), np.array([1]), num_at, 10).item_hit == pytest.approx(
        0.4
    )


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
