"""Opinions are weighed by what makes the targets likely; their quality is that of the search."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from model_export.bundle.recommender import exhaustive_scores, random_histories
from model_export.configs import OpinionsConfig, TreeConfig, tiny
from model_export.data.dataset import make_dataset
from model_export.data.splits import leave_one_out
from model_export.evaluation.metrics import ndcg_at
from model_export.evaluation.ranking import ItemsOfCodes, Ranker
from model_export.generators.beam_search import eager_search
from model_export.generators.item_scores import item_scores
from model_export.pipeline.cache import StageCache
from model_export.pipeline.generating import make_generator
from model_export.pipeline.opinions import Opinions, weigh
from model_export.pipeline.run import Run
from service.core.sid import SidSpec
from service.core.trie import SidTrie

SID = SidSpec(levels=(6, 5, 4))
NUM_ITEMS = 60
CODES = np.stack(np.unravel_index(np.random.default_rng(3).permutation(120)[:NUM_ITEMS], SID.levels), axis=1)
VECTORS = np.random.default_rng(1).normal(size=(NUM_ITEMS, 8)).astype(np.float32)
FEATURES = np.random.default_rng(2).normal(size=(NUM_ITEMS, 16)).astype(np.float32)


def run_of(next_item) -> Run:
    """Users whose next item is a function of the item before."""
    rng = np.random.default_rng(0)
    histories = []
    for user in range(150):
        items = [int(rng.integers(NUM_ITEMS))]
        while len(items) < 7:
            items.append(int(next_item(items[-1], rng)))
        histories.append((f"user-{user}", np.array(items)))
    items = [{"item_id": f"item-{item}", "title": f"bolt {item}"} for item in range(NUM_ITEMS)]
    dataset = make_dataset("planted", items, histories, {})
    config = replace(
        tiny(),
        sid=SID,
        generator=TreeConfig(width=16, num_layers=1, num_heads=2, ffn_dim=16),
        history_length=5,
        opinions=OpinionsConfig(content_dim=8),
    )
    return Run(dataset, leave_one_out(dataset), config, StageCache(Path("unused")))


def generator_of(run):
    torch.manual_seed(0)
    return make_generator(run.config, CODES, SID, run.split.train, VECTORS).eval()


def partner(item, _rng):
    return (item + 11) % NUM_ITEMS


def anything(_item, rng):
    return rng.integers(NUM_ITEMS)


def test_the_score_of_each_item_equals_the_one_found_code_by_code():
    generator = generator_of(run_of(partner))
    histories = random_histories(SID, np.random.default_rng(0), 4, 5)
    found = item_scores(generator, CODES, histories)
    prefixes = SID.prefixes_of(CODES)[-1].tolist()
    for row, truth in zip(
        found, exhaustive_scores(generator, histories, SidTrie.from_codes(SID, CODES)), strict=True
    ):
        np.testing.assert_allclose(row, [truth[prefix] for prefix in prefixes], atol=1e-4)


@pytest.mark.parametrize("next_item", [partner, anything])
def test_the_quality_is_that_of_a_search_with_the_chosen_opinions(next_item):
    run = run_of(next_item)
    generator = generator_of(run)
    found = weigh(run, generator, CODES, VECTORS, FEATURES)
    ranker = Ranker(
        eager_search(generator, catalog := ItemsOfCodes.build(SID, CODES), found.opinions.counts),
        catalog,
        history_length=run.config.history_length,
        num_beams=200,
        beam_limit=200,
        batch_size=64,
        neighbors=found.neighbors(SID, CODES, run.dataset.item_ids),
    )
    users = run.split.validation
    assert found.num_users == len(users)
    assert ndcg_at(ranker.rank(users.histories, 10), users.targets, 10) == pytest.approx(
        found.quality, abs=2e-3
    )


def test_counts_count_where_they_tell_the_next_item_and_do_no_harm_where_they_do_not():
    run = run_of(partner)
    told = weigh(run, generator_of(run), CODES, VECTORS, FEATURES)
    assert told.opinions.counts > 0
    assert told.quality > 0.5 > told.learned_quality
    run = run_of(anything)
    noise = weigh(run, generator_of(run), CODES, VECTORS, FEATURES)
    assert noise.quality > 0.8 * noise.learned_quality


def test_a_weight_keeps_its_default_without_evidence():
    run = run_of(anything)
    found = weigh(run, generator_of(run), CODES, VECTORS, np.zeros_like(FEATURES))
    assert found.opinions.content == pytest.approx(Opinions().content, rel=1e-3)


def test_photos_have_a_say_where_they_tell_the_next_item():
    """Items whose photos are alike are taken one after another. Their texts and codes know nothing of it."""
    kinds = np.arange(NUM_ITEMS) % 6
    rng = np.random.default_rng(4)
    photos = (3 * np.eye(6)[kinds] + 0.3 * rng.normal(size=(NUM_ITEMS, 6))).astype(np.float32)
    run = run_of(lambda item, rng: rng.choice(np.flatnonzero(kinds == kinds[item])))
    told = weigh(run, generator_of(run), CODES, VECTORS, FEATURES, photos)
    blind = weigh(run, generator_of(run), CODES, VECTORS, FEATURES)
    assert told.opinions.photo * told.opinions.likeness > 1
    assert "photo" in told.opinions.figures()
    assert "photo" not in blind.opinions.figures()
    assert told.quality > blind.quality


def test_a_target_that_is_hidden_among_few_items_does_not_spoil_the_weights_of_the_others():
    """Some targets are in the history of their users, and all items are candidates in a small catalog."""
    run = run_of(lambda item, rng: partner(item, rng) if rng.random() < 0.8 else item)
    validation = run.split.validation
    assert 0 < validation.repeated_share < 0.5
    found = weigh(run, generator_of(run), CODES, VECTORS, FEATURES)
    assert found.opinions != Opinions(), "nothing was learned"
    assert found.quality > found.learned_quality


def test_an_encoder_that_reads_photos_alone_needs_no_features_of_texts():
    run = run_of(anything)
    nothing = np.zeros((NUM_ITEMS, 0), np.float32)
    found = weigh(run, generator_of(run), CODES, VECTORS, nothing, FEATURES)
    assert found.opinions.content == pytest.approx(Opinions().content, rel=1e-3)
    assert np.isfinite(found.quality)
