"""The graph on a GPU: where its nodes run, whether it answers as on the CPU, how fast.

    python -m benchmarks.gpu [--tf32] [--provider CPUExecutionProvider]

Needs `glyphrec[gpu]`. Shapes as in decode.py: history 20 items, three levels of 256, 50 beams, 100,000
random-code items, random weights, float32. Three ways to call it, in turns: `plain` hands numpy arrays to the
session, as the service does; `resident` keeps the tables on the device and copies only histories and answers;
`replayed` also replays the run as one CUDA graph, whose tables are edited in place. Every answer is compared
with the CPU's. The baseline is the same graph on the CPU with all cores. Times are medians; the last line is
JSON. With --tiny only `tree` is measured.
"""

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from benchmarks import report
from benchmarks.timing import median_ms
from benchmarks.workload.shapes import BEAMS, FULL, TINY, Kind, Shapes, export_cached, random_histories
from service.core.graphs import GraphSpec
from service.core.trie import SidTrie
from service.inference.runtime import PROVIDER_OPTIONS, RecommenderSession

BATCHES = (1, 64, 256)
OUTPUTS = ("codes", "scores", "bound")
CPU = "CPUExecutionProvider"
TOLERANCE = 1e-3  # of scores, whose sums run in another order
TOP = 10

Feeds = dict[str, NDArray[Any]]


class Resident:
    """A session whose inputs and outputs stay on the device at fixed addresses."""

    def __init__(self, path: Path, provider: str, feeds: Feeds, num_beams: int, *, replayed: bool) -> None:
        device = "cuda" if provider.startswith("CUDA") else "cpu"
        graph = {"enable_cuda_graph": "1"} if replayed and device == "cuda" else {}
        chosen = (provider, PROVIDER_OPTIONS.get(provider, {}) | graph)
        self.session = onnxruntime.InferenceSession(str(path), _options(), providers=[chosen])
        self.feeds = {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(value, device, 0) for name, value in feeds.items()
        }
        batch, levels = feeds["history"].shape[0], feeds["history"].shape[-1]
        shapes = {"codes": (batch, num_beams, levels), "scores": (batch, num_beams), "bound": (batch,)}
        self.found = {
            name: onnxruntime.OrtValue.ortvalue_from_shape_and_type(
                shape, np.int64 if name == "codes" else np.float32, device, 0
            )
            for name, shape in shapes.items()
        }
        self.binding = self.session.io_binding()
        for name, value in self.feeds.items():
            self.binding.bind_ortvalue_input(name, value)
        for name, value in self.found.items():
            self.binding.bind_ortvalue_output(name, value)

    def run(self, history: NDArray[np.int64]) -> list[NDArray[Any]]:
        self.feeds["history"].update_inplace(history)
        self.session.run_with_iobinding(self.binding)
        return [self.found[name].numpy() for name in OUTPUTS]


def main(argv: Sequence[str]) -> int:
    parser = report.arguments(__doc__)
    parser.add_argument("--provider", default="CUDAExecutionProvider")
    parser.add_argument("--tf32", action="store_true", help="let products round as the service does not")
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--graphs", type=Path, help="where exported graphs are kept for the next run")
    args = parser.parse_args(argv)
    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()
    if args.provider not in onnxruntime.get_available_providers():
        raise report.NotAvailable(f"ONNX Runtime here has no {args.provider}: pip install 'glyphrec[gpu]'.")
    if args.tf32:
        PROVIDER_OPTIONS["CUDAExecutionProvider"]["use_tf32"] = "1"
    shapes, repeats = (TINY, 2) if args.tiny else (FULL, args.repeats)
    kinds: tuple[Kind, ...] = ("tree",) if args.tiny else ("tree", "tiger")
    figures: dict[str, float] = {}
    baseline: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as temporary:
        for kind in kinds:
            path, graph = export_cached(kind, args.graphs or Path(temporary), shapes)
            measured = Measured(kind, path, graph, shapes, args.provider)
            figures |= measured.placement()
            for batch in BATCHES:
                measured.batch(batch, repeats, figures, baseline)
            if (is_seen := measured.edit_is_seen()) is not None:
                figures[f"{kind}_edit_seen_when_replayed"] = int(is_seen)
    report.finish("gpu", argv, figures, baseline)
    return 0


class Measured:
    """One generator's graph, on the device and on the CPU."""

    def __init__(self, kind: Kind, path: Path, graph: GraphSpec, shapes: Shapes, provider: str) -> None:
        self.kind, self.path, self.provider, self.shapes = kind, path, provider, shapes
        self.codes = shapes.codes
        self.tables = SidTrie.from_codes(shapes.spec, self.codes).tables
        self.on_cpu = RecommenderSession(path, graph, threads=0, providers=[CPU])
        self.plain = onnxruntime.InferenceSession(str(path), _options(), providers=_providers(provider))

    def batch(self, batch: int, repeats: int, figures: dict[str, float], baseline: dict[str, float]) -> None:
        """Adds the figures of one size of a batch."""
        history = random_histories(self.codes, batch, seed=batch)
        feeds = self.on_cpu.feeds(history, self.tables, self.shapes.widths)
        runs: dict[str, Callable[[], list[NDArray[Any]]]] = {"plain": lambda: self.plain.run(OUTPUTS, feeds)}
        for name in ("resident", "replayed"):
            try:
                resident = Resident(self.path, self.provider, feeds, BEAMS, replayed=name == "replayed")
                resident.run(history)
                runs[name] = partial(resident.run, history)
            except Exception as error:  # ONNX Runtime's own classes share no base below Exception
                print(f"{self.kind}, batch {batch}, {name}: refused: {str(error).splitlines()[0][:300]}")
        expected = self.on_cpu.run(history, self.tables, self.shapes.widths)
        cpu_ms = median_ms(
            lambda: self.on_cpu.run(history, self.tables, self.shapes.widths), min(repeats, 10)
        )
        took_ms = {"cpu": cpu_ms}
        for name, run in runs.items():
            found = dict(zip(OUTPUTS, run(), strict=True))
            worst = float(np.abs(found["scores"] - expected.scores).max())
            same = (found["codes"][:, :TOP] == expected.codes[:, :TOP]).all(axis=-1)
            if worst > TOLERANCE:
                print(f"{self.kind}, batch {batch}, {name}: WRONG, scores differ by up to {worst:.3g}")
            figures[f"{self.kind}_{name}_batch{batch}_same_top10"] = float(same.mean())
            took_ms[name] = median_ms(run, repeats)
        rows = []
        for name, ms in took_ms.items():
            of_run = {
                f"{self.kind}_{name}_batch{batch}_ms": ms,
                f"{self.kind}_{name}_batch{batch}_rps": 1_000 * batch / ms,
            }
            (baseline if name == "cpu" else figures).update(of_run)
            rows.append((name, f"{ms:.3f}", f"{1_000 * batch / ms:,.0f}", f"{cpu_ms / ms:.1f}"))
        report.table((f"{self.kind}, batch {batch}", "ms", "requests/s", "times the CPU"), rows)

    def placement(self) -> dict[str, float]:
        """How many nodes of one run there are, and how many of them the provider had."""
        options = _options()
        options.enable_profiling = True
        feeds = self.on_cpu.feeds(random_histories(self.codes, 1, seed=0), self.tables, self.shapes.widths)
        with tempfile.TemporaryDirectory() as folder:
            options.profile_file_prefix = str(Path(folder) / "run")
            profiled = onnxruntime.InferenceSession(
                str(self.path), options, providers=_providers(self.provider)
            )
            profiled.run(OUTPUTS, feeds)
            events = json.loads(Path(profiled.end_profiling()).read_text(encoding="utf-8"))
        kernels = [event["args"] for event in events if event["name"].endswith("_kernel_time")]
        left = Counter(args["op_name"] for args in kernels if args["provider"] != self.provider)
        on_device = len(kernels) - left.total()
        print(
            f"{self.kind}: {on_device} of {len(kernels)} nodes run by {self.provider}; others: {dict(left)}"
        )
        return {f"{self.kind}_nodes": len(kernels), f"{self.kind}_nodes_on_device": on_device}

    def edit_is_seen(self) -> bool | None:
        """Whether a replayed run answers from tables edited in place; None where it cannot replay."""
        history = random_histories(self.codes, 1, seed=0)
        feeds = self.on_cpu.feeds(history, self.tables, self.shapes.widths)
        try:
            resident = Resident(self.path, self.provider, feeds, BEAMS, replayed=True)
            best = resident.run(history)[0][0, 0].copy()
            others = self.codes[(self.codes != best).any(axis=1)]
            tables = SidTrie.from_codes(self.shapes.spec, others).tables
            for name, value in self.on_cpu.feeds(history, tables, self.shapes.widths).items():
                if value.dtype == np.uint8:
                    resident.feeds[name].update_inplace(value)
            return bool((resident.run(history)[0][0, 0] != best).any())
        except Exception as error:  # as above
            print("edit while replayed: refused:", str(error).splitlines()[0][:300])
            return None


def _providers(provider: str) -> list[tuple[str, dict[str, str]]]:
    """As the service has them."""
    return [(name, PROVIDER_OPTIONS.get(name, {})) for name in dict.fromkeys([provider, CPU])]


def _options() -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # not each node that stays with shapes on the CPU
    return options


if __name__ == "__main__":
    report.run(main)
