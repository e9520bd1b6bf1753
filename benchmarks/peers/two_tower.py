"""The cost of a two-tower recommender on the same machine: a history encoder, then a search among all items.

The encoder is a SASRec as the study tunes it (width 128), exported to ONNX; its weights are random, as only
its time counts. The search is faiss' exact inner product, and its HNSW graph. The items' vectors lie in
clusters, as learned ones do, and the queries near them, or no graph would find anything.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks.report import NotAvailable
from benchmarks.timing import each_ms
from model_export.configs import SasRecConfig
from model_export.generators.sasrec import SasRecGenerator
from model_export.onnx_graphs import to_onnx
from service.core.sid import MAX_CODES_PER_LEVEL, SidSpec

WIDTH = 128
LIMIT = 10
NUM_CLUSTERS = 1_000
NEIGHBORS, EF = 32, 64  # of HNSW: links of a node, candidates of a search
BATCHES = (1, 4, 8, 16, 32)


class TwoTower(NamedTuple):
    p50_ms: float  # one request
    best_rps: float  # in batches
    index_mb: float
    recall: float  # of the ten that exact search finds


def measure(num_items: int, history: int, repeats: int = 50) -> dict[str, TwoTower]:
    """One thread each, as the service has. By name of the search. Raises NotAvailable without faiss."""
    try:
        import faiss
    except ImportError as error:
        raise NotAvailable("faiss is missing: pip install faiss-cpu") from error
    faiss.omp_set_num_threads(1)
    vectors, queries = _clustered(num_items, 512)
    encode = _encoder(
        min(num_items, MAX_CODES_PER_LEVEL), history
    )  # its table may be smaller; its time is not
    exact = faiss.IndexFlatIP(WIDTH)
    exact.add(vectors)
    graph = faiss.IndexHNSWFlat(WIDTH, NEIGHBORS, faiss.METRIC_INNER_PRODUCT)
    faiss.omp_set_num_threads(2)  # building it is not what is measured
    graph.add(vectors)
    faiss.omp_set_num_threads(1)
    graph.hnsw.efSearch = EF
    truth = exact.search(queries, LIMIT)[1]
    found = {}
    for name, index in (("exact", exact), ("hnsw", graph)):
        took_s = {}
        for batch in BATCHES:

            def ask(n: int, index: Any = index, batch: int = batch) -> None:
                encode(n, batch)
                index.search(queries[n % (len(queries) - batch) :][:batch], LIMIT)

            took_s[batch] = float(np.median(each_ms(ask, repeats + 1, warm_up=1))) / 1_000
        ids = index.search(queries, LIMIT)[1]
        hits = [len(set(row) & set(best)) for row, best in zip(ids.tolist(), truth.tolist(), strict=True)]
        found[name] = TwoTower(
            p50_ms=1_000 * took_s[1],
            best_rps=max(batch / seconds for batch, seconds in took_s.items()),
            index_mb=len(faiss.serialize_index(index)) / 1e6,
            recall=float(np.mean(hits)) / LIMIT,
        )
    return found


def _clustered(num_items: int, num_queries: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(NUM_CLUSTERS, WIDTH))

    def near(count: int) -> NDArray[np.float32]:
        found: NDArray[np.float64] = centers[rng.integers(NUM_CLUSTERS, size=count)] + 0.5 * rng.normal(
            size=(count, WIDTH)
        )
        return np.asarray(found / np.linalg.norm(found, axis=1, keepdims=True), np.float32)

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
