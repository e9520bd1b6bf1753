"""Writes and checks the ranker graph: features, embeddings and scores of candidates in one ONNX file."""

from pathlib import Path

import numpy as np
import onnx
import torch

from model_export.bundle.recommender import random_histories
from model_export.onnx_graphs import name_dimensions, to_onnx
from model_export.rankers.served import ServedRanker
from service.core.graphs import PADDING, GraphSpec, Neighbors, ranker_graph
from service.errors import ContractMismatch
from service.inference.runtime import RankerSession

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py
LARGEST_DIFFERENCE = 1e-3
# Sizes for tracing are 2 or more, because the exporter takes 0 and 1 for constants, and all differ, because
# it takes equal sizes for one dimension.
TRACED_BATCH, TRACED_POSITIONS, TRACED_CANDIDATES, TRACED_NEIGHBORS = 3, 4, 7, 9


def export_ranker(path: Path, ranker: ServedRanker, *, history_length: int) -> GraphSpec:
    """Write the ranker to `path`. `history_length`: the most positions of a history that it may be given.

    Returns the tensors of the graph.
    """
    spec, graph = ranker.spec, ranker_graph(ranker.spec)
    codes = torch.zeros(TRACED_BATCH, TRACED_POSITIONS, spec.num_levels, dtype=torch.int64)
    candidates = torch.zeros(TRACED_BATCH, TRACED_CANDIDATES, spec.num_levels, dtype=torch.int64)
    neighbors = torch.zeros(TRACED_BATCH, TRACED_NEIGHBORS, dtype=torch.int64)
    dim = torch.export.Dim
    batch, candidate, neighbor = dim("batch", min=1), dim("candidate", min=1), dim("neighbor", min=1)
    model = to_onnx(
        ranker.eval(),
        (codes, candidates, candidates[..., 0].float(), neighbors, neighbors.float()),
        inputs=[tensor.name for tensor in graph.inputs],
        outputs=[tensor.name for tensor in graph.outputs],
        dynamic_shapes={
            "history": {0: batch, 1: dim("position", min=1, max=max(history_length, 2))},
            "candidates": {0: batch, 1: candidate},
            "popularity": {0: batch, 1: candidate},
            "neighbors": {0: batch, 1: neighbor},
            "mass": {0: batch, 1: neighbor},
        },
    )
    onnx.save(name_dimensions(model, graph), path)
    return graph


@torch.no_grad()
def check_ranker(path: Path, ranker: ServedRanker, *, history_length: int, seed: int) -> dict[str, float]:
    """Compare the written graph with the ranker in PyTorch, at sizes that the export did not use.

    These include one history of one position without any item, one candidate, many candidates with padding
    among them, and no neighbors. Returns the largest difference of log-odds. Raises ContractMismatch if it
    is too large, or if a score depends on the other candidates.
    """
    rng, spec = np.random.default_rng(seed), ranker.spec
    session = RankerSession(path, ranker_graph(spec), threads=1)
    worst = 0.0
    for batch, positions, num_candidates, num_neighbors in (
        (1, 1, 1, 0),
        (5, history_length, 100, 30),
        (2, max(1, history_length // 2), 3, 1),
    ):
        history = random_histories(spec, rng, batch, positions)
        if positions == 1:
            history[:] = PADDING
        candidates = rng.integers(0, spec.levels, size=(batch, num_candidates, spec.num_levels))
        if num_candidates > 1:
            candidates[-1, -1] = PADDING
        popularity = rng.exponential(20.0, size=(batch, num_candidates)).astype(np.float32)
        neighbors = Neighbors.none(batch)
        if num_neighbors:
            known = spec.prefixes_of(candidates.reshape(-1, spec.num_levels))[-1].reshape(batch, -1)
            prefixes = known[:, rng.permutation(num_candidates)[:num_neighbors]]
            neighbors = Neighbors(
                np.where(prefixes < 0, PADDING, prefixes),
                rng.exponential(3.0, size=prefixes.shape).astype(np.float32),
            )
        ours = session.run(history, candidates, popularity, neighbors)
        given = (history, candidates, popularity, *neighbors)
        theirs = ranker(*(torch.from_numpy(each) for each in given)).numpy()
        worst = max(worst, float(np.abs(ours - theirs).max()))
        alone = session.run(history, candidates[:, :1], popularity[:, :1], neighbors)
        worst = max(worst, float(np.abs(alone - ours[:, :1]).max()))
    if not worst <= LARGEST_DIFFERENCE:
        raise ContractMismatch(
            f"{path}: its scores differ by {worst:.2g} from those of its model, and at most "
            f"{LARGEST_DIFFERENCE} is allowed. Use the versions of constraints.txt and export again."
        )
    return {"max_ranker_difference": worst}
