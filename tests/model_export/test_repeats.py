"""An export of users who take the same items again and again, from the data to the served pages' graph."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model_export.configs import TrainingConfig, tiny
from model_export.data.dataset import Dataset, make_dataset
from model_export.data.splits import leave_one_out
from model_export.export import export

NUM_ITEMS, NUM_USERS, NUM_FAVORITES = 30, 60, 3


def groceries(*, again: bool) -> Dataset:
    """Each user goes round three items again and again, or takes every item once."""
    rng = np.random.default_rng(0)
    items = [{"item_id": f"b{n}", "title": f"Bolt M{n} x {5 * n} mm, steel"} for n in range(NUM_ITEMS)]
    histories = []
    for user in range(NUM_USERS):
        favorites = rng.choice(NUM_ITEMS, NUM_FAVORITES if again else 9, replace=False)
        histories.append((f"u{user}", np.resize(favorites, 9)))
    return make_dataset("groceries", items, histories, {})


@pytest.mark.slow
def test_an_export_of_repeats_learns_to_recommend_the_history_again(tmp_path: Path) -> None:
    dataset = groceries(again=True)
    said: list[str] = []
    config = replace(tiny(), training=replace(tiny().training, max_steps=60))
    bundle = export(dataset, tmp_path / "bundle", config, cache_folder=tmp_path / "cache", say=said.append)

    (told,) = (line for line in said if "validation targets" in line)
    assert told.startswith("100% of the validation targets are in the user's own history. So the model is")
    assert '"exclude_history": false' in told
    figures = bundle.manifest.metrics
    assert figures["repeated_targets"] == 1.0
    # Pages without the history cannot have the targets; pages with it have one of three in ten.
    assert figures["model_recall@10"] == figures["popularity_recall@10"] == 0.0
    assert figures["history_included_model_recall@10"] > 10 / NUM_ITEMS
    # The opinions were weighed on the same answers, so they found something too.
    assert figures["opinions_ndcg@10"] > 0
    assert figures["opinions_users"] == len(leave_one_out(dataset).validation)


@pytest.mark.slow
def test_an_export_without_repeats_says_nothing_of_them(tmp_path: Path) -> None:
    said: list[str] = []
    short = TrainingConfig(max_steps=5, batch_positions=512, max_validation_users=20)
    config = replace(tiny(), training=short, opinions=None)
    bundle = export(
        groceries(again=False), tmp_path / "bundle", config, cache_folder=tmp_path / "cache", say=said.append
    )
    assert not any("user's own history" in line for line in said)
    assert bundle.manifest.metrics["repeated_targets"] == 0.0
