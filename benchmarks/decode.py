"""Constrained decoding side by side: our graphs, ours in eager PyTorch, and transformers' `generate`.

    python benchmarks/decode.py [--quick]

Shapes: history 20 items, three levels of 256, 50 beams, 100,000 random-code items, random weights.
`generate` has the same weights as `tiger`, the same trie as dictionaries behind
`prefix_allowed_tokens_fn`, and must give the same ten best codes. Systems take turns in short blocks,
so that a busy minute hits all of them, and none finds its caches cold or the threads of the one before
spinning. Times are medians.

The last line is JSON. There each system stands at the thread count that suits it best, in int8 as
configurations base and tiger-base export it; in float32 under a name of its own. The share of the GEMM
ceiling is float32's.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from t5_peer import DictTrie, as_t5, generate
from work_shapes import BEAM_LIMIT, BEAMS, HISTORY, NUM_ITEMS, make_generator, random_codes, spec

from model_export.bundle.precision import write_int8
from model_export.bundle.recommender import export_recommender
from model_export.generators.base import Generator
from model_export.generators.beam_search import BeamSearch, search_eagerly
from model_export.generators.tiger import TigerGenerator
from model_export.generators.tree import TreeGenerator
from service.core.graphs import GraphSpec, beam_widths
from service.core.trie import SidTrie
from service.inference.runtime import Beams, RecommenderSession

BATCHES = (1, 32)
THREADS = (1, 2)
BLOCKS = 3
WIDTHS = beam_widths(spec(), BEAMS)
PAGE = 10

Histories = NDArray[np.int64]  # [batch, position, level]


class Row(NamedTuple):
    system: str
    threads: int
    batch: int

    @property
    def name(self) -> str:
        return f"{self.system:22} {self.threads:7} {self.batch:5}"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few repeats, for a first look")
    repeats = 3 if parser.parse_args().quick else 20
    codes = random_codes(NUM_ITEMS, seed=0)
    rng = np.random.default_rng(1)
    histories = {batch: codes[rng.integers(0, NUM_ITEMS, size=(batch, HISTORY))] for batch in BATCHES}
    trie = SidTrie.from_codes(spec(), codes)
    generators = {kind: make_generator(kind, codes) for kind in ("tiger", "tree")}
    t5, dict_trie = as_t5(generators["tiger"], levelwise=True), DictTrie(spec(), codes)

    ms: dict[Row, float] = {}
    ceiling: dict[int, float] = {}
    with tempfile.TemporaryDirectory() as name:
        graphs = export_all(generators, trie, codes, Path(name))
        overlap = check_agreement(
            graphs, trie, t5, dict_trie, codes[rng.integers(0, NUM_ITEMS, (8, HISTORY))]
        )
        for threads in THREADS:
            torch.set_num_threads(threads)
            ceiling[threads] = gemm_ceiling(threads)
            systems = runners(graphs, generators, trie, t5, dict_trie, threads)
            for batch in BATCHES:
                few = repeats if batch == 1 else max(1, repeats // 8)
                for system, took in in_turns(systems, histories[batch], few).items():
                    ms[Row(system, threads, batch)] = took
    show(ms, ceiling, generators)
    figures = summary(ms, ceiling, generators) | {
        f"{kind}_top10_overlap": share for kind, share in overlap.items()
    }
    print(json.dumps({name: round(value, 3) for name, value in figures.items()}))
    return 0


def export_all(
    generators: dict[str, Generator], trie: SidTrie, codes: NDArray[np.int64], folder: Path
) -> dict[str, tuple[Path, GraphSpec]]:
    graphs, rng = {}, np.random.default_rng(2)
    for kind, generator in generators.items():
        path = folder / f"{kind}.onnx"
        graph = export_recommender(path, generator, history_length=HISTORY, beam_limit=BEAM_LIMIT)
        session = RecommenderSession(path, graph, threads=1)
        runs = [
            session.feeds(codes[rng.integers(0, NUM_ITEMS, size=(1, HISTORY))], trie.tables, WIDTHS)
            for _ in range(16)
        ]
        write_int8(path, folder / f"{kind}-int8.onnx", runs)
        graphs[f"{kind} float32"] = (path, graph)
        graphs[f"{kind} int8"] = (folder / f"{kind}-int8.onnx", graph)
    return graphs


def check_agreement(
    graphs: dict[str, tuple[Path, GraphSpec]], trie: SidTrie, t5: object, dict_trie: DictTrie, some: Histories
) -> dict[str, float]:
    """Assert that `generate` finds what float32 finds; the share of int8's ten best that float32 has too."""
    found: dict[str, Beams] = {}
    for system, (path, graph) in graphs.items():
        found[system] = RecommenderSession(path, graph, threads=1).run(some, trie.tables, WIDTHS)
    with torch.no_grad():
        theirs, _ = generate(t5, dict_trie, torch.from_numpy(some), BEAMS)
    ours = found["tiger float32"].codes[:, :PAGE].tolist()
    if ours != theirs[:, :PAGE].tolist():
        raise AssertionError("tiger's ten best are not those of generate on the same weights")
    print(f"tiger's ten best equal generate's, in order, for {len(some)} histories")
    overlap = {}
    for kind in ("tiger", "tree"):
        pages = [found[f"{kind} {precision}"].codes[:, :PAGE].tolist() for precision in ("int8", "float32")]
        shared = [len({*map(tuple, a)} & {*map(tuple, b)}) / PAGE for a, b in zip(*pages, strict=True)]
        overlap[kind] = float(np.mean(shared))
    return overlap


def runners(
    graphs: dict[str, tuple[Path, GraphSpec]],
    generators: dict[str, Generator],
    trie: SidTrie,
    t5: object,
    dict_trie: DictTrie,
    threads: int,
) -> dict[str, Callable[[Histories], object]]:
    def graph(path: Path, promised: GraphSpec) -> Callable[[Histories], object]:
        session = RecommenderSession(path, promised, threads=threads)
        return lambda history: session.run(history, trie.tables, WIDTHS)

    def eager(generator: Generator) -> Callable[[Histories], object]:
        search = BeamSearch(generator).eval()
        return lambda history: search_eagerly(search, history, trie.tables, WIDTHS)

    systems = {system: graph(*each) for system, each in graphs.items()}
    systems |= {f"{kind} eager PyTorch": eager(generator) for kind, generator in generators.items()}
    systems["transformers generate"] = torch.no_grad()(
        lambda history: generate(t5, dict_trie, torch.from_numpy(history), BEAMS)
    )
    return systems


def in_turns(
    systems: dict[str, Callable[[Histories], object]], history: Histories, repeats: int
) -> dict[str, float]:
    """Median milliseconds of each, in blocks of `repeats` calls after some that warm up."""
    took: dict[str, list[float]] = {system: [] for system in systems}
    for _ in range(BLOCKS):
        for system, run in systems.items():
            warm_up = 1 if "PyTorch" in system or "generate" in system else 5
            for repeat in range(repeats + warm_up):
                started = time.perf_counter()
                run(history)
                if repeat >= warm_up:
                    took[system].append((time.perf_counter() - started) * 1000)
    return {system: float(np.median(values)) for system, values in took.items()}


def gemm_ceiling(threads: int) -> float:
    """GFLOP/s of the best of some float32 matrix products in ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    best = 0.0
    for m, k, n in ((1024, 1024, 1024), (512, 512, 512), (1600, 128, 1024), (60, 128, 1024)):
        sizes = {"a": [m, k], "b": [k, n], "y": [m, n]}
        a, b, y = (
            helper.make_tensor_value_info(name, TensorProto.FLOAT, size) for name, size in sizes.items()
        )
        weight = onnx.numpy_helper.from_array(np.random.default_rng(0).random((k, n), np.float32), "b")
        graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["y"])], "gemm", [a], [y], [weight])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        feeds = {"a": np.ones((m, k), np.float32)}
        took = []
        for _ in range(20):
            started = time.perf_counter()
            session.run(None, feeds)
            took.append(time.perf_counter() - started)
        best = max(best, 2e-9 * m * k * n / float(np.median(took)))
    return best


def gflop(generator: Generator) -> float:
    """Of one request: two for each multiply-add of a weight product, attention or prefix bonus."""
    rows = (1, *WIDTHS[:-1])  # that each level scores
    num_codes = spec().levels[0]
    if isinstance(generator, TigerGenerator):
        layer, tokens, depth = generator.encoder[0], HISTORY * spec().num_levels, len(generator.encoder)
        width, ffn = layer.ffn_in.in_features, layer.ffn_in.out_features
        inner = layer.attend_self.query.out_features
        of_token = 4 * width * inner + 2 * width * ffn + 2 * tokens * inner
        of_row = 6 * width * inner + 2 * width * ffn + 2 * tokens * inner
        products = depth * (tokens * (of_token + 2 * width * inner) + sum(rows) * of_row)
        return 2e-9 * (products + sum(rows) * width * num_codes)
    if not isinstance(generator, TreeGenerator):
        raise TypeError(f"no count for {type(generator).__name__}")
    width = generator.norm.normalized_shape[0]
    ffn = generator.blocks[0].ffn[0].out_features
    of_item = 4 * width * width + 2 * width * ffn + 2 * HISTORY * width
    last = HISTORY * 2 * width * width + 2 * width * width + 2 * width * ffn + 2 * HISTORY * width
    products = (len(generator.blocks) - 1) * HISTORY * of_item + last
    products += sum(rows) * (4 * width * width + width * num_codes)
    for row, prefixes in zip(rows, generator.prefixes, strict=True):
        products += width * (row * prefixes.max_children if prefixes.is_sparse else prefixes.num_rows)
    return 2e-9 * products


def show(ms: dict[Row, float], ceiling: dict[int, float], generators: dict[str, Generator]) -> None:
    counts = {kind: gflop(generator) for kind, generator in generators.items()}
    print(f"a request is {counts['tiger']:.2f} GFLOP for tiger, {1000 * counts['tree']:.0f} MFLOP for tree")
    for threads, rate in ceiling.items():
        print(f"float32 GEMM ceiling with {threads} threads: {rate:.0f} GFLOP/s")
    print(f"{'':22} threads batch  ms/request  requests/s  GFLOP/s  of ceiling  generate / this")
    for row in sorted(ms):
        per_request = ms[row] / row.batch
        rate = counts["tree" if row.system.startswith("tree") else "tiger"] / per_request * 1000
        peer = ms[row._replace(system="transformers generate")] / row.batch
        print(
            f"{row.name} {per_request:11.3f} {1000 / per_request:11.0f} {rate:8.0f} "
            f"{rate / ceiling[row.threads]:11.0%} {peer / per_request:16.1f}"
        )


def summary(
    ms: dict[Row, float], ceiling: dict[int, float], generators: dict[str, Generator]
) -> dict[str, float]:
    def best(system: str, batch: int = 1) -> float:
        """ms per request at the thread count that suits it best."""
        return min(ms[Row(system, threads, batch)] for threads in THREADS) / batch

    peer = best("transformers generate")
    of_tiger = gflop(generators["tiger"])
    figures = {"generate_ms": peer}
    for kind in ("tiger", "tree"):
        # int8, as configurations base and tiger-base export them, and float32.
        for name, system in ((kind, f"{kind} int8"), (f"{kind}_float32", f"{kind} float32")):
            figures |= {
                f"{name}_ms": best(system),
                f"{name}_speedup_vs_generate": peer / best(system),
                f"{name}_batch32_gain": best(system) / best(system, 32),
            }
    figures["tiger_gemm_share"] = max(
        1000 * of_tiger / ms[Row("tiger float32", threads, 1)] / ceiling[threads] for threads in THREADS
    )
    return figures


if __name__ == "__main__":
    sys.exit(main())
