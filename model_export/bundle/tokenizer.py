"""The tokenizer graph turns pixels into codes and a vector, in one file.

strips ─ body (the encoder's own ONNX) ─▶ frames ─ pooling, head, quantizer (from torch) ─▶ codes, vector
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import compose, version_converter
from torch import Tensor, nn

from model_export.encoders.base import Pooling
from model_export.encoders.head import ItemHead
from model_export.onnx_graphs import OPSET, name_dimensions, to_onnx
from model_export.quantizers.base import ResidualQuantizer
from service.core.bundle import RenderSpec
from service.core.graphs import GraphSpec, tokenizer_graph
from service.core.sid import SidSpec
from service.errors import ContractMismatch
from service.inference.runtime import Tokenizer, TokenizerInput

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py

# Sizes for tracing are 2 or more, because the exporter takes 0 and 1 for constants. The check also runs with
# 1.
TRACED_STRIPS, TRACED_FIRST = 5, (0, 2, 3)
BODY = "body/"  # a prefix for the body's names, because the remainder may use the same names
TOLERANCE = 1e-3  # of a vector's entry


class TokenizedBatch(NamedTuple):
    """The outputs of the graph."""

    codes: Tensor  # [item, level]
    vector: Tensor  # [item, dim]


class Remainder(nn.Module):
    """The part of the graph after the body: pooling, head and quantizer."""

    def __init__(self, pooling: Pooling, head: ItemHead, quantizer: ResidualQuantizer) -> None:
        super().__init__()
        self.pooling, self.head, self.quantizer = pooling, head, quantizer

    def forward(self, strips: Tensor, frames: Tensor, first_strip: Tensor) -> TokenizedBatch:
        """strips [strip, height, width], frames [strip, frame, dim], first_strip [item] -> codes, vectors."""
        vector = self.head(self.pooling(strips, frames, first_strip))  # [item, dim]
        return TokenizedBatch(self.quantizer.encode(vector), vector)


def export_tokenizer(
    path: Path,
    body: onnx.ModelProto,
    pooling: Pooling,
    head: ItemHead,
    quantizer: ResidualQuantizer,
    *,
    sid: SidSpec,
    render: RenderSpec,
) -> GraphSpec:
    """Write the graph to `path`. Returns the tensors of the graph."""
    graph = tokenizer_graph(sid, height=render.height_px, width=render.width_px, vector_dim=head.vector_dim)
    remainder = _export(Remainder(pooling, head, quantizer).eval(), body, render)
    body = compose.add_prefix(version_converter.convert_version(body, OPSET), BODY)
    body.ir_version = remainder.ir_version
    merged = compose.merge_models(body, remainder, io_map=[(f"{BODY}frames", "frames")])
    merged = _one_strips_input(merged)
    name_dimensions(merged, graph)
    onnx.checker.check_model(merged, full_check=True)
    onnx.save(merged, path)
    return graph


def check_tokenizer(
    path: Path,
    body: onnx.ModelProto,
    pooling: Pooling,
    head: ItemHead,
    quantizer: ResidualQuantizer,
    *,
    graph: GraphSpec,
    items: Sequence[NDArray[np.uint8]],
) -> float:
    """Compare the written graph with PyTorch on `items`, each given as strips [strip, height, width].

    The graph reads the items once in one batch and once one by one. Returns the largest difference of a
    vector's entry. Raises ContractMismatch if vectors or codes differ.
    """
    session = Tokenizer(path, graph, threads=1)
    together = session.run([TokenizerInput(item) for item in items])
    apart = [session.run([TokenizerInput(item)]) for item in items]
    remainder = Remainder(pooling, head, quantizer).eval()
    expected = _reference(body, remainder, items)
    worst = 0.0
    for name, codes, vectors in (
        ("a batch of items", together.codes, together.vectors),
        (
            "single items",
            np.concatenate([t.codes for t in apart]),
            np.concatenate([t.vectors for t in apart]),
        ),
    ):
        worst = max(worst, float(np.abs(vectors - expected.vector.numpy()).max()))
        differing = int((codes != expected.codes.numpy()).any(axis=1).sum())
        if differing or worst > TOLERANCE:
            raise ContractMismatch(
                f"{path}: on {name}, {differing} of {len(items)} items have other codes than in PyTorch and "
                f"vectors differ by {worst:.2g} (allowed: 0 items, {TOLERANCE}). The graph does not compute "
                "the same as its model. Use the versions of constraints.txt and export again."
            )
    return worst


def _reference(
    body: onnx.ModelProto, remainder: Remainder, items: Sequence[NDArray[np.uint8]]
) -> TokenizedBatch:
    """The expected outputs, with the body in ONNX Runtime and the remainder in PyTorch."""
    strips = np.concatenate(list(items))
    first_strip = np.cumsum([0, *(len(item) for item in items[:-1])], dtype=np.int64)  # [item]
    session = onnxruntime.InferenceSession(body.SerializeToString(), providers=["CPUExecutionProvider"])
    frames = session.run(["frames"], {"strips": strips})[0]  # [strip, frame, dim]
    with torch.no_grad():
        result: TokenizedBatch = remainder(
            torch.from_numpy(strips), torch.from_numpy(frames), torch.from_numpy(first_strip)
        )
        return result


def _export(remainder: Remainder, body: onnx.ModelProto, render: RenderSpec) -> onnx.ModelProto:
    """The remainder as a graph with the inputs strips, frames and first_strip."""
    _, num_frames, dim = (size.dim_value for size in body.graph.output[0].type.tensor_type.shape.dim)
    arguments = (
        torch.zeros(TRACED_STRIPS, render.height_px, render.width_px, dtype=torch.uint8),
        torch.randn(TRACED_STRIPS, num_frames, dim),
        torch.tensor(TRACED_FIRST),
    )
    strip, item = torch.export.Dim("strip"), torch.export.Dim("item")
    return to_onnx(
        remainder,
        arguments,
        inputs=["strips", "frames", "first_strip"],
        outputs=["codes", "vector"],
        dynamic_shapes=({0: strip}, {0: strip}, {0: item}),
    )


def _one_strips_input(model: onnx.ModelProto) -> onnx.ModelProto:
    """Feed the body and the remainder from the same input."""
    for node in model.graph.node:
        node.input[:] = ["strips" if name == f"{BODY}strips" else name for name in node.input]
    inputs = {value.name: value for value in model.graph.input}
    del model.graph.input[:]
    model.graph.input.extend([inputs["strips"], inputs["first_strip"]])
    return model
