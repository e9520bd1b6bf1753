import numpy as np
import pytest

from model_export.evaluation.click_measures import (
    aa_variance,
    attention_figures,
    click_loss,
    drift_sensitivity,
    drift_windows,
    normalized_entropy,
    relative_change,
    segments,
)


def test_predicting_the_base_rate_has_a_normalized_entropy_of_one():
    labels = np.array([1.0, 0.0, 0.0, 0.0])
    assert normalized_entropy(labels, np.full(4, 0.25)) == pytest.approx(1.0)


def test_normalized_entropy_counts_both_sides():
    labels = np.array([1.0, 0.0])
    by_hand = -(np.log(0.8) + np.log(0.6)) / (2 * np.log(2))
    assert normalized_entropy(labels, np.array([0.8, 0.4])) == pytest.approx(by_hand)


def test_normalized_entropy_of_a_perfect_prediction_is_almost_zero_and_of_one_label_none():
    labels = np.array([1.0, 0.0])
    assert normalized_entropy(labels, labels) < 1e-5
    assert np.isnan(normalized_entropy(np.ones(3), np.full(3, 0.5)))


def test_drift_compares_the_last_six_of_96_hours_with_the_six_that_begin_48_hours_before_the_end():
    early, late = drift_windows(96)
    assert (early.start, early.stop) == (48, 54)
    assert (late.start, late.stop) == (90, 96)
    assert drift_sensitivity(0.82, 0.80) == pytest.approx(0.02)


def test_a_longer_horizon_that_lowers_the_entropy_from_80_to_78_gains_two_and_a_half_percent():
    assert relative_change(0.78, 0.80) == pytest.approx(-0.025)


def test_equal_predictions_for_copies_have_no_variance_and_one_third_against_two_thirds_has_two_thirds():
    assert aa_variance(np.array([0.3, 0.1]), np.array([0.3, 0.1])) == 0
    assert aa_variance(np.array([1 / 3]), np.array([2 / 3])) == pytest.approx(2 / 3, rel=1e-5)


def test_swapped_items_that_are_taken_half_as_often_lose_half_of_the_clicks():
    assert click_loss(np.array([1, 1, 0, 0.0]), np.array([1, 0, 0, 0.0])) == pytest.approx(-0.5)
    with pytest.raises(ValueError, match="no shown item was taken"):
        click_loss(np.zeros(2), np.ones(2))


def test_segments_follow_the_cumulative_impressions():
    found = segments(np.array([5, 40, 0, 30, 25]))
    assert {name: np.flatnonzero(mask).tolist() for name, mask in found.items()} == {
        "head": [1],  # begins at 0 %
        "torso": [3, 4],  # begin at 40 % and 70 %
        "tail": [0],  # begins at 95 %
        "unseen": [2],
    }


def test_attention_that_looks_at_one_place_has_no_entropy_and_all_its_mass_there():
    is_item = np.array([[False, True]])
    on_newest = np.array([[[[0.0, 1.0], [0.0, 1.0]]]])
    assert attention_figures(on_newest, is_item) == pytest.approx(
        {"newest": 1.0, "padding": 0.0, "entropy_bits": 0.0, "itself": 0.5}
    )


def test_even_attention_of_a_seed_has_a_bit_for_two_places_and_half_of_it_on_padding():
    is_item = np.array([[False, True], [False, False]])  # the second history is empty
    even = np.full((2, 1, 1, 2), 0.5)
    assert attention_figures(even, is_item) == pytest.approx(
        {"newest": 0.5, "padding": 0.5, "entropy_bits": 1.0}
    )
