"""The constraint step by itself and inside a request, beside the usual tries: dictionaries and STATIC's CSR.

    python -m benchmarks.trie

A step is the masks of one search: of its 1 + 50 + 50 living prefixes at three levels of 256, batch 1, one
thread. Catalogs and systems take turns in random order, so that a busy moment of the machine hits all of
them; times are medians. All systems must allow the same codes. Ours and CSR run the same way: written in
PyTorch, exported by the same exporter, tables as inputs of the graph. CSR also runs in eager PyTorch, and the
faster of its two is compared. CSR and the dictionaries are the baseline.

The index bytes of ours are the graph's tables and the counts that make deleting safe where items share codes;
the other two keep no counts. CSR has no edits: its build is its edit.

The share of a request is measured twice: as time of the step by itself over time of the request, and as the
mask's nodes in ONNX Runtime's profile of the request's graph, where the rest of the model has just used the
caches. The larger of the two is the figure. The last line is JSON.
"""

import gc
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from benchmarks import report
from benchmarks.peers.t5 import DictTrie
from benchmarks.peers.tries import CsrStep, CsrTrie, dict_bytes, dict_delete, dict_masks
from benchmarks.timing import elapsed_ms, median_ms
from benchmarks.workload.shapes import (
    BEAMS,
    FULL,
    TINY,
    Kind,
    Shapes,
    export_cached,
    random_codes,
    random_histories,
)
from model_export.generators.beam_search import TrieMask
from model_export.onnx_graphs import to_onnx
from service.core.graphs import beam_widths
from service.core.sid import SidSpec
from service.core.trie import SidTrie
from service.inference.runtime import RecommenderSession

SIZES = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
TINY_SIZES = (1_000, 10_000)
SPEC = FULL.spec
PAGED = SidSpec(levels=(256, 256, 256, 256), paged=True)
OURS, CSR, CSR_EAGER, PYTHON = "ours", "CSR", "CSR, eager PyTorch", "Python dict"

FIXED = -1  # no dimension

Feed = dict[str, NDArray[Any]]


class Runs(NamedTuple):
    call: Callable[[Any], Any]
    arguments: list[Any]  # of each search


class Edits(NamedTuple):
    insert_us: NDArray[np.float64]
    delete_us: NDArray[np.float64]

    @property
    def both_us(self) -> float:
        """Median of an item put in and taken out again: what an item costs whose text changes."""
        return float(np.median(self.insert_us + self.delete_us))


class TrieStep(nn.Module):
    """Our masks of all levels."""

    def __init__(self, spec: SidSpec) -> None:
        super().__init__()
        self.mask = TrieMask(spec)

    def forward(self, prefixes: list[Tensor], tables: list[Tensor]) -> tuple[Tensor, ...]:
        return tuple(self.mask(level, prefix, tables) for level, prefix in enumerate(prefixes))


class Graph:
    """A step in ONNX Runtime, exported with the sizes of a small catalog and run with any."""

    def __init__(
        self, step: nn.Module, small: tuple[list[NDArray[Any]], ...], varies: tuple[list[int], ...]
    ) -> None:
        """varies: of each input in `small` the dimension that may differ, FIXED for none."""
        self.inputs = [f"in_{n}" for n in range(sum(map(len, small)))]
        dynamic = tuple(
            [{dim: torch.export.Dim.DYNAMIC} if dim != FIXED else {} for dim in group] for group in varies
        )
        args = tuple([torch.from_numpy(array) for array in group] for group in small)
        outputs = [f"mask_{n}" for n in range(len(small[0]))]
        model = to_onnx(step, args, inputs=self.inputs, outputs=outputs, dynamic_shapes=dynamic)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    def run(self, feed: Feed) -> list[NDArray[np.float32]]:
        masks: list[NDArray[np.float32]] = self.session.run(None, feed)
        return masks

    def feed(self, arrays: list[NDArray[Any]]) -> Feed:
        return dict(zip(self.inputs, arrays, strict=True))


def step_graphs(of: SidSpec) -> dict[str, Graph]:
    codes = random_codes(100, seed=0, of=of)
    # Beams of different numbers, or the exporter takes them for one.
    prefixes = parents_of(of, codes, range(2, 2 + of.num_levels))
    tables, csr = list(SidTrie.from_codes(of, codes).tables), CsrTrie(of, np.repeat(codes, 2, axis=0))
    beams = [1] * of.num_levels
    state_inputs = csr.inputs(prefixes)
    states, csr_tables = state_inputs[: of.num_levels], list(csr.tables)
    branches = [np.zeros(3 + level, np.int64) for level in range(of.num_levels - 2)]
    rows = [FIXED] * (len(tables) - 1) + [0 if of.is_paged else FIXED]
    return {
        OURS: Graph(TrieStep(of), (prefixes, tables), (beams, rows)),
        CSR: Graph(
            CsrStep(of),
            (states, csr_tables, branches),
            (beams, [FIXED, FIXED, FIXED, 0, 0], [0] * len(branches)),
        ),
    }


def parents_of(of: SidSpec, codes: NDArray[np.int64], widths: Sequence[int]) -> list[NDArray[np.int64]]:
    """The prefixes [1, beam] that each level follows, of the first of codes [beam, level]."""
    above = (np.zeros(len(codes), np.int64), *of.prefixes_of(codes)[:-1])
    return [prefix[None, :width] for prefix, width in zip(above, widths, strict=True)]


class TrieCatalog:
    """One set of items in the three tries, and what each cost."""

    def __init__(self, of: SidSpec, num_items: int) -> None:
        self.spec, self.num_items = of, num_items
        self.widths = (1, *beam_widths(of, BEAMS)[:-1])  # how many prefixes each level follows
        self.codes = random_codes(num_items, seed=0, of=of)
        self.build_s: dict[str, float] = {}
        self.sid_trie = self._timed(OURS, lambda: SidTrie.from_codes(of, self.codes))
        self.csr = self._timed(CSR, lambda: CsrTrie(of, self.codes))
        self.dict_trie = self._timed(PYTHON, lambda: DictTrie(of, self.codes))
        self.num_bytes = {
            OURS: self.sid_trie.num_bytes,
            CSR: self.csr.num_bytes,
            PYTHON: dict_bytes(self.dict_trie.root),
        }

    @property
    def name(self) -> str:
        return f"{self.num_items:,}" + (" in 4 paged levels" if self.spec == PAGED else "")

    def searches(self, count: int, seed: int) -> list[NDArray[np.int64]]:
        """Codes [beam, level] of random living items, whose prefixes a search follows."""
        rng = np.random.default_rng(seed)
        return [self.codes[rng.integers(0, self.num_items, BEAMS)] for _ in range(count)]

    def runs(self, graphs: dict[str, Graph], searches: list[NDArray[np.int64]]) -> dict[str, Runs]:
        """For each system a function, and its argument for each search."""
        step, tables = CsrStep(self.spec), list(self.sid_trie.tables)
        vocabulary, depth = 1 + sum(self.spec.levels), self.spec.num_levels
        prefixes = [parents_of(self.spec, chosen, self.widths) for chosen in searches]
        csr = [self.csr.inputs(of_search) for of_search in prefixes]
        eager = [[torch.from_numpy(array) for array in arrays] for arrays in csr]
        return {
            OURS: Runs(
                graphs[OURS].run, [graphs[OURS].feed([*of_search, *tables]) for of_search in prefixes]
            ),
            CSR: Runs(graphs[CSR].run, [graphs[CSR].feed(arrays) for arrays in csr]),
            CSR_EAGER: Runs(lambda x: step(x[:depth], x[depth : depth + 5], x[depth + 5 :]), eager),
            PYTHON: Runs(
                lambda sentences: dict_masks(self.dict_trie, vocabulary, sentences),
                [self._sentences(chosen) for chosen in searches],
            ),
        }

    def check(self, runs: dict[str, Runs], count: int) -> None:
        """Raise AssertionError unless all systems allow the same codes in the first `count` searches."""
        for n in range(count):
            allowed = {system: self._allowed(run.call(run.arguments[n])) for system, run in runs.items()}
            for system, levels in allowed.items():
                if not all(map(np.array_equal, levels, allowed[OURS])):
                    raise AssertionError(f"{self.name}: {system} allows other codes than ours")

    def edits_us(self, system: str, count: int) -> Edits:
        """Microseconds of each of `count` inserts of new codes, and of deleting them again."""
        insert, delete = {
            OURS: (self.sid_trie.insert, self.sid_trie.delete),
            PYTHON: (self.dict_trie.insert, lambda codes: dict_delete(self.dict_trie, codes)),
        }[system]
        drawn = map(tuple, random_codes(4 * count + 100, seed=1, of=self.spec).tolist())
        new = [codes for codes in dict.fromkeys(drawn) if not self.sid_trie.count(codes)][:count]
        return Edits(each_us(insert, new), each_us(delete, new))

    def _timed(self, system: str, build: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        built = build()
        self.build_s[system] = time.perf_counter() - started
        return built

    def _sentences(self, chosen: NDArray[np.int64]) -> list[Tensor]:
        """Tokens [beam, token] as `generate` hands them over, at each level."""
        tokens = torch.from_numpy(chosen + self.dict_trie.first)
        return [tokens[:width, :level].contiguous() for level, width in enumerate(self.widths)]

    def _allowed(self, masks: list[Any]) -> list[NDArray[np.bool_]]:
        """Masks of any system -> [beam, code] of each level"""
        found = []
        for level, (mask, num_codes) in enumerate(zip(masks, self.spec.levels, strict=True)):
            is_live = np.asarray(mask).reshape(-1, np.shape(mask)[-1]) == 0.0
            first = self.dict_trie.first[level] if is_live.shape[1] > num_codes else 0
            found.append(is_live[:, first : first + num_codes])
        return found


def each_us(call: Callable[[Any], Any], arguments: list[Any]) -> NDArray[np.float64]:
    return 1_000 * np.array([elapsed_ms(partial(call, argument)) for argument in arguments])


def steps_us(runs: list[dict[str, Runs]], rounds: int) -> list[dict[str, float]]:
    """Median microseconds of a step of each system on each catalog; all take turns in random order."""
    took: list[dict[str, list[float]]] = [{system: [] for system in of} for of in runs]
    rng = np.random.default_rng(2)
    for n in range(rounds + 3):
        for system in runs[0]:
            for place in rng.permutation(len(runs)):
                run = runs[place][system]
                us = each_us(run.call, [run.arguments[n % len(run.arguments)]])
                if n >= 3:  # the first ones warm up
                    took[place][system].append(us[0])
    return [{system: float(np.median(values)) for system, values in of.items()} for of in took]


def mask_nodes(model: onnx.ModelProto) -> set[str]:
    """Names of the nodes that make a mask of the trie's tables, and of the Adds that put it on the scores."""
    made = {tensor.name for tensor in model.graph.input if tensor.name.startswith(("live_", "page_of"))}
    found, adds = {}, set()
    for node in model.graph.node:  # in order of execution
        if made & set(node.input):
            if node.op_type == "Add":
                adds.add(node.name)
            else:
                found[node.name] = node
                made |= set(node.output)
    for node in reversed(model.graph.node):  # and what only these read, as the shapes of their reshapes
        readers = [other for other in model.graph.node if set(node.output) & set(other.input)]
        if readers and all(reader.name in found for reader in readers):
            found[node.name] = node
    return adds | set(found)


def share_in_profile(path: Path, scratch: Path, feed: Feed, repeats: int) -> float:
    """Of the time in kernels of a whole request. `scratch` takes the profile and the optimized graph."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.enable_profiling = True
    options.profile_file_prefix = str(scratch / "profile")
    # The profile uses its nodes' names.
    options.optimized_model_filepath = str(scratch / "optimized.onnx")
    options.log_severity_level = 3  # it warns that such a file is for this machine only
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    nodes = mask_nodes(onnx.load(options.optimized_model_filepath, load_external_data=False))
    for _ in range(repeats):
        session.run(None, feed)
    events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    kernels = [event for event in events if event["name"].endswith("_kernel_time")]
    of_mask = [event for event in kernels if event["name"].removesuffix("_kernel_time") in nodes]
    if len({event["name"] for event in of_mask}) != len(nodes):
        raise AssertionError(f"{path.name}: the profile lacks nodes of the mask")
    return float(sum(event["dur"] for event in of_mask) / sum(event["dur"] for event in kernels))


def share_of_request(kind: Kind, shapes: Shapes, folder: Path, step_us: float, repeats: int) -> float:
    history = random_histories(shapes.codes, 1, seed=3)
    tables = SidTrie.from_codes(shapes.spec, shapes.codes).tables
    path, graph = export_cached(kind, folder, shapes)
    session = RecommenderSession(path, graph, threads=1)
    request_ms = median_ms(lambda: session.run(history, tables, shapes.widths), repeats)
    with tempfile.TemporaryDirectory() as scratch:
        feed = session.feeds(history, tables, shapes.widths)
        profiled = share_in_profile(path, Path(scratch), feed, repeats)
    alone = step_us / 1_000 / request_ms
    print(
        f"{kind:6} request {request_ms:8.3f} ms; the step by itself is {alone:.1%} of it, "
        f"in its profile {profiled:.1%}"
    )
    return max(alone, profiled)


def show(catalogs: list[TrieCatalog], steps: list[dict[str, float]], edits: list[dict[str, Edits]]) -> None:
    rows = []
    for of, us, edit in zip(catalogs, steps, edits, strict=True):
        for system, step_us in us.items():
            cells = [f"{of.name}, {system}", f"{step_us:.1f}"]
            has_index = system in of.build_s
            cells.append(f"{of.build_s[system]:.3f}" if has_index else "")
            cells.append(f"{of.num_bytes[system] / 1e6:.2f}" if has_index else "")
            for took in edit.get(system, (None, None)):
                cells += (
                    ["", ""] if took is None else [f"{each:.1f}" for each in np.percentile(took, [50, 99])]
                )
            rows.append(cells)
    header = (
        "items, system",
        "step us",
        "build s",
        "index MB",
        "insert us p50",
        "p99",
        "delete us p50",
        "p99",
    )
    report.table(header, rows)


def summary(
    catalogs: list[TrieCatalog], steps: list[dict[str, float]], edits: list[dict[str, Edits]]
) -> tuple[dict[str, float], dict[str, float]]:
    """Figures and baseline, by name. Sizes are 1k, 10k, 100k, 1m and 10m."""
    dense = [place for place, of in enumerate(catalogs) if of.spec == SPEC]
    ours = [steps[place][OURS] for place in dense]
    largest = dense[-1]
    last = short(catalogs[largest].num_items)
    at_100k = next((place for place in dense if catalogs[place].num_items == FULL.num_items), largest)
    figures: dict[str, float] = {}
    baseline: dict[str, float] = {}
    for place in dense:
        size, us = short(catalogs[place].num_items), steps[place]
        figures[f"step_us_{size}"] = us[OURS]
        baseline[f"csr_step_us_{size}"] = min(us[CSR], us[CSR_EAGER])
        baseline[f"dict_step_us_{size}"] = us[PYTHON]
    figures |= {
        f"flatness_1k_to_{last}": max(ours) / min(ours),
        "speedup_vs_csr": min(steps[at_100k][CSR], steps[at_100k][CSR_EAGER]) / steps[at_100k][OURS],
        "speedup_vs_python": steps[at_100k][PYTHON] / steps[at_100k][OURS],
        f"edit_us_{last}": edits[largest][OURS].both_us,
        f"index_bytes_{last}": catalogs[largest].num_bytes[OURS],
        f"index_bytes_in_graph_{last}": sum(t.nbytes for t in catalogs[largest].sid_trie.tables),
    }
    baseline |= {
        f"csr_bytes_{last}": catalogs[largest].num_bytes[CSR],
        f"csr_rebuild_s_{last}": catalogs[largest].build_s[CSR],
        f"dict_bytes_{last}": catalogs[largest].num_bytes[PYTHON],
        f"dict_edit_us_{last}": edits[largest][PYTHON].both_us,
    }
    return figures, baseline


def short(num_items: int) -> str:
    """1k, 100k, 10m."""
    return f"{num_items // 1_000_000}m" if num_items >= 1_000_000 else f"{num_items // 1_000}k"


def main(argv: Sequence[str]) -> int:
    parser = report.arguments(__doc__)
    parser.add_argument("--graphs", type=Path, help="where exported graphs are kept for the next run")
    args = parser.parse_args(argv)
    rounds, num_searches, num_edits = (2, 4, 20) if args.tiny else (1_500, 1_024, 2_000)
    shapes, sizes = (TINY, TINY_SIZES) if args.tiny else (FULL, SIZES)
    threads_before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        catalogs = [TrieCatalog(SPEC, size) for size in sizes]
        catalogs.append(TrieCatalog(PAGED, sizes[0] if args.tiny else 1_000_000))
        gc.freeze()  # the dictionaries: no collection shall walk them while others are timed
        graphs = {of: step_graphs(of) for of in (SPEC, PAGED)}
        runs = [of.runs(graphs[of.spec], of.searches(num_searches, seed=4)) for of in catalogs]
        for of, systems in zip(catalogs, runs, strict=True):
            of.check(systems, count=min(num_searches, 16))
        print("all systems allow the same codes")
        steps = steps_us(runs, rounds)
        edits = [{system: of.edits_us(system, num_edits) for system in (OURS, PYTHON)} for of in catalogs]
        show(catalogs, steps, edits)
        figures, baseline = summary(catalogs, steps, edits)
        step_us = figures["step_us_1k" if args.tiny else "step_us_100k"]
        with tempfile.TemporaryDirectory() as name:
            kinds: dict[str, Kind] = {"share_of_tree_request": "tree"}
            kinds |= {} if args.tiny else {"share_of_request": "tiger"}
            for name_of_figure, kind in kinds.items():
                folder = args.graphs or Path(name)
                figures[name_of_figure] = share_of_request(
                    kind, shapes, folder, step_us, repeats=2 if args.tiny else 200
                )
    finally:
        gc.unfreeze()
        torch.set_num_threads(threads_before)
    report.finish("trie", argv, figures, baseline)
    return 0


if __name__ == "__main__":
    report.run(main)
