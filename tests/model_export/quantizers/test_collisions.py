"""Reassignment against all possible assignments of small groups, and its invariants on larger groups."""

from itertools import permutations, product

import numpy as np
import pytest
import torch

from model_export.configs import QuantizerConfig
from model_export.quantizers import collisions
from model_export.quantizers.collisions import assign_slots, reassign_collisions, treat_collisions
from model_export.quantizers.rq_vae import train_rq_vae
from service.core.sid import SidSpec


def distances(codes, latents, codebooks):
    """Squared distances of each item's residual to the last level's codewords [item, code], in float64."""
    needed = latents.astype(np.float64)
    for level, codebook in enumerate(codebooks[:-1]):
        needed = needed - codebook[codes[:, level]]
    return np.square(needed[:, None] - codebooks[-1].astype(np.float64)).sum(-1)


def crowded(seed: int, *, num_items: int, levels: tuple[int, ...], dim: int = 3):
    """Items with random codes and few prefixes, so that most items collide."""
    rng = np.random.default_rng(seed)
    codebooks = [rng.normal(size=(num_codes, dim)).astype(np.float32) for num_codes in levels]
    latents = rng.normal(size=(num_items, dim)).astype(np.float32)
    codes = rng.integers(0, levels, size=(num_items, len(levels)))
    codes[:, -1] = distances(codes, latents, codebooks).argmin(1)
    return codes, latents, codebooks


def separate(codes, latents, codebooks, item_ids=None):
    item_ids = ids(len(codes)) if item_ids is None else item_ids
    found = reassign_collisions(codes, latents, codebooks, item_ids)
    return found.codes, found.report


def ids(num_items: int) -> list[str]:
    return [f"{item:04}" for item in range(num_items)]


def num_distinct(codes) -> int:
    return len(np.unique(codes, axis=0))


@pytest.mark.parametrize("seed", range(40))
def test_one_group_costs_as_little_as_the_best_of_all_assignments(seed):
    num_items = 2 + seed % 4
    codes, latents, codebooks = crowded(seed, num_items=num_items, levels=(1, 5))
    distance = distances(codes, latents, codebooks)
    rows = np.arange(num_items)

    def cost(chosen):
        chosen = np.asarray(chosen)
        return int((chosen != codes[:, -1]).sum()), float(distance[rows, chosen].sum())

    best = min(cost(chosen) for chosen in permutations(range(5), num_items))
    moved, total = cost(separate(codes, latents, codebooks)[0][:, -1])
    assert moved == best[0]
    assert total == pytest.approx(best[1], abs=1e-9)


@pytest.mark.parametrize("seed", range(10))
def test_all_codes_differ_afterwards_and_only_the_last_one_changed(seed):
    codes, latents, codebooks = crowded(seed, num_items=60, levels=(3, 2, 32))
    new, report = separate(codes, latents, codebooks)
    assert num_distinct(codes) < 60
    assert num_distinct(new) == 60
    assert (new[:, :-1] == codes[:, :-1]).all()
    assert report.rate_after == 0.0
    assert report.max_group_after == 1
    assert report.num_reassigned == 60 - num_distinct(codes), "only the surplus items should move"


def test_codes_that_are_already_different_stay():
    codes, latents, codebooks = crowded(0, num_items=40, levels=(2, 32))
    once, _ = separate(codes, latents, codebooks)
    twice, report = separate(once, latents, codebooks)
    assert (twice == once).all()
    assert report.num_reassigned == report.num_groups == 0
    assert report.distance_increase == 0.0


@pytest.mark.parametrize("seed", range(5))
def test_another_order_of_items_gives_each_item_the_same_codes(seed):
    codes, latents, codebooks = crowded(seed, num_items=50, levels=(2, 3, 16))
    latents[::2] = latents[0]  # identical items, which differ only in their ids
    order = np.random.default_rng(seed).permutation(50)
    there, _ = separate(codes, latents, codebooks)
    shuffled = [ids(50)[item] for item in order]
    assert (separate(codes[order], latents[order], codebooks, shuffled)[0] == there[order]).all()


def test_the_closest_item_keeps_a_code_and_the_other_takes_the_nearest_free_one():
    codebooks = [np.zeros((1, 1)), np.array([[0.0], [1.0], [5.0]])]
    latents = np.array([[0.4], [0.1]])
    new, report = separate(np.array([[0, 0], [0, 0]]), latents, codebooks)
    assert new.tolist() == [[0, 1], [0, 0]]
    assert report.num_reassigned == report.num_groups == 1
    assert report.distance_increase == pytest.approx(0.6**2 - 0.4**2)


def test_fewer_moves_win_over_shorter_moves():
    # A shift of all items by one would add less distance, but it needs more moves than one long move.
    codebooks = [np.array([[0.0], [1.0], [2.0]])]
    latents = np.array([[0.4], [0.4], [1.4]])
    new, report = separate(np.array([[0], [0], [1]]), latents, codebooks)
    assert report.num_reassigned == 1
    assert new[2, 0] == 1
    assert sorted(new[:2, 0]) == [0, 2]


def test_identical_items_get_different_codes():
    codebooks = [np.array([[0.0], [1.0], [2.0], [3.0]])]
    new, report = separate(np.zeros((4, 1), dtype=np.int64), np.zeros((4, 1)), codebooks)
    assert sorted(new[:, 0]) == [0, 1, 2, 3]
    assert report.num_reassigned == 3


@pytest.mark.parametrize("seed", range(10))
def test_a_group_with_more_items_than_codes_is_spread_at_the_least_cost(seed):
    codes, latents, codebooks = crowded(seed, num_items=7, levels=(1, 3))
    distance = distances(codes, latents, codebooks)

    def cost(chosen):
        chosen = np.asarray(chosen)
        return int((chosen != codes[:, -1]).sum()), float(distance[np.arange(7), chosen].sum())

    even = (chosen for chosen in product(range(3), repeat=7) if np.bincount(chosen).max() <= 3)
    best = min(cost(chosen) for chosen in even)
    new, _ = separate(codes, latents, codebooks)
    assert np.bincount(new[:, -1]).max() <= 3
    assert cost(new[:, -1]) == (best[0], pytest.approx(best[1], abs=1e-9))


def test_a_large_group_costs_as_little_as_an_assignment_of_each_item(monkeypatch):
    """With copies among the items, as catalogs have them."""
    codes, latents, codebooks = crowded(0, num_items=90, levels=(1, 8))
    latents = np.concatenate([latents, np.repeat(latents[:3], 20, axis=0)])
    codes = np.concatenate([codes, np.repeat(codes[:3], 20, axis=0)])
    distance = distances(codes, latents, codebooks)

    def cost(chosen):
        return int((chosen != codes[:, -1]).sum()), float(distance[np.arange(len(codes)), chosen].sum())

    by_assignment = separate(codes, latents, codebooks)[0][:, -1]
    monkeypatch.setattr(collisions, "MAX_ASSIGNED", 10)
    by_transport = separate(codes, latents, codebooks)[0][:, -1]
    assert cost(by_transport) == (cost(by_assignment)[0], pytest.approx(cost(by_assignment)[1]))
    assert np.bincount(by_transport).max() <= np.ceil(len(codes) / 8)


def test_thousands_of_items_of_one_text_are_spread_evenly():
    num_items, levels = 16_000, (2, 32)
    rng = np.random.default_rng(0)
    codebooks = [rng.normal(size=(num_codes, 3)).astype(np.float32) for num_codes in levels]
    latents = np.tile(rng.normal(size=3).astype(np.float32), (num_items, 1))
    codes = np.tile([1, 7], (num_items, 1))
    new_codes, report = separate(codes, latents, codebooks)
    assert np.bincount(new_codes[:, 1], minlength=32).tolist() == 32 * [num_items // 32]
    assert report.num_reassigned == num_items - num_items // 32


def test_groups_that_cannot_be_resolved_are_reported():
    codes = np.array([[0, 1], [0, 1], [0, 1], [1, 1], [1, 1]])
    codebooks = [np.zeros((2, 1)), np.array([[0.0], [1.0]])]
    new, report = separate(codes, np.ones((5, 1)), codebooks)
    assert sorted(new[:3, 1]) == [0, 1, 1]
    assert sorted(new[3:, 1]) == [0, 1]
    assert (report.num_groups, report.num_overfull_groups, report.num_overfull_items) == (2, 1, 3)
    assert (report.rate_before, report.rate_after) == (1.0, 0.4)
    assert (report.missing_rate_before, report.missing_rate_after) == pytest.approx((0.6, 0.2))
    assert (report.max_group_before, report.max_group_after) == (3, 2)
    assert "3 items are below 1 prefixes that have more items than codes" in report.summary()


def test_reassigning_no_items_is_no_error():
    new, report = separate(np.zeros((0, 2), dtype=np.int64), np.zeros((0, 1)), [np.zeros((2, 1))] * 2)
    assert new.shape == (0, 2)
    assert report.rate_before == report.rate_after == 0.0
    assert assign_slots(new).shape == (0,)


def test_the_codes_of_a_trained_quantizer_are_reassigned():
    vectors = np.random.default_rng(0).normal(size=(60, 6)).astype(np.float32)
    vectors[10:20] = vectors[0]  # copies, which the encoder cannot distinguish
    spec = SidSpec(levels=(4, 4, 16))
    config = QuantizerConfig(hidden_dims=(8,), latent_dim=4, num_epochs=5, settle_epochs=2)
    quantizer, _ = train_rq_vae(vectors, spec, config, seed=0, progress=False)
    with torch.no_grad():
        latents = quantizer.latents(torch.from_numpy(vectors))
    native = quantizer.encode(torch.from_numpy(vectors)).numpy()
    codebooks = [codebook.numpy() for codebook in quantizer.codebooks]
    codes, report = separate(native, latents.numpy(), codebooks)
    assert (codes[:, :-1] == native[:, :-1]).all()
    assert report.rate_before == pytest.approx(np.mean([(native == row).all(1).sum() > 1 for row in native]))
    assert num_distinct(codes) > num_distinct(native)
    assert report.num_reassigned == (codes != native).any(1).sum()


def test_slots_number_the_items_of_the_same_codes_in_catalog_order():
    codes = np.array([[1, 2], [0, 0], [1, 2], [2, 1], [1, 2], [0, 0]])
    assert assign_slots(codes).tolist() == [0, 0, 1, 0, 2, 1]


@pytest.mark.parametrize("seed", range(5))
def test_codes_and_slot_together_are_unique_and_slots_have_no_gaps(seed):
    codes = np.random.default_rng(seed).integers(0, 3, size=(50, 2))
    slots = assign_slots(codes)
    assert num_distinct(np.column_stack([codes, slots])) == 50
    for row in np.unique(codes, axis=0):
        found = slots[(codes == row).all(1)]
        assert sorted(found) == list(range(len(found)))


def treated(how, codes, latents, codebooks, item_ids=None):
    return treat_collisions(how, codes, latents, codebooks, ids(len(codes)) if item_ids is None else item_ids)


def test_codes_without_treatment_stay_and_are_reported():
    codes, latents, codebooks = crowded(0, num_items=40, levels=(2, 32))
    found = treated("none", codes, latents, codebooks)
    assert (found.codes == codes).all()
    assert found.report.rate_after == found.report.rate_before > 0
    assert found.report.num_reassigned == found.report.distance_increase == 0
    assert found.report.num_groups == separate(codes, latents, codebooks)[1].num_groups > 0


def test_a_suffix_numbers_the_items_of_the_same_codes():
    codes = np.array([[1, 2], [0, 0], [1, 2], [2, 1], [1, 2], [0, 0]])
    codebooks = [np.zeros((3, 1)), np.zeros((3, 1))]
    found = treated("suffix", codes, np.zeros((6, 1)), codebooks)
    assert found.codes.tolist() == [[1, 2, 0], [0, 0, 0], [1, 2, 1], [2, 1, 0], [1, 2, 2], [0, 0, 1]]
    assert found.spec.levels == (3, 3, 3)
    assert (found.report.rate_before, found.report.rate_after) == (5 / 6, 0.0)
    assert (found.report.max_group_before, found.report.max_group_after) == (3, 1)
    assert (found.report.num_groups, found.report.num_reassigned) == (2, 0)


def test_a_suffix_level_has_at_least_two_codes():
    found = treated("suffix", np.array([[0], [1]]), np.zeros((2, 1)), [np.zeros((2, 1))])
    assert found.spec.levels == (2, 2)
    assert found.codes.tolist() == [[0, 0], [1, 0]]


def test_sinkhorn_gives_a_shared_code_to_the_item_with_more_to_lose():
    codebooks = [np.zeros((1, 1)), np.array([[0.0], [1.0]])]
    latents = np.array([[0.1], [0.4]])
    found = treated("sinkhorn", np.array([[0, 0], [0, 0]]), latents, codebooks)
    assert found.codes.tolist() == [[0, 0], [0, 1]]
    assert found.report.num_reassigned == 1
    assert found.report.distance_increase == pytest.approx(0.6**2 - 0.4**2)


@pytest.mark.parametrize("seed", range(5))
def test_sinkhorn_separates_most_items_and_changes_only_the_last_level(seed):
    codes, latents, codebooks = crowded(seed, num_items=60, levels=(3, 2, 32))
    found = treated("sinkhorn", codes, latents, codebooks)
    assert (found.codes[:, :-1] == codes[:, :-1]).all()
    assert found.report.rate_after < found.report.rate_before / 2
    assert found.report.missing_rate_after == pytest.approx(1 - num_distinct(found.codes) / 60)
    assert found.report.num_reassigned == (found.codes != codes).any(axis=1).sum()


def test_sinkhorn_keeps_codes_that_are_already_different():
    codes, latents, codebooks = crowded(0, num_items=40, levels=(2, 32))
    apart, _ = separate(codes, latents, codebooks)
    assert (treated("sinkhorn", apart, latents, codebooks).codes == apart).all()


def test_sinkhorn_ends_although_it_cannot_separate_identical_items():
    codebooks = [np.array([[0.0], [1.0], [2.0]])]
    found = treated("sinkhorn", np.zeros((3, 1), dtype=np.int64), np.zeros((3, 1)), codebooks)
    assert num_distinct(found.codes) == 1
    assert found.report.rate_after == 1.0


@pytest.mark.parametrize("how", ["none", "sinkhorn", "zcr"])
def test_a_treatment_does_not_depend_on_the_order_of_items(how):
    codes, latents, codebooks = crowded(1, num_items=50, levels=(2, 3, 16))
    order = np.random.default_rng(1).permutation(50)
    there = treated(how, codes, latents, codebooks).codes
    shuffled = [ids(50)[item] for item in order]
    assert (treated(how, codes[order], latents[order], codebooks, shuffled).codes == there[order]).all()


@pytest.mark.parametrize("how", ["none", "sinkhorn", "zcr", "suffix"])
def test_treating_no_items_is_no_error(how):
    found = treated(how, np.zeros((0, 2), dtype=np.int64), np.zeros((0, 1)), [np.zeros((2, 1))] * 2)
    assert len(found.codes) == 0
    assert found.report.rate_after == 0.0
