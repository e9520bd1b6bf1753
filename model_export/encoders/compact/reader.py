"""Our own small OCR encoder: convolutions and attention over strips 16 pixels high, trained with CTC.

It is a fraction of PP-OCR's size, because it needs to read little more than the strips that
service/core/render.py draws. It was trained once on endless synthetic strips (synthetic.py, pretrain.py). Its
weights lie beside this file.
"""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from model_export.encoders.base import Reading
from model_export.encoders.compact.letter_grams import LetterGrams, fit_letter_grams
from model_export.encoders.ctc import CtcEncoder, run_strips, spikes
from model_export.onnx_graphs import to_onnx
from service.core.progress import ProgressBar
from service.core.whole_files import write_whole
from service.errors import GlyphrecError

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py
WEIGHTS = Path(__file__).parent / "weights" / "compact_reader.npz"
PRETRAIN = "python -m model_export.encoders.compact.pretrain"

INPUT_HEIGHT_PX = 16
PX_PER_FRAME = 2
FRAME_DIM = 128
NUM_BLOCKS = 2
NUM_HEADS = 4
FFN_DIM = 256
MAX_DISTANCE = 32  # frames; attention treats all larger distances alike
TRACED_STRIPS = 3  # the exporter would treat sizes 0 and 1 as constants
WHITE = 255.0

OTHER = "\N{REPLACEMENT CHARACTER}"
SYMBOLS = "–—‘’“”„•…™€′″⅓⅔⅛⅜⅝⅞≤≥≠≈Ωπ√∞←→"
LATIN = "".join(chr(code) for code in range(0xA1, 0x100) if code != 0xAD)  # without the soft hyphen
# The letter of each class. The first is the blank. The last stands for every other character.
ALPHABET = ["", *map(chr, range(0x20, 0x7F)), *LATIN, *SYMBOLS, OTHER]


class CompactReader(CtcEncoder):
    """Reads strips with the compact network.

    The network's classifier is small and stays in the graph, so the pooling can use letters.
    """

    alphabet = ALPHABET

    def body(self) -> onnx.ModelProto:
        """The network without its classifier: `strips` uint8 -> `frames` [strip, frame, FRAME_DIM]."""
        result: onnx.ModelProto = onnx.ModelProto.FromString(self._graph(with_letters=False))
        return result

    def classifier(self) -> onnx.ModelProto:
        """The network: `strips` uint8 -> `frames` [strip, frame, FRAME_DIM] and `letters` [strip, frame]."""
        result: onnx.ModelProto = onnx.ModelProto.FromString(self._graph(with_letters=True))
        return result

    def fit(self, reading: Reading) -> LetterGrams:
        """Fit letter grams to a Reading. Raises GlyphrecError if it holds no frames."""
        classifier = load_weights(weights_file()).letters
        return fit_letter_grams(reading, classifier, ALPHABET, self._config, self._seed)

    def _gate(
        self,
        strips: Sequence[NDArray[np.uint8]],  # noqa: ARG002  spikes follow from the letters
        parts: Path | None,  # noqa: ARG002
    ) -> NDArray[np.float32]:
        return np.zeros(FRAME_DIM + 1, np.float32)

    def _spike_frames(
        self,
        strips: NDArray[np.uint8],
        gate: NDArray[np.float32],  # noqa: ARG002
        progress: ProgressBar | None,
    ) -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
        outputs = ["frames", "letters"]
        for frames, letters in run_strips(self.classifier_session, outputs, strips, progress):
            yield frames, np.stack([spikes(row) for row in letters])

    def _graph(self, *, with_letters: bool) -> bytes:
        return _graph(weights_file(), self._render.height_px, self._render.width_px, with_letters)


@lru_cache(maxsize=8)  # an export takes seconds, and a run asks for the same graph many times
def _graph(weights: Path, height_px: int, width_px: int, with_letters: bool) -> bytes:
    network = load_weights(weights)
    read = _Classifier(network) if with_letters else network
    outputs = ["frames", "letters"] if with_letters else ["frames"]
    traced = torch.zeros(TRACED_STRIPS, height_px, width_px, dtype=torch.uint8)
    shapes = ({0: torch.export.Dim("strip")},)
    graph = to_onnx(read, (traced,), inputs=["strips"], outputs=outputs, dynamic_shapes=shapes)
    result: bytes = graph.SerializeToString()
    return result


class CompactNet(nn.Module):
    """Strips [strip, height, width] uint8 -> frames [strip, frame, FRAME_DIM].

    A strip is resized to a height of 16 pixels, and then there is one frame for every 2 pixels of width.
    """

    def __init__(self) -> None:
        super().__init__()
        self.look = nn.Sequential(
            *_convolution(1, 32, kernel=(5, 5), stride=(2, 2), padding=(2, 2)),
            *_convolution(32, 48, stride=(2, 1)),
            *_convolution(48, 64),
            *_convolution(64, 96, stride=(2, 1)),
            *_convolution(96, FRAME_DIM, kernel=(2, 3), padding=(0, 1)),  # two rows become one
        )
        self.blocks = nn.Sequential(*(_Block() for _ in range(NUM_BLOCKS)))
        self.norm = nn.LayerNorm(FRAME_DIM)
        self.letters = nn.Linear(FRAME_DIM, len(ALPHABET))

    def forward(self, strips: Tensor) -> Tensor:
        """Strips [strip, height, width] uint8 -> frames [strip, frame, FRAME_DIM]."""
        ink = 1 - strips.to(torch.float32).unsqueeze(1) / WHITE  # [strip, 1, height, width]
        seen = self.look(_resized(ink)).squeeze(2).transpose(1, 2)  # [strip, frame, dim]
        result: Tensor = self.norm(self.blocks(seen))
        return result


def _resized(ink: Tensor) -> Tensor:
    """Resize ink [strip, 1, height, width] -> [strip, 1, INPUT_HEIGHT_PX, width].

    The new width holds a whole number of frames. A strip that is at least twice as high is first
    resized to a multiple of the height and then averaged, because interpolation alone would skip pixels.
    """
    height_px, width_px = ink.shape[2:]
    num_frames = round(width_px * INPUT_HEIGHT_PX / height_px / PX_PER_FRAME)
    times = max(1, height_px // INPUT_HEIGHT_PX)
    size = (times * INPUT_HEIGHT_PX, times * num_frames * PX_PER_FRAME)
    if (height_px, width_px) != size:
        ink = F.interpolate(ink, size=size, mode="bilinear", align_corners=False)
    return F.avg_pool2d(ink, times) if times > 1 else ink


def _convolution(
    inputs: int,
    outputs: int,
    *,
    kernel: tuple[int, int] = (3, 3),
    stride: tuple[int, int] = (1, 1),
    padding: tuple[int, int] = (1, 1),
) -> tuple[nn.Module, ...]:
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
    return convolution, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)


class _Block(nn.Module):
    """Attention over all frames, then two linear layers on each frame (a transformer block)."""

    def __init__(self) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(FRAME_DIM)
        self.query_key_value = nn.Linear(FRAME_DIM, 3 * FRAME_DIM)
        self.joined = nn.Linear(FRAME_DIM, FRAME_DIM)
        # At the start each head prefers near frames, with a different reach for each head.
        distance = torch.arange(-MAX_DISTANCE, MAX_DISTANCE + 1).abs().to(torch.float32)
        reach = torch.tensor([1.0, 2.0, 4.0, 16.0])  # frames
        self.nearness = nn.Parameter(-distance / reach[:, None])  # [head, distance]
        self.layers = nn.Sequential(
            nn.LayerNorm(FRAME_DIM), nn.Linear(FRAME_DIM, FFN_DIM), nn.GELU(), nn.Linear(FFN_DIM, FRAME_DIM)
        )

    def forward(self, frames: Tensor) -> Tensor:
        num_frames = frames.shape[1]
        heads = self.query_key_value(self.attention_norm(frames)).unflatten(2, (3, NUM_HEADS, -1))
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # [strip, head, frame, head dim] each
        place = torch.arange(num_frames, device=frames.device)
        distance = (place - place[:, None]).clamp(-MAX_DISTANCE, MAX_DISTANCE) + MAX_DISTANCE
        scores = query @ key.transpose(2, 3) / query.shape[-1] ** 0.5 + self.nearness[:, distance]
        seen = (scores.softmax(dim=-1) @ value).transpose(1, 2).flatten(2)  # [strip, frame, dim]
        frames = frames + self.joined(seen)
        result: Tensor = frames + self.layers(frames)
        return result


class _Read(NamedTuple):
    frames: Tensor  # [strip, frame, dim]
    letters: Tensor  # [strip, frame] places in ALPHABET


class _Classifier(nn.Module):
    """The network with the letters as a second output."""

    def __init__(self, network: CompactNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, strips: Tensor) -> _Read:
        frames = self.network(strips)
        return _Read(frames, self.network.letters(frames).argmax(dim=2))


def save_weights(network: CompactNet, path: Path) -> None:
    """Write the weights to a .npz file. An interrupted call leaves no partial file at `path`.

    Matrices are stored in half precision, which does not change the letters that are read.
    """
    arrays = {}
    for name, value in network.state_dict().items():
        is_matrix = value.ndim > 1
        arrays[name] = value.contiguous().numpy().astype(np.float16) if is_matrix else value.numpy()

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.savez_compressed(file, **arrays)

    write_whole(path, write)


def load_weights(path: Path) -> CompactNet:
    """The network with the weights in `path`, in evaluation mode."""
    network = CompactNet()
    with np.load(path) as arrays:
        network.load_state_dict({name: torch.from_numpy(arrays[name]) for name in arrays.files})
    return network.eval()


def weights_file() -> Path:
    """The file of the weights, which is part of the package. Raises GlyphrecError if it is missing."""
    if not WEIGHTS.is_file():
        raise GlyphrecError(
            f"{WEIGHTS}: the compact reader's weights are missing. Train them: {PRETRAIN} --out {WEIGHTS}"
        )
    return WEIGHTS
