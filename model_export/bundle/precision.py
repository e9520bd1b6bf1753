"""The int8 form of a recommender graph, which the export chooses if its answers are good enough.

Each product with a weight matrix becomes a product of 8-bit integers (VNNI on today's CPUs). A weight has one
scale per output. An activation has one scale in all, which the export measures on real histories. Dynamic
quantization, which measures scales at run time, is as fast. But then a score would depend on the other
requests of its batch, and `exact` would mean nothing. Operations without a weight stay in float32: attention,
softmax and scores.
"""

import logging
import math
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

from model_export.configs import RunConfig
from model_export.data.splits import Targets
from model_export.evaluation.evaluate import ranker_of
from model_export.evaluation.ranking import ItemsOfCodes, NeighborsOfItems, Ranker
from model_export.generators.training import some_users
from service.core.graphs import GraphSpec, beam_widths
from service.inference.runtime import RecommenderSession

Feeds = dict[str, Any]  # the inputs of one run

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py
MOST_SCALES = 4096  # a weight with more outputs has one scale in all
TOP_K = 10  # items of the pages that are compared
NUM_CALIBRATION_RUNS = 64  # histories that set the scales
LEAST_OVERLAP = 0.9


class _Feeds(CalibrationDataReader):  # type: ignore[misc]  # it has no types
    def __init__(self, runs: Iterable[Feeds]) -> None:
        self._runs = iter(runs)

    def get_next(self) -> Feeds | None:
        return next(self._runs, None)


@dataclass(frozen=True)
class Agreement:
    """How well a graph's pages agree with those of the float32 graph, on validation histories."""

    overlap_at_10: float  # mean share of the float32 page that this graph's page has too
    recall_at_10: float  # of this graph; the target is the next item
    recall_at_10_float32: float
    standard_error: float  # of the difference of the two recalls, with users paired

    @property
    def holds(self) -> bool:
        """Whether the pages are nearly the same and recall dropped by at most two standard errors."""
        loss = self.recall_at_10_float32 - self.recall_at_10
        return self.overlap_at_10 >= LEAST_OVERLAP and loss <= 2 * self.standard_error


def agreement(pages: NDArray[np.int32], float32: NDArray[np.int32], targets: NDArray[np.int32]) -> Agreement:
    """Compare pages with those of the float32 graph.

    pages and float32 [user, TOP_K]: item indices, -1 in places without an item. targets [user]
    """
    shared = [
        len(set(ours[ours >= 0]) & set(theirs[theirs >= 0])) / max(1, int((theirs >= 0).sum()))
        for ours, theirs in zip(pages, float32, strict=True)
    ]
    hits, hits_float32 = ((found == targets[:, None]).any(axis=1) for found in (pages, float32))
    difference = hits.astype(float) - hits_float32
    return Agreement(
        overlap_at_10=float(np.mean(shared)),
        recall_at_10=float(hits.mean()),
        recall_at_10_float32=float(hits_float32.mean()),
        standard_error=float(difference.std()) / math.sqrt(len(targets)),
    )


def try_int8(
    path: Path,
    graph: GraphSpec,
    codes: NDArray[np.int64],
    validation: Targets,
    config: RunConfig,
    neighbors: NeighborsOfItems | None = None,
) -> Agreement:
    """Make an int8 graph. If it agrees with the float32 graph at `path` on validation users, it replaces
    that.

    codes [item, level]. Returns the agreement.
    """
    users = some_users(validation, config.training.max_validation_users, config.seed)
    catalog = ItemsOfCodes.build(config.sid, codes)

    def ranker(session: RecommenderSession) -> Ranker:
        return ranker_of(session, catalog, config.history_length, config.beam_limit, neighbors)

    float32 = RecommenderSession(path, graph, threads=1)
    pages = ranker(float32)
    widths = beam_widths(config.sid, pages.num_beams)
    histories = [history for history in users.histories[:NUM_CALIBRATION_RUNS] if len(history)]
    windows = [pages.window([history]) for history in histories]
    runs = [float32.feeds(seen.history, catalog.trie.tables, widths, seen.neighbors) for seen in windows]
    int8 = path.with_suffix(".int8.onnx")
    write_int8(path, int8, runs)
    exclude = not users.are_repeats
    found = agreement(
        ranker(RecommenderSession(int8, graph, threads=1)).rank(
            users.histories, TOP_K, exclude_history=exclude
        ),
        pages.rank(users.histories, TOP_K, exclude_history=exclude),
        users.targets,
    )
    if found.holds:
        int8.replace(path)
    int8.unlink(missing_ok=True)
    return found


def write_int8(source: Path, target: Path, runs: Sequence[Feeds]) -> None:
    """Write the graph `source` to `target` with its weight products in int8.

    `runs`: the inputs of runs that set the scales of the activations. A weight with more than MOST_SCALES
    outputs, for example `tree`'s prefixes, has one scale in all. Thousands of scales cost more than they
    improve.
    """
    model = onnx.load(source)
    fold_transposes(model)
    sizes = {weight.name: weight.dims for weight in model.graph.initializer}
    products = [node for node in model.graph.node if node.op_type == "MatMul" and node.input[1] in sizes]
    wide = {node.name for node in products if sizes[node.input[1]][-1] > MOST_SCALES}
    with tempfile.TemporaryDirectory() as name, _quiet():
        path = Path(name) / "float32.onnx"
        onnx.save(model, path)
        for nodes, per_channel in (({node.name for node in products} - wide, True), (wide, False)):
            if nodes:
                quantized = path.with_name(f"{per_channel}.onnx")
                _quantize(path, quantized, runs, sorted(nodes), per_channel=per_channel)
                path = quantized
        shutil.copyfile(path, target)


def _quantize(
    source: Path, target: Path, runs: Iterable[Feeds], nodes: list[str], *, per_channel: bool
) -> None:
    quantize_static(
        source,
        target,
        _Feeds(runs),
        quant_format=QuantFormat.QDQ,
        nodes_to_quantize=nodes,
        per_channel=per_channel,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        extra_options={"OpTypesToExcludeOutputQuantization": ["MatMul"], "QDQKeepRemovableActivations": True},
    )


@contextmanager
def _quiet() -> Iterator[None]:
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)  # it advises a preprocessing that our graphs do not need
    try:
        yield
    finally:
        root.setLevel(level)


def fold_transposes(model: onnx.ModelProto) -> None:
    """Transpose weights in the file, and remove the Transpose nodes between weights and their products."""
    graph = model.graph
    weights = {weight.name: weight for weight in graph.initializer}
    for node in [node for node in graph.node if node.op_type == "Transpose" and node.input[0] in weights]:
        values = numpy_helper.to_array(weights[node.input[0]])
        order = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
        folded = values.transpose(order.get("perm"))
        graph.initializer.append(numpy_helper.from_array(folded.copy(), node.output[0]))
        graph.node.remove(node)
    used = {name for node in graph.node for name in node.input}
    for weight in [weight for weight in graph.initializer if weight.name not in used]:
        graph.initializer.remove(weight)
