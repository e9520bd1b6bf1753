"""Writes and checks the recommender graph: the generator and the whole beam search in one ONNX file."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from model_export.generators.base import Generator
from model_export.generators.beam_search import BeamSearch, search_eagerly
from model_export.onnx_graphs import name_dimensions, to_onnx
from service.core.graphs import (
    FILLER_SCORE,
    PADDING,
    GraphSpec,
    Neighbors,
    beam_widths,
    recommender_graph,
)
from service.core.sid import SidSpec
from service.core.trie import SidTrie
from service.errors import ContractMismatch
from service.inference.runtime import RecommenderSession

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py

# Sizes for tracing are 2 or more, because the exporter takes 0 and 1 for constants. The check also runs with
# 1.
TRACED_BATCH, TRACED_POSITIONS, TRACED_BEAMS, TRACED_NEIGHBORS = 3, 4, 5, 9


def export_recommender(
    path: Path,
    generator: Generator,
    *,
    history_length: int,
    beam_limit: int,
    neighbor_weight: float = 1.0,
) -> GraphSpec:
    """Write the generator's whole beam search to `path`.

    history_length: the most items of a history. beam_limit: the most beams of a level. neighbor_weight: of
    the counts beside the generator's score. Returns the tensors of the graph.
    """
    spec = generator.spec
    graph = recommender_graph(spec)
    history = torch.zeros(TRACED_BATCH, TRACED_POSITIONS, spec.num_levels, dtype=torch.int64)
    # The lengths differ, because the exporter takes equal lengths for one dimension.
    beams = [torch.arange(TRACED_BEAMS + level) for level in range(spec.num_levels)]
    tables = [torch.from_numpy(table) for table in SidTrie(spec).tables]
    neighbors = torch.zeros(TRACED_BATCH, TRACED_NEIGHBORS, dtype=torch.int64)
    dim = torch.export.Dim
    pages: list[dict[int, Any]] = [{} for _ in tables]
    if spec.is_paged:
        pages[-1] = {0: dim("page", min=2)}
    batch, neighbor = dim("batch", min=1), dim("neighbor", min=1)
    dynamic = {
        "history": {0: batch, 1: dim("position", min=1, max=max(history_length, 2))},
        "neighbors": {0: batch, 1: neighbor},
        "neighbor_mass": {0: batch, 1: neighbor},
        "beams": [
            {0: dim(f"beam_{level}", min=1, max=max(beam_limit, 2))} for level in range(1, len(beams) + 1)
        ],
        "tables": pages,
    }
    model = to_onnx(
        BeamSearch(generator, neighbor_weight).eval(),
        (history, neighbors, neighbors.float(), beams, tables),
        inputs=[tensor.name for tensor in graph.inputs],
        outputs=[tensor.name for tensor in graph.outputs],
        dynamic_shapes=dynamic,
    )
    onnx.save(name_dimensions(model, graph), path)
    return graph


def check_recommender(
    path: Path,
    generator: Generator,
    trie: SidTrie,
    *,
    history_length: int,
    beam_limit: int,
    seed: int,
    neighbor_weight: float = 1.0,
) -> dict[str, float]:
    """Compare the written graph with the generator in PyTorch, and with a score for every live item.

    The comparison includes batch 1, one position, tables that the export did not use, and histories with
    neighbors and without. Returns the largest differences, in nats. Raises ContractMismatch if one is too
    large.
    """
    rng = np.random.default_rng(seed)
    session = RecommenderSession(path, recommender_graph(generator.spec), threads=1)
    search = BeamSearch(generator, neighbor_weight).eval()
    sparse = _thinned(trie, rng)
    worst = {"max_score_difference": 0.0, "max_exhaustive_difference": 0.0}
    for tried, batch, positions, num_beams, num_neighbors in (
        (trie, 1, history_length, min(50, beam_limit), 30),
        (trie, 5, 1, 1, 1),
        (sparse, 2, max(1, history_length // 2), beam_limit, 20),
        (SidTrie(generator.spec), 1, 1, 2, 0),
    ):
        history = random_histories(generator.spec, rng, batch, positions)
        neighbors = random_neighbors(tried, rng, batch, num_neighbors)
        widths = beam_widths(generator.spec, num_beams)
        ours = session.run(history, tried.tables, widths, neighbors)
        theirs = search_eagerly(search, history, tried.tables, widths, neighbors)
        gap = float(np.abs(ours.scores - theirs.scores.numpy()).max())
        worst["max_score_difference"] = max(worst["max_score_difference"], gap)
        truth = with_neighbors(exhaustive_scores(generator, history, tried), neighbors, neighbor_weight)
        gap = _gap_to_exhaustive(generator.spec, ours.codes, ours.scores, ours.bound, truth)
        worst["max_exhaustive_difference"] = max(worst["max_exhaustive_difference"], gap)
    for name, gap in worst.items():
        if gap > 1e-3:
            raise ContractMismatch(
                f"{path}: {name} is {gap:.2g}, and at most 0.001 is allowed. The graph does not compute the "
                "same as its model. Use the versions of constraints.txt and export again."
            )
    return worst


def random_histories(
    spec: SidSpec, rng: np.random.Generator, batch: int, positions: int
) -> NDArray[np.int64]:
    """Random codes [batch, position, level], padded on the left. Each row has at least one item."""
    history = rng.integers(0, spec.levels, size=(batch, positions, spec.num_levels))
    for row in range(batch):
        history[row, : rng.integers(0, positions)] = PADDING
    return history


def random_neighbors(trie: SidTrie, rng: np.random.Generator, batch: int, num_neighbors: int) -> Neighbors:
    """Random neighbors among the live codes of `trie` and others, with room left over at the end."""
    if not num_neighbors:
        return Neighbors.none(batch)
    live = np.fromiter(trie.living(), dtype=np.int64)
    dead = rng.integers(0, trie.spec.num_parents[-1] * trie.spec.levels[-1], size=num_neighbors)
    choice = np.union1d(live, dead)
    num_neighbors = min(num_neighbors, len(choice))
    prefixes = np.stack([rng.choice(choice, size=num_neighbors, replace=False) for _ in range(batch)])
    mass = rng.exponential(3.0, size=prefixes.shape).astype(np.float32)
    none = np.full((batch, 2), PADDING)
    return Neighbors(np.hstack([prefixes, none]), np.hstack([mass, np.zeros_like(none, np.float32)]))


def with_neighbors(
    scores: list[dict[int, float]], neighbors: Neighbors, weight: float
) -> list[dict[int, float]]:
    """Scores of full prefixes with the term of the counts, computed item by item (see NeighborOpinion)."""
    found = []
    for scored, prefixes, mass in zip(
        scores, neighbors.prefixes.tolist(), neighbors.mass.tolist(), strict=True
    ):
        mass_of = dict(zip(prefixes, mass, strict=True))
        most = np.log1p(max(mass))
        found.append(
            {
                prefix: score + weight * float(np.log1p(mass_of.get(prefix, 0.0)) - most)
                for prefix, score in scored.items()
            }
        )
    return found


@torch.no_grad()
def exhaustive_scores(
    generator: Generator, history: NDArray[np.int64], trie: SidTrie
) -> list[dict[int, float]]:
    """Score every live full code for each history, without search or trie. Slow, but obviously right.

    Returns {full prefix: score} for each history. Each live code has a beam of its own.
    """
    spec = generator.spec
    live = list(trie.living())
    if not live:
        return [{} for _ in history]
    codes = np.stack([spec.codes_of(prefix) for prefix in live])  # [live, level]
    found = []
    for row in torch.from_numpy(history):
        state = generator.start(row[None])
        prefix = torch.zeros(1, 1, dtype=torch.int64)
        score = torch.zeros(1, len(live))
        for level, num_codes in enumerate(spec.levels):
            log_probs, state = generator.step(level, state, prefix)  # [1, beam, code]
            code = torch.from_numpy(codes[None, :, level])  # [1, live]
            log_probs = log_probs.expand(1, len(live), num_codes)  # level 0 has one beam for all
            score = score + log_probs.gather(2, code[..., None])[..., 0]
            if level == 0:
                state = generator.reorder(state, torch.zeros_like(code))
            prefix = prefix.expand_as(code) * num_codes + code
        found.append(dict(zip(live, score[0].tolist(), strict=True)))
    return found


def _gap_to_exhaustive(
    spec: SidSpec,
    codes: NDArray[np.int64],
    scores: NDArray[np.float32],
    bound: NDArray[np.float32],
    truth: list[dict[int, float]],
) -> float:
    """The largest difference between a beam's score and the true score.

    It also covers the difference between a certified score and the best true score of the same rank. Raises
    ContractMismatch if the search pruned nothing but did not find all live codes.
    """
    worst = 0.0
    for row, scored in enumerate(truth):
        valid = scores[row] > FILLER_SCORE
        prefixes = spec.prefixes_of(codes[row][valid])[-1].tolist()
        gaps = [
            abs(scored[prefix] - score) for prefix, score in zip(prefixes, scores[row][valid], strict=True)
        ]
        worst = max([worst, *map(float, gaps)])
        certain = [p for p, score in zip(prefixes, scores[row][valid], strict=True) if score > bound[row]]
        best = sorted(scored.values(), reverse=True)[: len(certain)]
        worst = max([worst, *(float(abs(scored[p] - b)) for p, b in zip(certain, best, strict=True))])
        if bound[row] < FILLER_SCORE and len(prefixes) != len(scored):
            raise ContractMismatch(
                f"the graph found only {len(prefixes)} of {len(scored)} live codes, although it pruned none"
            )
    return worst


def _thinned(trie: SidTrie, rng: np.random.Generator) -> SidTrie:
    """A trie over a few random codes of `trie`. The export did not use its tables."""
    live = np.fromiter(trie.living(), dtype=np.int64)
    return SidTrie.from_prefixes(trie.spec, rng.choice(live, size=min(len(live), 37), replace=False))
