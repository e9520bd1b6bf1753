"""What a two-tower recommender costs on the same machine: one history encoder, then a search among all items.

The encoder is a SASRec as the study tunes it (width 128), exported to ONNX; its weights are random, as only
its time is looked at. The search is faiss' exact inner product, and its HNSW graph; the items' vectors lie in
clusters, as learnt ones do, and the queries near them, or no graph would find anything.
"""

import time
from collections.abc import Callable
from typing import NamedTuple

import faiss
import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model_export.configs import SasRecConfig
from model_export.generators.sasrec import SasRecGenerator
from model_export.onnx_graphs import to_onnx
from service.core.sid import MAX_CODES_PER_LEVEL, SidSpec

WIDTH = 128
LIMIT = 10
NUM_CLUSTERS = 1_000
NEIGHBOURS, EF = 32, 64  # of HNSW: links of a node, candidates of a search
BATCHES = (1, 4, 8, 16, 32)


class TwoTower(NamedTuple):
    p50_ms: float  # one request
    best_rps: float  # in batches
    index_mb: float
    recall: float  # of the ten that exact search finds


def measure(num_items: int, history: int, repeats: int = 50) -> dict[str, TwoTower]:
    """One thread each, as the service has. By name of the search."""
    faiss.omp_set_num_threads(1)
    vectors, queries = _clustered(num_items, 512)
    encode = _encoder(
        min(num_items, MAX_CODES_PER_LEVEL), history
    )  # its table may be smaller; its time is not
    exact = faiss.IndexFlatIP(WIDTH)
    exact.add(vectors)
    graph = faiss.IndexHNSWFlat(WIDTH, NEIGHBOURS, faiss.METRIC_INNER_PRODUCT)
    faiss.omp_set_num_threads(2)  # building it is not what is measured
    graph.add(vectors)
    faiss.omp_set_num_threads(1)
    graph.hnsw.efSearch = EF
    truth = exact.search(queries, LIMIT)[1]
    found = {}
    for name, index in (("exact", exact), ("hnsw", graph)):
        took_s = {}
        for batch in BATCHES:

            def ask(n: int, index: faiss.Index = index, batch: int = batch) -> None:
                encode(n, batch)
                index.search(queries[n % (len(queries) - batch) :][:batch], LIMIT)

            took_s[batch] = median_s(ask, repeats)
        ids = index.search(queries, LIMIT)[1]
        hits = [len(set(row) & set(best)) for row, best in zip(ids.tolist(), truth.tolist(), strict=True)]
        found[name] = TwoTower(
            p50_ms=1_000 * took_s[1],
            best_rps=max(batch / seconds for batch, seconds in took_s.items()),
            index_mb=len(faiss.serialize_index(index)) / 1e6,
            recall=float(np.mean(hits)) / LIMIT,
        )
    return found


def median_s(run: Callable[[int], object], repeats: int) -> float:
    """Seconds of one run, after one that warms up."""
    run(0)
    took = []
    for n in range(repeats):
        started = time.perf_counter()
        run(n)
        took.append(time.perf_counter() - started)
    return float(np.median(took))


def _clustered(num_items: int, num_queries: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(NUM_CLUSTERS, WIDTH))

    def near(count: int) -> NDArray[np.float32]:
        found = centres[rng.integers(NUM_CLUSTERS, size=count)] + 0.5 * rng.normal(size=(count, WIDTH))
        return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32)

    return near(num_items), near(num_queries)


class _Encoder(nn.Module):
    def __init__(self, model: SasRecGenerator) -> None:
        super().__init__()
        self.model = model

    def forward(self, history: Tensor) -> Tensor:
        return self.model.start(history).h


def _encoder(num_items: int, history: int) -> Callable[[int, int], object]:
    """-> run(number, batch)."""
    torch.manual_seed(0)
    model = SasRecGenerator(
        config=SasRecConfig(width=WIDTH),
        spec=SidSpec(levels=(num_items,)),
        history_length=history,
        seen_codes=np.arange(num_items)[:, None],
    ).eval()
    graph = to_onnx(
        _Encoder(model),
        (torch.zeros(2, history, 1, dtype=torch.long),),
        inputs=["history"],
        outputs=["vector"],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    items = np.random.default_rng(1).integers(num_items, size=(1_000, history, 1))
    return lambda n, batch: session.run(None, {"history": items[n % (len(items) - batch) :][:batch]})
