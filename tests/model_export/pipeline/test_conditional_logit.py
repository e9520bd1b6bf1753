"""Weights by maximum likelihood, against weights that are known and against a search over a grid."""

from itertools import product

import numpy as np
import pytest

from model_export.pipeline.conditional_logit import fit


def choices(weights, num_users, num_items=30, seed=0):
    """Scores [user, item, score] and what users choose who weigh them like this."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(num_users, num_items, len(weights))).astype(np.float32)
    total = scores @ np.array(weights) + rng.gumbel(size=(num_users, num_items))  # so the softmax is exact
    return scores, total.argmax(axis=1)


def likelihood(scores, chosen, weights):
    total = scores @ np.array(weights)
    return float(np.mean(total[np.arange(len(chosen)), chosen] - np.log(np.exp(total).sum(axis=1))))


def test_weights_that_were_planted_are_found():
    scores, chosen = choices([0.5, 2.0, 0.0], 4_000)
    found = fit(scores, chosen, np.array([1.0, 1.0, 1.0]))
    assert found.weights == pytest.approx([0.5, 2.0, 0.0], abs=0.1)
    assert found.log_likelihood == pytest.approx(likelihood(scores, chosen, found.weights), abs=0.01)


def test_no_weights_of_a_grid_are_more_likely():
    scores, chosen = choices([1.0, 0.3], 500)
    found = fit(scores, chosen, np.array([0.8, 0.5]))
    for weights in product(np.arange(0, 2, 0.1), repeat=2):
        assert likelihood(scores, chosen, weights) <= likelihood(scores, chosen, found.weights) + 1e-3


def test_no_weight_is_negative_and_what_says_nothing_keeps_its_start():
    scores, chosen = choices([1.0, -2.0, 0.0], 500)
    scores[..., 2] = 7.0  # the same for every item
    found = fit(scores, chosen, np.array([1.0, 1.0, 0.4]))
    assert found.weights[1] == 0
    assert found.weights[2] == pytest.approx(0.4, abs=1e-3)


def test_few_users_move_the_weights_less_than_many():
    start = np.array([1.0])
    few, many = (fit(*choices([4.0], users), start).weights[0] for users in (5, 5_000))
    assert 1 < few < many == pytest.approx(4.0, abs=0.3)
    assert fit(np.zeros((0, 3, 1), np.float32), np.zeros(0, int), start).weights == pytest.approx(start)


def test_an_item_that_cannot_be_chosen_has_no_say():
    scores, chosen = choices([1.0, 1.0], 1_000)
    hidden = np.concatenate([scores, np.full_like(scores[:, :5], 50.0)], axis=1)
    hidden[:, -5:, 0] = -np.inf
    start = np.array([1.0, 1.0])
    assert fit(hidden, chosen, start).weights == pytest.approx(fit(scores, chosen, start).weights, abs=1e-3)
