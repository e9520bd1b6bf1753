"""The peers in benchmarks/exactness.py find what an exhaustive search finds, and so does a proven beam."""

import numpy as np
import pytest

from benchmarks.exactness import TOP_K, BeamPages
from benchmarks.peers.sub_items import NUM_CODES, SubItemIndex, VectorTable, faiss_index, sub_scores
from benchmarks.workload import skewed
from benchmarks.workload.grown import Random, nearest_sub_items
from model_export.bundle.recommender import exhaustive_scores
from service.core.trie import SidTrie

NUM_SPLITS = 8


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("num_items", [1, 9, 3_000])
@pytest.mark.parametrize("num_used", [2, NUM_CODES])
def test_pruning_and_a_full_pass_find_the_best_sums(seed, num_items, num_used):
    rng = np.random.default_rng(seed)
    sub_items = rng.integers(num_used, size=(num_items, NUM_SPLITS)).astype(np.uint8)
    scores = rng.standard_normal((NUM_SPLITS, NUM_CODES), dtype=np.float32)
    index = SubItemIndex(sub_items)
    sums = exhaustive_sums(scores, sub_items)
    truth = np.sort(sums)[::-1][:TOP_K]
    for found in (index.pruned(scores, TOP_K), index.full_pass(scores, TOP_K)):
        assert found.scores.tolist() == truth.tolist()
        assert sums[found.items].tolist() == truth.tolist()
        assert len(set(found.items.tolist())) == len(truth)


def test_pruning_finds_the_best_sums_where_most_are_equal():
    rng = np.random.default_rng(0)
    sub_items = rng.integers(NUM_CODES, size=(5_000, NUM_SPLITS)).astype(np.uint8)
    scores = rng.integers(2, size=(NUM_SPLITS, NUM_CODES)).astype(np.float32)
    truth = np.sort(exhaustive_sums(scores, sub_items))[::-1][:TOP_K]
    assert SubItemIndex(sub_items).pruned(scores, TOP_K).scores.tolist() == truth.tolist()


def test_pruning_scores_few_items_where_a_few_sub_items_are_much_better():
    rng = np.random.default_rng(0)
    sub_items = rng.integers(NUM_CODES, size=(50_000, NUM_SPLITS)).astype(np.uint8)
    sub_items[:TOP_K] = 0
    scores = rng.random((NUM_SPLITS, NUM_CODES), dtype=np.float32)
    scores[:, 0] = 100
    found = SubItemIndex(sub_items).pruned(scores, TOP_K)
    assert sorted(found.items.tolist()) == list(range(TOP_K))
    assert found.num_scored < 5_000


def test_the_scores_of_sub_items_sum_up_to_the_inner_product_of_the_vectors():
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((NUM_SPLITS, NUM_CODES, 4), dtype=np.float32)
    sub_items = rng.integers(NUM_CODES, size=(500, NUM_SPLITS)).astype(np.uint8)
    query = rng.standard_normal(4 * NUM_SPLITS, dtype=np.float32)
    vectors = embeddings[np.arange(NUM_SPLITS), sub_items].reshape(500, -1)
    best = np.sort(vectors @ query)[::-1][:TOP_K]
    by_sums = SubItemIndex(sub_items).full_pass(sub_scores(embeddings, query), TOP_K).scores
    np.testing.assert_allclose(by_sums, best, rtol=1e-4)
    np.testing.assert_allclose(VectorTable(vectors).full_pass(query, TOP_K).scores, best, rtol=1e-4)
    assert (nearest_sub_items(embeddings, vectors) == sub_items).all()


def test_faiss_sums_up_the_same_sub_items():
    pytest.importorskip("faiss")
    rng = np.random.default_rng(0)
    embeddings = rng.standard_normal((NUM_SPLITS, NUM_CODES, 4), dtype=np.float32)
    sub_items = rng.integers(NUM_CODES, size=(5_000, NUM_SPLITS)).astype(np.uint8)
    query = rng.standard_normal(4 * NUM_SPLITS, dtype=np.float32)
    truth = SubItemIndex(sub_items).full_pass(sub_scores(embeddings, query), TOP_K)
    scores, items = faiss_index(embeddings, sub_items).search(query[None], TOP_K)
    assert items[0].tolist() == truth.items.tolist()
    np.testing.assert_allclose(scores[0], truth.scores, rtol=1e-4)


@pytest.mark.slow
def test_a_proven_page_has_the_best_items_of_an_exhaustive_search(tmp_path):
    model = Random(num_requests=5)
    model.export(tmp_path / "graph.onnx")
    codes = model.catalog(2_000).codes
    beam = BeamPages(tmp_path / "graph.onnx", model.spec, codes)
    prefixes = model.spec.prefixes_of(codes.astype(np.int64))[-1]
    trie = SidTrie.from_prefixes(model.spec, prefixes)
    pages = [beam.proven_page(history) for history in model.histories]
    assert any(page.is_proven for page in pages)
    for history, page in zip(model.histories, pages, strict=True):
        if page.is_proven:
            scores = exhaustive_scores(skewed.untrained(), history, trie)[0]
            of_items = np.array([scores[prefix] for prefix in prefixes.tolist()])
            np.testing.assert_allclose(page.scores, np.sort(of_items)[::-1][:TOP_K], atol=1e-3)
            np.testing.assert_allclose(of_items[page.items], page.scores, atol=1e-3)


def exhaustive_sums(scores: np.ndarray, sub_items: np.ndarray) -> np.ndarray:
    """[item], added up in float32 from the first split to the last."""
    total = np.zeros(len(sub_items), np.float32)
    for item, row in enumerate(sub_items.tolist()):
        score = scores[0, row[0]]
        for split in range(1, len(row)):
            score = score + scores[split, row[split]]
        total[item] = score
    return total
