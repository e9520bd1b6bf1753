"""The costs of a configuration: pixels, time to read one item, time of one request. Medians on one core.

The costs do not depend on the weights. A generator of the same shape with random weights takes as long.
"""

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch

from model_export.bundle.recommender import export_recommender
from model_export.bundle.tokenizer import export_tokenizer, parts_of
from model_export.configs import FamaeConfig, MiniLmConfig, QuantizerConfig
from model_export.encoders.choose import make_encoder
from model_export.encoders.ctc import CtcEncoder, character_accuracy
from model_export.encoders.images.base import ImageSession
from model_export.encoders.images.choose import make_image_encoder
from model_export.encoders.minilm import MiniLm
from model_export.evaluation.evaluate import ranker_of
from model_export.evaluation.ranking import ItemsOfCodes
from model_export.pipeline import generating, stages
from model_export.pipeline.photos import spec_of
from model_export.pipeline.run import Run
from model_export.quantizers import choose as choose_quantizer
from model_export.quantizers.readable import with_first_codes
from service.core.bundle import RenderSpec
from service.core.encoder_view import encoder_view
from service.core.graphs import beam_widths
from service.core.pictures import keep_picture
from service.core.render import item_text, render_text
from service.inference.runtime import RecommenderSession

NUM_ITEMS = 24
READ_LETTERS = 150  # at the start of a text; they surely fit on the strips
NUM_REQUESTS = 64


def of_reading(run: Run) -> dict[str, float]:
    """The mean pixels of an item, and the encoder's median time for one item in milliseconds.

    Pooling and head take little time in comparison and are left out.
    """
    dataset, config = run.dataset, run.config
    chosen = np.random.default_rng(0).choice(
        dataset.num_items, min(NUM_ITEMS, dataset.num_items), replace=False
    )
    items = [dataset.items[place] for place in chosen]
    if isinstance(config.encoder, MiniLmConfig):
        reader = MiniLm()
        texts = [item_text(item, config.render) for item in items]
        with _one_torch_thread():
            return {"encode_ms_per_item": _median_ms([partial(reader.features, [text]) for text in texts])}
    if isinstance(config.encoder, FamaeConfig):  # it looks its vectors up
        return {}
    strips = stages.draw(items, config)
    encoder = make_encoder(config.render, config.encoder, config.seed)
    body = encoder.body()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        body.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    runs = [partial(session.run, ["frames"], {"strips": drawn}) for drawn in strips]
    figures = {
        "pixels_per_item": float(np.mean([drawn.size for drawn in strips])),
        "encode_ms_per_item": _median_ms(runs),
    }
    if isinstance(encoder, CtcEncoder):
        figures["reading_accuracy"] = _reading_accuracy(encoder, items, config.render)
    return figures


def of_photos(run: Run) -> dict[str, float]:
    """The mean pixels of an item's photo, and the median time to decode and encode one, in milliseconds.

    Files are read beforehand. A unit of CARD is shown without neighbors, as a service composes it.
    """
    dataset, pictures = run.dataset, run.config.pictures
    assert pictures is not None
    rng, owners = np.random.default_rng(0), np.array(sorted(dataset.images))
    chosen = rng.choice(owners, min(NUM_ITEMS, len(owners)), replace=False).tolist()
    session, spec = ImageSession(make_image_encoder(pictures), threads=1), spec_of(pictures)
    files = [dataset.images[item].read_bytes() for item in chosen]

    def read(item: int, file: bytes) -> object:
        seen = encoder_view(dataset.items[item], keep_picture(file).data, spec, run.config.render)
        return session.features([] if seen is None else [seen])

    runs = [partial(read, item, file) for item, file in zip(chosen, files, strict=True)]
    return {
        "pixels_per_item": spec.size_px**2 * len(owners) / dataset.num_items,
        "encode_ms_per_item": _median_ms(runs),
    }


def of_tokenizer(run: Run) -> dict[str, float]:
    """The size of the graph that an export would write, in MB. It depends on shapes, so little is trained."""
    config = run.config
    if isinstance(config.encoder, MiniLmConfig):  # no export writes it
        return {}
    config = replace(config, head=replace(config.head, max_steps=min(1, config.head.max_steps)))
    if isinstance(config.quantizer, QuantizerConfig):
        config = replace(config, quantizer=replace(config.quantizer, num_epochs=1, settle_epochs=1))
    run = replace(run, config=config)
    read = stages.read(run)
    parts = parts_of(config, read, stages.code(run, read))
    pictures = None if config.pictures is None else spec_of(config.pictures)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.onnx"
        export_tokenizer(path, parts, sid=config.sid, render=config.render, pictures=pictures)
        return {"tokenizer_mb": path.stat().st_size / 1e6}


def of_quantizer(run: Run) -> dict[str, float]:
    """The seconds to fit the quantizer to the vectors of the catalog, on one core."""
    config = run.config
    _, vectors = stages.vectors_of(run, stages.read(run))
    if (first := stages.first_field(run)) is not None:
        vectors = with_first_codes(vectors, first.numbers[:, 0])
    needs = choose_quantizer.learns_from_purchases(config.quantizer)
    collaborative = generating.collaborative_vectors(run) if needs else None
    with _one_torch_thread():
        started = time.perf_counter()
        choose_quantizer.train_quantizer(
            vectors, config.sid, config.quantizer,
            seed=config.seed, collaborative=collaborative, progress=False,
        )  # fmt: skip
        return {"quantizer_seconds": time.perf_counter() - started}


def _reading_accuracy(encoder: CtcEncoder, items: list[dict[str, Any]], render: RenderSpec) -> float:
    """The share of the first READ_LETTERS letters of the items' texts that are read correctly."""
    texts = [" ".join(item_text(item, render)[:READ_LETTERS].split()) for item in items]
    drawn = [render_text(text, render) for text in texts]
    whole = [place for place, found in enumerate(drawn) if not (found.truncated or found.missing)]
    return character_accuracy(
        [texts[place] for place in whole],
        [" ".join(encoder.transcribe(drawn[place].strips)) for place in whole],
    )


def of_request(run: Run) -> dict[str, float]:
    """The median milliseconds of a request through the exported graph, one at a time, with 50 beams."""
    split, config = run.split, run.config
    coded = stages.code(run, stages.read(run))
    generator = generating.make_generator(config, coded.codes, coded.spec, split.train, coded.vectors).eval()
    catalog = ItemsOfCodes.build(generator.spec, coded.codes)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "recommender.onnx"
        graph = export_recommender(
            path, generator, history_length=config.history_length, beam_limit=config.beam_limit
        )
        session = RecommenderSession(path, graph, threads=1)
    ranker = ranker_of(session, catalog, config.history_length, config.beam_limit)
    widths = beam_widths(generator.spec, ranker.num_beams)
    windows = [ranker.window([history]) for history in split.test.histories[:NUM_REQUESTS]]
    runs = [
        partial(session.run, seen.history, catalog.trie.tables, widths, seen.neighbors) for seen in windows
    ]
    return {"ms_per_request": _median_ms(runs)}


def _median_ms(runs: Sequence[Callable[[], object]]) -> float:
    runs[0]()  # warm-up
    times = []
    for run in runs:
        started = time.perf_counter()
        run()
        times.append(time.perf_counter() - started)
    return float(np.median(times) * 1e3)


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
