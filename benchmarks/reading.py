"""The cost of reading an item, and how well it is read: the compact reader beside PP-OCR.

    python -m benchmarks.reading [--data FOLDER]

Both draw and read the same texts by the default recipe, on one thread, and take turns. An item has 256
characters. Synthetic texts are of a seed that no training of the compact reader saw; real ones are those of
the catalog in --data, by default ../shared/data/scientific where it is there. Character accuracy is one
minus the edits for each character drawn. The baseline is PP-OCR.

The last line is JSON. compact_items_per_second is the claim; target: 25.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from benchmarks import report
from benchmarks.timing import in_turns
from model_export.configs import CompactConfig, PpOcrConfig
from model_export.encoders.choose import make_encoder
from model_export.encoders.compact.reader import LATIN, SYMBOLS
from model_export.encoders.compact.synthetic_text import ProductTexts
from model_export.encoders.ctc import CtcEncoder, character_accuracy
from service.core.bundle import RenderSpec
from service.core.json_lines import read_json_lines
from service.core.render import item_text, render_text

BASELINE = "pp_ocr"
BODIES: dict[str, PpOcrConfig | CompactConfig] = {BASELINE: PpOcrConfig(), "compact": CompactConfig()}
SPEC = RenderSpec(max_strips=16)  # the default, with room for 256 characters of any width
CHARACTERS = 256
ITEMS_PER_RUN = 4
UNSEEN_SEED = 20_260_101
DATA = Path("../shared/data/scientific")
Strips = NDArray[np.uint8]  # [strip, height, width]


def main(argv: Sequence[str]) -> int:
    parser = report.arguments(__doc__)
    parser.add_argument("--data", type=Path, default=DATA, help="a folder with items.jsonl.gz")
    args = parser.parse_args(argv)
    num_items, rounds = (1, 1) if args.tiny else (64, 9)
    texts = synthetic_texts(num_items)
    items = [render_text(text, SPEC).strips for text in texts]
    num_strips = np.mean([len(item) for item in items])
    print(f"{num_items} items of {CHARACTERS} characters, {num_strips:.1f} strips each, one thread")

    encoders = {body: encoder_of(config) for body, config in BODIES.items()}
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
    rows = [(name, *(f"{figures[f'{body}_{name}']:.4g}" for body in BODIES)) for name in names]
    report.table(("", *BODIES), rows)
    baseline = {name: value for name, value in figures.items() if name.startswith(BASELINE)}
    report.finish("reading", argv, {name: v for name, v in figures.items() if name not in baseline}, baseline)
    return 0


def encoder_of(config: PpOcrConfig | CompactConfig) -> CtcEncoder:
    encoder = make_encoder(SPEC, config, seed=0)
    assert isinstance(encoder, CtcEncoder)
    return encoder


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
    runs = [
        np.concatenate(items[start : start + ITEMS_PER_RUN]) for start in range(0, len(items), ITEMS_PER_RUN)
    ]

    def read_all(session: onnxruntime.InferenceSession) -> None:
        for strips in runs:
            session.run(["frames"], {"strips": strips})

    calls = {body: lambda _, session=session: read_all(session) for body, session in sessions.items()}
    figures = {}
    for body, took_ms in in_turns(calls, rounds).items():
        round_s = float(np.median(took_ms)) / 1_000
        figures[f"{body}_strips_per_second"] = sum(map(len, items)) / round_s
        figures[f"{body}_items_per_second"] = len(items) / round_s
    return figures


def latencies_ms(sessions: dict[str, onnxruntime.InferenceSession], texts: Sequence[str]) -> dict[str, float]:
    """One item alone, drawn and read: the median."""

    def read(text: str, session: onnxruntime.InferenceSession) -> None:
        session.run(["frames"], {"strips": render_text(text, SPEC).strips})

    calls = {body: lambda n, session=session: read(texts[n], session) for body, session in sessions.items()}
    return {
        f"{body}_one_item_ms": float(np.median(took_ms))
        for body, took_ms in in_turns(calls, len(texts)).items()
    }


def accuracy(encoder: CtcEncoder, texts: Sequence[str]) -> float:
    read = [" ".join(encoder.transcribe(render_text(text, SPEC).strips)) for text in texts]
    return character_accuracy(texts, read)


if __name__ == "__main__":
    report.run(main)
