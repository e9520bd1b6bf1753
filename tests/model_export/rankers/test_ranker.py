"""The ranker: it learns what decides, reads no padding beyond its own, and knows a new item by its prefix."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from model_export.ranker_config import RankerConfig
from model_export.rankers.ranker import Batch, Ranker
from model_export.rankers.served import ServedRanker
from model_export.rankers.service_features import ServiceFeatures
from model_export.rankers.training import Examples, in_time_order, log_odds_of, shuffled, train_ranker
from service.core.graphs import PADDING
from service.core.sid import SidSpec

SPEC = SidSpec(levels=(3, 4))
CONFIG = RankerConfig(width=8, num_heads=2, num_seeds=3, hidden_dim=16, history_length=4, batch_size=32)
AGGREGATIONS = ("bypass", "transformer", "pooling")


def served(**changes) -> ServedRanker:
    torch.manual_seed(0)
    config = replace(CONFIG, **changes)
    return ServedRanker(config, SPEC, num_rows=50, mean_popularity=2.0).eval()


def codes(rng, *shape):
    return torch.from_numpy(rng.integers(0, SPEC.levels, size=(*shape, 2)))


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_a_ranker_learns_that_items_like_the_history_are_taken(aggregation):
    rng = np.random.default_rng(0)
    num_items = 12
    history = rng.integers(0, num_items, size=(1500, 4))
    history[:, -1] = history[:, -1] // 6 * 6  # the newest item is 0 or 6, and the next is of its half
    taken = history[:, -1] + rng.integers(0, 6, 1500)
    other = 6 - history[:, -1] + rng.integers(0, 6, 1500)
    examples = Examples(history, np.stack([taken, other], axis=1), np.zeros((1500, 2, 1), np.float32))
    torch.manual_seed(0)
    config = replace(CONFIG, aggregation=aggregation, learning_rate=1e-2)
    ranker = Ranker(config, num_rows=num_items, num_grams=1, num_dense=1)
    rows = torch.arange(num_items)[:, None]
    train_ranker(ranker, examples, rows, shuffled(1300, 32, 3, seed=0))
    log_odds = log_odds_of(ranker, examples, rows, range(1300, 1500))
    assert (log_odds[:, 0] > log_odds[:, 1]).mean() > 0.95


def test_a_pass_in_time_order_has_every_event_once_and_a_shuffled_one_too():
    assert [(part.start, part.stop) for part in in_time_order(range(3, 10), 4)] == [(3, 7), (7, 10)]
    assert sorted(np.concatenate(list(shuffled(10, 4, 1, seed=1))).tolist()) == list(range(10))


@torch.no_grad()
@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_scores_do_not_depend_on_more_padding_on_other_candidates_or_on_other_histories(aggregation):
    rng, ranker = np.random.default_rng(0), served(aggregation=aggregation)
    history, candidates = codes(rng, 2, 3), codes(rng, 2, 5)
    popularity, mass = torch.rand(2, 5) * 9, torch.rand(2, 3)
    neighbors = torch.tensor([[1, 5, PADDING], [2, 7, 11]])
    whole = ranker(history, candidates, popularity, neighbors, mass)
    padding = torch.full((2, 2, 2), PADDING)
    padded = ranker(torch.cat([padding, history], 1), candidates, popularity, neighbors, mass)
    torch.testing.assert_close(padded, whole)
    alone = ranker(history[:1], candidates[:1, 2:3], popularity[:1, 2:3], neighbors[:1], mass[:1])
    torch.testing.assert_close(alone, whole[:1, 2:3])


@torch.no_grad()
def test_only_the_newest_items_count():
    rng, ranker = np.random.default_rng(1), served()
    history, candidates = codes(rng, 1, 9), codes(rng, 1, 2)
    nothing = (torch.zeros(1, 2), torch.full((1, 1), PADDING), torch.zeros(1, 1))
    torch.testing.assert_close(
        ranker(history, candidates, *nothing), ranker(history[:, -4:], candidates, *nothing)
    )


@torch.no_grad()
def test_a_history_without_items_gives_finite_scores():
    ranker = served()
    history = torch.full((1, 1, 2), PADDING)
    candidates = torch.tensor([[[0, 1], [2, 3], [PADDING, PADDING]]])
    found = ranker(history, candidates, torch.zeros(1, 3), torch.full((1, 1), PADDING), torch.zeros(1, 1))
    assert torch.isfinite(found).all()


def test_the_features_of_a_service_by_hand():
    features = ServiceFeatures(SPEC, mean_popularity=2.0)
    history = torch.tensor([[[PADDING, PADDING], [1, 2], [1, 3], [0, 0]]])
    candidates = torch.tensor([[[1, 2], [2, 0], [PADDING, PADDING]]])
    neighbors, mass = torch.tensor([[6, 4, PADDING]]), torch.tensor([[0.5, 9.0, 0.0]])  # 6 is codes 1, 2
    found = features(history, candidates, torch.tensor([[6.0, 0.0, 0.0]]), neighbors, mass)
    assert found.shape == (1, 3, 5)
    by_hand = [np.log(1 + 3), np.log(1.5), np.log(1 + 3), 1 / 2, 1 / 3]
    assert found[0, 0].tolist() == pytest.approx(by_hand)
    assert found[0, 1].tolist() == pytest.approx([0, 0, np.log(1 + 3), 0, 0])
    assert found[0, 2, 3:].tolist() == [0, 0]  # padding is like nothing


@torch.no_grad()
def test_a_new_item_has_the_score_of_a_known_one_with_its_codes():
    rng, ranker = np.random.default_rng(2), served()
    candidates = torch.tensor([[[1, 2], [1, 2]]])
    found = ranker(
        codes(rng, 1, 3), candidates, torch.zeros(1, 2), torch.full((1, 1), PADDING), torch.zeros(1, 1)
    )
    assert found[0, 0] == found[0, 1]


@torch.no_grad()
@pytest.mark.parametrize("aggregation", ["transformer", "pooling"])
def test_attention_to_a_history_adds_up_to_one(aggregation):
    torch.manual_seed(0)
    ranker = Ranker(replace(CONFIG, aggregation=aggregation), num_rows=5, num_grams=1, num_dense=1)
    rows = torch.zeros(2, 4, 1, dtype=torch.int64)
    batch = Batch(rows, torch.ones(2, 4, dtype=torch.bool), rows[:, :1], torch.zeros(2, 1, 1))
    weights = ranker.aggregation.weights(ranker.read(batch))
    torch.testing.assert_close(weights.sum(-1), torch.ones(weights.shape[:-1]))
