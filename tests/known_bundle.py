"""A tiny real bundle whose answers can be worked out by hand: both graphs are ONNX with fixed arithmetic.

The tokenizer's codes are the sum of an item's first strip, written in the base of the levels; another
`reader` adds 101 times its number, and a tokenizer that reads photos adds the sum of the photo's pixels. A
tokenizer that reads fields has the sum of their numbers, times FIELD_WEIGHT and their place from 1. The
vector is the same sum as an angle, so items are alike whose sums are near each other on the circle. The
recommender is a beam search over two steps, the first code and then
the rest, so it loses items as real ones do.
"""

import gzip
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from service.core.bundle import (
    CO_COUNTS,
    ITEMS,
    MANIFEST,
    RECOMMENDER,
    TOKENIZER,
    VOCABULARY,
    FileRecord,
    Manifest,
    PictureSpec,
    RenderSpec,
    format_version_of,
    sha256_of,
)
from service.core.bundle_co_counts import write_co_counts
from service.core.bundle_vocabulary import write_vocabulary
from service.core.co_counts import CoCountSpec, CoRow
from service.core.encoder_view import encoder_view
from service.core.graphs import GraphSpec, field_tokenizer_graph, recommender_graph, tokenizer_graph
from service.core.item_fields import Vocabulary
from service.core.render import font_sha256, item_text, render_text
from service.core.sid import Codes, SidSpec
from service.core.vectors import as_text, packed

SPEC = SidSpec(levels=(32, 4, 3))
PAGED = SidSpec(levels=SPEC.levels, paged=True)
PICTURES = PictureSpec(size_px=32)  # of the tokenizer that reads photos
HISTORY_LENGTH = 4
VECTOR_DIM = 2
FIELD_WEIGHT = 7
BEAM_LIMIT = 64
NEG_INF = -1e9
FIRST, REST = (
    37,
    389,
)  # primes above the number of first codes and of leaves: no two scores of a step are equal
NUM_LEAVES = SPEC.num_prefixes[-1]
LEAVES_PER_FIRST = NUM_LEAVES // SPEC.levels[0]


class KnownItem(NamedTuple):
    item_id: str
    codes: Codes
    popularity: int
    item: dict


def render_spec() -> RenderSpec:
    spec = RenderSpec()
    return spec.model_copy(update={"font_sha256": font_sha256(spec)})


def known_codes(
    item: dict, reader: int = 0, kept: bytes | None = None, pictures: PictureSpec = PICTURES
) -> Codes:
    """What the tokenizer reads. `kept`: the item's kept picture, if this reader reads pictures."""
    return SPEC.codes_of(_leaf(item, reader, kept, pictures))


def known_vector(item: dict, reader: int = 0, kept: bytes | None = None) -> bytes:
    """What is kept of the vector of the item."""
    return vector_of(SPEC.codes_of(_leaf(item, reader, kept, PICTURES)))


def vector_of(codes: Codes) -> bytes:
    """The vector that each known tokenizer gives together with these codes, as it is kept."""
    angle = 2 * math.pi * SPEC.prefixes(codes)[-1] / NUM_LEAVES
    (vector,) = packed(np.array([[math.cos(angle), math.sin(angle)]], np.float32))
    return vector


def _leaf(item: dict, reader: int, kept: bytes | None, pictures: PictureSpec) -> int:
    render = render_spec()
    first_strip = render_text(item_text(item, render), render).strips[0]
    total = int(first_strip.sum(dtype=np.int64)) + 101 * reader
    seen = encoder_view(item, kept, pictures, render)
    if seen is not None:
        total += int(seen.sum(dtype=np.int64))
    return total % NUM_LEAVES


def known_field_codes(item: dict, vocabulary: Vocabulary, reader: int = 0) -> Codes:
    """What a tokenizer of fields reads."""
    numbers = vocabulary.read(item).tolist()
    total = sum(FIELD_WEIGHT * place * number for place, number in enumerate(numbers, start=1))
    return SPEC.codes_of((total + 101 * reader) % NUM_LEAVES)


def known_score(history: Sequence[Codes], codes: Codes, mass: Mapping[Codes, float] | None = None) -> float:
    """What the model gives to `codes` after the last HISTORY_LENGTH items of a history.

    `mass`: of the codes of the history's neighbors.
    """
    shift, mass = _shift(history), mass or {}
    leaf = SPEC.prefixes(codes)[-1]
    by_model = -0.5 * ((5 * codes[0] + shift) % FIRST) - 0.125 * ((37 * leaf + shift) % REST)
    return by_model + math.log1p(mass.get(codes, 0)) - math.log1p(max(mass.values(), default=0))


def ranking(history: Sequence[Codes], leaves: Iterable[Codes]) -> list[tuple[float, Codes]]:
    """Every one of `leaves` with its score, best first: the slow truth."""
    return sorted(
        ((known_score(history, codes), codes) for codes in leaves), key=lambda pair: (-pair[0], pair[1])
    )


def items_without_text_twice(num_items: int, seed: int) -> list[KnownItem]:
    """Items at random codes, some shared, with popularity that has ties."""
    rng = np.random.default_rng(seed)
    return [
        KnownItem(
            f"item-{i}",
            SPEC.codes_of(int(rng.integers(NUM_LEAVES))),
            int(rng.integers(5)),
            {"item_id": f"item-{i}", "title": f"Thing number {i}"},
        )
        for i in range(num_items)
    ]


KNOWN_ITEMS = items_without_text_twice(30, 0)


def tokenizer_id_of(reader: int) -> str:
    return f"{0x0123456789AB + reader:012x}"


def write_known_bundle(
    folder: Path,
    items: Sequence[KnownItem],
    spec: SidSpec = SPEC,
    beam_limit: int = BEAM_LIMIT,
    *,
    reader: int = 0,
    recommender_id: str = "ba9876543210",
    fields: tuple[str, ...] = RenderSpec().fields,
    co_counts: CoCountSpec | None = None,
    rows: Iterable[CoRow] = (),
    created_at: str = "2026-01-01T00:00:00Z",
    data_name: str = "known",
    pictures: PictureSpec | None = None,
    vocabulary: Vocabulary | None = None,
    has_vectors: bool = True,
) -> Path:
    """`spec` is SPEC, or PAGED: the same codes in pages. Another reader is another tokenizer.

    With `co_counts`, the counts of `rows` have a say. With `pictures`, the tokenizer reads photos, and with a
    `vocabulary` fields. Without `has_vectors`, the items have none, as in bundles of older releases.
    """
    folder.mkdir(parents=True, exist_ok=True)
    render = render_spec().model_copy(update={"fields": fields})
    tokenizer = (
        field_tokenizer_graph(spec, len(vocabulary.names), VECTOR_DIM)
        if vocabulary
        else tokenizer_graph(
            spec,
            height=render.height_px,
            width=render.width_px,
            vector_dim=VECTOR_DIM,
            picture_px=pictures.size_px if pictures else None,
        )
    )
    graphs = (tokenizer, recommender_graph(spec))
    onnx.save(_tokenizer(graphs[0], reader), folder / TOKENIZER)
    onnx.save(_recommender(graphs[1], spec.is_paged), folder / RECOMMENDER)
    with gzip.open(folder / ITEMS, "wt", encoding="utf-8") as file:
        for each in items:
            line = each._asdict() | {"slot": 0}
            if has_vectors:
                of_fields = None if vocabulary is None else known_field_codes(each.item, vocabulary, reader)
                vector = vector_of(of_fields) if of_fields else known_vector(each.item, reader)
                line["vector"] = as_text(vector)
            file.write(json.dumps(line) + "\n")
    files = [TOKENIZER, RECOMMENDER, ITEMS]
    if co_counts is not None:
        write_co_counts(folder / CO_COUNTS, rows)
        files.append(CO_COUNTS)
    known_fields = None
    if vocabulary is not None:
        known_fields = write_vocabulary(folder / VOCABULARY, vocabulary)
        files.append(VOCABULARY)
    manifest = Manifest(
        format_version=format_version_of(reads_text_alone=pictures is None and vocabulary is None),
        created_at=created_at,
        config="known",
        export_key="0" * 64,
        sid=spec,
        render=render,
        pictures=pictures,
        fields=known_fields,
        tokenizer_id=tokenizer_id_of(reader),
        recommender_id=recommender_id,
        trained_for_tokenizer_id=tokenizer_id_of(reader),
        tokenizer=graphs[0],
        recommender=graphs[1],
        generator="known",
        history_length=HISTORY_LENGTH,
        beam_limit=beam_limit,
        co_counts=co_counts,
        data_fingerprint="none",
        data_name=data_name,
        num_items=len(items),
        metrics={"recall@10": 0.5},
        files={
            name: FileRecord(sha256=sha256_of(folder / name), num_bytes=(folder / name).stat().st_size)
            for name in files
        },
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json(), encoding="utf-8")
    return folder


def _shift(history: Sequence[Codes]) -> int:
    recent = history[-HISTORY_LENGTH:]
    return 11 * SPEC.prefixes(recent[-1])[-1] + 5 * len(recent)


class Graph:
    """Builds a graph a node at a time; every step is named after its one output."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def __call__(self, op: str, inputs: str | list[str], output: str, **attributes: object) -> str:
        names = inputs.split() if isinstance(inputs, str) else inputs
        self.nodes.append(helper.make_node(op, names, [output], **attributes))
        return output

    def constant(self, name: str, value: object, dtype: type = np.int64) -> str:
        self.constants.append(numpy_helper.from_array(np.array(value, dtype=dtype), name))
        return name

    def model(self, name: str, spec: GraphSpec) -> onnx.ModelProto:
        types = {name.lower(): value for name, value in TensorProto.DataType.items()} | {
            "float32": TensorProto.FLOAT
        }
        inputs, outputs = (
            [
                helper.make_tensor_value_info(each.name, types[each.dtype], list(each.shape))
                for each in tensors
            ]
            for tensors in (spec.inputs, spec.outputs)
        )
        graph = helper.make_graph(self.nodes, name, inputs, outputs, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
        onnx.checker.check_model(model)
        return model


def _write_codes(g: Graph, leaf: str, output: str, axis: int) -> None:
    """Full prefixes -> their codes along a new last axis."""
    g.constant("last_axis", [axis])
    parts, rest = [], leaf
    for level in reversed(range(SPEC.num_levels)):
        g.constant(f"K{level}", SPEC.levels[level])
        g("Mod", [rest, f"K{level}"], f"code_{level}")
        parts.append(g("Unsqueeze", [f"code_{level}", "last_axis"], f"code_{level}_column"))
        rest = g("Div", [rest, f"K{level}"], f"rest_{level}")
    g("Concat", parts[::-1], output, axis=-1)


def _read_bits(g: Graph, rows: str, level: int, output: str) -> None:
    """Rows of a trie table [parent, byte] -> whether each prefix of the level lives [1, prefix]."""
    num_codes = SPEC.levels[level]
    g.constant(f"row_shape_{level}", [-1, 8 * SPEC.row_bytes[level]])
    g.constant(f"row_end_{level}", [num_codes])
    g.constant(f"flat_{level}", [1, SPEC.num_prefixes[level]])
    g("Cast", rows, f"bytes_{level}", to=TensorProto.INT32)
    g("Gather", ["bits_of_byte", f"bytes_{level}"], f"bits_{level}", axis=0)  # [parent, byte, bit]
    g("Reshape", [f"bits_{level}", f"row_shape_{level}"], f"row_bits_{level}")
    g("Slice", [f"row_bits_{level}", "zeros", f"row_end_{level}", "ones"], f"code_bits_{level}")
    g("Reshape", [f"code_bits_{level}", f"flat_{level}"], f"flat_bits_{level}")
    g("Cast", f"flat_bits_{level}", output, to=TensorProto.BOOL)


def _tokenizer(spec: GraphSpec, reader: int) -> onnx.ModelProto:
    g = Graph()
    if (first := spec.inputs[0]).name == "fields":
        g.constant("weights", [FIELD_WEIGHT * place for place in range(1, int(first.shape[1]) + 1)])
        g("Mul", "fields weights", "weighed")
        g.constant("every_field", [1])
        g("ReduceSum", "weighed every_field", "sum", keepdims=0)  # [item]
    else:
        g("Gather", "strips first_strip", "first", axis=0)  # [item, height, width]
        g("Cast", "first", "pixels", to=TensorProto.INT64)
        g.constant("height_and_width", [1, 2])
        g("ReduceSum", "pixels height_and_width", "sum", keepdims=0)  # [item]
    g.constant("num_leaves", NUM_LEAVES)
    g.constant("shift", 101 * reader)
    g("Add", "sum shift", "shifted_text")
    if any(tensor.name == "pictures" for tensor in spec.inputs):
        g("Cast", "pictures", "picture_pixels", to=TensorProto.INT64)
        g.constant("all_of_a_picture", [1, 2, 3])
        g("ReduceSum", "picture_pixels all_of_a_picture", "picture_sums", keepdims=0)  # [picture]
        g.constant("no_picture", [0])
        g("Concat", "picture_sums no_picture", "sums_or_none", axis=0)  # so that -1 is the sum of no picture
        g("Gather", "sums_or_none picture_of", "picture_sum", axis=0)  # [item]
        g("Add", "shifted_text picture_sum", "shifted")
    else:
        g("Identity", "shifted_text", "shifted")
    g("Mod", "shifted num_leaves", "leaf")
    _write_codes(g, "leaf", "codes", 1)
    g("Cast", "leaf", "leaf_as_float", to=TensorProto.FLOAT)
    g.constant("angle_of_a_leaf", 2 * math.pi / NUM_LEAVES, np.float32)
    g("Mul", "leaf_as_float angle_of_a_leaf", "angle")
    g("Cos", "angle", "cosine")
    g("Sin", "angle", "sine")
    g("Unsqueeze", "cosine last_axis", "cosine_column")
    g("Unsqueeze", "sine last_axis", "sine_column")
    g("Concat", "cosine_column sine_column", "vector", axis=1)
    return g.model("known_tokenizer", spec)


def _recommender(spec: GraphSpec, is_paged: bool) -> onnx.ModelProto:
    g = Graph()
    every_byte = np.arange(256, dtype=np.uint8)[:, None]
    g.constant("bits_of_byte", np.unpackbits(every_byte, axis=1, bitorder="little"), np.int32)
    for name, value in {"zero": 0, "eleven": 11, "five": 5, "FIRST": FIRST, "REST": REST}.items():
        g.constant(name, value)
    for name, value in {"zeros": [0], "ones": [1], "minus_one": [-1], "max_int": [2**62]}.items():
        g.constant(name, value)
    for name, number in {"NEG_INF": NEG_INF, "half": -0.5, "eighth": -0.125}.items():
        g.constant(name, number, np.float32)

    # shift [batch, 1]: what the history adds to every score
    g.constant("strides", [SPEC.num_prefixes[-1] // cells for cells in SPEC.num_prefixes])
    g("Slice", "history minus_one max_int ones", "last")  # [batch, 1, level]
    g("Mul", "last strides", "weighted")
    g.constant("axis_2", [2])
    g("ReduceSum", "weighted axis_2", "last_leaf", keepdims=0)  # [batch, 1]
    g("Gather", "history zero", "first_codes", axis=2)  # [batch, position]
    g("GreaterOrEqual", "first_codes zero", "is_item")
    g("Cast", "is_item", "ones_at_items", to=TensorProto.INT64)
    g("ReduceSum", "ones_at_items ones", "num_items", keepdims=1)  # [batch, 1]
    g("Mul", "last_leaf eleven", "by_last")
    g("Mul", "num_items five", "by_length")
    g("Add", "by_last by_length", "shift")

    g.constant("firsts", 5 * np.arange(SPEC.levels[0])[None])
    g("Add", "firsts shift", "a1")
    g("Mod", "a1 FIRST", "a2")
    g("Cast", "a2", "a3", to=TensorProto.FLOAT)
    g("Mul", "a3 half", "first_model")  # [batch, first]
    # what the counts say, in both steps
    g.constant("every_leaf", np.arange(NUM_LEAVES))
    g.constant("by_first", [0, SPEC.levels[0], LEAVES_PER_FIRST])
    g("Unsqueeze", "neighbors last_axis", "neighbor_column")
    g("Equal", "neighbor_column every_leaf", "is_neighbor")  # [batch, neighbor, leaf]
    g("Cast", "is_neighbor", "ones_at_neighbors", to=TensorProto.FLOAT)
    g("Unsqueeze", "neighbor_mass last_axis", "mass_column")
    g("Mul", "ones_at_neighbors mass_column", "mass_at")
    g("ReduceSum", "mass_at ones", "leaf_mass", keepdims=0)  # [batch, leaf]
    g("Reshape", "leaf_mass by_first", "mass_split")
    g("ReduceMax", "mass_split axis_2", "first_mass", keepdims=0)  # [batch, first]
    g("ReduceMax", "first_mass ones", "all_mass", keepdims=1)  # [batch, 1]
    g.constant("one", 1, np.float32)
    for part in ("leaf", "first", "all"):
        g("Add", f"{part}_mass one", f"{part}_mass_1")
        g("Log", f"{part}_mass_1", f"{part}_log")
    g("Sub", "first_log all_log", "first_opinion")
    g("Add", "first_model first_opinion", "first_scores")  # [batch, first]
    g("Unsqueeze", "first_log axis_2", "first_log_column")
    g("Reshape", "leaf_log by_first", "leaf_log_split")
    g("Sub", "leaf_log_split first_log_column", "leaf_opinion_split")
    g.constant("in_one", [0, NUM_LEAVES])
    g("Reshape", "leaf_opinion_split in_one", "leaf_opinion")

    g.constant("leaves", 37 * np.arange(NUM_LEAVES)[None])
    g("Add", "leaves shift", "b1")
    g("Mod", "b1 REST", "b2")
    g("Cast", "b2", "b3", to=TensorProto.FLOAT)
    g("Mul", "b3 eighth", "rest_model")
    g("Add", "rest_model leaf_opinion", "rest_scores")  # [batch, leaf]

    # k = beams + 1, and k fillers, so that there is always that much to choose from
    g("Shape", f"beams_{SPEC.num_levels}", "num_beams")
    g("Add", "num_beams ones", "k")
    g("Shape", "history", "batch_size", end=1)
    g("Concat", "batch_size k", "filler_shape", axis=0)
    g("Expand", "NEG_INF filler_shape", "fillers")  # [batch, k]

    # step 1: only the best first codes are followed
    _read_bits(g, "live_1", 0, "first_lives")
    g("Where", "first_lives first_scores NEG_INF", "first_masked")
    g("Concat", "first_masked fillers", "first_candidates", axis=1)
    g.nodes.append(
        helper.make_node("TopK", ["first_candidates", "k"], ["first_best", "first_places"], axis=1)
    )
    g("Slice", "first_best minus_one max_int ones", "first_bound")  # [batch, 1]
    g("Greater", "first_masked first_bound", "followed")  # [batch, first]

    # step 2: the best leaves below them
    g.constant("split", [0, SPEC.levels[0], LEAVES_PER_FIRST])
    g.constant("flat", [0, NUM_LEAVES])
    leaf_rows = g("Gather", "live_3 page_of", "leaf_rows", axis=0) if is_paged else "live_3"
    _read_bits(g, leaf_rows, 2, "leaf_lives")
    g("Unsqueeze", "first_scores axis_2", "first_column")
    g("Reshape", "rest_scores split", "rest_split")
    g("Add", "rest_split first_column", "total_split")
    g("Unsqueeze", "followed axis_2", "followed_column")
    g("Where", "followed_column total_split NEG_INF", "total_followed")
    g("Reshape", "total_followed flat", "total")
    g("Where", "leaf_lives total NEG_INF", "masked")
    g("Concat", "masked fillers", "candidates", axis=1)
    g.nodes.append(helper.make_node("TopK", ["candidates", "k"], ["best", "places"], axis=1))
    g("Slice", "best zeros minus_one ones", "scores")  # [batch, beam]
    g("Slice", "places zeros minus_one ones", "kept_places")
    g("Slice", "best minus_one max_int ones", "leaf_bound")
    g("Max", "first_bound leaf_bound", "bound_column")
    g("Squeeze", "bound_column ones", "bound")
    g.constant("num_leaves", NUM_LEAVES)
    g("Less", "kept_places num_leaves", "is_leaf")
    g("Where", "is_leaf kept_places zero", "leaf")
    _write_codes(g, "leaf", "codes", 2)
    return g.model("known_recommender", spec)
