"""The pipeline end to end on real groceries, configuration tiny."""

import gzip
import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from model_export.configs import TigerConfig, tiny
from model_export.data.dataset import DataError, Dataset, make_dataset
from model_export.data.splits import leave_one_out
from model_export.evaluation.evaluate import evaluate_model, table
from model_export.export import export
from model_export.pipeline import generating, stages
from model_export.pipeline.run import Run, silent
from service.core.bundle import ITEMS, load_bundle
from service.core.bundle_items import bundle_items
from service.errors import GlyphrecError

NUM_USERS = 200  # for tests that need no more; evaluation takes most of the time of a small export


def with_other_last_items(dataset: Dataset, num_changed: int) -> Dataset:
    """The same data, but the last `num_changed` items of each user are replaced by random ones."""
    rng = np.random.default_rng(0)
    histories = []
    for user_id, sequence in zip(dataset.user_ids, dataset.sequences, strict=True):
        changed = sequence.copy()
        if len(sequence) >= 3:
            unseen = np.setdiff1d(np.arange(dataset.num_items), sequence)
            changed[-num_changed:] = rng.choice(unseen, num_changed, replace=False)
        histories.append((user_id, changed))
    return make_dataset(dataset.name, dataset.items, histories, {})


def test_a_bundle_holds_the_files_and_items_of_its_manifest(tiny_export):
    bundle = load_bundle(tiny_export.bundle.path)
    manifest = bundle.manifest
    assert manifest.num_items == tiny_export.dataset.num_items
    assert manifest.trained_for_tokenizer_id == manifest.tokenizer_id
    assert manifest.data_fingerprint == tiny_export.dataset.fingerprint
    assert {"report/report.md", "report/items.png", "report/training.png"} <= set(manifest.files)
    assert {
        "model_recall@10",
        "popularity_ndcg@10",
        "near_copy_first_code",
        "model_coverage@10",
        "markov_coverage@10",
        "model_seen_transition_recall@10",
    } <= set(manifest.metrics)
    with gzip.open(bundle.file(ITEMS), "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    assert [row["item"] for row in rows] == tiny_export.dataset.items
    sids = {(*row["codes"], row["slot"]) for row in rows}
    assert len(sids) == len(rows), "two items share a Semantic ID"


def test_too_short_histories_are_one_clear_error(tmp_path):
    items = [{"item_id": str(n), "title": f"Bolt M{n}"} for n in range(3)]
    histories = [(str(user), [0, 1, 2]) for user in range(5)]
    with pytest.raises(DataError, match="some users must have four or more"):
        export(
            make_dataset("short", items, histories, {}),
            tmp_path / "bundle",
            tiny(),
            cache_folder=tmp_path,
            say=silent,
        )


def test_the_same_export_again_is_kept_as_it_is(tiny_export):
    said = []
    again = export(
        tiny_export.dataset, tiny_export.bundle.path, tiny(), cache_folder=tiny_export.cache, say=said.append
    )
    assert again.manifest == tiny_export.bundle.manifest
    assert len(said) == 1
    assert "kept as it is" in said[0]


def test_a_bundle_is_never_overwritten(tiny_export):
    with pytest.raises(GlyphrecError, match=r"holds another bundle .* Give another --out"):
        export(
            tiny_export.dataset,
            tiny_export.bundle.path,
            replace(tiny(), seed=1),
            cache_folder=tiny_export.cache,
            say=silent,
        )


def test_a_folder_of_other_things_is_left_alone(tiny_export, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(GlyphrecError, match="exists and is not a bundle"):
        export(tiny_export.dataset, tmp_path, tiny(), cache_folder=tiny_export.cache, say=silent)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_seed_gives_the_same_codes_and_weights_again(tiny_export, tmp_path):
    """Only the reading comes from the first run. Everything that is fitted is fitted again."""
    for reading in tiny_export.cache.glob("reading-*"):
        (tmp_path / reading.name).hardlink_to(reading)
    again = export(tiny_export.dataset, tmp_path / "bundle", tiny(), cache_folder=tmp_path, say=silent)
    assert [row.codes for row in bundle_items(again)] == [
        row.codes for row in bundle_items(tiny_export.bundle)
    ]
    assert again.manifest.tokenizer_id == tiny_export.bundle.manifest.tokenizer_id
    assert again.manifest.recommender_id == tiny_export.bundle.manifest.recommender_id


FIT = """
import pickle
import sys

import torch

from model_export.pipeline import generating, stages

assert torch.get_num_threads() == 2
for run in pickle.load(sys.stdin.buffer):
    with stages.deterministic():
        coded = stages.code(run, stages.read(run))
        generating.generate(run, coded.codes, coded.spec, vectors=coded.vectors)
"""


def test_threads_do_not_change_the_result_of_a_seed(tiny_export, tmp_path):
    """A separate process with two threads fits twice. Gradients must add up in the same order.

    Equal weights give equal graphs, which the test above shows, so no graph is written here.
    """
    whole, folders = tiny_export.dataset, [tmp_path / "first", tmp_path / "second"]
    some_users = zip(whole.user_ids[:NUM_USERS], whole.sequences[:NUM_USERS], strict=True)
    dataset = make_dataset(whole.name, whole.items, list(some_users), {})
    config = replace(tiny(), render=tiny_export.bundle.manifest.render)
    for folder in folders:
        folder.mkdir()
        for reading in tiny_export.cache.glob("reading-*.npz"):
            (folder / reading.name).hardlink_to(reading)
    runs = pickle.dumps([Run.of(dataset, config, folder) for folder in folders])
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-c", FIT], input=runs, env=environment, check=True, capture_output=True)
    # A stage's name holds the hash of its inputs, which are the outputs of the stages before it.
    first, second = (sorted(path.name for path in folder.iterdir()) for folder in folders)
    assert first == second
    (trained,) = (name for name in first if name.startswith("generator-"))
    ours, theirs = (torch.load(folder / trained, weights_only=False)[0] for folder in folders)
    assert ours.keys() == theirs.keys()
    for name, weight in theirs.items():
        np.testing.assert_array_equal(ours[name], weight, err_msg=name)


def test_the_other_generator_goes_the_same_way(tiny_export, tmp_path):
    for reading in tiny_export.cache.glob("reading-*"):
        (tmp_path / reading.name).hardlink_to(reading)
    small = TigerConfig(width=16, num_layers=1, num_heads=2, head_dim=8, ffn_dim=32)
    training = replace(tiny().training, max_steps=10)
    config = replace(tiny(), generator=small, training=training, opinions=None)
    bundle = export(tiny_export.dataset, tmp_path / "bundle", config, cache_folder=tmp_path, say=silent)
    assert bundle.manifest.generator == "tiger"
    assert bundle.manifest.metrics["max_exhaustive_difference"] < 1e-3
    # The tokenizer is the same, so a service can switch between the two recommenders.
    assert bundle.manifest.tokenizer_id == tiny_export.bundle.manifest.tokenizer_id


def test_targets_touch_neither_encoder_nor_quantizer_nor_generator(tiny_export, tmp_path):
    """With every target replaced by another item, all that is fitted comes out the same.

    Validation targets may choose which of the generator's epochs is kept, so there only test targets change.
    """
    for reading in tiny_export.cache.glob("reading-*"):
        (tmp_path / reading.name).hardlink_to(reading)
    codes = np.array([row.codes for row in bundle_items(tiny_export.bundle)])
    config = replace(tiny(), render=tiny_export.bundle.manifest.render)

    changed = with_other_last_items(tiny_export.dataset, 2)
    assert changed.fingerprint != tiny_export.dataset.fingerprint
    run = Run.of(changed, config, tmp_path)
    coded = stages.code(run, stages.read(run))
    np.testing.assert_array_equal(coded.codes, codes)

    ours, theirs = (
        generating.generate(run, codes, coded.spec, vectors=coded.vectors).generator
        for run in (
            Run.of(with_other_last_items(tiny_export.dataset, 1), config, tmp_path),
            Run.of(tiny_export.dataset, config, tiny_export.cache),
        )
    )
    for name, weight in theirs.state_dict().items():
        np.testing.assert_array_equal(ours.state_dict()[name], weight, err_msg=name)


def test_the_model_beats_popularity_on_what_it_was_trained_on(tiny_export):
    """A lower limit: `tiny` is too small to be good, but it must have learnt something."""
    metrics = tiny_export.bundle.manifest.metrics
    assert metrics["model_recall@10"] > 10 / tiny_export.dataset.num_items


def test_evaluation_of_the_exported_graphs_is_repeatable(tiny_export):
    figures = evaluate_model(
        tiny_export.bundle, tiny_export.dataset, leave_one_out(tiny_export.dataset), progress=False
    )
    for name, value in figures.items():
        assert tiny_export.bundle.manifest.metrics[name] == pytest.approx(value, abs=1e-9)


def test_the_table_names_the_model_and_its_baselines(tiny_export):
    text = table(tiny_export.bundle.manifest.metrics)
    assert "first-order Markov" in text
    assert "popularity" in text
    assert "near copies" in text
    assert "coverage@10" in text
    assert "transition seen in training (" in text
