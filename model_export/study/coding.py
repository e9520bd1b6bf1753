"""Codes of texts that are not in the catalog, computed in the same way as a service computes them.

They are the quantizer's own codes. The treatment of collisions moves only items of the catalog, never an item
that comes later.
"""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_export.bundle.tokenizer import export_tokenizer, parts_of
from model_export.configs import MiniLmConfig, RunConfig
from model_export.encoders.minilm import MiniLm
from model_export.pipeline.drawn_fields import FieldDrawer
from model_export.pipeline.stages import Coded, Read, vectors_of_fields
from service.core.bundle import TOKENIZER
from service.core.cpus import usable_cpus
from service.core.progress import ProgressBar
from service.core.render import render_text
from service.inference.runtime import Tokenizer, TokenizerInput

TEXTS_PER_RUN = 32

Coder = Callable[[Sequence[str]], NDArray[np.int64]]  # texts -> codes [text, level]


def coder(read: Read, coded: Coded, config: RunConfig) -> Coder:
    """A function from texts to codes [text, level]. For pictures it runs the graph that an export writes."""
    return _of_texts(coded) if isinstance(config.encoder, MiniLmConfig) else _of_pictures(read, coded, config)


def codes_of_fields(
    read: Read, coded: Coded, config: RunConfig, items: Sequence[Mapping[str, Any]]
) -> NDArray[np.int64]:
    """The codes [item, level] of items that are not in the catalog, whose fields are read as pictures."""
    assert read.famae is not None
    assert read.pooling is not None
    drawer = FieldDrawer(config, read.famae.vocabulary, read.pooling)
    return coded.codes_of(vectors_of_fields(read.famae, drawer, items))


def _of_texts(coded: Coded) -> Coder:
    encoder = MiniLm()
    return lambda texts: coded.codes_of(encoder.features(texts))


def _of_pictures(read: Read, coded: Coded, config: RunConfig) -> Coder:
    parts = parts_of(config, read, coded)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / TOKENIZER
        graph = export_tokenizer(path, parts, sid=config.sid, render=config.render)
        tokenizer = Tokenizer(path, graph, threads=usable_cpus().num_threads)

    def codes_of(texts: Sequence[str]) -> NDArray[np.int64]:
        rows = [np.zeros((0, config.sid.num_levels), dtype=np.int64)]
        with ProgressBar(total=len(texts), desc="Reading pictures", unit="text", mininterval=1.0) as progress:
            for start in range(0, len(texts), TEXTS_PER_RUN):
                part = texts[start : start + TEXTS_PER_RUN]
                drawn = [TokenizerInput(render_text(text, config.render).strips) for text in part]
                rows.append(tokenizer.run(drawn).codes)
                progress.update(len(part))
        return np.concatenate(rows)

    return codes_of
