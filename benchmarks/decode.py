"""Constrained decoding side by side: our graphs, ours in eager PyTorch, and transformers' `generate`.

    python -m benchmarks.decode

History 20 items, three levels of 256, 50 beams, 100,000 random-code items, random weights. `generate` has the
same weights as `tiger`, the same trie as dictionaries behind `prefix_allowed_tokens_fn`, and must give the
same ten best codes. It is the baseline. Systems take turns in short blocks, so that a busy minute hits all of
them, and none finds its caches cold or the threads of the one before spinning. Times are medians.

The last line is JSON. There each system stands at the thread count that suits it best, in int8 as the
configurations base and tiger-base export it; float32 and eager PyTorch have names of their own. The share of
the GEMM ceiling is float32's.
"""

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from benchmarks import report
from benchmarks.peers.t5 import DictTrie, as_t5, generate
from benchmarks.timing import each_ms, median_ms
from benchmarks.workload.shapes import (
    BEAMS,
    FULL,
    HISTORY,
    TINY,
    Kind,
    Shapes,
    export_cached,
    make_generator,
    random_histories,
)
from model_export.bundle.precision import write_int8
from model_export.generators.base import Generator
from model_export.generators.beam_search import BeamSearch, search_eagerly
from model_export.generators.tiger import TigerGenerator
from model_export.generators.tree import TreeGenerator
from service.core.graphs import GraphSpec
from service.core.trie import SidTrie
from service.inference.runtime import Beams, RecommenderSession

BATCHES = (1, 32)
THREADS = (1, 2)
BLOCKS = 3
KINDS: tuple[Kind, ...] = ("tiger", "tree")
TOP_K = 10
GENERATE = "transformers generate"
# By the names of their figures: int8, as the configurations base and tiger-base export it, has none added.
FIGURES = {
    f"{kind}{name}": f"{kind} {system}"
    for kind in KINDS
    for name, system in (("", "int8"), ("_float32", "float32"), ("_eager", "eager PyTorch"))
}

Histories = NDArray[np.int64]  # [batch, position, level]
Run = Callable[[Histories], object]


class Row(NamedTuple):
    system: str
    threads: int
    batch: int


class Systems:
    """The same search by each of them."""

    def __init__(self, shapes: Shapes, folder: Path) -> None:
        self.shapes, self.codes = shapes, shapes.codes
        self.trie = SidTrie.from_codes(shapes.spec, self.codes)
        self.generators = {kind: make_generator(kind, shapes) for kind in KINDS}
        tiger = self.generators["tiger"]
        assert isinstance(tiger, TigerGenerator)
        self.t5, self.dict_trie = as_t5(tiger, levelwise=True), DictTrie(shapes.spec, self.codes)
        self.graphs = self._export_all(folder)

    def check_agreement(self, num_histories: int = 8) -> dict[str, float]:
        """Assert that `generate` finds what float32 finds; the share of int8's ten best that it has too."""
        some = random_histories(self.codes, num_histories, seed=1)
        found: dict[str, Beams] = {}
        for system, (path, graph) in self.graphs.items():
            session = RecommenderSession(path, graph, threads=1)
            found[system] = session.run(some, self.trie.tables, self.shapes.widths)
        with torch.no_grad():
            theirs, _ = generate(self.t5, self.dict_trie, torch.from_numpy(some), BEAMS)
        if found["tiger float32"].codes[:, :TOP_K].tolist() != theirs[:, :TOP_K].tolist():
            raise AssertionError("tiger's ten best are not those of generate on the same weights")
        print(f"tiger's ten best equal generate's, in order, for {len(some)} histories")
        overlap = {}
        for kind in KINDS:
            pages = [found[f"{kind} {each}"].codes[:, :TOP_K].tolist() for each in ("int8", "float32")]
            shared = [len({*map(tuple, a)} & {*map(tuple, b)}) / TOP_K for a, b in zip(*pages, strict=True)]
            overlap[f"{kind}_top10_overlap"] = float(np.mean(shared))
        return overlap

    def runners(self, threads: int) -> dict[str, Run]:
        """By name of the system."""
        systems = {name: self._graph(*each, threads) for name, each in self.graphs.items()}
        systems |= {f"{kind} eager PyTorch": self._eager(each) for kind, each in self.generators.items()}

        def their_search(history: Histories) -> object:
            with torch.no_grad():
                return generate(self.t5, self.dict_trie, torch.from_numpy(history), BEAMS)

        return systems | {GENERATE: their_search}

    def _graph(self, path: Path, promised: GraphSpec, threads: int) -> Run:
        session = RecommenderSession(path, promised, threads=threads)
        return lambda history: session.run(history, self.trie.tables, self.shapes.widths)

    def _eager(self, generator: Generator) -> Run:
        search = BeamSearch(generator).eval()
        return lambda history: search_eagerly(search, history, self.trie.tables, self.shapes.widths)

    def _export_all(self, folder: Path) -> dict[str, tuple[Path, GraphSpec]]:
        graphs, rng = {}, np.random.default_rng(2)
        for kind in KINDS:
            path, graph = export_cached(kind, folder, self.shapes)
            int8 = path.with_name(f"{path.stem}-int8.onnx")
            session = RecommenderSession(path, graph, threads=1)
            runs = [
                session.feeds(
                    random_histories(self.codes, 1, seed=int(seed)), self.trie.tables, self.shapes.widths
                )
                for seed in rng.integers(1_000, size=16)
            ]
            write_int8(path, int8, runs)
            graphs[f"{kind} float32"], graphs[f"{kind} int8"] = (path, graph), (int8, graph)
        return graphs


def main(argv: Sequence[str]) -> int:
    parser = report.arguments(__doc__)
    parser.add_argument("--graphs", type=Path, help="where exported graphs are kept for the next run")
    args = parser.parse_args(argv)
    shapes, repeats, blocks = (TINY, 1, 1) if args.tiny else (FULL, 20, BLOCKS)
    threads_before = torch.get_num_threads()
    ms: dict[Row, float] = {}
    ceiling: dict[int, float] = {}
    try:
        with tempfile.TemporaryDirectory() as name:
            systems = Systems(shapes, args.graphs or Path(name))
            overlap = systems.check_agreement()
            for threads in THREADS[:1] if args.tiny else THREADS:
                torch.set_num_threads(threads)
                ceiling[threads] = gemm_ceiling(threads)
                runners = systems.runners(threads)
                for batch in BATCHES:
                    history = random_histories(systems.codes, batch, seed=batch)
                    few = repeats if batch == 1 else max(1, repeats // 8)
                    for system, took in in_blocks(runners, history, few, blocks).items():
                        ms[Row(system, threads, batch)] = took
    finally:
        torch.set_num_threads(threads_before)
    operations = {kind: gflop(generator, shapes) for kind, generator in systems.generators.items()}
    show(ms, ceiling, operations)
    figures, baseline = summary(ms, ceiling, operations)
    report.finish("decode", argv, figures | overlap, baseline)
    return 0


def in_blocks(systems: dict[str, Run], history: Histories, repeats: int, blocks: int) -> dict[str, float]:
    """Median milliseconds of each, in blocks of `repeats` calls after some that warm up."""
    took: dict[str, list[float]] = {system: [] for system in systems}
    for _ in range(blocks):
        for system, run in systems.items():
            warm_up = 1 if "PyTorch" in system or system == GENERATE else 5

            def once(_: int, run: Run = run) -> None:
                run(history)

            took[system].extend(each_ms(once, repeats + warm_up, warm_up=warm_up))
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
        weight = numpy_helper.from_array(np.random.default_rng(0).random((k, n), np.float32), "b")
        graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["y"])], "gemm", [a], [y], [weight])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        feeds = {"a": np.ones((m, k), np.float32)}
        median_s = median_ms(partial(session.run, None, feeds), 20) / 1_000
        best = max(best, 2e-9 * m * k * n / median_s)
    return best


def gflop(generator: Generator, shapes: Shapes) -> float:
    """Of one request: two for each multiply-add of a weight product, attention or prefix bonus."""
    rows = (1, *shapes.widths[:-1])  # that each level scores
    if isinstance(generator, TigerGenerator):
        products = _tiger_products(shapes, rows)
    elif isinstance(generator, TreeGenerator):
        products = _tree_products(generator, shapes, rows)
    else:
        raise TypeError(f"no count for {type(generator).__name__}")
    return 2e-9 * products


def _tiger_products(shapes: Shapes, rows: Sequence[int]) -> int:
    tiger, tokens = shapes.tiger, HISTORY * shapes.spec.num_levels
    width, ffn, inner = tiger.width, tiger.ffn_dim, tiger.num_heads * tiger.head_dim
    of_token = 4 * width * inner + 2 * width * ffn + 2 * tokens * inner
    of_row = 6 * width * inner + 2 * width * ffn + 2 * tokens * inner
    layers = tiger.num_layers * (tokens * (of_token + 2 * width * inner) + sum(rows) * of_row)
    return layers + sum(rows) * width * shapes.spec.levels[0]


def _tree_products(generator: TreeGenerator, shapes: Shapes, rows: Sequence[int]) -> int:
    tree = shapes.tree
    width, ffn = tree.width, tree.ffn_dim
    of_item = 4 * width * width + 2 * width * ffn + 2 * HISTORY * width
    last = HISTORY * 2 * width * width + 2 * width * width + 2 * width * ffn + 2 * HISTORY * width
    products = (tree.num_layers - 1) * HISTORY * of_item + last
    products += sum(rows) * (4 * width * width + width * shapes.spec.levels[0])
    tables: Any = generator.prefixes
    for row, prefixes in zip(rows, tables, strict=True):
        products += width * (row * prefixes.max_children if prefixes.is_sparse else prefixes.num_rows)
    return products


def show(ms: dict[Row, float], ceiling: dict[int, float], operations: dict[Kind, float]) -> None:
    print(
        f"a request is {operations['tiger']:.3g} GFLOP for tiger, "
        f"{1_000 * operations['tree']:.3g} MFLOP for tree"
    )
    for threads, rate in ceiling.items():
        print(f"float32 GEMM ceiling with {threads} threads: {rate:.0f} GFLOP/s")
    rows = []
    for row in sorted(ms):
        per_request = ms[row] / row.batch
        rate = operations["tree" if row.system.startswith("tree") else "tiger"] / per_request * 1_000
        peer = ms[row._replace(system=GENERATE)] / row.batch
        cells = [f"{per_request:.3f}", f"{1_000 / per_request:.0f}", f"{rate:.0f}"]
        cells += [f"{rate / ceiling[row.threads]:.0%}", f"{peer / per_request:.1f}"]
        rows.append((row.system, str(row.threads), str(row.batch), *cells))
    header = ("", "threads", "batch", "ms/request", "requests/s", "GFLOP/s", "of ceiling", "generate / this")
    report.table(header, rows)


def summary(
    ms: dict[Row, float], ceiling: dict[int, float], operations: dict[Kind, float]
) -> tuple[dict[str, float], dict[str, float]]:
    """Figures and baseline, by name."""

    def best(system: str, batch: int = 1) -> float:
        """ms per request at the thread count that suits it best."""
        return min(ms[Row(system, threads, batch)] for threads in ceiling) / batch

    baseline = {"generate_ms": best(GENERATE), "generate_batch32_ms": best(GENERATE, 32)}
    figures: dict[str, float] = {}
    for name, system in FIGURES.items():
        one, many = best(system), best(system, 32)
        figures |= {
            f"{name}_ms": one,
            f"{name}_batch32_ms": many,
            f"{name}_speedup_vs_generate": baseline["generate_ms"] / one,
            f"{name}_batch32_speedup_vs_generate": baseline["generate_batch32_ms"] / many,
            f"{name}_batch32_gain": one / many,
        }
    figures["tiger_gemm_share"] = max(
        1_000 * operations["tiger"] / ms[Row("tiger float32", threads, 1)] / ceiling[threads]
        for threads in ceiling
    )
    return figures, baseline


if __name__ == "__main__":
    report.run(main)
