"""The probes of the ranker's stages, beside those of probes.py."""

import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from model_export.bundle import ranker as ranker_graph
from model_export.pipeline import ranking
from model_export.ranker_config import RankerConfig
from model_export.rankers import ranker, training
from model_export.rankers.ranker import Ranker
from model_export.rankers.served import ServedRanker
from model_export.rankers.training import Examples, shuffled, train_ranker
from service.core.co_counts import CoCountSpec
from service.core.graphs import Neighbors
from service.core.graphs import ranker_graph as tensors_of
from service.inference.runtime import RankerSession
from tests.model_export.probe_inputs import CODES, HISTORY_LENGTH, NUM_ITEMS, SID, Output, dataset, split

SMALL = RankerConfig(
    width=8, hidden_dim=8, num_seeds=2, history_length=4, num_non_events=3, batch_size=16, num_epochs=2
)


def _served(config: RankerConfig = SMALL) -> ServedRanker:
    torch.manual_seed(0)
    return ServedRanker(config, SID, num_rows=12, mean_popularity=2.0).eval()


def _inputs() -> tuple[np.ndarray, ...]:
    history = np.stack([CODES[[1, 2, 3]], CODES[[9, 7, 8]]])
    candidates = np.stack([CODES[[4, 5]], CODES[[10, 23]]])
    popularity = np.array([[3.0, 0.0], [1.0, 8.0]], dtype=np.float32)
    prefixes = SID.prefixes_of(candidates.reshape(-1, 2))[-1].reshape(2, 2)
    return history, candidates, popularity, prefixes, np.array([[1.0, 2.0], [0.5, 0.0]], np.float32)


def _score() -> Output:
    """For each way to read the history, the scores, the loss and its gradient."""
    found = {}
    for aggregation in ("bypass", "transformer", "pooling"):
        made = _served(replace(SMALL, aggregation=aggregation))
        scores = made(*map(torch.from_numpy, _inputs()))
        scores.square().sum().backward()
        gradients = [each.grad.norm() for each in made.parameters() if each.grad is not None]
        found[aggregation] = [scores.tolist(), torch.stack(gradients).norm().item()]
    return found


def _train() -> Output:
    rng = np.random.default_rng(0)
    examples = Examples(
        rng.integers(-1, NUM_ITEMS, (64, 4)),
        rng.integers(0, NUM_ITEMS, (64, 3)),
        rng.normal(size=(64, 3, 2)).astype(np.float32),
    )
    torch.manual_seed(0)
    made = Ranker(SMALL, num_rows=NUM_ITEMS, num_grams=1, num_dense=2)
    rows = torch.arange(NUM_ITEMS)[:, None]
    loss = train_ranker(made, examples, rows, shuffled(64, 16, 3, seed=0))
    return [loss, made.table.weight[:3].tolist()]


def _examples() -> Output:
    popularity = np.bincount(np.concatenate(split().train), minlength=NUM_ITEMS)
    found = ranking.examples_of(
        split().train, CODES, SID, SMALL, popularity, _served(), CoCountSpec(), dataset().item_ids, 0
    )
    return [found.history[:5].tolist(), found.candidates[:5].tolist(), found.dense[:5].tolist()]


def _graph() -> Output:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ranker.onnx"
        ranker_graph.export_ranker(path, _served(), history_length=HISTORY_LENGTH)
        history, candidates, popularity, prefixes, mass = _inputs()
        session = RankerSession(path, tensors_of(SID), threads=1)
        return session.run(history, candidates, popularity, Neighbors(prefixes, mass)).tolist()


RANKER_PROBES = {
    "ranker": (ranker, _score),
    "ranker_training": (training, _train),
    "ranking": (ranking, _examples),
    "ranker_graph": (ranker_graph, _graph),
}
