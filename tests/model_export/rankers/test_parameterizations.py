"""Rows of the embedding table: known answers by hand, the paper's formula, and no overflow."""

import itertools

import numpy as np
import pytest
import torch

from model_export.rankers.parameterizations import KINDS, OF_IDS, Parameterization, hashed, rows_for

LEVELS = (4, 4, 4, 4)
LARGE = 10**6


def rows(kind, codes, *, levels=LEVELS, num_rows=LARGE, depth=0, item=7):
    made = Parameterization(kind, levels, num_rows, depth)
    return made.rows(torch.tensor([item]), torch.tensor([codes]))[0].tolist()


def test_the_rows_of_one_item_by_hand():
    codes = [1, 2, 3, 0]
    assert rows("trigram", codes) == [16 + 8 + 3]
    assert rows("fourgram", codes) == [64 + 32 + 12 + 0]
    assert rows("all-bigrams", codes) == [4 + 2, 16 + 8 + 3, 32 + 12 + 0]
    assert rows("prefix", codes, depth=3) == [2 - 1, 4 * 2 + 3 - 1, 16 * 2 + 4 * 3 + 4 - 1]
    assert rows("plain-sum", codes) == [1, 4 + 2, 8 + 3, 12 + 0]
    assert rows("individual", codes, item=7) == [7]
    two = (4, 4)
    assert rows("all-ngrams", [1, 2], levels=two) == [1, 10, 20 + 2]  # c1, c1c2, c2; a start has 4 + 16 rows


def formula(codes, length, base):
    return sum(base ** (length - t) * (codes[t - 1] + 1) for t in range(1, length + 1)) - 1


@pytest.mark.parametrize("num_rows", [1, 2, 97, 1000, 2**40])
def test_prefix_rows_are_congruent_with_the_papers_formula_at_any_size_of_the_table(num_rows):
    levels = (2048,) * 2 + (300,) * 4
    rng = np.random.default_rng(0)
    for _ in range(20):
        codes = rng.integers(0, levels).tolist()
        found = rows("prefix", codes, levels=levels, num_rows=num_rows)
        assert found == [formula(codes, n, 2048) % num_rows for n in range(1, 7)]  # exact: Python's integers


def test_prefixes_of_different_lengths_and_codes_never_share_a_row_below_the_modulo():
    levels = (3, 2, 3)
    everything = torch.tensor(list(itertools.product(range(3), range(2), range(3))))
    found = Parameterization("prefix", levels, LARGE).rows(torch.zeros(len(everything)).long(), everything)
    for depth in range(3):
        prefixes = {tuple(row[: depth + 1]) for row in everything.tolist()}
        assert len(set(found[:, depth].tolist())) == len(prefixes)
    ranges = [set(found[:, depth].tolist()) for depth in range(3)]
    assert not ranges[0] & ranges[1]
    assert not (ranges[0] | ranges[1]) & ranges[2]


@pytest.mark.parametrize("kind", ["all-bigrams", "all-ngrams", "plain-sum"])
def test_grams_of_different_places_never_share_a_row_below_the_modulo(kind):
    same = [2, 2, 2, 2]
    found = rows(kind, same)
    assert len(set(found)) == len(found)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind not in OF_IDS])
def test_exact_copies_share_every_row(kind):
    made = Parameterization(kind, LEVELS, 11)
    codes = torch.tensor([[3, 1, 0, 2]] * 2)
    first, second = made.rows(torch.tensor([5, 900]), codes)
    assert first.tolist() == second.tolist()


def test_exact_copies_with_ids_of_their_own_do_not_share_a_row_of_ids():
    assert rows("individual", [0] * 4, item=5) != rows("individual", [0] * 4, item=6)
    assert rows("random-hash", [0] * 4, item=5) != rows("random-hash", [0] * 4, item=6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("num_rows", [1, 5, 2**40])
def test_every_row_is_in_the_table(kind, num_rows):
    codes = torch.from_numpy(np.random.default_rng(1).integers(0, LEVELS, size=(50, 4)))
    found = Parameterization(kind, LEVELS, num_rows).rows(torch.arange(50), codes)
    assert int(found.min()) >= 0
    assert int(found.max()) < num_rows


def test_the_hash_spreads_ids_evenly_and_gives_the_same_on_every_machine():
    found = hashed(torch.arange(10_000)) % 100
    assert torch.bincount(found, minlength=100).float().std() < 15  # about 10 if it were random
    assert hashed(torch.tensor([0])).tolist() == [0]


def test_a_table_that_64_bits_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="product must stay below"):
        Parameterization("prefix", (65_536,), 2**46)


def test_codes_with_too_few_levels_are_refused():
    with pytest.raises(ValueError, match="fourgram needs 4 levels, and the codes have 2"):
        Parameterization("fourgram", (4, 4), 10)


def test_a_collision_factor_of_three_gives_a_row_to_three_items():
    assert rows_for(300, 3) == 100
    assert rows_for(1, 10) == 1
