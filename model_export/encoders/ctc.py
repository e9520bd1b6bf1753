"""What recognizers trained with CTC share: they give a letter or a blank for every frame of a line.

A *spike* is a frame in which the recognizer sees a letter that the frame before did not show. Only spikes are
kept of what was read.
"""

import os
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray

from model_export.encoders.base import Encoder, Reading, read_in_parts
from model_export.encoders.visual_words import inked_frames
from service.core.bundle import RenderSpec
from service.core.progress import ProgressBar
from service.errors import GlyphrecError

BLANK = 0
STRIPS_PER_RUN = 8
ITEMS_PER_PART = 256


class CtcEncoder(Encoder):
    """Reads strips drawn by one recipe, a line each."""

    def __init__(self, render: RenderSpec, config: Any, seed: int) -> None:
        """`config`: the subclass's own."""
        if render.lines_per_strip > 1:
            raise GlyphrecError(
                f"{type(self).__name__} reads strips of one line, and the recipe draws "
                f"{render.lines_per_strip} lines on each. Set lines_per_strip=1, or take an encoder of pages."
            )
        self._render, self._config, self._seed = render, config, seed

    @property
    @abstractmethod
    def alphabet(self) -> Sequence[str]:
        """The letter of each class; the first is the blank."""

    @abstractmethod
    def classifier(self) -> onnx.ModelProto:
        """The body with one more output, `letters` [strip, frame]: places in `alphabet`."""

    def read(self, strips: Sequence[NDArray[np.uint8]], parts: Path | None = None) -> Reading:
        gate = self._gate(strips, parts)
        return read_in_parts(
            strips, ITEMS_PER_PART, parts, lambda items, progress: self.read_items(items, gate, progress)
        )

    def transcribe(self, strips: NDArray[np.uint8]) -> list[str]:
        """Read strips aloud, by CTC's rule. A check on the rendering, not part of the encoder."""
        runs = run_strips(self.classifier_session, ["letters"], strips)
        return [spelled(row, self.alphabet) for (letters,) in runs for row in letters]

    def read_items(
        self,
        items: Sequence[NDArray[np.uint8]],
        gate: NDArray[np.float32],
        progress: ProgressBar | None = None,
    ) -> Reading:
        """Read items, strips [strip, height, width] each, by a gate that is known."""
        strips = np.concatenate(list(items))
        kept: list[NDArray[np.float16]] = []
        counts: list[int] = []
        for frames, is_spike in self._spike_frames(strips, gate, progress):
            is_spike &= inked(strips[len(counts) : len(counts) + len(frames)], frames.shape[1])
            kept.append(frames[is_spike].astype(np.float16))
            counts.extend(is_spike.sum(axis=1))
        last_strip = np.cumsum([len(item) for item in items])
        first_frame = np.concatenate([[0], np.cumsum(counts)[last_strip - 1]]).astype(np.int64)
        return Reading(np.concatenate(kept), first_frame, gate)

    @cached_property
    def body_session(self) -> onnxruntime.InferenceSession:
        return session_of(self.body())

    @cached_property
    def classifier_session(self) -> onnxruntime.InferenceSession:
        return session_of(self.classifier())

    @abstractmethod
    def _gate(self, strips: Sequence[NDArray[np.uint8]], parts: Path | None) -> NDArray[np.float32]:
        """Weights and bias [dim + 1] that tell a spike by its own frame; zeros where the letters are read."""

    @abstractmethod
    def _spike_frames(
        self, strips: NDArray[np.uint8], gate: NDArray[np.float32], progress: ProgressBar | None
    ) -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
        """Some strips at a time: their frames [strip, frame, dim], and which are spikes [strip, frame]."""


def spikes(letters: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which frames of one strip [frame] begin a letter."""
    before = np.concatenate([[BLANK], letters[:-1]])
    result: NDArray[np.bool_] = (letters != BLANK) & (letters != before)
    return result


def spelled(letters: NDArray[np.int64], alphabet: Sequence[str]) -> str:
    """What the classes of one strip's frames [frame] say."""
    return "".join(alphabet[letter] for letter in letters[spikes(letters)])


def character_accuracy(expected: Sequence[str], found: Sequence[str]) -> float:
    """One minus the edits that turn `found` into `expected`, for each character expected."""
    edits = sum(_edits(*pair) for pair in zip(expected, found, strict=True))
    return 1 - edits / max(1, sum(map(len, expected)))


def _edits(expected: str, found: str) -> int:
    """Levenshtein's distance."""
    row = list(range(len(found) + 1))
    for place, letter in enumerate(expected, start=1):
        diagonal, row[0] = row[0], place
        for column, other in enumerate(found, start=1):
            change = diagonal + (letter != other)
            diagonal = row[column]
            row[column] = min(change, row[column] + 1, row[column - 1] + 1)
    return row[-1]


def inked(strips: NDArray[np.uint8], num_frames: int) -> NDArray[np.bool_]:
    return inked_frames(torch.from_numpy(strips), num_frames).numpy()  # [strip, frame]


def session_of(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # runs side by side scale better than threads within a run
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run_strips(
    session: onnxruntime.InferenceSession,
    outputs: list[str],
    strips: NDArray[np.uint8],
    progress: ProgressBar | None = None,
) -> Iterator[list[NDArray[Any]]]:
    """The outputs of strip after strip, a few strips at a time on every core."""
    batches = [strips[start : start + STRIPS_PER_RUN] for start in range(0, len(strips), STRIPS_PER_RUN)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        runs = pool.map(lambda batch: session.run(outputs, {"strips": batch}), batches)
        for batch, found in zip(batches, runs, strict=True):
            if progress is not None:
                progress.update(len(batch))
            yield found
