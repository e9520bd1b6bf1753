"""A ranker for the known bundle, with arithmetic that can be worked out by hand; any other number is another.

Its order is not that of the known recommender. It reads one item less of a history.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from service.core.bundle import MANIFEST, RANKER, FileRecord, Manifest, RankerSpec, sha256_of
from service.core.graphs import PADDING, GraphSpec, ranker_graph
from service.core.sid import Codes
from tests.known_bundle import NUM_LEAVES, SPEC, Graph, KnownItem, write_known_bundle

RANKER_HISTORY_LENGTH = 3
ODDS = 211  # a prime
STRIDES = [NUM_LEAVES // cells for cells in SPEC.num_prefixes]


def ranker_id_of(ranker: int) -> str:
    return f"{0xACE000000000 + ranker:012x}"


def known_ranker_score(
    history: Sequence[Codes],
    codes: Codes,
    popularity: float,
    mass: Mapping[Codes, float] | None = None,
    ranker: int = 1,
) -> float:
    """What the ranker gives to `codes` after the newest items of a history. `mass`: of its neighbors."""
    recent = history[-RANKER_HISTORY_LENGTH:]
    last = recent[-1] if recent else (PADDING,) * SPEC.num_levels
    shift = 17 * _leaf_of(last) + 3 * len(recent)
    by_model = -0.25 * ((29 * ranker * _leaf_of(codes) + shift) % ODDS)
    return by_model + 0.5 * popularity + (mass or {}).get(codes, 0.0)


def ranker_bundle(folder: Path, items: Sequence[KnownItem], *, ranker: int = 1, **bundle: object) -> Path:
    """A known bundle with a ranker. `bundle`: as write_known_bundle takes it."""
    write_known_bundle(folder, items, **bundle)  # type: ignore[arg-type]  # names and types as there
    return with_ranker(folder, ranker)


def with_ranker(folder: Path, ranker: int = 1) -> Path:
    """Give the known bundle in `folder` a ranker, as an export would have written it."""
    manifest = Manifest.model_validate_json((folder / MANIFEST).read_text(encoding="utf-8"))
    spec = RankerSpec(
        ranker_id=ranker_id_of(ranker),
        trained_for_tokenizer_id=manifest.tokenizer_id,
        graph=ranker_graph(manifest.sid),
        history_length=RANKER_HISTORY_LENGTH,
        parameterization="known",
        aggregation="the last item",
        num_rows=1,
    )
    path = folder / RANKER
    onnx.save(_ranker(spec.graph, ranker), path)
    record = FileRecord(sha256=sha256_of(path), num_bytes=path.stat().st_size)
    changes = {"format_version": 5, "ranker": spec, "files": manifest.files | {RANKER: record}}
    written = manifest.model_copy(update=changes).model_dump_json()
    (folder / MANIFEST).write_text(written, encoding="utf-8")
    return folder


def _leaf_of(codes: Codes) -> int:
    """The full prefix of codes, also of PADDING."""
    return sum(code * stride for code, stride in zip(codes, STRIDES, strict=True))


def _ranker(spec: GraphSpec, ranker: int) -> onnx.ModelProto:
    g = Graph()
    for name, value in {"zero": 0, "seventeen": 17, "three": 3, "slope": 29 * ranker, "ODDS": ODDS}.items():
        g.constant(name, value)
    for name, value in {"ones": [1], "minus_one": [-1], "max_int": [2**62], "axis_2": [2]}.items():
        g.constant(name, value)
    for name, number in {"quarter": -0.25, "half": 0.5}.items():
        g.constant(name, number, np.float32)
    g.constant("strides", STRIDES)

    # shift [batch, 1]: what the history adds to every score
    g("Slice", "history minus_one max_int ones", "last")  # [batch, 1, level]
    g("Mul", "last strides", "weighted")
    g("ReduceSum", "weighted axis_2", "last_leaf", keepdims=0)  # [batch, 1]
    g("Gather", "history zero", "first_codes", axis=2)  # [batch, position]
    g("GreaterOrEqual", "first_codes zero", "is_item")
    g("Cast", "is_item", "ones_at_items", to=TensorProto.INT64)
    g("ReduceSum", "ones_at_items ones", "num_items", keepdims=1)  # [batch, 1]
    g("Mul", "last_leaf seventeen", "by_last")
    g("Mul", "num_items three", "by_length")
    g("Add", "by_last by_length", "shift")

    g("Mul", "candidates strides", "candidates_weighted")
    g("ReduceSum", "candidates_weighted axis_2", "leaf", keepdims=0)  # [batch, candidate]
    g("Mul", "leaf slope", "sloped")
    g("Add", "sloped shift", "shifted")
    g("Mod", "shifted ODDS", "odds")
    g("Cast", "odds", "odds_as_float", to=TensorProto.FLOAT)
    g("Mul", "odds_as_float quarter", "by_model")
    g("Mul", "popularity half", "by_popularity")
    g("Add", "by_model by_popularity", "without_counts")
    g("Unsqueeze", "leaf axis_2", "leaf_column")
    g("Unsqueeze", "neighbors ones", "neighbor_row")  # [batch, 1, neighbor]
    g("Equal", "leaf_column neighbor_row", "is_neighbor")  # [batch, candidate, neighbor]
    g("Cast", "is_neighbor", "ones_at_neighbors", to=TensorProto.FLOAT)
    g("Unsqueeze", "neighbor_mass ones", "mass_row")
    g("Mul", "ones_at_neighbors mass_row", "mass_at")
    g("ReduceSum", "mass_at axis_2", "by_counts", keepdims=0)
    g("Add", "without_counts by_counts", "scores")
    return g.model("known_ranker", spec)
