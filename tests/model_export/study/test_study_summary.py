"""The study's figures agree with figures counted by hand."""

import numpy as np
import pytest

from model_export.evaluation.metrics import gains_at, gains_of_ranks, hits_at, hits_of_ranks
from model_export.evaluation.statistics import intervals
from model_export.study.cells import CellResult
from model_export.study.summary import of_segment, study_json

MISS = 10

MADE_WITH = {"baselines": 2, "ranks": 1, "tree": 1}


def cell(name: str, excluded, included=None, *, seed: int = 0, dataset: str = "shop", **more) -> CellResult:
    ranks = np.array(excluded, dtype=np.uint8)
    return CellResult(
        dataset,
        name,
        name.capitalize(),
        ("headline",),
        seed,
        "k" * 16,
        MADE_WITH,
        ranks,
        ranks if included is None else np.array(included, dtype=np.uint8),
        **more,
    )


def chance(seed: int, rate: float, num_users: int = 400) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.where(rng.random(num_users) < rate, rng.integers(0, 10, num_users), MISS)


def test_ranks_give_the_same_metrics_as_rankings():
    ranks = np.arange(11, dtype=np.uint8)
    ranked = np.tile(np.arange(10), (11, 1))
    for k in (5, 10):
        assert hits_of_ranks(ranks, k).tolist() == hits_at(ranked, ranks, k).tolist()
        assert gains_of_ranks(ranks, k) == pytest.approx(gains_at(ranked, ranks, k))


def test_a_cell_counted_by_hand():
    """Seed 0 hits at the first and the eighth place, seed 1 at the third. Rank 7 counts at 10, not at 5."""
    found = study_json(
        [
            cell("default", [0, 7, MISS, MISS], [1, MISS, MISS, MISS], figures={"train_seconds": 10}),
            cell(
                "default", [MISS, MISS, 2, MISS], seed=1, figures={"train_seconds": 20, "ms_per_request": 3}
            ),
        ]
    )["shop"]["default"]
    assert found["num_seeds"] == 2
    assert found["item_hit@10"] == 3 / 8
    assert found["item_hit@5"] == 2 / 8
    assert found["item_ndcg@10"] == pytest.approx((1 + 1 / np.log2(9) + 1 / 2) / 8, abs=1e-6)
    assert found["item_ndcg@5"] == pytest.approx((1 + 1 / 2) / 8)
    assert found["item_hit@10_seed_sd"] == pytest.approx(np.std([0.5, 0.25], ddof=1), abs=1e-6)
    assert found["item_hit@10_history_included"] == 2 / 8
    assert found["item_ndcg@10_history_included"] == pytest.approx((1 / np.log2(3) + 1 / 2) / 8, abs=1e-6)
    assert found["item_hit@10_low"] < 3 / 8 < found["item_hit@10_high"]
    assert found["item_hit@10_history_included_low"] <= 2 / 8
    assert found["train_seconds"] == 15
    assert found["ms_per_request"] == 3


def test_intervals_are_those_of_the_bootstrap_over_users():
    ranks = [chance(seed, 0.2) for seed in range(3)]
    found = study_json([cell("default", row, seed=seed) for seed, row in enumerate(ranks)])["shop"]["default"]
    expected = intervals((np.array(ranks) < 10).mean(axis=0, dtype=float)[None])[0]
    names = ("item_hit@10", "item_hit@10_low", "item_hit@10_high")
    assert [found[name] for name in names] == pytest.approx(list(expected), rel=1e-5)


def test_differences_are_paired_and_positive_where_the_default_is_better():
    """The default has every hit of Markov and 200 more users, in two seeds against one."""
    markov = chance(0, 0.2)
    better = np.where(np.arange(400) < 200, 0, markov)
    found = study_json(
        [cell("default", better), cell("default", better, seed=1), cell("markov", markov)],
    )["shop"]["differences"]
    gained, base = (markov[:200] == MISS).sum() / 400, (markov < MISS).mean()
    assert list(found) == ["markov"]
    assert found["markov"]["item_hit@10"] == pytest.approx(gained, abs=1e-6)
    assert found["markov"]["item_hit@10_relative"] == pytest.approx(gained / base, rel=1e-5)
    assert 0 < found["markov"]["item_hit@10_low"] < gained < found["markov"]["item_hit@10_high"]
    gain = (better < MISS).astype(float) - (markov < MISS)
    assert found["markov"]["item_hit@10_low"] == pytest.approx(intervals(gain[None])[0].low, rel=1e-5)


def test_a_difference_without_hits_has_no_relative_gain():
    found = study_json([cell("default", [0, 1]), cell("markov", [MISS, MISS])])["shop"]["differences"][
        "markov"
    ]
    assert found["item_hit@10"] == 1
    assert "item_hit@10_relative" not in found


def test_one_seed_has_no_spread_and_no_default_no_differences():
    found = study_json([cell("sasrec", [0, 5]), cell("markov", [1, MISS], dataset="other")])
    assert "differences" not in found["shop"]
    assert not any(name.endswith("_seed_sd") for name in found["shop"]["sasrec"])
    assert list(found["other"]) == ["markov"]


def test_codes_are_counted_beside_items_and_cells_without_users_have_figures_only():
    codes = np.array([0, MISS], dtype=np.uint8)
    figures_only = CellResult(
        "shop", "cold", "Cold", ("cold",), 0, "k", MADE_WITH, figures={"cold_hit@10": 0.125}
    )
    found = study_json([cell("default", [MISS, MISS], code_ranks=codes), figures_only])["shop"]
    assert found["default"]["code_hit@10"] == 0.5
    assert found["default"]["item_hit@10"] == 0
    assert found["cold"] == {"num_seeds": 1, "cold_hit@10": 0.125}
    assert "differences" not in found


def test_a_segment_counts_its_users_only():
    ours, theirs = [cell("default", [0, 0, MISS, MISS])], [cell("text", [0, MISS, 0, MISS])]
    found = of_segment(ours, theirs, np.array([True, True, False, False]))
    assert (found.num_users, found.ours.mean, found.theirs.mean, found.difference.mean) == (2, 1.0, 0.5, 0.5)
    assert of_segment(ours, theirs, np.zeros(4, dtype=bool)) is None


def test_unequal_users_are_refused():
    with pytest.raises(ValueError, match="shape"):
        study_json([cell("default", [0, 1]), cell("default", [0, 1, 2], seed=1)])
