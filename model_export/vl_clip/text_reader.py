"""Texts read as pictures for the joint space: drawn, read by the compact reader, pooled to letter grams."""

import shutil
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model_export.configs import CompactConfig
from model_export.encoders.base import Reading
from model_export.encoders.compact import reader as compact
from model_export.encoders.compact.letter_grams import LetterGrams
from model_export.pipeline.cache import StageCache
from service.core import render
from service.core.bundle import RenderSpec
from service.core.item_fields import category_path
from service.core.render import render_text

SHORT_FIELDS = ("title", "categories")  # of the short form of a text

Features = NDArray[np.float32]


def read_texts(cache: StageCache, texts: Sequence[str], spec: RenderSpec) -> Reading:
    """The frames of drawn texts, from the cache if they are there for these texts."""
    inputs: tuple[Any, ...] = (
        list(texts), spec, compact.weights_file(), {"drawing": render.VERSION, "compact": compact.VERSION},
    )  # fmt: skip
    parts = cache.path("vl_clip_texts", ".parts", *inputs)

    def write(target: Any) -> None:
        parts.mkdir(exist_ok=True)
        reader = compact.CompactReader(spec, CompactConfig(), 0)
        reader.read([render_text(text, spec).strips for text in texts], parts).save(target)

    found = cache.get(cache.path("vl_clip_texts", ".npz", *inputs), write, Reading.load)
    shutil.rmtree(parts, ignore_errors=True)
    return found


def pooled(texts: Sequence[str], pooling: LetterGrams, spec: RenderSpec) -> Features:
    """The features [text, feature] of a few texts, without a cache."""
    if not texts:
        return np.zeros((0, pooling.feature_dim), np.float32)
    reader = compact.CompactReader(spec, CompactConfig(), 0)
    reading = reader.read([render_text(text, spec).strips for text in texts])
    with torch.no_grad():
        return pooling.pool(reading)


def short_spec(spec: RenderSpec) -> RenderSpec:
    """The recipe of the short form of a text: what a person might type in a search box."""
    return spec.model_copy(update={"fields": SHORT_FIELDS})


def product_type(item: dict[str, Any]) -> str:
    """The last level of the item's categories, or its title if it has none."""
    path = category_path(item)
    return path[-1] if path else str(item.get("title") or "")
