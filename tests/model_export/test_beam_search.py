"""The beam against scoring every item, for both generators, in PyTorch and as the exported graph."""

from typing import NamedTuple

import numpy as np
import pytest
import torch

from model_export.beam_search import BeamSearch
from model_export.configs import TigerConfig, TreeConfig
from model_export.generators.base import Generator
from model_export.generators.tiger import TigerGenerator
from model_export.generators.tree import TreeGenerator
from model_export.recommender import exhaustive_scores, export_recommender, random_histories
from service.contract import FILLER, PADDING, SidSpec, recommender_graph
from service.runtime import RecommenderSession
from service.trie import CountTrie

HISTORY = 5
BEAM_LIMIT = 200
SPECS = {
    "even": SidSpec(levels=(4, 4, 4)),
    "odd": SidSpec(levels=(5, 3, 7)),
    "one-code level": SidSpec(levels=(6, 1, 4)),
}


def make_generator(kind: str, spec: SidSpec, *, trained: bool = False) -> Generator:
    """A small generator with weights far from zero, so that scores differ; optionally after some real
    steps.
    """
    torch.manual_seed(3)
    rng = np.random.default_rng(3)
    seen = rng.integers(0, spec.levels, size=(20, spec.num_levels))
    if kind == "tree":
        config = TreeConfig(width=8, num_layers=1, num_heads=2, ffn_dim=16, dropout=0.0)
        generator: Generator = TreeGenerator(
            config=config, spec=spec, history_length=HISTORY, seen_codes=seen
        )
    else:
        config = TigerConfig(width=8, num_layers=1, num_heads=2, head_dim=4, ffn_dim=16, dropout=0.0)
        generator = TigerGenerator(config=config, spec=spec)
    with torch.no_grad():
        for name, weight in generator.named_parameters():
            weight.mul_(4.0 if "norm" not in name else 1.0)
    if trained:
        optimizer = torch.optim.Adam(generator.parameters(), lr=1e-2)
        windows = torch.from_numpy(seen[rng.integers(0, 20, size=(32, HISTORY + 1))])
        for _ in range(30):
            loss = generator.loss(windows)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return generator.eval()


class Case(NamedTuple):
    generator: Generator
    session: RecommenderSession


@pytest.fixture(
    scope="module", params=[(kind, name) for kind in ("tree", "tiger") for name in SPECS], ids=str
)
def case(request, tmp_path_factory) -> Case:
    kind, name = request.param
    generator = make_generator(kind, SPECS[name], trained=name == "odd")
    path = tmp_path_factory.mktemp("graph") / "recommender.onnx"
    graph = export_recommender(path, generator, history_length=HISTORY, beam_limit=BEAM_LIMIT)
    return Case(generator, RecommenderSession(path, graph, threads=1))


def random_trie(spec: SidSpec, rng: np.random.Generator) -> CountTrie:
    """Unbalanced, with shared and missing codes: sometimes empty, one item, one branch, or everything
    alive.
    """
    shape = rng.integers(0, 5)
    if shape == 0:
        codes = np.empty((rng.integers(0, 2), spec.num_levels), dtype=np.int64)
        codes[:] = rng.integers(0, spec.levels, size=codes.shape)
    elif shape == 1:  # one branch of the root, items share codes
        codes = rng.integers(0, spec.levels, size=(rng.integers(1, 30), spec.num_levels))
        codes[:, 0] = codes[0, 0]
    elif shape == 2:
        codes = np.stack([spec.codes_of(prefix) for prefix in range(spec.num_prefixes[-1])])
    else:  # skewed towards small codes
        codes = (rng.random((rng.integers(1, 60), spec.num_levels)) ** 2 * spec.levels).astype(np.int64)
    return CountTrie.from_codes(spec, codes)


def test_full_width_equals_scoring_every_item(case):
    spec, rng = case.generator.spec, np.random.default_rng(0)
    for _ in range(40):
        trie = random_trie(spec, rng)
        history = random_histories(spec, rng, int(rng.integers(1, 5)), int(rng.integers(1, HISTORY + 1)))
        beams = case.session.run(history, trie.tables, BEAM_LIMIT)  # wider than all codes there are
        for row, truth in enumerate(exhaustive_scores(case.generator, history, trie.tables)):
            found = beams.scores[row] > FILLER
            prefixes = spec.prefixes_of(beams.codes[row][found])[-1].tolist()
            assert sorted(prefixes) == sorted(truth)
            np.testing.assert_allclose(beams.scores[row][found], [truth[p] for p in prefixes], atol=2e-4)
            assert (np.diff(beams.scores[row]) <= 0).all()
            assert beams.bound[row] < FILLER


def test_what_is_certified_equals_the_exhaustive_answer(case):
    """At narrow widths: scores above the bound are the best there are, and a bound below is never
    surpassed.
    """
    spec, rng = case.generator.spec, np.random.default_rng(1)
    certified = uncertain = 0
    for _ in range(120):
        trie = random_trie(spec, rng)
        num_beams = int(rng.integers(1, 4))
        history = random_histories(spec, rng, int(rng.integers(1, 4)), int(rng.integers(1, HISTORY + 1)))
        beams = case.session.run(history, trie.tables, num_beams)
        for row, truth in enumerate(exhaustive_scores(case.generator, history, trie.tables)):
            found = beams.scores[row] > FILLER
            prefixes = spec.prefixes_of(beams.codes[row][found])[-1].tolist()
            assert set(prefixes) <= set(truth), "a beam left the catalogue"
            assert len(set(prefixes)) == len(prefixes), "a beam came twice"
            best = sorted(truth.values(), reverse=True)
            certain = beams.scores[row][found] > beams.bound[row]
            np.testing.assert_allclose(beams.scores[row][found][certain], best[: certain.sum()], atol=2e-4)
            outside = [score for prefix, score in truth.items() if prefix not in prefixes]
            assert not outside or max(outside) <= beams.bound[row] + 2e-4
            certified += int(certain.all())
            uncertain += int(not certain.all())
    assert certified > 10, "the cases must exercise both answers"
    assert uncertain > 10


def test_graph_equals_eager_search_at_sizes_not_traced(case):
    spec, rng = case.generator.spec, np.random.default_rng(2)
    search = BeamSearch(case.generator)
    for batch, positions, num_beams in ((1, 1, 1), (1, HISTORY, 2), (7, 2, 50), (2, 3, BEAM_LIMIT)):
        trie = random_trie(spec, rng)
        history = random_histories(spec, rng, batch, positions)
        ours = case.session.run(history, trie.tables, num_beams)
        with torch.no_grad():
            theirs = search(
                torch.from_numpy(history), torch.arange(num_beams), [torch.from_numpy(t) for t in trie.tables]
            )
        np.testing.assert_allclose(ours.scores, theirs.scores, atol=2e-4)
        np.testing.assert_allclose(ours.bound, theirs.bound, atol=2e-4)


def test_an_item_scores_the_same_whatever_else_is_alive(case):
    spec, rng = case.generator.spec, np.random.default_rng(4)
    history = random_histories(spec, rng, 1, HISTORY)
    everything = np.stack([spec.codes_of(prefix) for prefix in range(spec.num_prefixes[-1])])
    among_all = exhaustive_scores(case.generator, history, CountTrie.from_codes(spec, everything).tables)[0]
    for prefix in range(0, spec.num_prefixes[-1], 5):
        alone = CountTrie.from_codes(spec, everything[prefix : prefix + 1])
        beams = case.session.run(history, alone.tables, 3)
        assert beams.scores[0, 0] == pytest.approx(among_all[prefix], abs=2e-4)
        assert (beams.scores[0, 1:] < FILLER).all()


def test_probabilities_of_all_codes_sum_to_one(case):
    spec = case.generator.spec
    everything = np.stack([spec.codes_of(prefix) for prefix in range(spec.num_prefixes[-1])])
    history = random_histories(spec, np.random.default_rng(5), 2, 3)
    for scores in exhaustive_scores(case.generator, history, CountTrie.from_codes(spec, everything).tables):
        assert np.exp(list(scores.values())).sum() == pytest.approx(1.0, abs=1e-4)


def test_padding_on_the_left_changes_nothing(case):
    spec, rng = case.generator.spec, np.random.default_rng(6)
    trie = CountTrie.from_codes(spec, rng.integers(0, spec.levels, size=(30, spec.num_levels)))
    history = rng.integers(0, spec.levels, size=(1, 2, spec.num_levels))
    padded = np.concatenate([np.full((1, HISTORY - 2, spec.num_levels), PADDING), history], axis=1)
    short, long = (case.session.run(h, trie.tables, 9) for h in (history, padded))
    np.testing.assert_allclose(short.scores, long.scores, atol=2e-4)


def test_an_empty_history_scores_without_nan(case):
    spec = case.generator.spec
    trie = CountTrie.from_codes(spec, np.zeros((1, spec.num_levels), dtype=np.int64))
    beams = case.session.run(np.full((1, 2, spec.num_levels), PADDING), trie.tables, 2)
    assert np.isfinite(beams.scores).all()


def test_an_edit_of_the_tables_shows_in_the_next_run(case):
    spec, rng = case.generator.spec, np.random.default_rng(7)
    trie = CountTrie(spec)
    history = random_histories(spec, rng, 1, 3)
    codes = tuple(k - 1 for k in spec.levels)
    assert case.session.run(history, trie.tables, 4).scores[0, 0] < FILLER
    trie.insert(codes)
    assert tuple(case.session.run(history, trie.tables, 4).codes[0, 0]) == codes
    trie.delete(codes)
    assert case.session.run(history, trie.tables, 4).scores[0, 0] < FILLER


def test_the_graph_keeps_one_copy_of_the_weights(tmp_path):
    """Unrolling the levels must not repeat what they share."""
    generator = make_generator("tiger", SidSpec(levels=(64, 64, 64)))
    path = tmp_path / "recommender.onnx"
    export_recommender(path, generator, history_length=HISTORY, beam_limit=BEAM_LIMIT)
    weights = sum(weight.numel() * 4 for weight in generator.parameters())
    assert path.stat().st_size < 1.5 * weights + 500_000


def test_the_contract_names_what_the_graph_holds(case):
    graph = recommender_graph(case.generator.spec)
    assert [tensor.name for tensor in graph.outputs] == ["codes", "scores", "bound"]
    assert {tensor.name for tensor in graph.inputs} >= {"history", "beams", "counts_1"}
