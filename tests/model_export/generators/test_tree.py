"""`tree`: its start from content, its likeness, and the agreement of training scores with search scores."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model_export.configs import TreeConfig
from model_export.generators import seen_prefixes
from model_export.generators.tree import TreeGenerator, principal_axes
from service.core.sid import SidSpec

SPEC = SidSpec(levels=(5, 3, 7))
NUM_ITEMS = 40
DIM = 6


def distinct_codes(rng: np.random.Generator) -> NDArray[np.int64]:
    """[item, level]"""
    places = rng.choice(np.prod(SPEC.levels), NUM_ITEMS, replace=False)
    return np.stack(np.unravel_index(places, SPEC.levels), axis=1).astype(np.int64)


def make(codes: NDArray[np.int64], vectors: NDArray[np.float32] | None, **changes: object) -> TreeGenerator:
    torch.manual_seed(0)
    config = TreeConfig(
        width=16, num_layers=1, num_heads=2, ffn_dim=16, dropout=0.0, **{"likeness": 0.0} | changes
    )
    return TreeGenerator(
        config=config, spec=SPEC, history_length=4, seen_codes=codes, seen_vectors=vectors
    ).eval()


def scores_of_items(generator: TreeGenerator, codes: NDArray[np.int64], history: list[int]) -> torch.Tensor:
    """The log-probability of each item after a history of items: [item]"""
    state = generator.start(torch.from_numpy(codes[history])[None])
    every = torch.from_numpy(codes)
    prefix = torch.zeros(1, 1, dtype=torch.int64)
    total = torch.zeros(len(codes))
    for item in range(len(codes)):
        state_of_item, prefix = state, torch.zeros(1, 1, dtype=torch.int64)
        for level, num_codes in enumerate(SPEC.levels):
            log_probs, state_of_item = generator.step(level, state_of_item, prefix)
            total[item] += log_probs[0, 0, every[item, level]]
            prefix = prefix * num_codes + every[item, level]
    return total


@torch.no_grad()
@pytest.mark.parametrize("rows_per_child", [0, 1000], ids=["sparse", "dense"])
@pytest.mark.parametrize("has_bonus", [True, False])
def test_the_loss_equals_the_scores_of_the_search(monkeypatch, rows_per_child, has_bonus):
    monkeypatch.setattr(seen_prefixes, "ROWS_PER_GATHERED_CHILD", rows_per_child)
    rng = np.random.default_rng(1)
    codes = distinct_codes(rng)
    generator = make(codes[:30], rng.normal(size=(30, DIM)).astype(np.float32), has_bonus=has_bonus)
    for weight in generator.parameters():
        weight.mul_(3.0)
    windows = [[3, 5, 35], [7, 2, 11]]  # 35 was not seen
    expected = [
        -scores_of_items(generator, codes, window[:position])[window[position]]
        for window in windows
        for position in (1, 2)
    ]
    loss = generator.loss(torch.from_numpy(codes[np.array(windows)]))
    torch.testing.assert_close(loss, torch.stack(expected).mean(), rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("rows_per_child", [0, 1000], ids=["sparse", "dense"])
def test_the_seen_children_of_a_prefix_and_a_new_one_share_its_probability(monkeypatch, rows_per_child):
    monkeypatch.setattr(seen_prefixes, "ROWS_PER_GATHERED_CHILD", rows_per_child)
    codes = distinct_codes(np.random.default_rng(2))
    generator = make(codes[:30], None)
    state = generator.start(torch.from_numpy(codes[None, [3, 5]]))
    beams = torch.zeros(1, 1, dtype=torch.int64)
    for level, num_codes in enumerate(SPEC.levels):
        log_probs, state = generator.step(level, state, beams)
        for prefix, probs in zip(beams[0].tolist(), log_probs[0].exp(), strict=True):
            seen = {
                int(p) % num_codes for p in SPEC.prefixes_of(codes[:30])[level] if p // num_codes == prefix
            }
            is_seen = torch.tensor([code in seen for code in range(num_codes)])
            new = probs[~is_seen]
            assert not len(new) or torch.allclose(new, new[0])
            of_new = new[0] if len(new) else 1 - probs.sum()
            assert float(probs[is_seen].sum() + of_new) == pytest.approx(1.0, abs=1e-5)
            assert of_new > 0
        beams = (beams[..., None] * num_codes + torch.arange(num_codes)).flatten(1)
        parent = torch.arange(log_probs.shape[1]).repeat_interleave(num_codes)[None]
        state = generator.reorder(state, parent)


def test_hiding_items_in_training_makes_new_items_likely():
    """The test compares the score of an unseen code below a well-known prefix, with and without hiding."""
    rng = np.random.default_rng(5)
    codes = distinct_codes(rng)
    windows = torch.from_numpy(codes[rng.integers(0, 30, size=(64, 4))])

    def probability_of_new(hidden_share: float) -> float:
        generator = make(codes[:30], None, hidden_share=hidden_share).train()
        optimizer = torch.optim.Adam(generator.parameters(), lr=1e-2)
        for _ in range(60):
            optimizer.zero_grad()
            generator.loss(windows).backward()
            optimizer.step()
        with torch.no_grad():
            scores = scores_of_items(generator.eval(), codes, [3, 5])
        return float(scores[30:].exp().mean() / scores[:30].exp().mean())

    assert probability_of_new(0.2) > 3 * probability_of_new(0.0)


@torch.no_grad()
def test_an_untrained_model_ranks_items_by_how_near_they_are_to_the_history():
    """Items form four clusters. After one item, its cluster ranks first much more often than by chance."""
    rng = np.random.default_rng(3)
    codes = distinct_codes(rng)
    bunch = np.arange(NUM_ITEMS) % 4
    vectors = (np.eye(DIM)[bunch] + 0.1 * rng.normal(size=(NUM_ITEMS, DIM))).astype(np.float32)

    def share_of_own_bunch(generator: TreeGenerator) -> float:
        found = []
        for item in range(0, NUM_ITEMS, 4):
            scores = scores_of_items(generator, codes, [item])
            scores[item] = -np.inf
            found.append((bunch[scores.topk(5).indices.numpy()] == bunch[item]).mean())
        return float(np.mean(found))

    assert share_of_own_bunch(make(codes, vectors, start_scale=3.0)) > 0.9
    assert share_of_own_bunch(make(codes, vectors, start_scale=0.0)) < 0.5
    assert share_of_own_bunch(make(codes, None, start_scale=3.0)) < 0.5


@torch.no_grad()
@pytest.mark.parametrize("rows_per_child", [0, 1000], ids=["sparse", "dense"])
def test_likeness_is_added_to_what_is_learnt(monkeypatch, rows_per_child):
    """The test computes likeness separately, for seen and for unseen items."""
    monkeypatch.setattr(seen_prefixes, "ROWS_PER_GATHERED_CHILD", rows_per_child)
    rng = np.random.default_rng(4)
    codes, num_seen = distinct_codes(rng), 30
    vectors = rng.normal(size=(num_seen, DIM)).astype(np.float32)
    plain = make(codes[:num_seen], vectors)
    both = make(codes[:num_seen], vectors, likeness=5.0, recency=0.5)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)

    def below(prefix: tuple[int, ...]) -> NDArray[np.bool_]:
        return (codes[:num_seen, : len(prefix)] == prefix).all(axis=1)  # [seen item]

    def middle(prefix: tuple[int, ...]) -> NDArray[np.float32]:
        return unit[below(prefix)].mean(axis=0) if below(prefix).any() else np.zeros(DIM, np.float32)

    def content(item: int) -> NDArray[np.float32]:
        """The mean vector of the deepest seen prefix."""
        return next(
            middle(tuple(codes[item, :n])) for n in (3, 2, 1, 0) if below(tuple(codes[item, :n])).any()
        )

    def likeness(history: list[int], item: int) -> float:
        query = 5.0 * sum(0.5**steps * content(other) for steps, other in enumerate(reversed(history)))
        total = 0.0
        for level in range(3):
            parent = tuple(codes[item, :level])
            seen = {int(code) for code in codes[:num_seen][below(parent), level]}
            logits = {
                code: np.log(below((*parent, code)).sum()) + query @ middle((*parent, code)) for code in seen
            }
            logits["new"] = query @ middle(parent)
            code = int(codes[item, level])
            total += logits.get(code, logits["new"]) - np.logaddexp.reduce(list(logits.values()))
        return total

    for history in ([2], [5, 17, 9], [35, 3]):
        expected = scores_of_items(plain, codes, history) + torch.tensor(
            [likeness(history, item) for item in range(NUM_ITEMS)], dtype=torch.float32
        )
        torch.testing.assert_close(scores_of_items(both, codes, history), expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_training_does_not_see_likeness():
    rng = np.random.default_rng(5)
    codes = distinct_codes(rng)
    vectors = rng.normal(size=(NUM_ITEMS, DIM)).astype(np.float32)
    window = torch.from_numpy(codes[[[1, 2, 3], [4, 5, 6]]])
    assert make(codes, vectors).loss(window) == make(codes, vectors, likeness=5.0).loss(window)
    assert not any(
        weight.requires_grad for weight in make(codes, vectors, likeness=5.0).likeness.parameters()
    )


def test_principal_axes_keep_angles_if_they_fit_and_the_widest_directions_if_not():
    rng = np.random.default_rng(4)
    vectors = rng.normal(size=(NUM_ITEMS, DIM)).astype(np.float32) * [9, 7, 5, 0.1, 0.1, 0.1]
    centered = vectors - vectors.mean(axis=0)
    unit = centered / np.linalg.norm(centered, axis=1, keepdims=True)
    whole = principal_axes(vectors, 16)
    np.testing.assert_allclose(whole @ whole.T, unit @ unit.T, atol=1e-4)
    assert not whole[:, DIM:].any()
    narrow = principal_axes(vectors, 3)
    np.testing.assert_allclose(np.linalg.norm(narrow, axis=1), 1.0, atol=1e-5)
    np.testing.assert_allclose(narrow @ narrow.T, unit @ unit.T, atol=0.1)
