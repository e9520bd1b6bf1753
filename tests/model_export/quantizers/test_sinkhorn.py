"""Sinkhorn's algorithm against its closed form, its invariants, and small cases with known answers."""

import numpy as np
import pytest

from model_export.quantizers.sinkhorn import sinkhorn_assign, sinkhorn_plan, sinkhorn_prices


@pytest.mark.parametrize("seed", range(4))
def test_all_columns_and_all_rows_of_a_plan_have_equal_mass(seed):
    distance = np.random.default_rng(seed).normal(size=(12, 5))
    plan = sinkhorn_plan(distance, epsilon=0.3, iterations=200)
    np.testing.assert_allclose(plan.sum(axis=0), 1 / 5, atol=1e-12)
    np.testing.assert_allclose(plan.sum(axis=1), 1 / 12, atol=1e-6)


def test_a_plan_of_two_by_two_equals_its_closed_form():
    # The plan is x on the diagonal and 1/2 - x elsewhere. Its cross ratio equals that of exp(-distance /
    # epsilon).
    distance = np.array([[0.3, 0.1], [0.2, 0.6]])
    ratio = np.exp(-(0.3 + 0.6 - 0.1 - 0.2) / (2 * 0.5))  # x / (1/2 - x)
    x = ratio / (1 + ratio) / 2
    expected = [[x, 0.5 - x], [0.5 - x, x]]
    np.testing.assert_allclose(sinkhorn_plan(distance, epsilon=0.5, iterations=100), expected, atol=1e-12)


def test_if_two_rows_prefer_one_column_the_row_with_more_to_lose_gets_it():
    assert sinkhorn_assign(np.array([[0.0, 1.0], [0.0, 3.0]])).tolist() == [1, 0]
    assert sinkhorn_assign(np.array([[0.0, 3.0], [0.0, 1.0]])).tolist() == [0, 1]


@pytest.mark.parametrize("seed", range(4))
def test_the_column_with_the_largest_share_has_the_least_distance_plus_price(seed):
    distance = np.random.default_rng(seed).normal(size=(20, 6))
    price = sinkhorn_prices(distance, 0.05, 60)
    plan = sinkhorn_plan(distance, 0.05, 60)
    assert ((distance + price).argmin(axis=1) == plan.argmax(axis=1)).all()


@pytest.mark.parametrize("seed", range(4))
def test_the_unit_of_distance_does_not_matter(seed):
    distance = np.random.default_rng(seed).random((8, 16))
    assert (sinkhorn_assign(distance) == sinkhorn_assign(1000 * distance - 300)).all()


def test_a_row_with_several_columns_to_itself_goes_to_the_nearest():
    distance = np.array([[0.3, 0.1, 0.2, 2.0, 2.1, 2.2], [2.0, 2.1, 2.2, 0.2, 0.1, 0.3]])
    assert sinkhorn_assign(distance).tolist() == [1, 4]


def test_a_column_far_from_all_rows_still_gets_its_share():
    distance = np.zeros((4, 2), dtype=np.float32)
    distance[:, 1] = 1000 + np.arange(4)  # exp(-1000 / epsilon) underflows to 0
    price = sinkhorn_prices(distance, 0.5, 100)
    assert np.bincount((distance + price).argmin(axis=1)).tolist() == [2, 2]


def test_rows_that_are_all_equal_are_no_error():
    assert set(sinkhorn_assign(np.ones((3, 4)))) == {0}
