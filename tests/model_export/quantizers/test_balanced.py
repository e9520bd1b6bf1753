"""Balanced division against an assignment solver, and the prices that reproduce the division."""

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from model_export.quantizers.balanced import balanced_kmeans, divide, squared_distances


def least_total(distance, sizes) -> float:
    """The least total distance, from an assignment of items to the places of each cluster."""
    places = np.repeat(distance, sizes, axis=1)
    return float(places[linear_sum_assignment(places)].sum())


def total_of(distance, cluster) -> float:
    return float(distance[np.arange(len(distance)), cluster].sum())


def skewed(seed: int, *, num_items: int, dim: int = 4):
    """Points with many items in one place and few in others."""
    rng = np.random.default_rng(seed)
    centers = 3 * rng.normal(size=(8, dim))
    share = 0.5 ** np.arange(8)
    points = centers[rng.choice(8, num_items, p=share / share.sum())] + rng.normal(size=(num_items, dim))
    return points.astype(np.float32)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("num_items", [40, 43])
def test_a_division_is_even_and_has_the_least_total_distance(seed, num_items):
    distance = np.random.default_rng(seed).exponential(size=(num_items, 8)) + np.arange(8)
    division = divide(distance)
    sizes = np.bincount(division.cluster, minlength=8)
    assert sizes.max() - sizes.min() == (0 if num_items == 40 else 1)
    assert total_of(distance, division.cluster) == pytest.approx(least_total(distance, sizes))


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("num_items", [40, 43])
def test_prices_reproduce_the_division_with_a_margin(seed, num_items):
    distance = np.random.default_rng(seed).exponential(size=(num_items, 8)) + np.arange(8)
    division = divide(distance)
    asked = np.sort(distance + division.price, axis=1)
    assert ((distance + division.price).argmin(axis=1) == division.cluster).all()
    assert (asked[:, 1] - asked[:, 0]).min() > 1e-9
    assert division.price.min() == 0.0


def test_a_known_division_and_its_prices():
    # All items prefer the first cluster. The two that lose least leave it.
    distance = np.array([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0], [0.0, 4.0]])
    division = divide(distance)
    assert division.cluster.tolist() == [1, 1, 0, 0]
    assert division.price.tolist() == [2.5, 0.0]  # halfway between the losses 2 and 3


@pytest.mark.parametrize("seed", range(5))
def test_a_wrong_guess_of_the_prices_leads_to_the_same_division(seed):
    rng = np.random.default_rng(seed)
    distance = rng.random((60, 6))
    guess = 10 * rng.random(6)
    assert (divide(distance, guess).cluster == divide(distance).cluster).all()


def test_equal_items_are_divided_but_no_price_can_separate_them():
    distance = np.zeros((6, 3))
    division = divide(distance)
    assert np.bincount(division.cluster).tolist() == [2, 2, 2]
    assert len(set((distance + division.price).argmin(axis=1))) == 1


def test_fewer_items_than_clusters_are_refused():
    with pytest.raises(ValueError, match="2 items cannot fill 3 clusters"):
        divide(np.zeros((2, 3)))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("num_items", [640, 650, 5000])
def test_balanced_k_means_keeps_sizes_even_where_items_are_dense(seed, num_items):
    points = skewed(seed, num_items=num_items)
    start = points[np.random.default_rng(seed).choice(num_items, 16, replace=False)]
    found = balanced_kmeans(points, start, max_rounds=20, seed=seed)
    crowded = np.bincount(squared_distances(points, start).argmin(axis=1), minlength=16)
    sizes = np.bincount(found.cluster, minlength=16)
    assert crowded.max() > 1.5 * num_items / 16
    assert sizes.max() - sizes.min() == (num_items % 16 > 0)
    asked = squared_distances(points, found.centroids) + found.price
    assert (asked.argmin(axis=1) != found.cluster).mean() <= 0.001, "except by rounding"


def test_balanced_k_means_finds_clusters_that_are_already_balanced():
    rng = np.random.default_rng(0)
    centers = 10 * rng.normal(size=(6, 3)).astype(np.float32)
    points = (np.repeat(centers, 20, axis=0) + 0.1 * rng.normal(size=(120, 3))).astype(np.float32)
    found = balanced_kmeans(points, points[::20] + 0.05, max_rounds=20, seed=0)
    assert (found.cluster == np.repeat(np.arange(6), 20)).all()
    np.testing.assert_allclose(found.centroids, points.reshape(6, 20, 3).mean(axis=1), atol=1e-5)
