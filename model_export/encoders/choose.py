"""Choose the encoder of a configuration. A new encoder is a file of its own and one line in CHOICES."""

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

AnyEncoderConfig = CompactConfig | PpOcrConfig | HubEncoderConfig  # they read strips of pixels


class Choice(NamedTuple):
    """An encoder and what identifies it."""

    make: Callable[[RenderSpec, Any, int], Encoder]  # (recipe, configuration, seed) -> encoder
    files: Callable[[Any], list[Path]]  # configuration -> the files that hold the weights
    name: str  # of the stage, in keys
    version: int  # of the stage's output


def make_encoder(render: RenderSpec, config: AnyEncoderConfig, seed: int) -> Encoder:
    """Make the encoder of `config` for strips that the recipe `render` draws."""
    return _choice(config).make(render, config, seed)


def encoder_files(config: AnyEncoderConfig) -> list[Path]:
    """The files that hold the encoder's weights. Their content is part of a stage's key."""
    return _choice(config).files(config)


def encoder_version(config: AnyEncoderConfig) -> dict[str, int]:
    """The encoder's name -> the version of its output."""
    return {_choice(config).name: _choice(config).version}


def _hub(kind: type[hub.HubEncoder], name: str, version: int) -> Choice:
    return Choice(
        lambda render, config, _: kind(render, config),
        lambda config: hub.checkpoint_files(config.checkpoint),
        name,
        version,
    )


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
