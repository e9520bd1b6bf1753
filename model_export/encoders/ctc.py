"""The base of encoders from recognizers trained with CTC (Graves et al., 2006).

Such a recognizer gives a letter or a blank for every frame of a line. A *spike* is a frame with a letter that
the frame before it does not show. A Reading keeps only the spikes.
"""

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
from service.core.cpus import usable_cpus
from service.core.progress import ProgressBar
from service.errors import GlyphrecError

BLANK = 0
STRIPS_PER_RUN = 8
ITEMS_PER_PART = 256


class CtcEncoder(Encoder):
    """Reads strips that one recipe draws, each with one line of text."""

    def __init__(self, render: RenderSpec, config: Any, seed: int) -> None:
        """`config` is the subclass's own configuration. Raises GlyphrecError if strips have several lines."""
        if render.lines_per_strip > 1:
            raise GlyphrecError(
                f"{type(self).__name__} reads strips of one line, but the recipe draws "
                f"{render.lines_per_strip} lines on each. "
                "Set lines_per_strip=1, or choose an encoder of pages."
            )
        self._render, self._config, self._seed = render, config, seed

    @property
    @abstractmethod
    def alphabet(self) -> Sequence[str]:
        """The letter of each class [letter]. The first class is the blank."""

    @abstractmethod
    def classifier(self) -> onnx.ModelProto:
        """The body with a second output, `letters` [strip, frame] int64, which holds places in `alphabet`."""

    def read(self, strips: Sequence[NDArray[np.uint8]], parts: Path | None = None) -> Reading:
        """Read a catalog and keep the spikes, see `Encoder.read`."""
        gate = self._gate(strips, parts)
        return read_in_parts(
            strips, ITEMS_PER_PART, parts, lambda items, progress: self.read_items(items, gate, progress)
        )

    def transcribe(self, strips: NDArray[np.uint8]) -> list[str]:
        """The text of each strip [strip, height, width], decoded by CTC's rule.

        This is a check on the rendering and not part of the encoder.
        """
        runs = run_strips(self.classifier_session, ["letters"], strips)
        return [spelled(row, self.alphabet) for (letters,) in runs for row in letters]

    def read_items(
        self,
        items: Sequence[NDArray[np.uint8]],
        gate: NDArray[np.float32],
        progress: ProgressBar | None = None,
    ) -> Reading:
        """Read items, each given as its strips [strip, height, width], with a known gate [dim + 1]."""
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
        """A session that runs `body`."""
        return session_of(self.body())

    @cached_property
    def classifier_session(self) -> onnxruntime.InferenceSession:
        """A session that runs `classifier`."""
        return session_of(self.classifier())

    @abstractmethod
    def _gate(self, strips: Sequence[NDArray[np.uint8]], parts: Path | None) -> NDArray[np.float32]:
        """Weights and bias [dim + 1] that recognize a spike from its frame.

        They are zeros if the encoder finds spikes by the letters instead.
        """

    @abstractmethod
    def _spike_frames(
        self, strips: NDArray[np.uint8], gate: NDArray[np.float32], progress: ProgressBar | None
    ) -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
        """Yield a few strips at a time: frames [strip, frame, dim], and True at the spikes [strip, frame]."""


def spikes(letters: NDArray[np.int64]) -> NDArray[np.bool_]:
    """True for each frame of one strip that begins a letter -> [frame]. letters [frame] are the classes."""
    before = np.concatenate([[BLANK], letters[:-1]])
    result: NDArray[np.bool_] = (letters != BLANK) & (letters != before)
    return result


def spelled(letters: NDArray[np.int64], alphabet: Sequence[str]) -> str:
    """The text of one strip, from the classes of its frames [frame]."""
    return "".join(alphabet[letter] for letter in letters[spikes(letters)])


def character_accuracy(expected: Sequence[str], found: Sequence[str]) -> float:
    """One minus the number of edits (Levenshtein) from `found` to `expected`, per expected character."""
    edits = sum(_edits(*pair) for pair in zip(expected, found, strict=True))
    return 1 - edits / max(1, sum(map(len, expected)))


def _edits(expected: str, found: str) -> int:
    """The Levenshtein distance."""
    row = list(range(len(found) + 1))
    for place, letter in enumerate(expected, start=1):
        diagonal, row[0] = row[0], place
        for column, other in enumerate(found, start=1):
            change = diagonal + (letter != other)
            diagonal = row[column]
            row[column] = min(change, row[column] + 1, row[column - 1] + 1)
    return row[-1]


def inked(strips: NDArray[np.uint8], num_frames: int) -> NDArray[np.bool_]:
    """`inked_frames` for NumPy: strips [strip, height, width] -> [strip, frame]."""
    return inked_frames(torch.from_numpy(strips), num_frames).numpy()  # [strip, frame]


def session_of(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """A session on the CPU with one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # parallel runs scale better than threads within one run
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def run_strips(
    session: onnxruntime.InferenceSession,
    outputs: list[str],
    strips: NDArray[np.uint8],
    progress: ProgressBar | None = None,
) -> Iterator[list[NDArray[Any]]]:
    """Run strips [strip, height, width] in small batches on all cores. Yields the outputs of each batch."""
    batches = [strips[start : start + STRIPS_PER_RUN] for start in range(0, len(strips), STRIPS_PER_RUN)]
    with ThreadPoolExecutor(usable_cpus().num_threads) as pool:
        runs = pool.map(lambda batch: session.run(outputs, {"strips": batch}), batches)
        for batch, found in zip(batches, runs, strict=True):
            if progress is not None:
                progress.update(len(batch))
            yield found
