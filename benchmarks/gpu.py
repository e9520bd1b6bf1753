"""The graph on a GPU: where its nodes run, whether it answers as on the CPU, how fast.

    python benchmarks/gpu.py [--tf32] [--provider CPUExecutionProvider]

Needs `glyphrec[gpu]`. Shapes as in decode.py: history 20 items, three levels of 256, 50 beams, 100,000
random-code items, random weights, float32. Three ways to call it, in turns: `plain` hands numpy arrays to the
session, as the service does; `resident` keeps the tables on the device and copies only histories and answers;
`replayed` also replays the run as one CUDA graph, whose tables are edited in place. Every answer is compared
with the CPU's. The baseline is the same graph on the CPU with all cores. Times are medians; the last line is
JSON.
"""

import argparse
import json
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from work_shapes import BEAMS, HISTORY, NUM_ITEMS, Kind, export_cached, median_ms, random_codes, spec

from service.core.graphs import GraphSpec, beam_widths
from service.core.trie import SidTrie
from service.inference.runtime import PROVIDER_OPTIONS, RecommenderSession

BATCHES = (1, 64, 256)
OUTPUTS = ("codes", "scores", "bound")
CPU = "CPUExecutionProvider"
TOLERANCE = 1e-3  # of scores, whose sums run in another order

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
        batch, levels = len(feeds["history"]), len(spec().levels)
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


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--provider", default="CUDAExecutionProvider")
    parser.add_argument("--tf32", action="store_true", help="let products round as the service does not")
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--graphs", type=Path, help="where exported graphs are kept for the next run")
    arguments = parser.parse_args()
    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()
    if arguments.provider not in onnxruntime.get_available_providers():
        raise SystemExit(f"ONNX Runtime here has no {arguments.provider}: pip install 'glyphrec[gpu]'.")
    if arguments.tf32:
        PROVIDER_OPTIONS["CUDAExecutionProvider"]["use_tf32"] = "1"
    codes = random_codes(NUM_ITEMS, seed=0)
    trie = SidTrie.from_codes(spec(), codes)
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.graphs or Path(temporary)
        for kind in ("tree", "tiger"):
            path, graph = export_cached(kind, folder)
            figures[kind] = measure(kind, path, graph, trie, codes, arguments.provider, arguments.repeats)
    print(json.dumps(figures))
    return 0


def measure(
    kind: Kind,
    path: Path,
    graph: GraphSpec,
    trie: SidTrie,
    codes: NDArray[np.int64],
    provider: str,
    repeats: int,
) -> dict[str, Any]:
    widths = beam_widths(spec(), BEAMS)
    on_cpu = RecommenderSession(path, graph, threads=0, providers=[CPU])
    figures: dict[str, Any] = {"placement": placement(path, provider, on_cpu, codes, trie)}
    print(f"{kind}: nodes run by {figures['placement']}")
    plain = onnxruntime.InferenceSession(str(path), _options(), providers=_providers(provider))
    for batch in BATCHES:
        rng = np.random.default_rng(batch)
        history = codes[rng.integers(0, NUM_ITEMS, size=(batch, HISTORY))]
        feeds = on_cpu.feeds(history, trie.tables, widths)
        runs: dict[str, Callable[[], list[NDArray[Any]]]] = {"plain": lambda f=feeds: plain.run(OUTPUTS, f)}
        for name in ("resident", "replayed"):
            try:
                resident = Resident(path, provider, feeds, BEAMS, replayed=name == "replayed")
                resident.run(history)
                runs[name] = lambda r=resident, h=history: r.run(h)
            except Exception as error:  # ONNX Runtime's own classes share no base below Exception
                print(f"{kind}, batch {batch}, {name}: refused: {str(error).splitlines()[0][:300]}")
        expected = on_cpu.run(history, trie.tables, widths)
        row = {"cpu": median_ms(lambda h=history: on_cpu.run(h, trie.tables, widths), min(repeats, 10))}
        for name, run in runs.items():
            found = dict(zip(OUTPUTS, run(), strict=True))
            worst = float(np.abs(found["scores"] - expected.scores).max())
            same = float((found["codes"][:, :10] == expected.codes[:, :10]).all(axis=-1).mean())
            if worst > TOLERANCE:
                print(f"{kind}, batch {batch}, {name}: WRONG, scores differ by up to {worst:.3g}")
            figures[f"{name}_batch{batch}_same_top10"] = round(same, 4)
            row[name] = median_ms(run, repeats)
        for name, ms in row.items():
            figures[f"{name}_batch{batch}_ms_p50"] = round(ms, 3)
            print(
                f"{kind:6} {name:9} batch {batch:4}  {ms:9.3f} ms  {1000 * batch / ms:10,.0f} requests/s"
                f"  {row['cpu'] / ms:6.1f} x the CPU"
            )
    figures["edit_seen_when_replayed"] = edit_is_seen(path, provider, on_cpu, trie, codes)
    return figures


def placement(
    path: Path, provider: str, session: RecommenderSession, codes: NDArray[np.int64], trie: SidTrie
) -> dict[str, int]:
    """How many nodes of one run each provider had, by name of the provider, with the operators left over."""
    options = _options()
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "run")
        profiled = onnxruntime.InferenceSession(str(path), options, providers=_providers(provider))
        profiled.run(OUTPUTS, session.feeds(codes[:HISTORY][None], trie.tables, beam_widths(spec(), BEAMS)))
        events = json.loads(Path(profiled.end_profiling()).read_text(encoding="utf-8"))
    kernels = [event["args"] for event in events if event["name"].endswith("_kernel_time")]
    left = Counter(args["op_name"] for args in kernels if args["provider"] != provider)
    if left:
        print("not on the device:", dict(left))
    return dict(Counter(args["provider"] for args in kernels))


def edit_is_seen(
    path: Path, provider: str, on_cpu: RecommenderSession, trie: SidTrie, codes: NDArray[np.int64]
) -> bool | None:
    """Whether a replayed run answers from tables that were edited in place; None where it cannot replay."""
    widths = beam_widths(spec(), BEAMS)
    history = codes[:HISTORY][None]
    feeds = on_cpu.feeds(history, trie.tables, widths)
    try:
        resident = Resident(path, provider, feeds, BEAMS, replayed=True)
        best = resident.run(history)[0][0, 0].copy()
        others = codes[(codes != best).any(axis=1)]
        edited = on_cpu.feeds(history, SidTrie.from_codes(spec(), others).tables, widths)
        for name, value in edited.items():
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
    raise SystemExit(main())
