"""GAOQ against exhaustive search and known answers, and the properties that its paper promises."""

from itertools import permutations, product
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from model_export.bundle.tokenizer import TokenizerParts, check_tokenizer, export_tokenizer
from model_export.configs import GaoqConfig, HeadConfig
from model_export.encoders.head import ItemHead
from model_export.onnx_graphs import to_onnx
from model_export.quantizers import gaoq
from model_export.quantizers.balanced import prices_of, squared_distances
from model_export.quantizers.collisions import treat_collisions
from model_export.quantizers.gaoq import Gaoq, align, anchors, balanced_clusters, best_division, train_gaoq
from service.core.sid import SidSpec
from service.inference.runtime import TokenizerInput
from tests.model_export.probe_inputs import RECIPE, Columns, SumOfFrames, strips
from tests.model_export.quantizers.explained import explained_variance

SPEC = SidSpec(levels=(8, 4, 16))
NUM_ITEMS, DIM = 384, 12  # 48 items below each first code, 12 below each two codes


def skewed(num_items: int = NUM_ITEMS, seed: int = 0):
    """Vectors around nine centers. About half of them lie around the first."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(9, DIM))
    near = np.where(rng.random(num_items) < 0.5, 0, rng.integers(1, 9, num_items))
    return (centers[near] + 0.4 * rng.normal(size=(num_items, DIM))).astype(np.float32)


def fit(vectors, spec: SidSpec = SPEC, seed: int = 0) -> Gaoq:
    return train_gaoq(vectors, spec, GaoqConfig(), seed=seed, progress=False)[0]


def encoded(model: Gaoq, vectors) -> np.ndarray:
    return model.encode(torch.from_numpy(vectors)).numpy()


@pytest.fixture(scope="module")
def tree():
    vectors = skewed()
    model = fit(vectors)
    return model, vectors, encoded(model, vectors)


def test_codes_are_unique_and_every_prefix_is_balanced(tree):
    _, vectors, codes = tree
    assert len(np.unique(codes, axis=0)) == len(vectors)
    assert np.bincount(codes[:, 0]).tolist() == [48] * 8
    for first in range(8):
        assert np.bincount(codes[codes[:, 0] == first, 1]).tolist() == [12] * 4


def test_sizes_differ_by_one_where_the_items_do_not_divide():
    codes = encoded(model := fit(skewed(101), SidSpec(levels=(4, 3, 16))), skewed(101))
    assert sorted(np.bincount(codes[:, 0])) == [25, 25, 25, 26]
    for first in range(4):
        sizes = np.bincount(codes[codes[:, 0] == first, 1])
        assert sizes.max() - sizes.min() <= 1
    assert len(np.unique(codes, axis=0)) == 101
    assert explained_variance(model, skewed(101)) == pytest.approx(1.0), "each item is a leaf of its own"


def test_the_same_anchors_stand_below_every_node(tree):
    """The codes of each node's children have the largest sum of cosines to this one set of anchors."""
    model, vectors, codes = tree
    directions = model.anchors[1].numpy()  # [code, dim]
    np.testing.assert_allclose(directions @ directions.T, np.eye(4), atol=1e-6)
    for first in range(8):
        own = codes[:, 0] == first
        middle = model.centroids[0][model.children_of[0][0, first]].numpy()
        to_child = np.stack(
            [model.centroids[1][row].numpy() - middle for row in model.children_of[1][_node(model, first)]]
        )
        np.testing.assert_allclose(
            to_child + middle, [vectors[own & (codes[:, 1] == c)].mean(0) for c in range(4)], atol=1e-5
        )
        to_child /= np.linalg.norm(to_child, axis=1, keepdims=True)
        cosine = to_child @ directions.T  # [child by its code, anchor]
        best = max(sum(cosine[c, order[c]] for c in range(4)) for order in permutations(range(4)))
        assert np.trace(cosine) == pytest.approx(best, abs=1e-5)


def _node(model: Gaoq, first: int) -> int:
    return int(model.children_of[0][0, first])


def test_equal_second_codes_mean_similar_directions(tree):
    """The paper's diagnostic: the mean cosine of the directions of one code, over all pairs of nodes."""
    model, _, _ = tree
    middles = model.centroids[0]
    by_code = torch.stack(
        [model.centroids[1][model.children_of[1][node]] - middles[node] for node in range(8)]
    )  # [node, code, dim]
    by_code = by_code / by_code.norm(dim=-1, keepdim=True)

    def coherence(directions):
        cosine = torch.einsum("ncd,mcd->cnm", directions, directions)
        return float((cosine.sum() - 8 * 4) / (4 * 8 * 7))

    rng = np.random.default_rng(0)
    unaligned = torch.stack([node[torch.from_numpy(rng.permutation(4))] for node in by_code])
    assert coherence(by_code) > coherence(unaligned) + 0.05


def test_the_order_of_the_items_does_not_matter(tree):
    _, vectors, codes = tree
    order = np.random.default_rng(1).permutation(len(vectors))
    assert (encoded(fit(vectors[order]), vectors) == codes).all()


def test_a_seed_decides_the_tree(tree):
    _, vectors, codes = tree
    assert (encoded(fit(vectors), vectors) == codes).all()
    assert (encoded(fit(vectors, seed=1), vectors) != codes).any()


def test_a_known_answer():
    """Two groups of two groups of two on a line: the left group of both is the same second code."""
    places = np.float32([-11, -10.9, -9.1, -9, 9, 9.1, 10.9, 11])
    vectors = np.stack([places, np.zeros(8, np.float32)], axis=1)
    model = fit(vectors, SidSpec(levels=(2, 2, 2)))
    codes = encoded(model, vectors)
    first, second, third = codes.T
    assert first.tolist() in ([0] * 4 + [1] * 4, [1] * 4 + [0] * 4)
    assert second.tolist() in ([0, 0, 1, 1] * 2, [1, 1, 0, 0] * 2)
    assert third.tolist() in ([0, 1] * 4, [1, 0] * 4)
    assert model.decode(torch.from_numpy(codes)).numpy().tolist() == vectors.tolist()
    # The code of a side is the anchor that points to it.
    pointing = model.anchors[1].numpy()[:, 0]
    assert pointing[second[0]] < pointing[second[2]]


def test_anchors_are_orthonormal_and_beyond_the_dimension_far_apart():
    rng = np.random.default_rng(0)
    few = anchors(5, 9, rng)
    np.testing.assert_allclose(few @ few.T, np.eye(5), atol=1e-6)
    many = anchors(8, 4, rng)
    cosine = many @ many.T - np.eye(8)
    assert cosine.max() < 1e-6, "twice as many as dimensions still have no acute angle"
    further = anchors(20, 4, rng)
    assert further.shape == (20, 4)
    assert len(np.unique(further.round(5), axis=0)) == 20


def test_alignment_is_the_best_of_all_assignments():
    directions = np.float32([[0.0, 2.0], [0.1, 1.0]])  # both want the second anchor, the first more so
    assert align(directions, np.eye(2, dtype=np.float32)).tolist() == [1, 0]
    rng = np.random.default_rng(0)
    for _ in range(20):
        directions, fixed = rng.normal(size=(3, 6)).astype(np.float32), anchors(5, 6, rng)
        cosine = directions / np.linalg.norm(directions, axis=1, keepdims=True) @ fixed.T
        best = max(sum(cosine[range(3), list(order)]) for order in permutations(range(5), 3))
        assert cosine[range(3), align(directions, fixed)].sum() == pytest.approx(best, abs=1e-5)
    assert align(np.zeros((1, 6), np.float32), fixed).tolist() == [0], "no direction goes to the first anchor"


@pytest.mark.parametrize("num_items", [3, 5, 6, 7])
def test_a_division_is_the_best_of_all_balanced_ones_and_its_prices_reproduce_it(num_items):
    rng = np.random.default_rng(num_items)
    for _ in range(5):
        distance = rng.random((num_items, 3)).astype(np.float32)
        best = min(
            distance[range(num_items), clusters].sum()
            for clusters in map(list, product(range(3), repeat=num_items))
            if np.ptp(np.bincount(clusters, minlength=3)) <= 1
        )
        found = best_division(distance)
        assert np.ptp(np.bincount(found, minlength=3)) <= 1
        assert distance[range(num_items), found].sum() == pytest.approx(best, rel=1e-6)
        assert ((distance + prices_of(distance, found)).argmin(axis=1) == found).all()


def test_large_nodes_are_divided_nearly_as_well_as_small_ones(monkeypatch):
    points = skewed(300)

    def total(limit: int) -> float:
        monkeypatch.setattr(gaoq, "EXACT_ITEMS", limit)
        found = balanced_clusters(points, 10, GaoqConfig(), 0)
        assert np.bincount(found.cluster).tolist() == [30] * 10
        chosen = (squared_distances(points, found.centroids) + found.price).argmin(axis=1)
        assert (chosen == found.cluster).all()
        return float(np.square(points - found.centroids[found.cluster]).sum())

    assert total(100) < 1.3 * total(1000)


def test_more_starts_are_never_worse():
    points = skewed(100)

    def total(num_starts: int) -> float:
        found = balanced_clusters(points, 7, GaoqConfig(num_starts=num_starts), 0)
        return float(np.square(points - found.centroids[found.cluster]).sum())

    assert total(8) <= total(3) <= total(1)


def test_a_new_item_goes_to_the_nearest_child_of_each_node(tree):
    model, _, _ = tree
    for vector in skewed(20, seed=5):
        node, expected = 0, []
        for level in range(3):
            rows, price = model.children_of[level][node], model.prices[level][node].numpy()
            cost = np.square(model.centroids[level][rows].numpy() - vector).sum(axis=1) + price
            expected.append(int(cost.argmin()))
            node = int(rows[expected[-1]])
        assert encoded(model, vector[None])[0].tolist() == expected


def test_a_near_copy_gets_the_codes_of_its_original(tree):
    model, vectors, codes = tree
    nudged = vectors + np.random.default_rng(0).normal(scale=1e-4, size=vectors.shape).astype(np.float32)
    assert (encoded(model, nudged) == codes).all(axis=1).mean() > 0.97


def test_exact_copies_share_codes_until_collisions_are_treated():
    vectors = skewed(96)
    vectors[10:14] = vectors[0]
    model = fit(vectors, SidSpec(levels=(4, 4, 12)))
    codes = encoded(model, vectors)
    copies = [0, 10, 11, 12, 13]
    assert len(np.unique(codes[copies], axis=0)) == 1
    assert len(np.unique(codes, axis=0)) == 92
    latents = model.latents(torch.from_numpy(vectors)).numpy()
    codebooks = [codebook.numpy() for codebook in model.codebooks]
    ids = [f"{item:02}" for item in range(96)]
    treated = treat_collisions("zcr", codes, latents, codebooks, ids)
    assert len(np.unique(treated.codes, axis=0)) == 96
    assert (treated.codes[:, :2] == codes[:, :2]).all()
    assert treated.report.num_reassigned == 4
    # A code without a child stands for the node above it.
    restored = model.decode(torch.from_numpy(treated.codes)).numpy()
    above = vectors[copies] - latents[copies]
    moved = (treated.codes[copies] != codes[copies]).any(axis=1)
    np.testing.assert_allclose(restored[copies][moved], above[moved], atol=1e-5)
    np.testing.assert_allclose(restored[20:], vectors[20:], atol=1e-6)


def test_a_reassigned_item_gets_the_free_code_whose_anchor_points_to_it():
    """Two copies right of their node, among four codes. The second gets the best anchor that is left."""
    vectors = np.float32([[1, 0], [1, 0], [-1, 0], [-1, 0.1]])
    model = fit(vectors, SidSpec(levels=(4,)))
    codes = encoded(model, vectors)
    latents = model.latents(torch.from_numpy(vectors)).numpy()
    treated = treat_collisions(
        "zcr", codes, latents, [codebook.numpy() for codebook in model.codebooks], list("abcd")
    )
    taken = {int(codes[item, 0]) for item in (0, 2, 3)}
    (free,) = set(range(4)) - taken
    assert {int(treated.codes[0, 0]), int(treated.codes[1, 0])} == {int(codes[0, 0]), free}


def test_more_items_than_places_share_codes_evenly():
    vectors = skewed(100)
    codes = encoded(fit(vectors, SidSpec(levels=(2, 2, 5))), vectors)
    _, sizes = np.unique(codes, axis=0, return_counts=True)
    assert sizes.tolist() == [5] * 20


@pytest.mark.parametrize("levels", [(4,), (4, 3), (2, 2, 2, 8)])
def test_any_number_of_levels(levels):
    vectors = skewed(24)
    spec = SidSpec(levels=levels)
    model = fit(vectors, spec)
    for row in encoded(model, vectors).tolist():
        spec.check(tuple(row))
    assert model.latents(torch.from_numpy(vectors)).shape == (24, DIM)
    assert explained_variance(model, vectors) > 0.3


@pytest.mark.parametrize("num_items", [1, 2, 5])
def test_few_items_and_identical_items_are_no_error(num_items):
    vectors = skewed(num_items)
    codes = encoded(fit(vectors), vectors)
    assert len(np.unique(codes, axis=0)) == num_items
    same = np.tile(vectors[:1], (7, 1))
    assert (encoded(fit(same), same) == encoded(fit(same), same)[0]).all()


def test_no_items_are_refused():
    with pytest.raises(ValueError, match="no vectors"):
        fit(skewed(0))


def test_many_items_are_encoded_as_a_few(tree, monkeypatch):
    model, vectors, codes = tree
    monkeypatch.setattr(gaoq, "WALK_ITEMS", 7)
    assert (encoded(model, vectors) == codes).all()


def test_the_tokenizer_graph_gives_the_codes_of_torch(tmp_path: Path):
    torch.manual_seed(0)
    head = ItemHead(feature_dim=RECIPE.height_px, config=HeadConfig(vector_dim=DIM, hidden_dim=16))
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.3)
    body = to_onnx(
        Columns(),
        (torch.zeros(3, RECIPE.height_px, RECIPE.width_px, dtype=torch.uint8),),
        inputs=["strips"],
        outputs=["frames"],
        dynamic_shapes=({0: torch.export.Dim("strip")},),
    )
    parts = TokenizerParts(body, SumOfFrames(), head.eval(), fit(skewed(48), SidSpec(levels=(4, 3, 8))))
    path = tmp_path / "tokenizer.onnx"
    graph = export_tokenizer(path, parts, sid=parts.quantizer.spec, render=RECIPE)
    assert check_tokenizer(path, parts, graph=graph, items=[TokenizerInput(each) for each in strips()]) < 1e-4
