"""A bundle with a ranker, from the pipeline to its figures, on some users of the groceries."""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from model_export.configs import OpinionsConfig, RunConfig, tiny, with_ranker
from model_export.data.dataset import Dataset, make_dataset
from model_export.evaluation.evaluate import table
from model_export.export import export
from model_export.pipeline import generating, stages
from model_export.pipeline.run import Run, silent
from model_export.ranker_config import RankerConfig
from service.core.bundle import RANKER, RECOMMENDER, Bundle, load_bundle
from service.core.graphs import PADDING, Neighbors
from service.core.render import font_sha256
from service.errors import GlyphrecError
from service.inference.runtime import RankerSession

NUM_USERS = 200  # evaluation and the weighing of opinions take most of the time of a small export
SMALL = RankerConfig(width=8, hidden_dim=16, num_non_events=3, num_epochs=2, max_events=2000)


class Ranked(NamedTuple):
    bundle: Bundle
    stages_before: set[str]  # the files of the cache, when all but the ranker was trained
    stages_after: set[str]


def plain() -> RunConfig:
    """The configuration `tiny` as an export completes it, so that both read the items once."""
    config = tiny()
    render = config.render.model_copy(update={"font_sha256": font_sha256(config.render)})
    return replace(config, render=render, opinions=OpinionsConfig(max_users=100))


@pytest.fixture(scope="module")
def dataset(small_dataset) -> Dataset:
    some = zip(small_dataset.user_ids[:NUM_USERS], small_dataset.sequences[:NUM_USERS], strict=True)
    return make_dataset("few", small_dataset.items, list(some), {})


@pytest.fixture(scope="module")
def ranked(dataset, tmp_path_factory) -> Ranked:
    folder = tmp_path_factory.mktemp("ranked")
    cache = folder / "cache"
    run = Run.of(dataset, plain(), cache, silent)
    with stages.deterministic():
        coded = stages.code(run, stages.read(run))
        generating.generate(run, coded.codes, coded.spec, vectors=coded.vectors)
    before = names_in(cache)
    config = with_ranker(plain(), SMALL)
    bundle = export(dataset, folder / "bundle", config, cache_folder=cache, say=silent)
    return Ranked(bundle, before, names_in(cache))


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.slow
def test_a_ranker_is_trained_beside_the_stages_of_an_export_without_one(ranked):
    added = ranked.stages_after - ranked.stages_before
    assert {name.split("-")[0] for name in added} == {"ranker"}


@pytest.mark.slow
def test_its_graph_is_checked_and_belongs_to_the_tokenizer_of_the_bundle(ranked):
    manifest = load_bundle(ranked.bundle.path).manifest
    assert manifest.format_version == 5
    assert {RANKER, RECOMMENDER} <= set(manifest.files)
    assert manifest.ranker.trained_for_tokenizer_id == manifest.tokenizer_id
    assert manifest.ranker.parameterization == "prefix-3gram"
    assert manifest.metrics["max_ranker_difference"] < 1e-3


@pytest.mark.slow
def test_its_report_and_figures_tell_what_reranking_buys(ranked):
    metrics = ranked.bundle.manifest.metrics
    gain = metrics["reranked_ndcg@10"] - metrics["candidates_ndcg@10"]
    assert gain == pytest.approx(metrics["rerank_gain_mean"])
    assert metrics["rerank_gain_low"] <= gain <= metrics["rerank_gain_high"]
    assert 0 <= metrics["reranked_ndcg@10"] <= metrics["model_recall@50"] <= 1
    report = ranked.bundle.file("report/report.md").read_text()
    assert "the same, reranked" in report
    assert "Reranking changes NDCG@10 of the 50 candidates by" in table(metrics)


@pytest.mark.slow
def test_the_graph_prefers_what_was_taken_together_and_often(ranked):
    manifest = ranked.bundle.manifest
    session = RankerSession(ranked.bundle.file(RANKER), manifest.ranker.graph, threads=1)
    levels = np.array(manifest.sid.levels)
    history = np.zeros((1, 2, 3), np.int64)
    candidates = np.array([[[1, 1, 1], [1, 1, 1], [2, 2, 2]]]) % levels
    prefix = manifest.sid.prefixes((2, 2, 2))[-1]
    neighbors = Neighbors(np.array([[prefix, PADDING]]), np.array([[50.0, 0.0]], np.float32))
    popularity = np.array([[0.0, 500.0, 0.0]], np.float32)
    scores = session.run(history, candidates, popularity, neighbors)[0]
    without = session.run(history, candidates, popularity)[0]
    assert scores[1] != scores[0]
    assert scores[2] > without[2]
    assert np.array_equal(scores[:2], without[:2])


def test_a_ranker_of_ids_cannot_be_exported(dataset, tmp_path):
    of_ids = with_ranker(tiny(), replace(SMALL, parameterization="random-hash"))
    with pytest.raises(GlyphrecError, match="its ranker reads the ids of items"):
        export(dataset, tmp_path / "b", of_ids, cache_folder=tmp_path, say=silent)
