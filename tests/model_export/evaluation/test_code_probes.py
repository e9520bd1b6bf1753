"""Probes of codes against answers that are worked out by hand, and against counting all pairs."""

from itertools import combinations

import numpy as np
import pytest

from model_export.evaluation.code_probes import (
    category_alignment,
    co_purchases,
    popularity_spread,
    prefixes_of,
    probe_codes,
    same_code_cosines,
)

# Two items below (0, 0), one below (0, 1), one below (1, 0).
CODES = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 0], [1, 0, 0]])


def test_prefixes_are_equal_if_and_only_if_all_their_codes_are():
    first, second, whole = prefixes_of(CODES)
    assert first.tolist() == [0, 0, 0, 1]
    assert second.tolist() == [0, 0, 1, 2]
    assert len(set(whole.tolist())) == 4


def test_co_purchases_count_neighbors_of_a_sequence_and_chance_their_marginals():
    sequences = [np.array([0, 1, 3]), np.array([2, 2, 0]), np.array([1])]
    figures = co_purchases(prefixes_of(CODES), sequences)  # pairs 0-1, 1-3, 2-0
    assert figures["alignment_co_purchase_1"] == pytest.approx(2 / 3)
    assert figures["alignment_co_purchase_2"] == pytest.approx(1 / 3)
    assert figures["alignment_co_purchase_3"] == 0
    share = np.array([2, 2, 1, 1]) / 6
    drawn = [(one, two) for one in range(4) for two in range(4) if one != two]
    weight = sum(share[one] * share[two] for one, two in drawn)
    for depth, prefix in enumerate(prefixes_of(CODES), start=1):
        same = sum(share[one] * share[two] for one, two in drawn if prefix[one] == prefix[two])
        assert figures[f"chance_co_purchase_{depth}"] == pytest.approx(same / weight)
    assert co_purchases(prefixes_of(CODES), [np.array([1]), np.array([2, 2])]) == {}


@pytest.mark.parametrize("seed", range(3))
def test_categories_are_compared_over_all_pairs_of_known_items(seed):
    rng = np.random.default_rng(seed)
    codes, categories = rng.integers(0, 3, (30, 3)), rng.integers(-1, 4, 30)
    prefixes = prefixes_of(codes)
    pairs = [pair for pair in combinations(range(30), 2) if (categories[list(pair)] >= 0).all()]
    figures = category_alignment(prefixes, categories)

    def share(found):
        return np.mean([categories[one] == categories[two] for one, two in found])

    assert figures["chance_category"] == pytest.approx(share(pairs))
    for depth, prefix in enumerate(prefixes, start=1):
        sharing = [(one, two) for one, two in pairs if prefix[one] == prefix[two]]
        assert figures[f"alignment_category_{depth}"] == pytest.approx(share(sharing))


def test_a_prefix_that_is_the_category_is_aligned_and_depths_without_pairs_are_left_out():
    figures = category_alignment(prefixes_of(CODES), np.array([5, 5, 5, 7]))
    assert figures == {"chance_category": 0.5, "alignment_category_1": 1, "alignment_category_2": 1}
    assert category_alignment(prefixes_of(CODES), np.array([-1, -1, 2, -1])) == {}


def test_popularity_is_even_if_all_used_codes_have_as_many_purchases():
    even = popularity_spread(CODES, [np.array([0, 3]), np.array([3, 2])])
    assert even == {"popularity_entropy_1": 1.0, "popularity_entropy_2": pytest.approx(0.8113, abs=1e-4),
                    "popularity_entropy_3": 0.0}  # fmt: skip
    assert popularity_spread(CODES[:, :1], [np.array([0, 1, 2])]) == {"popularity_entropy_1": 0.0}
    assert popularity_spread(np.zeros((2, 1), int), [np.array([0, 1])]) == {"popularity_entropy_1": 0.0}
    assert popularity_spread(CODES, []) == {}


def test_codes_that_mean_one_direction_below_every_prefix_have_a_high_cosine():
    """Below both prefixes, code 0 leads up and code 1 down; the prefixes are far apart."""
    codes = np.array([[first, second] for first in (0, 1) for second in (0, 1)])
    vectors = np.array([[10 * first, 1 - 2 * second] for first, second in codes], dtype=np.float32)
    figures = same_code_cosines(codes, prefixes_of(codes), vectors)
    assert figures["cosine_same_code_2"] == pytest.approx(1)
    assert figures["chance_cosine_2"] == pytest.approx(-1 / 3)
    swapped = codes.copy()
    swapped[2:, 1] = 1 - swapped[2:, 1]
    assert same_code_cosines(swapped, prefixes_of(swapped), vectors)["cosine_same_code_2"] == pytest.approx(
        -1
    )
    alone = np.array([[0, 0], [1, 0], [2, 0]])
    assert same_code_cosines(alone, prefixes_of(alone), vectors[:3]) == {}, "an only child has no direction"


def test_all_probes_together_name_their_depths():
    codes, vectors = np.indices((2, 2, 2)).reshape(3, -1).T, np.random.default_rng(0).normal(size=(8, 3))
    figures = probe_codes(codes, [np.array([0, 1, 2])], np.arange(8) // 2, vectors)
    assert {name.rstrip("123") for name in figures} == {
        "alignment_co_purchase_", "chance_co_purchase_", "alignment_category_", "chance_category",
        "popularity_entropy_", "cosine_same_code_", "chance_cosine_",
    }  # fmt: skip
    assert probe_codes(codes, [np.array([0, 1, 2])]).keys() < figures.keys()
    assert all(np.isfinite(value) for value in figures.values())
