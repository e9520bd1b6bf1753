"""The tokenizer graph turns pixels, or the numbers of fields, into codes and a vector, in one file.

strips ─── body (the encoder's own ONNX) ─▶ frames ──────┐
pictures ─ image body (if photos are read) ─▶ features ──┴─ pooling, fusion ─▶ features ─ head, quantizer

fields ─── tables of embeddings (FAMAE) ────────────────────────────────────────────────── quantizer

Where fields are read as pictures, the strips of an item are those of each field in turn, and `fields` says
how many each has. They are pooled field by field, and FAMAE's projections take the place of the head.

The quantizer gives the codes. The `vector` is what a search compares: the features of a text, the vector of a
joint space of texts and photos, or, if photos or fields are read without one, the head's vector.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import compose, version_converter
from torch import Tensor, nn

from model_export.configs import FamaeConfig, FamaePicturesConfig, MiniLmConfig, RunConfig
from model_export.encoders.base import Pooling
from model_export.encoders.choose import make_encoder
from model_export.encoders.famae import FieldPictures, FieldTables
from model_export.encoders.fusion import Fusion
from model_export.encoders.head import ItemHead
from model_export.encoders.images.base import ImageEncoder, image_body
from model_export.encoders.images.choose import make_image_encoder
from model_export.onnx_graphs import OPSET, name_dimensions, to_onnx
from model_export.picture_configs import PicturesConfig
from model_export.pipeline.stages import Coded, Read
from model_export.quantizers.base import ResidualQuantizer
from model_export.vl_clip.joined import JointVectors
from model_export.vl_clip.photo_reader import PhotoReader
from service.core.bundle import PictureSpec, RenderSpec
from service.core.graphs import NO_PICTURE, GraphSpec, field_tokenizer_graph, tokenizer_graph
from service.core.sid import SidSpec
from service.errors import ContractMismatch
from service.inference.runtime import Tokenizer, TokenizerInput

VERSION = 2  # raised when the output changes; see model_export/pipeline/versions.py

# Sizes for tracing are 2 or more, because the exporter takes 0 and 1 for constants. The check also runs with
# 1.
TRACED_STRIPS, TRACED_FIRST = 5, (0, 2, 3)
TRACED_PICTURES, TRACED_PICTURE_OF = 2, (1, -1, 0)
TRACED_ITEMS = 3
# Prefixes for the names of the bodies, because the remainder may use the same names.
BODY, IMAGE_BODY = "body/", "image_body/"
TOLERANCE = 1e-3  # of a vector's entry


@dataclass(frozen=True)
class TokenizerParts:
    """Everything that the graph is made of. `image_body` and `fusion` are None if only texts are read."""

    body: onnx.ModelProto
    pooling: Pooling
    head: ItemHead
    quantizer: ResidualQuantizer
    image_body: onnx.ModelProto | None = None
    fusion: Fusion | None = None
    num_fields: int = 0  # 1 if the first code is the number of a field; all that are drawn
    joint: JointVectors | None = None  # None: no joint space
    drawn: FieldPictures | None = None  # None: no fields are read as pictures

    @property
    def vector_dim(self) -> int:
        """Numbers of the vector that a search compares."""
        if self.joint is not None:
            return self.joint.dim
        return self.pooling.feature_dim if self.fusion is None else self.head.vector_dim


@dataclass(frozen=True)
class FieldParts:
    """Everything that the graph of a tokenizer of fields is made of."""

    tables: FieldTables
    head: ItemHead
    quantizer: ResidualQuantizer


def parts_of(
    config: RunConfig, read: Read, coded: Coded, joint: JointVectors | None = None
) -> TokenizerParts | FieldParts:
    """The parts of a configuration, as fitted to a catalog. Raises GlyphrecError without weights."""
    if read.famae is not None and isinstance(read.famae.tables, FieldTables):
        return FieldParts(read.famae.tables, coded.head, coded.quantizer)
    assert read.pooling is not None
    if isinstance(config.encoder, FamaePicturesConfig):
        assert read.famae is not None
        assert isinstance(read.famae.tables, FieldPictures)
        return TokenizerParts(
            make_encoder(config.render, config.encoder.reader, config.seed).body(),
            read.pooling,
            coded.head,
            coded.quantizer,
            num_fields=len(read.famae.fields),
            drawn=read.famae.tables,
        )
    assert not isinstance(config.encoder, MiniLmConfig | FamaeConfig)
    return TokenizerParts(
        make_encoder(config.render, config.encoder, config.seed).body(),
        read.pooling,
        coded.head,
        coded.quantizer,
        None if config.pictures is None else image_body(_image_encoder(config.pictures, joint)),
        read.fusion,
        0 if coded.first is None else 1,
        joint,
    )


def _image_encoder(pictures: PicturesConfig, joint: JointVectors | None) -> ImageEncoder:
    """A joint space reads more of a photo. Its first features are those of the fusion."""
    return make_image_encoder(pictures) if joint is None else PhotoReader(pictures.size_px)


def search_vectors(read: Read, coded: Coded) -> NDArray[np.float32]:
    """The vectors of the catalog's items that the graph gives [item, dim], without a joint space."""
    texts = read.features if read.famae is None else read.drawn_text
    if read.pooling is None or read.fusion is not None or texts is None:
        return coded.vectors
    vectors: NDArray[np.float32] = texts * read.pooling.search_scale().numpy()
    return vectors


class TokenizedBatch(NamedTuple):
    """The outputs of the graph."""

    codes: Tensor  # [item, level]
    vector: Tensor  # [item, dim]


class Remainder(nn.Module):
    """The part of the graph after the bodies: pooling, fusion, head and quantizer."""

    def __init__(self, parts: TokenizerParts) -> None:
        super().__init__()
        self.pooling, self.fusion, self.head, self.quantizer = (
            parts.pooling, parts.fusion, parts.head, parts.quantizer,
        )  # fmt: skip
        self.joint = parts.joint
        self.scale: Tensor
        self.register_buffer("scale", parts.pooling.search_scale())

    def forward(
        self,
        strips: Tensor,
        frames: Tensor,
        first_strip: Tensor,
        photos: Tensor | None = None,
        picture_of: Tensor | None = None,
    ) -> TokenizedBatch:
        """strips [strip, height, width], frames [strip, frame, dim], first_strip [item] -> codes, vectors.

        With a fusion also photos [picture, feature] and picture_of [item].
        """
        inputs = (strips, frames, first_strip, photos, picture_of)
        features = self.features(*inputs)  # [item, feature]
        vector = self.head(features)  # [item, dim]
        return TokenizedBatch(self.quantizer.encode(vector), self.compared(inputs, features, vector))

    def compared(self, inputs: tuple[Tensor | None, ...], features: Tensor, vector: Tensor) -> Tensor:
        """What a search compares, of the inputs of `forward`, of features [item, feature] and of the head's
        vectors [item, dim].
        """
        if self.joint is not None:
            found: Tensor = self.joint(*inputs)
            return found
        return features * self.scale if self.fusion is None else vector

    def features(
        self,
        strips: Tensor,
        frames: Tensor,
        first_strip: Tensor,
        photos: Tensor | None = None,
        picture_of: Tensor | None = None,
    ) -> Tensor:
        """What was read of the items [item, feature], with the arguments of `forward`."""
        found: Tensor = self.pooling(strips, frames, first_strip)  # [item, feature]
        if self.fusion is not None:
            assert photos is not None
            found = self.fusion(found, photos[:, : self.fusion.mean.shape[0]], picture_of)
        return found


class ReadableRemainder(nn.Module):
    """The same for readable codes. The last input has the first codes, fields [item, 1]."""

    def __init__(self, remainder: Remainder) -> None:
        super().__init__()
        self.remainder = remainder

    def forward(self, *inputs: Tensor) -> TokenizedBatch:
        """The inputs of Remainder and fields [item, 1] -> codes, vectors."""
        features = self.remainder.features(*inputs[:-1])  # [item, feature]
        vector = self.remainder.head(features)  # [item, dim]
        divided = torch.cat([vector, inputs[-1].to(vector.dtype)], dim=1)  # [item, dim + 1]
        return TokenizedBatch(
            self.remainder.quantizer.encode(divided),
            self.remainder.compared(inputs[:-1], features, vector),
        )


class DrawnFieldsRemainder(nn.Module):
    """The same where fields are read as pictures. A search compares the texts, as without fields."""

    def __init__(self, parts: TokenizerParts) -> None:
        super().__init__()
        assert parts.drawn is not None
        self.pooling, self.drawn, self.head, self.quantizer = (
            parts.pooling, parts.drawn, parts.head, parts.quantizer,
        )  # fmt: skip
        self.scale: Tensor
        self.register_buffer("scale", parts.pooling.search_scale())

    def forward(self, strips: Tensor, frames: Tensor, first_strip: Tensor, counts: Tensor) -> TokenizedBatch:
        """strips [strip, height, width], frames [strip, frame, dim], first_strip [item], and the strips of
        each field counts [item, field] -> codes, vectors.
        """
        first = first_strip[:, None] + counts.cumsum(dim=1) - counts  # [item, field]
        pooled = self.pooling(strips, frames, first.flatten())  # [item * field, feature]
        features = pooled.view(-1, counts.shape[1], pooled.shape[1])  # [item, field, feature]
        vector = self.head(self.drawn.vectors(features, counts > 0))  # [item, dim]
        return TokenizedBatch(self.quantizer.encode(vector), features[:, 0] * self.scale)


def remainder_of(parts: TokenizerParts) -> nn.Module:
    """What comes after the bodies."""
    if parts.drawn is not None:
        return DrawnFieldsRemainder(parts).eval()
    remainder = Remainder(parts)
    return (ReadableRemainder(remainder) if parts.num_fields else remainder).eval()


class FieldReading(nn.Module):
    """The whole graph of a tokenizer of fields."""

    def __init__(self, parts: FieldParts) -> None:
        super().__init__()
        self.tables, self.head, self.quantizer = parts.tables, parts.head, parts.quantizer

    def forward(self, fields: Tensor) -> TokenizedBatch:
        """Numbers of fields [item, field] -> codes, vectors."""
        vector = self.head(self.tables.vectors(fields))  # [item, dim]
        return TokenizedBatch(self.quantizer.encode(vector), vector)


def export_tokenizer(
    path: Path,
    parts: TokenizerParts | FieldParts,
    *,
    sid: SidSpec,
    render: RenderSpec,
    pictures: PictureSpec | None = None,
) -> GraphSpec:
    """Write the graph to `path`. Returns the tensors of the graph."""
    if isinstance(parts, FieldParts):
        return _export_field_tokenizer(path, parts, sid)
    graph = tokenizer_graph(
        sid,
        height=render.height_px,
        width=render.width_px,
        vector_dim=parts.vector_dim,
        picture_px=None if pictures is None else pictures.size_px,
        num_fields=parts.num_fields,
    )
    merged = _export(remainder_of(parts), parts, render)
    for model, prefix, output, name in (
        (parts.body, BODY, "frames", "frames"),
        (parts.image_body, IMAGE_BODY, "features", "photos"),
    ):
        if model is not None:
            body = compose.add_prefix(version_converter.convert_version(model, OPSET), prefix)
            body.ir_version = merged.ir_version
            merged = compose.merge_models(body, merged, io_map=[(f"{prefix}{output}", name)])
    merged = _with_inputs(merged, [tensor.name for tensor in graph.inputs])
    _save(merged, graph, path)
    return graph


def _export_field_tokenizer(path: Path, parts: FieldParts, sid: SidSpec) -> GraphSpec:
    num_fields = len(parts.tables.tables)
    graph = field_tokenizer_graph(sid, num_fields, parts.head.vector_dim)
    model = to_onnx(
        FieldReading(parts).eval(),
        (torch.zeros(TRACED_ITEMS, num_fields, dtype=torch.int64),),
        inputs=["fields"],
        outputs=["codes", "vector"],
        dynamic_shapes=({0: torch.export.Dim("item")},),
    )
    _save(model, graph, path)
    return graph


def _save(model: onnx.ModelProto, graph: GraphSpec, path: Path) -> None:
    name_dimensions(model, graph)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)


def check_tokenizer(
    path: Path,
    parts: TokenizerParts | FieldParts,
    *,
    graph: GraphSpec,
    items: Sequence[TokenizerInput],
) -> float:
    """Compare the written graph with PyTorch on `items`.

    The graph reads the items once in one batch and once one by one. Returns the largest difference of a
    vector's entry. Raises ContractMismatch if vectors or codes differ.
    """
    session = Tokenizer(path, graph, threads=1)
    together = session.run(items)
    apart = [session.run([item]) for item in items]
    expected = _reference(parts, items)
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


def _reference(parts: TokenizerParts | FieldParts, items: Sequence[TokenizerInput]) -> TokenizedBatch:
    """The expected outputs, with the bodies in ONNX Runtime and the remainder in PyTorch."""
    if isinstance(parts, FieldParts):
        fields = np.stack([item.fields for item in items if item.fields is not None])
        with torch.no_grad():
            of_fields: TokenizedBatch = FieldReading(parts).eval()(torch.from_numpy(fields))
        return of_fields
    strips = np.concatenate([item.strips for item in items])
    first_strip = np.cumsum([0, *(len(item.strips) for item in items[:-1])], dtype=np.int64)  # [item]
    inputs = [strips, _run(parts.body, "frames", {"strips": strips}), first_strip]
    if parts.image_body is not None:
        pictures = [item.picture for item in items if item.picture is not None]
        has_picture = np.array([item.picture is not None for item in items])
        size = parts.image_body.graph.input[0].type.tensor_type.shape.dim[1].dim_value
        stacked = np.stack(pictures) if pictures else np.zeros((0, size, size, 3), np.uint8)
        inputs.append(_run(parts.image_body, "features", {"pictures": stacked}))
        inputs.append(np.where(has_picture, np.cumsum(has_picture) - 1, NO_PICTURE).astype(np.int64))
    if parts.num_fields:
        inputs.append(np.stack([item.fields for item in items if item.fields is not None]))
    with torch.no_grad():
        result: TokenizedBatch = remainder_of(parts)(*map(torch.from_numpy, inputs))
        return result


def _run(body: onnx.ModelProto, output: str, feeds: dict[str, NDArray[np.uint8]]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(body.SerializeToString(), providers=["CPUExecutionProvider"])
    found: NDArray[np.float32] = session.run([output], feeds)[0]
    return found


def _export(remainder: nn.Module, parts: TokenizerParts, render: RenderSpec) -> onnx.ModelProto:
    """The remainder as a graph with the inputs strips, frames and first_strip, and two more with a fusion."""
    _, num_frames, dim = _sizes(parts.body.graph.output[0])
    arguments = [
        torch.zeros(TRACED_STRIPS, render.height_px, render.width_px, dtype=torch.uint8),
        torch.randn(TRACED_STRIPS, num_frames, dim),
        torch.tensor(TRACED_FIRST),
    ]
    names = ["strips", "frames", "first_strip"]
    strip, item, picture = (torch.export.Dim(name) for name in ("strip", "item", "picture"))
    shapes = [{0: strip}, {0: strip}, {0: item}]
    if parts.image_body is not None:
        _, feature_dim = _sizes(parts.image_body.graph.output[0])
        arguments += [torch.randn(TRACED_PICTURES, feature_dim), torch.tensor(TRACED_PICTURE_OF)]
        names += ["photos", "picture_of"]
        shapes += [{0: picture}, {0: item}]
    if parts.num_fields:
        arguments.append(torch.zeros(len(TRACED_FIRST), parts.num_fields, dtype=torch.int64))
        names.append("fields")
        shapes.append({0: item})
    return to_onnx(
        remainder,
        tuple(arguments),
        inputs=names,
        outputs=["codes", "vector"],
        # The inputs of a ReadableRemainder are one argument, *inputs.
        dynamic_shapes=(tuple(shapes),) if isinstance(remainder, ReadableRemainder) else tuple(shapes),
    )


def _sizes(value: onnx.ValueInfoProto) -> list[int]:
    return [size.dim_value for size in value.type.tensor_type.shape.dim]


def _with_inputs(model: onnx.ModelProto, names: Sequence[str]) -> onnx.ModelProto:
    """Give the model these inputs, in this order. Body and remainder read the strips from one input."""
    renamed = {f"{BODY}strips": "strips", f"{IMAGE_BODY}pictures": "pictures"}
    for node in model.graph.node:
        node.input[:] = [renamed.get(name, name) for name in node.input]
    inputs = {}
    for value in model.graph.input:
        value.name = renamed.get(value.name, value.name)
        inputs[value.name] = value
    kept = [inputs[name] for name in names]
    del model.graph.input[:]
    model.graph.input.extend(kept)
    return model
