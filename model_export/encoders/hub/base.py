"""The base of encoders from `transformers` checkpoints: it loads them, reads with them and exports them.

strips --Pixels--> pictures --the checkpoint's encoder--> tokens --mean--> one frame for each strip
"""

import logging
import math
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from model_export.configs import HubEncoderConfig
from model_export.encoders.base import Encoder, Reading, read_in_parts
from model_export.encoders.hub.mean_pooling import MeanPooling
from model_export.encoders.hub.pixels import Pixels
from model_export.onnx_graphs import to_onnx
from service.core.bundle import RenderSpec
from service.core.progress import ProgressBar
from service.errors import ContractMismatch, GlyphrecError

ITEMS_PER_PART = 256
MAX_LEVELS_APART = 4  # of 255. Pillow rounds to bytes after each resize; we round once after the last
TRACED_STRIPS = 3  # the exporter would treat sizes 0 and 1 as constants
CHECKED_STRIPS = (1, 2)
TOLERANCE = 1e-3  # relative to the largest entry
VISION_ENCODER_DECODER = "vision-encoder-decoder"
MAX_MODEL_BYTES = 2**31  # the limit of one ONNX file

Model = TypeVar("Model", bound=nn.Module)


class View(NamedTuple):
    """The pictures of one size that a model sees of each strip."""

    name: str  # in the output of the checkpoint's image processor
    pictures: Sequence[Pixels]


class PictureReader(nn.Module):
    """strips [strip, height, width] uint8 -> frames [strip, 1, dim]: the mean of each strip's tokens."""

    def __init__(self, model: nn.Module, views: Sequence[View], *, num_special: int = 0) -> None:
        """`model` gives tokens [picture, token, dim].

        The first `num_special` of them belong to no patch of the picture and are left out.
        """
        super().__init__()
        self.model = model.eval()
        self.views: Any = nn.ModuleList(nn.ModuleList(view.pictures) for view in views)  # of Pixels
        self.names = [view.name for view in views]
        self.num_special = num_special

    def forward(self, strips: Tensor) -> Tensor:
        """strips [strip, height, width] uint8 -> frames [strip, 1, dim]."""
        tokens = torch.cat([self._tokens(view) for view in self.views_of(strips)], dim=1)
        return tokens.mean(dim=1, keepdim=True)  # [strip, 1, dim]

    @property
    def device(self) -> torch.device:
        """The device that holds the weights."""
        return next(self.parameters()).device

    def views_of(self, strips: Tensor) -> list[Tensor]:
        """strips [strip, height, width] uint8 -> each view's pictures [strip, picture, 3, height, width]."""
        return [torch.stack([picture(strips) for picture in view], dim=1) for view in self.views]

    def _tokens(self, pictures: Tensor) -> Tensor:
        num_pictures = pictures.shape[1]
        tokens = self.model(pictures.flatten(0, 1)).last_hidden_state[:, self.num_special :]
        result: Tensor = tokens.unflatten(0, (-1, num_pictures)).flatten(1, 2)
        return result


class HubEncoder(Encoder):
    """Reads strips that one recipe draws, with the encoder of a checkpoint."""

    def __init__(self, render: RenderSpec, config: HubEncoderConfig) -> None:
        self._render, self._config = render, config

    @abstractmethod
    def _load(self, checkpoint: str, processor: Any, height: int, width: int) -> PictureReader:
        """The checkpoint's encoder, after the steps of its image processor for strips of this size."""

    @cached_property
    def reader(self) -> PictureReader:
        """The encoder in PyTorch. Its preprocessing was compared with the checkpoint's image processor.

        Raises GlyphrecError if the checkpoint cannot be used.
        """
        require_transformers()
        checkpoint, height, width = self._config.checkpoint, self._render.height_px, self._render.width_px
        processor = load_processor(checkpoint)
        reader = self._load(checkpoint, processor, height, width).eval()
        _check_pixels(reader, processor, height, width, checkpoint)
        return reader

    def read(self, strips: Sequence[NDArray[np.uint8]], parts: Path | None = None) -> Reading:
        """Read a catalog on the GPU if there is one, see `Encoder.read`. Each strip becomes one frame."""
        self.reader.to("cuda" if torch.cuda.is_available() else "cpu")
        return read_in_parts(strips, ITEMS_PER_PART, parts, self._read_items)

    def fit(self, reading: Reading) -> MeanPooling:
        """Fit mean pooling to a Reading."""
        return MeanPooling.fit(reading)

    def body(self) -> onnx.ModelProto:
        """The exported graph, compared with PyTorch. Raises GlyphrecError if one ONNX file cannot hold it."""
        reader = self.reader.cpu()
        num_bytes = sum(weights.numel() * weights.element_size() for weights in reader.parameters())
        if num_bytes >= MAX_MODEL_BYTES:
            raise GlyphrecError(
                f"{self._config.checkpoint}: its encoder has {num_bytes / 1e9:.1f} GB of weights, "
                f"but an ONNX file holds at most {MAX_MODEL_BYTES / 1e9:.1f} GB. Choose a smaller checkpoint."
            )
        traced = torch.zeros(TRACED_STRIPS, self._render.height_px, self._render.width_px, dtype=torch.uint8)
        model = to_onnx(
            reader,
            (traced,),
            inputs=["strips"],
            outputs=["frames"],
            dynamic_shapes=({0: torch.export.Dim("strip")},),
        )
        _check_graph(model, reader, traced.shape[1:], self._config.checkpoint)
        return model

    @torch.inference_mode()
    def _read_items(self, items: Sequence[NDArray[np.uint8]], progress: ProgressBar) -> Reading:
        found = []
        for batch in torch.from_numpy(np.concatenate(list(items))).split(self._config.strips_per_run):
            frames = self.reader(batch.to(self.reader.device))[:, 0]  # [strip, dim]
            found.append(frames.to(torch.float16).cpu().numpy())
            progress.update(len(batch))
        frames = np.concatenate(found)
        if not np.isfinite(frames).all():
            raise GlyphrecError(
                f"{self._config.checkpoint}: the encoder's output does not fit into float16. Its weights are "
                "damaged or were never trained. Download the checkpoint again."
            )
        first_frame = np.cumsum([0, *map(len, items)], dtype=np.int64)
        keeps_all = np.zeros(frames.shape[1] + 1, np.float32)
        keeps_all[-1] = 1.0
        return Reading(frames, first_frame, keeps_all)


def require_transformers() -> None:
    """Raise GlyphrecError if transformers is not installed.

    Only the study needs transformers. It is therefore imported where it is used, after this check.
    """
    if find_spec("transformers") is None:
        raise GlyphrecError(
            "This encoder needs the package transformers, which is not installed. "
            "Run: pip install 'glyphrec[study]'"
        )


def checkpoint_files(checkpoint: str) -> list[Path]:
    """All files of a checkpoint's folder. A checkpoint on the model hub has none: its name identifies it."""
    return sorted(path for path in Path(checkpoint).rglob("*") if path.is_file())


def load_config(checkpoint: str) -> Any:
    """The configuration of a checkpoint. A checkpoint is a folder or a name on the model hub."""
    from transformers import AutoConfig

    with _loading(checkpoint, "config.json"):
        return AutoConfig.from_pretrained(checkpoint)


def load_processor(checkpoint: str) -> Any:
    """The image processor of a checkpoint, in the version that uses Pillow."""
    from transformers import AutoImageProcessor

    with _loading(checkpoint, "preprocessor_config.json"):
        return AutoImageProcessor.from_pretrained(checkpoint, backend="pil")


def load_model(kind: type[Model], checkpoint: str, *, needed: str = "", **options: Any) -> Model:
    """Load a model of the class `kind` in float32.

    Raises GlyphrecError if a weight is missing and its name begins with `needed`.
    """
    with _loading(checkpoint, "model.safetensors"):
        model, report = cast(Any, kind).from_pretrained(
            checkpoint, dtype=torch.float32, output_loading_info=True, **options
        )
    missing = sorted(name for name in report["missing_keys"] if name.startswith(needed))
    if missing:
        raise GlyphrecError(
            f"{checkpoint}: {len(missing)} weights of {kind.__name__} are missing, {missing[0]} among them. "
            "They would be random. Download the checkpoint again."
        )
    assert isinstance(model, kind)
    return model


def load_encoder(checkpoint: str, kinds: Mapping[str, Any], **options: Any) -> nn.Module:
    """Load the encoder of a VisionEncoderDecoder checkpoint, or of a checkpoint that holds only an encoder.

    `kinds` maps each accepted model type to its class. Raises GlyphrecError for any other type.
    """
    config = load_config(checkpoint)
    names = None
    if config.model_type == VISION_ENCODER_DECODER:
        config, names = config.encoder, {r"^encoder\.": ""}  # so the decoder's weights are not read
    if config.model_type not in kinds:
        raise wrong_model(checkpoint, config.model_type, tuple(kinds))
    kind: type[nn.Module] = kinds[config.model_type]
    return load_model(kind, checkpoint, config=config, key_mapping=names, **options)


def wrong_model(checkpoint: str, found: str, wanted: Sequence[str]) -> GlyphrecError:
    """The error for a checkpoint with an encoder of the type `found` instead of one of `wanted`."""
    return GlyphrecError(
        f"{checkpoint} holds an encoder of type {found!r}, but we need {' or '.join(wanted)}. "
        "Choose another checkpoint, or the kind of encoder that fits this one."
    )


@contextmanager
def _loading(checkpoint: str, file: str) -> Iterator[None]:
    """Silence the warnings of transformers, and turn its errors into a GlyphrecError with a remedy."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it warns about the weights of parts that we do not load
    try:
        yield
    except (OSError, ValueError) as error:
        raise GlyphrecError(_what_is_missing(checkpoint, file, error)) from error
    finally:
        logger.setLevel(level)


def _what_is_missing(checkpoint: str, file: str, error: Exception) -> str:
    reason = str(error).strip().split("\n")[0]
    folder = Path(checkpoint)
    if not folder.is_dir():
        return (
            f"{checkpoint}: no such folder, and the model hub gave no checkpoint of this name ({reason}). "
            "Download it on a machine that can reach the hub, and give the folder that it is in."
        )
    if not (folder / file).is_file():
        return (
            f"{folder / file}: not found. A checkpoint's folder must hold config.json, "
            "preprocessor_config.json and model.safetensors. Copy all of it."
        )
    return f"{checkpoint}: transformers cannot load {file} ({reason}). Copy the checkpoint again."


@torch.inference_mode()
def _check_pixels(reader: PictureReader, processor: Any, height: int, width: int, checkpoint: str) -> None:
    """Raise GlyphrecError if the checkpoint's image processor gives other pictures than our preprocessing."""
    strip = np.random.default_rng(0).integers(0, 256, (height, width), dtype=np.uint8)
    try:
        processed = processor(Image.fromarray(strip).convert("RGB"), return_tensors="pt")
    except ValueError as error:
        raise GlyphrecError(
            f"{checkpoint}: its image processor refuses strips of {height} x {width} pixels ({error}). "
            "Choose a recipe (RenderSpec) with proportions closer to the model's pictures."
        ) from error
    for name, view, pictures in zip(
        reader.names, reader.views, reader.views_of(torch.from_numpy(strip)[None]), strict=True
    ):
        levels = _levels_apart(pictures[0], processed[name], view[0])
        if levels > MAX_LEVELS_APART:
            raise GlyphrecError(
                f"{checkpoint}: {type(processor).__name__} and our graph give different pictures ({name}), "
                f"{levels:.0f} of 255 levels apart. It has a step that glyphrec does not know. Compare "
                "preprocessor_config.json with model_export/encoders/hub/pixels.py."
            )


def _levels_apart(pictures: Tensor, expected: Tensor, pixels: Pixels) -> float:
    """The largest difference between pictures [picture, 3, height, width], in levels of 0 to 255."""
    if pictures.shape != expected.shape:
        return math.inf
    return float(((pictures - expected) / pixels.scale).abs().max())


@torch.inference_mode()
def _check_graph(model: onnx.ModelProto, reader: PictureReader, size: torch.Size, checkpoint: str) -> None:
    """Raise ContractMismatch if the graph differs from PyTorch, for one strip or for several."""
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    for num_strips in CHECKED_STRIPS:
        strips = torch.randint(0, 256, (num_strips, *size), generator=generator, dtype=torch.uint8)
        expected = reader(strips).numpy()  # [strip, 1, dim]
        frames = session.run(["frames"], {"strips": strips.numpy()})[0]
        apart = np.abs(frames - expected).max() / np.abs(expected).max()
        if not apart <= TOLERANCE:
            raise ContractMismatch(
                f"{checkpoint}: with {num_strips} strips the exported graph differs from PyTorch by "
                f"{apart:.2g} of the largest number (allowed: {TOLERANCE}). "
                "Try another version of torch or of onnxruntime."
            )
