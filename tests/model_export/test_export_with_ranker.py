"""A bundle with a ranker, from the pipeline to its figures; all other stages are those of the tiny export."""

from dataclasses import replace

import numpy as np
import pytest

from model_export.configs import RunConfig, tiny, with_ranker
from model_export.evaluation.evaluate import table
from model_export.export import export
from model_export.ranker_config import RankerConfig
from service.core.bundle import RANKER, Bundle, load_bundle
from service.core.graphs import PADDING, Neighbors
from service.errors import GlyphrecError
from service.inference.runtime import RankerSession

SMALL = RankerConfig(width=8, hidden_dim=16, num_non_events=3, num_epochs=2, max_events=2000)


def config() -> RunConfig:
    return with_ranker(tiny(), SMALL)


@pytest.fixture(scope="module")
def bundle(tiny_export, tmp_path_factory) -> Bundle:
    out = tmp_path_factory.mktemp("ranked") / "bundle"
    return export(tiny_export.dataset, out, config(), cache_folder=tiny_export.cache, say=lambda _line: None)


@pytest.mark.slow
def test_a_bundle_with_a_ranker_differs_from_one_without_in_the_ranker_alone(bundle, tiny_export):
    plain = load_bundle(tiny_export.bundle.path).manifest
    manifest = load_bundle(bundle.path).manifest
    assert (manifest.format_version, plain.format_version) == (5, 3)
    assert manifest.ranker.trained_for_tokenizer_id == plain.tokenizer_id
    assert manifest.recommender_id == plain.recommender_id
    assert manifest.files["recommender.onnx"] == plain.files["recommender.onnx"]
    assert manifest.ranker.parameterization == "prefix-3gram"
    assert manifest.metrics["max_ranker_difference"] < 1e-3
    assert RANKER not in plain.files


@pytest.mark.slow
def test_its_report_and_figures_tell_what_reranking_buys(bundle):
    metrics = bundle.manifest.metrics
    assert 0 <= metrics["reranked_ndcg@10"] <= metrics["model_recall@50"] <= 1
    report = bundle.file("report/report.md").read_text()
    assert "the model's first 50, reranked, history excluded" in report
    assert "The ranker takes" in table(metrics)


@pytest.mark.slow
def test_the_graph_prefers_what_was_taken_together_and_often(bundle):
    manifest = bundle.manifest
    session = RankerSession(bundle.file(RANKER), manifest.ranker.graph, threads=1)
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


def test_a_ranker_of_ids_cannot_be_exported(tiny_export, tmp_path):
    of_ids = with_ranker(tiny(), replace(SMALL, parameterization="random-hash"))
    with pytest.raises(GlyphrecError, match="its ranker reads the ids of items"):
        export(tiny_export.dataset, tmp_path / "b", of_ids, cache_folder=tmp_path, say=lambda _line: None)
