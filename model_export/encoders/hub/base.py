"""What the encoders from `transformers` checkpoints share: how they load, read and become a graph.

strips --Pixels--> pictures --the checkpoint's encoder--> tokens --mean--> one frame a strip
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
# Bytes after each of several resizes are rounded by Pillow, once for all of them by us.
MAX_LEVELS_APART = 4
TRACED_STRIPS = 3  # the exporter takes 0 and 1 for constants
CHECKED_STRIPS = (1, 2)
TOLERANCE = 1e-3  # of the largest entry
VISION_ENCODER_DECODER = "vision-encoder-decoder"
MAX_MODEL_BYTES = 2**31  # what one ONNX file holds

Model = TypeVar("Model", bound=nn.Module)


class View(NamedTuple):
    """Pictures of one size that a model takes of each strip, and what its image processor calls them."""

    name: str
    pictures: Sequence[Pixels]


class PictureReader(nn.Module):
    """strips [strip, height, width] uint8 -> frames [strip, 1, dim], each the mean of a strip's tokens."""

    def __init__(self, model: nn.Module, views: Sequence[View], *, num_special: int = 0) -> None:
        """`model` gives tokens [picture, token, dim], of which the first `num_special` stand for no place."""
        super().__init__()
        self.model = model.eval()
        self.views: Any = nn.ModuleList(nn.ModuleList(view.pictures) for view in views)  # of Pixels
        self.names = [view.name for view in views]
        self.num_special = num_special

    def forward(self, strips: Tensor) -> Tensor:
        tokens = torch.cat([self._tokens(view) for view in self.views_of(strips)], dim=1)
        return tokens.mean(dim=1, keepdim=True)  # [strip, 1, dim]

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def views_of(self, strips: Tensor) -> list[Tensor]:
        """[strip, picture, 3, height, width] of each view."""
        return [torch.stack([picture(strips) for picture in view], dim=1) for view in self.views]

    def _tokens(self, pictures: Tensor) -> Tensor:
        num_pictures = pictures.shape[1]
        tokens = self.model(pictures.flatten(0, 1)).last_hidden_state[:, self.num_special :]
        result: Tensor = tokens.unflatten(0, (-1, num_pictures)).flatten(1, 2)
        return result


class HubEncoder(Encoder):
    """Reads strips drawn by one recipe with the encoder of a checkpoint."""

    def __init__(self, render: RenderSpec, config: HubEncoderConfig) -> None:
        self._render, self._config = render, config

    @abstractmethod
    def _load(self, checkpoint: str, processor: Any, height: int, width: int) -> PictureReader:
        """The checkpoint's encoder, after what its image processor does to strips of this size."""

    @cached_property
    def reader(self) -> PictureReader:
        """The encoder in PyTorch, its preprocessing compared with the checkpoint's own."""
        require_transformers()
        checkpoint, height, width = self._config.checkpoint, self._render.height_px, self._render.width_px
        processor = load_processor(checkpoint)
        reader = self._load(checkpoint, processor, height, width).eval()
        _check_pixels(reader, processor, height, width, checkpoint)
        return reader

    def read(self, strips: Sequence[NDArray[np.uint8]], parts: Path | None = None) -> Reading:
        self.reader.to("cuda" if torch.cuda.is_available() else "cpu")
        return read_in_parts(strips, ITEMS_PER_PART, parts, self._read_items)

    def fit(self, reading: Reading) -> MeanPooling:
        return MeanPooling.fit(reading)

    def body(self) -> onnx.ModelProto:
        reader = self.reader.cpu()
        num_bytes = sum(weights.numel() * weights.element_size() for weights in reader.parameters())
        if num_bytes >= MAX_MODEL_BYTES:
            raise GlyphrecError(
                f"{self._config.checkpoint}: its encoder has {num_bytes / 1e9:.1f} GB of weights, "
                f"and an ONNX file holds {MAX_MODEL_BYTES / 1e9:.1f} GB. Name a smaller checkpoint."
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
                f"{self._config.checkpoint}: the encoder gave numbers beyond float16. "
                "Its weights are damaged, or were not trained."
            )
        first_frame = np.cumsum([0, *map(len, items)], dtype=np.int64)
        keeps_all = np.zeros(frames.shape[1] + 1, np.float32)
        keeps_all[-1] = 1.0
        return Reading(frames, first_frame, keeps_all)


def require_transformers() -> None:
    """Only the study wants transformers, so it is imported where it is used, and this asked before."""
    if find_spec("transformers") is None:
        raise GlyphrecError(
            "The package transformers is not installed, and this encoder is one of its models: "
            "pip install 'glyphrec[study]'"
        )


def load_config(checkpoint: str) -> Any:
    """The configuration of a checkpoint, which is a folder or a name on the model hub."""
    from transformers import AutoConfig

    with _loading(checkpoint, "config.json"):
        return AutoConfig.from_pretrained(checkpoint)


def load_processor(checkpoint: str) -> Any:
    """The image processor of a checkpoint, the one that works with Pillow."""
    from transformers import AutoImageProcessor

    with _loading(checkpoint, "preprocessor_config.json"):
        return AutoImageProcessor.from_pretrained(checkpoint, backend="pil")


def load_model(kind: type[Model], checkpoint: str, *, needed: str = "", **options: Any) -> Model:
    """A model of the class `kind` in float32. Weights whose names begin with `needed` must all be there."""
    with _loading(checkpoint, "model.safetensors"):
        model, report = cast(Any, kind).from_pretrained(
            checkpoint, dtype=torch.float32, output_loading_info=True, **options
        )
    missing = sorted(name for name in report["missing_keys"] if name.startswith(needed))
    if missing:
        raise GlyphrecError(
            f"{checkpoint}: {len(missing)} weights of {kind.__name__} are missing, {missing[0]} among them. "
            "They would be random: take the checkpoint from its source again."
        )
    assert isinstance(model, kind)
    return model


def load_encoder(checkpoint: str, kinds: Mapping[str, Any], **options: Any) -> nn.Module:
    """The encoder of a VisionEncoderDecoder checkpoint, or of a checkpoint that is an encoder alone.

    `kinds` maps the model types that will do to their classes.
    """
    config = load_config(checkpoint)
    names = None
    if config.model_type == VISION_ENCODER_DECODER:
        config, names = config.encoder, {r"^encoder\.": ""}  # the decoder is not even read
    if config.model_type not in kinds:
        raise wrong_model(checkpoint, config.model_type, tuple(kinds))
    kind: type[nn.Module] = kinds[config.model_type]
    return load_model(kind, checkpoint, config=config, key_mapping=names, **options)


def wrong_model(checkpoint: str, found: str, wanted: Sequence[str]) -> GlyphrecError:
    return GlyphrecError(
        f"{checkpoint} holds an encoder of type {found!r}, but this one reads {' and '.join(wanted)}. "
        "Name another checkpoint, or the kind of encoder that belongs to it."
    )


@contextmanager
def _loading(checkpoint: str, file: str) -> Iterator[None]:
    """Keep transformers' remarks for itself, and say what to do where it finds nothing."""
    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it lists the weights of the parts that are not wanted
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
            f"{checkpoint}: no such folder, and no model hub gave a checkpoint of this name ({reason}). "
            "Download it where the hub can be reached, and name the folder it is in."
        )
    if not (folder / file).is_file():
        return (
            f"{folder / file}: not found. A checkpoint's folder holds config.json, "
            "preprocessor_config.json and model.safetensors: copy the whole of it."
        )
    return f"{checkpoint}: transformers cannot load {file} ({reason}). Copy the checkpoint again."


@torch.inference_mode()
def _check_pixels(reader: PictureReader, processor: Any, height: int, width: int, checkpoint: str) -> None:
    """Refuse a checkpoint whose image processor does what our preprocessing does not."""
    strip = np.random.default_rng(0).integers(0, 256, (height, width), dtype=np.uint8)
    try:
        processed = processor(Image.fromarray(strip).convert("RGB"), return_tensors="pt")
    except ValueError as error:
        raise GlyphrecError(
            f"{checkpoint}: its image processor does not take strips of {height} x {width} pixels ({error}). "
            "Choose a recipe (RenderSpec) whose proportions are nearer to the model's pictures."
        ) from error
    for name, view, pictures in zip(
        reader.names, reader.views, reader.views_of(torch.from_numpy(strip)[None]), strict=True
    ):
        levels = _levels_apart(pictures[0], processed[name], view[0])
        if levels > MAX_LEVELS_APART:
            raise GlyphrecError(
                f"{checkpoint}: {type(processor).__name__} gives other pictures ({name}) than the graph "
                f"would, {levels:.0f} of 255 levels apart. It has a step that glyphrec does not know; see "
                "preprocessor_config.json and model_export/encoders/hub/pixels.py."
            )


def _levels_apart(pictures: Tensor, expected: Tensor, pixels: Pixels) -> float:
    """The largest difference of pictures [picture, 3, height, width] in levels of 0 to 255."""
    if pictures.shape != expected.shape:
        return math.inf
    return float(((pictures - expected) / pixels.scale).abs().max())


@torch.inference_mode()
def _check_graph(model: onnx.ModelProto, reader: PictureReader, size: torch.Size, checkpoint: str) -> None:
    """The graph against PyTorch, for one strip and for several."""
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
                "The graph is not the model it came from."
            )
