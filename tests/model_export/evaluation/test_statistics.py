"""Intervals agree with the normal approximation and with full enumeration, and pairing has its effects."""

from itertools import product

import numpy as np
import pytest

from model_export.evaluation.statistics import Interval, intervals, spread_over_seeds


def interval(values, **options) -> Interval:
    """The interval of the mean of values [seed, user]."""
    return intervals(values.mean(axis=0)[None], **options)[0]


def paired_difference(a, b) -> Interval:
    """The interval of a minus b, both [seed, user]."""
    return interval((a.mean(axis=0) - b.mean(axis=0))[None])


def test_the_interval_of_many_users_is_the_normal_interval():
    values = np.random.default_rng(0).binomial(1, 0.1, size=(1, 8000)).astype(float)
    found = interval(values)
    half = 1.96 * values.std() / np.sqrt(8000)
    assert found.mean == values.mean()
    assert found.low == pytest.approx(values.mean() - half, abs=0.04 * half)
    assert found.high == pytest.approx(values.mean() + half, abs=0.04 * half)


def test_the_interval_of_few_users_agrees_with_all_possible_draws():
    values = np.array([[0.0, 0.1, 0.7, 3.0]])
    every = [np.mean(draw) for draw in product(values[0], repeat=4)]
    found = interval(values, num_resamples=200_000)
    assert found[1:] == pytest.approx(np.quantile(every, [0.025, 0.975]), abs=0.03)


def test_seeds_are_resampled_together_and_do_not_narrow_the_interval_over_users():
    """Three seeds that agree on every user are one system, and not three times as many users."""
    one = np.random.default_rng(1).random((1, 500))
    assert interval(np.repeat(one, 3, axis=0)) == pytest.approx(interval(one))


def test_seeds_that_fail_on_different_users_narrow_the_interval():
    values = np.random.default_rng(2).random((4, 500))
    width, of_one = (found.high - found.low for found in (interval(values), interval(values[:1])))
    assert width == pytest.approx(of_one / 2, rel=0.1)


def test_identical_systems_differ_by_exactly_zero():
    values = np.random.default_rng(3).random((3, 200))
    assert paired_difference(values, values.copy()) == (0.0, 0.0, 0.0)


def test_a_constant_gain_is_found_without_doubt():
    """Users vary a thousand times as much as the systems differ. With pairs that does not matter."""
    b = 100 * np.random.default_rng(4).random((1, 300))
    found = paired_difference(np.repeat(b, 3, axis=0) + 0.1, b)
    assert found == pytest.approx((0.1, 0.1, 0.1))


def test_figures_computed_together_equal_figures_computed_alone():
    a, b = np.random.default_rng(8).random((2, 1, 300))
    found = intervals(np.concatenate([a, b, a - b]))
    alone = [interval(a), interval(b), paired_difference(a, b)]
    assert np.array(found) == pytest.approx(np.array(alone), abs=1e-12)


def test_a_difference_within_noise_has_zero_inside():
    rng = np.random.default_rng(5)
    a, b = rng.binomial(1, 0.1, size=(2, 1, 1000)).astype(float)
    found = paired_difference(a, b)
    assert found.low < 0 < found.high
    assert found.mean == pytest.approx(a.mean() - b.mean())


def test_the_interval_holds_the_truth_in_about_95_of_100_samples():
    rng = np.random.default_rng(6)
    samples = rng.binomial(1, 0.2, size=(300, 1, 400)).astype(float)
    found = [interval(sample, num_resamples=1000) for sample in samples]
    assert np.mean([low <= 0.2 <= high for _, low, high in found]) == pytest.approx(0.95, abs=0.04)


def test_equal_random_seeds_give_equal_intervals_and_others_give_near_ones():
    values = np.random.default_rng(7).random((2, 300))
    assert interval(values, seed=1) == interval(values, seed=1)
    assert interval(values, seed=1) != interval(values, seed=2)
    assert interval(values, seed=1) == pytest.approx(interval(values, seed=2), abs=0.002)


def test_the_spread_is_the_deviation_of_the_means_of_the_seeds():
    values = np.array([[0.0, 2.0], [2.0, 2.0], [3.0, 3.0]])
    assert spread_over_seeds(values) == pytest.approx(1.0)
    assert spread_over_seeds(values[:1]) is None
