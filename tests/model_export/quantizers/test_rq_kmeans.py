"""RQ-k-means on vectors with known codewords, and the balance of its codes."""

from itertools import product

import numpy as np
import pytest
import torch

from model_export.configs import RqKMeansConfig
from model_export.quantizers.base import lost_variance
from model_export.quantizers.rq_kmeans import RqKMeans, train_rq_kmeans
from service.core.sid import SidSpec
from tests.model_export.quantizers.explained import explained_variance

SPEC = SidSpec(levels=(4, 3, 2))


def planted(copies: int = 5):
    """Vectors that are sums of one codeword per level, and the codebooks. Each level is ten times finer."""
    rng = np.random.default_rng(0)
    codebooks = []
    for level, num_codes in enumerate(SPEC.levels):
        directions = np.linalg.qr(rng.normal(size=(8, 8)))[0][:num_codes]  # far from each other
        codebooks.append((directions - directions.mean(axis=0)) / 10**level)
    codes = np.array(list(product(*map(range, SPEC.levels))) * copies)
    vectors = sum(codebook[codes[:, level]] for level, codebook in enumerate(codebooks))
    return vectors.astype(np.float32), codebooks


def skewed(num_items: int = 640):
    """Unit vectors around nine centers. About half of them lie around the first."""
    rng = np.random.default_rng(1)
    centers = rng.normal(size=(9, 12))
    near = np.where(rng.random(num_items) < 0.5, 0, rng.integers(1, 9, num_items))
    vectors = centers[near] + 0.4 * rng.normal(size=(num_items, 12))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def fit(vectors, *, balanced: bool, spec: SidSpec = SPEC):
    return train_rq_kmeans(vectors, spec, RqKMeansConfig(balanced=balanced), seed=0, progress=False)


def in_some_order(codebook):
    return codebook[np.lexsort(codebook.round(4).T)]


@pytest.mark.parametrize("balanced", [False, True])
def test_known_codewords_are_found_level_by_level(balanced):
    vectors, codebooks = planted()
    model, report = fit(vectors, balanced=balanced)
    for found, expected in zip(model.codebooks, codebooks, strict=True):
        np.testing.assert_allclose(in_some_order(found.numpy()), in_some_order(expected), atol=1e-5)
    codes = model.encode(torch.from_numpy(vectors))
    np.testing.assert_allclose(model.decode(codes).numpy(), vectors, atol=1e-5)
    assert explained_variance(model, vectors) == pytest.approx(1.0, abs=1e-6)
    assert report.history[-1].use == (1.0, 1.0, 1.0)


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("num_items", [1, 5, 16, 18, 25, 33, 50, 70])
def test_rounding_decides_no_code_of_a_catalog_with_few_more_items_than_codes(balanced, num_items):
    rng = np.random.default_rng(num_items)
    vectors = rng.normal(size=(num_items, 16))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    model, _ = fit(vectors, balanced=balanced, spec=SidSpec(levels=(16, 16, 16)))
    codes = model.encode(torch.from_numpy(vectors))
    for _ in range(5):
        elsewhere = vectors + rng.normal(scale=3e-8, size=vectors.shape).astype(np.float32)
        assert torch.equal(model.encode(torch.from_numpy(elsewhere)), codes)
    assert len(torch.unique(codes, dim=0)) == num_items


def test_each_code_has_the_least_squared_distance_plus_price():
    torch.manual_seed(0)
    model = RqKMeans(vector_dim=6, spec=SPEC).requires_grad_(False)
    for codebook, price in zip(model.codebooks, model.prices, strict=True):
        codebook.copy_(torch.randn_like(codebook))
        price.copy_(3 * torch.rand_like(price))
    vectors = torch.randn(40, 6)
    codes, residual = model.encode(vectors), vectors
    for level, (codebook, price) in enumerate(zip(model.codebooks, model.prices, strict=True)):
        cost = (residual[:, None] - codebook).square().sum(dim=-1) + price  # [item, code]
        assert (codes[:, level] == cost.argmin(dim=-1)).all()
        residual = residual - codebook[codes[:, level]]
    assert (codes != model.encode(vectors + 100)).any()


def test_balanced_codes_are_even_at_every_level():
    spec = SidSpec(levels=(16, 8, 8))
    vectors = skewed()
    plain, plain_report = fit(vectors, balanced=False, spec=spec)
    model, report = fit(vectors, balanced=True, spec=spec)
    for level, num_codes in enumerate(spec.levels):
        codes = model.encode(torch.from_numpy(vectors))[:, level]
        assert torch.bincount(codes, minlength=num_codes).tolist() == [640 // num_codes] * num_codes
    assert report.history[-1].fullest == pytest.approx((1.0, 1.0, 1.0))
    assert report.history[-1].entropy == pytest.approx((1.0, 1.0, 1.0))
    assert max(plain_report.history[-1].fullest) > 1.3
    assert explained_variance(plain, vectors) > explained_variance(model, vectors) > 0.5, (
        "balance costs a little"
    )
    assert all((price == 0).all() for price in plain.prices)


def test_new_items_follow_the_prices_of_the_catalog():
    vectors = skewed(1280)
    model, _ = fit(vectors[:640], balanced=True)
    held_out = torch.bincount(model.encode(torch.from_numpy(vectors[640:]))[:, 0], minlength=4)
    assert held_out.max() < 1.5 * 640 / 4, "unseen items should be nearly even too"


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("num_items", [1, 2, 5])
def test_fewer_items_than_codes_get_different_codes(num_items, balanced):
    vectors = skewed()[:num_items]
    model, report = fit(vectors, balanced=balanced)
    assert len(model.encode(torch.from_numpy(vectors)).unique(dim=0)) == num_items
    assert len(report.history) == 1


@pytest.mark.parametrize("balanced", [False, True])
def test_identical_items_and_a_level_of_one_code_are_no_error(balanced):
    vectors = np.tile(np.float32([1.0, 0.0, 0.0]), (10, 1))
    model, _ = fit(vectors, balanced=balanced, spec=SidSpec(levels=(4, 1, 4)))
    codes = model.encode(torch.from_numpy(vectors))
    assert (codes == codes[0]).all()
    assert explained_variance(model, vectors) == 1.0


def test_no_items_are_refused():
    with pytest.raises(ValueError, match="no vectors"):
        fit(np.zeros((0, 4), dtype=np.float32), balanced=True)


def test_the_lost_variance_is_what_decoding_does_not_explain():
    vectors = torch.from_numpy(skewed())
    model, _ = fit(skewed(), balanced=False)
    codes = model.encode(vectors)
    assert lost_variance(model, vectors, codes) == pytest.approx(
        1 - explained_variance(model, skewed()), abs=1e-6
    )
    assert lost_variance(model, vectors, torch.zeros_like(codes)) > lost_variance(model, vectors, codes)
    assert lost_variance(model, vectors[:1], codes[:1]) == 0.0, "one item has no variance"
