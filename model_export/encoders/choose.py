"""Which encoder a configuration means. Another one is a file of its own and one line here, in CHOICES."""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from model_export import onnx_graphs
from model_export.configs import CompactConfig, HubEncoderConfig, PpOcrConfig
from model_export.encoders import ctc, pp_ocr, visual_words
from model_export.encoders.base import Encoder
from model_export.encoders.compact import letter_grams
from model_export.encoders.compact import reader as compact
from model_export.encoders.hub import base as hub
from model_export.encoders.hub import deepseek_ocr2, donut, mean_pooling, pixels, trocr
from service.core.bundle import RenderSpec

AnyEncoderConfig = CompactConfig | PpOcrConfig | HubEncoderConfig


class Choice(NamedTuple):
    make: Callable[[RenderSpec, Any, int], Encoder]  # of recipe, configuration and seed
    files: Callable[[Any], list[Path]]  # of the configuration; their content is that of the weights
    module: ModuleType  # where it is written


def make_encoder(render: RenderSpec, config: AnyEncoderConfig, seed: int) -> Encoder:
    return _choice(config).make(render, config, seed)


def encoder_files(config: AnyEncoderConfig) -> list[Path]:
    """What the weights are read from, for the key of a stage."""
    return _choice(config).files(config)


def modules_of(config: AnyEncoderConfig) -> tuple[ModuleType, ...]:
    """The code that reads and pools, for the key of a stage."""
    return _choice(config).module, *SHARED[type(config)]


def _hub(kind: type[hub.HubEncoder], module: ModuleType) -> Choice:
    return Choice(lambda render, config, _: kind(render, config), _checkpoint_files, module)


def _checkpoint_files(config: HubEncoderConfig) -> list[Path]:
    """All files of a folder; none of a checkpoint on the model hub, which its name stands for."""
    return sorted(path for path in Path(config.checkpoint).rglob("*") if path.is_file())


def _choice(config: AnyEncoderConfig) -> Choice:
    return CHOICES[config.kind if isinstance(config, HubEncoderConfig) else type(config)]


SHARED = {
    CompactConfig: (ctc, letter_grams, visual_words, onnx_graphs),
    PpOcrConfig: (ctc, visual_words, onnx_graphs),
    HubEncoderConfig: (hub, pixels, mean_pooling, onnx_graphs),
}
CHOICES = {
    PpOcrConfig: Choice(pp_ocr.PpOcr, lambda _: [pp_ocr.model_file()], pp_ocr),
    CompactConfig: Choice(compact.CompactReader, lambda _: [compact.weights_file()], compact),
    "donut": _hub(donut.Donut, donut),
    "trocr": _hub(trocr.TrOcr, trocr),
    "deepseek-ocr-2": _hub(deepseek_ocr2.DeepseekOcr2, deepseek_ocr2),
}
