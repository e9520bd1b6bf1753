"""Which encoder a configuration means. Another one is a file of its own and one line here, in CHOICES."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from model_export.configs import CompactConfig, HubEncoderConfig, PpOcrConfig
from model_export.encoders import pp_ocr
from model_export.encoders.base import Encoder
from model_export.encoders.compact import reader as compact
from model_export.encoders.hub import base as hub
from model_export.encoders.hub import deepseek_ocr2, donut, trocr
from service.core.bundle import RenderSpec

AnyEncoderConfig = CompactConfig | PpOcrConfig | HubEncoderConfig


class Choice(NamedTuple):
    make: Callable[[RenderSpec, Any, int], Encoder]  # of recipe, configuration and seed
    files: Callable[[Any], list[Path]]  # of the configuration; their content is that of the weights
    name: str
    version: int


def make_encoder(render: RenderSpec, config: AnyEncoderConfig, seed: int) -> Encoder:
    return _choice(config).make(render, config, seed)


def encoder_files(config: AnyEncoderConfig) -> list[Path]:
    """What the weights are read from, for the key of a stage."""
    return _choice(config).files(config)


def encoder_version(config: AnyEncoderConfig) -> dict[str, int]:
    """Name and version of what reads and pools."""
    return {_choice(config).name: _choice(config).version}


def _hub(kind: type[hub.HubEncoder], name: str, version: int) -> Choice:
    return Choice(lambda render, config, _: kind(render, config), _checkpoint_files, name, version)


def _checkpoint_files(config: HubEncoderConfig) -> list[Path]:
    """All files of a folder; none of a checkpoint on the model hub, which its name stands for."""
    return sorted(path for path in Path(config.checkpoint).rglob("*") if path.is_file())


def _choice(config: AnyEncoderConfig) -> Choice:
    return CHOICES[config.kind if isinstance(config, HubEncoderConfig) else type(config)]


CHOICES = {
    PpOcrConfig: Choice(pp_ocr.PpOcr, lambda _: [pp_ocr.model_file()], "pp_ocr", pp_ocr.VERSION),
    CompactConfig: Choice(
        compact.CompactReader, lambda _: [compact.weights_file()], "compact", compact.VERSION
    ),
    "donut": _hub(donut.Donut, "donut", donut.VERSION),
    "trocr": _hub(trocr.TrOcr, "trocr", trocr.VERSION),
    "deepseek-ocr-2": _hub(deepseek_ocr2.DeepseekOcr2, "deepseek_ocr2", deepseek_ocr2.VERSION),
}
