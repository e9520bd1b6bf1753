"""PP-OCRv6's recogniser (PaddleOCR, Apache-2.0) as the encoder's body, cut before its CTC classifier.

A *spike* is a frame in which it sees a letter that the frame before did not show. The classifier that tells
is nearly half of all weights (120 x 18,710), so a linear gate fitted to it takes its place.
"""

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, version_converter
from onnx.utils import Extractor
from sklearn.linear_model import LogisticRegression
from tqdm import tqdm

from model_export.configs import EncoderConfig
from model_export.encoders.base import Encoder, Reading
from model_export.encoders.visual_words import VisualWords, fit_visual_words, inked_frames
from service.contract import RenderSpec
from service.errors import GlyphrecError

MODEL_FILE = "PP-OCRv6_rec_small.onnx"
RAPIDOCR = "rapidocr==3.10.0"

PIXELS = "x"  # [strip, 3, 48, width]
NECK = "p2o.pd_op.transpose.8.0"  # [strip, frame, 120]
LOGITS = "p2o.pd_op.add.79.0"  # [strip, frame, letter]
BLANK = 0
HEIGHT_PX = 48
PX_PER_FRAME = 8

OPSET = 18
IR_VERSION = 10
STRIPS_PER_RUN = 8
ITEMS_PER_PART = 256
GATE_STRIPS = 300


def model_file() -> Path:
    """The recogniser inside the rapidocr wheel, which is used as a folder of files and never imported."""
    spec = find_spec("rapidocr")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / "models" / MODEL_FILE
        if path.is_file():
            return path
    raise GlyphrecError(
        f"The OCR model {MODEL_FILE} is not installed. It comes in a wheel: pip install --no-deps {RAPIDOCR}"
    )


class PpOcr(Encoder):
    """Reads strips drawn by one recipe."""

    def __init__(self, render: RenderSpec, config: EncoderConfig, seed: int) -> None:
        self._render, self._config, self._seed = render, config, seed

    def read(self, strips: Sequence[NDArray[np.uint8]], parts: Path | None = None) -> Reading:
        gate = self._gate(strips, parts)
        found = []
        num_strips = sum(map(len, strips))
        with tqdm(total=num_strips, desc="Reading items", unit="strip", mininterval=1.0) as progress:
            for start in range(0, len(strips), ITEMS_PER_PART):
                path = parts / f"items_{start:08d}.npz" if parts else None
                items = strips[start : start + ITEMS_PER_PART]
                if path and path.is_file():
                    found.append(Reading.load(path))
                    progress.update(sum(map(len, items)))
                    continue
                found.append(self.read_items(items, gate, progress))
                if path:
                    found[-1].save(path)
        return Reading.join(found)

    def fit(self, reading: Reading) -> VisualWords:
        return fit_visual_words(reading, self._config, self._seed)

    def body(self) -> onnx.ModelProto:
        return _from_strips(_cut([NECK]), self._render)

    def classifier(self) -> onnx.ModelProto:
        """The uncut recogniser, with the output `letters` [strip, frame] of places in `alphabet` as well."""
        model = _cut([NECK, LOGITS])
        model.graph.node.append(helper.make_node("ArgMax", [LOGITS], ["letters"], axis=2, keepdims=0))
        model.graph.output[1].CopyFrom(
            helper.make_tensor_value_info("letters", TensorProto.INT64, ["strip", "frame"])
        )
        return _from_strips(model, self._render)

    @cached_property
    def alphabet(self) -> list[str]:
        """The letter of each class; the first is the blank and the last a space."""
        properties = {entry.key: entry.value for entry in onnx.load(model_file()).metadata_props}
        return ["", *properties["character"].split("\n"), " "]

    def transcribe(self, strips: NDArray[np.uint8]) -> list[str]:
        """Read strips aloud, by CTC's rule. A check on the rendering, not part of the encoder."""
        letters = _session(self.classifier()).run(["letters"], {"strips": strips})[0]  # [strip, frame]
        return ["".join(self.alphabet[letter] for letter in row[_spikes(row)]) for row in letters]

    @cached_property
    def _body_session(self) -> onnxruntime.InferenceSession:
        return _session(self.body())

    def _gate(self, strips: Sequence[NDArray[np.uint8]], parts: Path | None) -> NDArray[np.float32]:
        """Weights and bias [dim + 1] that tell a spike by its own frame."""
        path = parts / "gate.npy" if parts else None
        if path and path.is_file():
            return np.load(path)
        flat = np.concatenate(list(strips))  # [strip, height, width]
        rng = np.random.default_rng(self._seed)
        sample = flat[np.sort(rng.choice(len(flat), min(GATE_STRIPS, len(flat)), replace=False))]
        with tqdm(total=len(sample), desc="Fitting the gate", unit="strip", mininterval=1.0) as progress:
            runs = list(_run(_session(self.classifier()), ["frames", "letters"], sample, progress))
        frames = np.concatenate([frames for frames, _ in runs])  # [strip, frame, dim]
        spikes = np.stack([_spikes(row) for _, letters in runs for row in letters])  # [strip, frame]
        known = _inked(sample, frames.shape[1])
        detector = LogisticRegression(max_iter=1000).fit(frames[known], spikes[known])
        gate = np.concatenate([detector.coef_[0], detector.intercept_]).astype(np.float32)
        if path:
            np.save(path, gate)
        return gate

    def read_items(
        self, items: Sequence[NDArray[np.uint8]], gate: NDArray[np.float32], progress: tqdm | None = None
    ) -> Reading:
        """Read items, strips [strip, height, width] each, by a gate that is known."""
        strips = np.concatenate(list(items))
        kept, counts = [], []
        for (frames,) in _run(self._body_session, ["frames"], strips, progress):  # [strip, frame, dim]
            spikes = frames @ gate[:-1] + gate[-1] > 0  # [strip, frame]
            spikes &= _inked(strips[len(counts) : len(counts) + len(frames)], frames.shape[1])
            kept.append(frames[spikes].astype(np.float16))
            counts.extend(spikes.sum(axis=1))
        last_strip = np.cumsum([len(item) for item in items])
        first_frame = np.concatenate([[0], np.cumsum(counts)[last_strip - 1]]).astype(np.int64)
        return Reading(np.concatenate(kept), first_frame, gate)


def _inked(strips: NDArray[np.uint8], num_frames: int) -> NDArray[np.bool_]:
    return inked_frames(torch.from_numpy(strips), num_frames).numpy()  # [strip, frame]


def _spikes(letters: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which frames of one strip [frame] begin a letter."""
    before = np.concatenate([[BLANK], letters[:-1]])
    return (letters != BLANK) & (letters != before)


def _cut(outputs: list[str]) -> onnx.ModelProto:
    """The recogniser up to `outputs`, brought to OPSET."""
    model = Extractor(onnx.load(model_file())).extract_model([PIXELS], outputs)
    return version_converter.convert_version(model, OPSET)


def _from_strips(model: onnx.ModelProto, render: RenderSpec) -> onnx.ModelProto:
    """Put the way from `strips` to the recogniser's pixels in front, and name its first output `frames`.

    Linear interpolation reads as well as cubic and is cheaper. The width is fixed, because the squeeze-excite
    blocks average over it: the same letters on a wider strip would give other frames.
    """
    width_px = round(render.width_px * HEIGHT_PX / render.height_px / PX_PER_FRAME) * PX_PER_FRAME
    scales = [1, 1, HEIGHT_PX / render.height_px, width_px / render.width_px]
    constants = {
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


def _session(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # runs side by side scale better than threads within a run
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def _run(
    session: onnxruntime.InferenceSession,
    outputs: list[str],
    strips: NDArray[np.uint8],
    progress: tqdm | None = None,
) -> Iterator[list[NDArray]]:
    """The outputs of strip after strip, a few strips at a time on every core."""
    batches = [strips[start : start + STRIPS_PER_RUN] for start in range(0, len(strips), STRIPS_PER_RUN)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = pool.map(lambda batch: session.run(outputs, {"strips": batch}), batches)
        for batch, found in zip(batches, runs, strict=True):
            if progress is not None:
                progress.update(len(batch))
            yield found
