"""What reading an item costs and how well it is read: the compact reader beside PP-OCR.

    python benchmarks/reading.py [--quick] [--data FOLDER]

Both draw and read the same texts by the default recipe, on one thread, and take turns. An item has 256
characters. Synthetic texts are of a seed that no training of the compact reader saw; real ones are those of
the catalogue in --data, by default ../shared/data/scientific where it is there. Character accuracy is one
minus the edits for each character drawn.

The last line is JSON. compact_items_per_second is the claim; target: 25.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from statistics import median

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from model_export.configs import CompactConfig, PpOcrConfig
from model_export.encoders.choose import make_encoder
from model_export.encoders.compact.reader import LATIN, SYMBOLS
from model_export.encoders.compact.synthetic_text import ProductTexts
from model_export.encoders.ctc import CtcEncoder, character_accuracy
from service.core.bundle import RenderSpec
from service.core.json_lines import read_json_lines
from service.core.render import item_text, render_text

BODIES = {"pp-ocr": PpOcrConfig(), "compact": CompactConfig()}  # the baseline first
SPEC = RenderSpec(max_strips=16)  # the default, with room for 256 characters of any width
CHARACTERS = 256
ITEMS_PER_RUN = 4
UNSEEN_SEED = 20_260_101
DATA = Path("../shared/data/scientific")
Strips = NDArray[np.uint8]  # [strip, height, width]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few items, for a first look")
    parser.add_argument("--data", type=Path, default=DATA, help="a folder with items.jsonl.gz")
    args = parser.parse_args()
    num_items, rounds = (12, 3) if args.quick else (64, 9)
    texts = synthetic_texts(num_items)
    items = [render_text(text, SPEC).strips for text in texts]
    num_strips = np.mean([len(item) for item in items])
    print(f"{num_items} items of {CHARACTERS} characters, {num_strips:.1f} strips each, one thread")

    encoders = {body: make_encoder(SPEC, config, seed=0) for body, config in BODIES.items()}
    graphs = {body: encoder.body().SerializeToString() for body, encoder in encoders.items()}
    sessions = {body: one_thread(graph) for body, graph in graphs.items()}
    figures = {f"{body}_graph_mb": len(graph) / 1e6 for body, graph in graphs.items()}
    figures |= speeds(sessions, items, rounds)
    figures |= latencies_ms(sessions, texts)
    readable = {"synthetic": texts}
    if (args.data / "items.jsonl.gz").is_file():
        readable["real"] = real_texts(args.data / "items.jsonl.gz", num_items)
    for kind, some in readable.items():
        for body, encoder in encoders.items():
            figures[f"{body}_accuracy_{kind}"] = accuracy(encoder, some)

    names = [name.removeprefix("compact_") for name in figures if name.startswith("compact_")]
    print(f"{'':28}" + "".join(f"{body:>12}" for body in BODIES))
    for name in names:
        print(
            f"{name.replace('_', ' '):28}" + "".join(f"{figures[f'{body}_{name}']:12.4g}" for body in BODIES)
        )
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))
    return 0


def synthetic_texts(count: int) -> list[str]:
    source = ProductTexts(Random(UNSEEN_SEED), LATIN + SYMBOLS)
    return [_cut(iter(source.next, None)) for _ in range(count)]


def real_texts(path: Path, count: int) -> list[str]:
    """Of items drawn at random, one after another until they fill the characters of an item."""
    drawn = [item_text(line.value, SPEC) for line in read_json_lines(path)]
    order = iter(np.random.default_rng(0).permutation(len(drawn)))
    return [_cut(drawn[place] for place in order) for _ in range(count)]


def _cut(texts: Iterator[str]) -> str:
    """As many of the texts as fill the characters of an item."""
    text = ""
    while len(text) < CHARACTERS:
        text = f"{text}; {next(texts)}".removeprefix("; ")
    return text[:CHARACTERS].strip()


def one_thread(graph: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def speeds(
    sessions: dict[str, onnxruntime.InferenceSession], items: Sequence[Strips], rounds: int
) -> dict[str, float]:
    """Of the bodies alone, a few items a run: the median round."""
    took: dict[str, list[float]] = {body: [] for body in sessions}
    runs = [
        np.concatenate(items[start : start + ITEMS_PER_RUN]) for start in range(0, len(items), ITEMS_PER_RUN)
    ]
    for _ in range(rounds):
        for body, session in sessions.items():
            begun = time.perf_counter()
            for strips in runs:
                session.run(["frames"], {"strips": strips})
            took[body].append(time.perf_counter() - begun)
    num_strips = sum(map(len, items))
    figures = {}
    for body, rounds_s in took.items():
        figures[f"{body}_strips_per_second"] = num_strips / median(rounds_s)
        figures[f"{body}_items_per_second"] = len(items) / median(rounds_s)
    return figures


def latencies_ms(sessions: dict[str, onnxruntime.InferenceSession], texts: Sequence[str]) -> dict[str, float]:
    """One item alone, drawn and read: the median."""
    took: dict[str, list[float]] = {body: [] for body in sessions}
    for text in texts:
        for body, session in sessions.items():
            begun = time.perf_counter()
            session.run(["frames"], {"strips": render_text(text, SPEC).strips})
            took[body].append(time.perf_counter() - begun)
    return {f"{body}_one_item_ms": 1000 * median(each) for body, each in took.items()}


def accuracy(encoder: CtcEncoder, texts: Sequence[str]) -> float:
    read = [" ".join(encoder.transcribe(render_text(text, SPEC).strips)) for text in texts]
    return character_accuracy(texts, read)


if __name__ == "__main__":
    raise SystemExit(main())
