"""A catalog whose codes are skewed like those of real items, and a bundle that serves it without training.

Codes are drawn from a tree of Zipf distributions: exponent .8 for the first code, 1.4 for the second under
each first and .5 for the third, each parent with an order of its own. The items of two bundles of `make demo`
(3,130 groceries, levels 64x64x32) are like that: first codes fall with slope -.80 where the quantizer was not
told to balance them, the 740 and 926 prefixes of two codes with -.96 and -.86; as many items drawn here have
920 prefixes, and -.84 and -.87. An export then moves items to codes that are free. These were not moved, so
more of them share codes: of a million, 1,059 share the commonest, and 453,000 of 256x256x256 are in use.

Items are as long as the groceries. The bundle's tokenizer is a sum, so that reading a picture is no part of a
put; its recommender is an untrained `tree`.
"""

import gzip
from pathlib import Path

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from model_export.bundle.recommender import export_recommender
from model_export.configs import TreeConfig
from model_export.generators.tree import TreeGenerator
from service.core.bundle import (
    ITEMS,
    MANIFEST,
    RECOMMENDER,
    TOKENIZER,
    FileRecord,
    Manifest,
    RenderSpec,
    format_version_of,
    sha256_of,
)
from service.core.graphs import recommender_graph, tokenizer_graph
from service.core.render import font_sha256
from service.core.sid import SidSpec

SPEC = SidSpec(levels=(256, 256, 256))
EXPONENTS = (0.8, 1.4, 0.5)
HISTORY = 20
BEAM_LIMIT = 400
SEEN_ITEMS = 20_000  # that the recommender's tables were made for
CHUNK = 100_000
WORDS = ("oat", "milk", "bread", "cheese", "steel", "bolt", "hex", "cap", "ice", "soup", "red", "large")


def item_id(number: int) -> str:
    return f"B{number:09d}"


def draw_codes(num_items: int, seed: int, spec: SidSpec = SPEC) -> NDArray[np.int64]:
    """Codes [item, level] of three levels, as the docstring of this file says."""
    rng = np.random.default_rng(seed)
    codes = np.empty((num_items, spec.num_levels), dtype=np.int64)
    prefix = np.zeros(num_items, dtype=np.int64)
    for level, (num_codes, exponent) in enumerate(zip(spec.levels, EXPONENTS, strict=True)):
        share = np.arange(1, num_codes + 1, dtype=np.float64) ** -exponent
        rank = rng.choice(num_codes, size=num_items, p=share / share.sum())
        # The likeliest code is another one under each parent: a step that is odd visits every code once.
        codes[:, level] = (rank * (2 * (prefix * 7919 % 97) + 1) + prefix * 104_729) % num_codes
        prefix = prefix * num_codes + codes[:, level]
    return codes


def write_items(folder: Path, num_items: int, num_parts: int, spec: SidSpec) -> list[Path]:
    """Files of so many items together."""
    parts = [folder / f"{part}.jsonl.gz" for part in range(num_parts)]
    for part, path in enumerate(parts):
        first, end = num_items * part // num_parts, num_items * (part + 1) // num_parts
        with gzip.open(path, "wt", encoding="utf-8", compresslevel=1) as file:
            for start in range(first, end, CHUNK):
                codes = draw_codes(min(CHUNK, end - start), start, spec).tolist()
                file.writelines(_line(start + n, each) for n, each in enumerate(codes))
    return parts


def _line(number: int, codes: list[int]) -> str:
    first, second, third = codes
    words = " ".join(WORDS[code % len(WORDS)] for code in codes) + f", number {number}, {third} oz"
    item = (
        f'{{"item_id": "{item_id(number)}", "title": "{words}", "brand": "Brand {number % 2_000}", '
        f'"categories": ["Section {first}", "Shelf {first}-{second % 16}"]}}'
    )
    return (
        f'{{"item_id": "{item_id(number)}", "codes": {codes}, "slot": 0, "popularity": 1, "item": {item}}}\n'
    )


def write_bundle(folder: Path) -> Path:
    """One that can be served, without items."""
    folder.mkdir()
    export_untrained(folder / RECOMMENDER)
    render = RenderSpec()
    render = render.model_copy(update={"font_sha256": font_sha256(render)})
    graph = tokenizer_graph(SPEC, height=render.height_px, width=render.width_px, vector_dim=1)
    onnx.save(_summing_tokenizer(render), folder / TOKENIZER)
    with gzip.open(folder / ITEMS, "wb"):
        pass
    manifest = Manifest(
        format_version=format_version_of(reads_text_alone=True),
        created_at="2026-01-01T00:00:00Z",
        config="scale",
        export_key="0" * 64,
        sid=SPEC,
        render=render,
        tokenizer_id="0123456789ab",
        recommender_id="ba9876543210",
        trained_for_tokenizer_id="0123456789ab",
        tokenizer=graph,
        recommender=recommender_graph(SPEC),
        generator="tree",
        history_length=HISTORY,
        beam_limit=BEAM_LIMIT,
        data_fingerprint="none",
        data_name="scale",
        num_items=0,
        metrics={},
        files={
            name: FileRecord(sha256=sha256_of(folder / name), num_bytes=(folder / name).stat().st_size)
            for name in (TOKENIZER, RECOMMENDER, ITEMS)
        },
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json(), encoding="utf-8")
    return folder


def export_untrained(path: Path) -> None:
    """Write the graph of `untrained`."""
    export_recommender(path, untrained(), history_length=HISTORY, beam_limit=BEAM_LIMIT)


def untrained() -> TreeGenerator:
    """A `tree` with random weights, the same at each call."""
    torch.manual_seed(0)
    return TreeGenerator(
        config=TreeConfig(), spec=SPEC, history_length=HISTORY, seen_codes=draw_codes(SEEN_ITEMS, seed=0)
    ).eval()


def _summing_tokenizer(render: RenderSpec) -> onnx.ModelProto:
    """Codes from the sum of an item's first strip."""
    node = helper.make_node
    nodes = [
        node("Gather", ["strips", "first_strip"], ["first"], axis=0),
        node("Cast", ["first"], ["pixels"], to=TensorProto.INT64),
        node("ReduceSum", ["pixels", "picture"], ["sum"], keepdims=0),  # [item]
        node("Unsqueeze", ["sum", "column"], ["sums"]),
        node("Mul", ["sums", "primes"], ["spread"]),
        node("Mod", ["spread", "levels"], ["codes"]),
        node("Cast", ["sums"], ["vector"], to=TensorProto.FLOAT),
    ]
    constants = {"picture": [1, 2], "column": [1], "primes": [7, 31, 127], "levels": SPEC.levels}
    shape: list[str | int | None] = ["strip", render.height_px, render.width_px]
    graph = helper.make_graph(
        nodes,
        "summing_tokenizer",
        [
            helper.make_tensor_value_info("strips", TensorProto.UINT8, shape),
            helper.make_tensor_value_info("first_strip", TensorProto.INT64, ["item"]),
        ],
        [
            helper.make_tensor_value_info("codes", TensorProto.INT64, ["item", SPEC.num_levels]),
            helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["item", 1]),
        ],
        [numpy_helper.from_array(np.array(each, dtype=np.int64), name) for name, each in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
