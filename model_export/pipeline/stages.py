"""From items and purchases to codes and a trained generator: the stages that exports and the study share.

    items ─ draw ─ read ─ pool ─ head ─ quantize ─ codes ─ collisions ─ generator

Each stage is stored under a key of its inputs, its configuration and its version. So an interrupted or
changed run repeats only the stages that changed. Everything is fitted on `Split.train` alone. The validation
users decide when the training of a generator stops.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from model_export.configs import (
    LetterConfig,
    MiniLmConfig,
    RunConfig,
    SasRecConfig,
    TigerConfig,
    TreeConfig,
    sasrec_training,
)
from model_export.data.dataset import ItemSequence
from model_export.encoders import choose as choose_encoder
from model_export.encoders import fusion as fusion_module
from model_export.encoders import head as head_module
from model_export.encoders import minilm
from model_export.encoders.base import Pooling, Reading
from model_export.encoders.fusion import NUM_FLAGS, Fusion, make_head
from model_export.encoders.head import ItemHead, train_head
from model_export.generators.base import Generator
from model_export.generators.sasrec import SasRecGenerator, codes_of_items
from model_export.generators.tiger import TigerGenerator
from model_export.generators.training import Curve, train_generator
from model_export.generators.tree import TreeGenerator
from model_export.pipeline import photos as photos_module
from model_export.pipeline import versions
from model_export.pipeline.cache import StageCache
from model_export.pipeline.run import Run, Say, silent
from model_export.quantizers import choose as choose_quantizer
from model_export.quantizers.base import QuantizerReport, ResidualQuantizer
from model_export.quantizers.collisions import CollisionReport, treat_collisions
from service.core.render import item_text, render_text
from service.core.sid import SidSpec

Strips = list[NDArray[np.uint8]]  # of each item [strip, height, width]
Sequences = list[ItemSequence]


@dataclass(frozen=True)
class Read:
    """The output of an encoder for a catalog."""

    features: NDArray[np.float32]  # [item, feature], of text and photo if there is a fusion
    pooling: Pooling | None  # None if the encoder read text
    fusion: Fusion | None = None  # None if only the text was read

    @property
    def text(self) -> NDArray[np.float32]:
        """The features of the texts [item, feature]."""
        return self.features if self.fusion is None else self.features[:, : self.fusion.text_dim]

    @property
    def photos(self) -> NDArray[np.float32] | None:
        """The features of the photos [item, feature], zero where there is none. None if none were read."""
        return None if self.fusion is None else self.features[:, self.fusion.text_dim : -NUM_FLAGS]


@dataclass(frozen=True)
class Coded:
    """The codes of a catalog, and the parts that made them."""

    head: ItemHead
    vectors: NDArray[np.float32]  # [item, dim], from the head
    quantizer: ResidualQuantizer
    quantizer_report: QuantizerReport
    spec: SidSpec  # of the codes; a suffix adds one level to those of the quantizer
    codes: NDArray[np.int64]  # [item, level], after the treatment of collisions
    collisions: CollisionReport


def draw(items: Sequence[dict[str, Any]], config: RunConfig, say: Say = silent) -> Strips:
    """Draw the items' texts as strips. Report cut texts and characters that the font lacks."""
    spec = config.render
    rendered = [render_text(item_text(item, spec), spec) for item in items]
    num_strips = sum(len(drawn.strips) for drawn in rendered)
    truncated = sum(drawn.truncated for drawn in rendered)
    say(f"      {num_strips:,} strips; {truncated:,} items were too long and are cut at the end")
    missing = sorted(set("".join(drawn.missing for drawn in rendered)))
    if missing:
        shown = " ".join(f"{char} (U+{ord(char):04X})" for char in missing[:10])
        say(f"      the font lacks {len(missing)} characters, which are drawn as code points: {shown}")
    return [drawn.strips for drawn in rendered]


def read(run: Run) -> Read:
    """The catalog's features, from the configuration's encoders of text and photos."""
    words, pictures = read_text(run), run.config.pictures
    if pictures is None:
        return words
    text_dim = 0 if pictures.fusion == "photo" else words.features.shape[1]
    photos = photos_module.read_photos(run)
    fusion = Fusion(text_dim=text_dim, dim=photos.features.shape[1], config=pictures)
    fusion.fit(photos.features)
    return Read(fusion.fuse(words.features, photos), words.pooling, fusion)


def read_text(run: Run) -> Read:
    """The features of the catalog's texts.

    The encoder reads drawn texts or, for comparison, the texts themselves.
    """
    config, cache = run.config, run.cache
    texts = [item_text(item, config.render) for item in run.dataset.items]
    if isinstance(config.encoder, MiniLmConfig):
        inputs: tuple[Any, ...] = (texts, {"minilm": minilm.VERSION})
        features = _stage(cache, "text", inputs, lambda: minilm.MiniLm().features(texts))
        return Read(features, None)
    encoder = choose_encoder.make_encoder(config.render, config.encoder, config.seed)
    inputs = (
        texts,
        config.render,
        config.seed,
        *choose_encoder.encoder_files(config.encoder),
        versions.of_reading(config),
    )
    parts = cache.path("reading", ".parts", *inputs)

    def read_all(target: Path) -> None:
        parts.mkdir(exist_ok=True)
        encoder.read(draw(run.dataset.items, config, run.say), parts).save(target)

    reading = cache.get(cache.path("reading", ".npz", *inputs), read_all, Reading.load)
    shutil.rmtree(parts, ignore_errors=True)
    inputs = (*inputs, config.encoder)
    pooling: Pooling = _stage(cache, "pooling", inputs, lambda: encoder.fit(reading))
    return Read(_stage(cache, "features", inputs, lambda: pooling.pool(reading)), pooling)


def vectors_of(run: Run, read: Read) -> tuple[ItemHead, NDArray[np.float32]]:
    """The head and the catalog's vectors [item, dim]. The head is trained on items bought close together."""
    train, config, seed = run.split.train, run.config.head, run.config.seed
    pictures, make = run.config.pictures, None
    inputs: tuple[Any, ...] = (read.features, train, config, seed, {"head": head_module.VERSION})
    if pictures is not None:
        assert read.fusion is not None
        if pictures.fusion == "concat":
            config = replace(config, max_steps=0)
        make = partial(make_head, read.fusion, config, pictures)
        inputs = (*inputs, pictures, {"fusion": fusion_module.VERSION})
    head: ItemHead = _stage(
        run.cache, "head", inputs, lambda: train_head(read.features, train, config, seed, make)
    )
    return head, head.vectors(read.features)


def code(run: Run, read: Read) -> Coded:
    """The codes of what was read, from the head, the quantizer and the treatment of collisions."""
    config = run.config
    head, vectors = vectors_of(run, read)
    collaborative = None
    if isinstance(config.quantizer, LetterConfig):
        collaborative = collaborative_vectors(run)
    inputs = (
        vectors, collaborative, config.quantizer, config.sid, config.seed,
        versions.of_quantizer(config.quantizer),
    )  # fmt: skip
    quantizer, report = _stage(
        run.cache,
        "quantizer",
        inputs,
        lambda: choose_quantizer.train_quantizer(
            vectors, config.sid, config.quantizer, seed=config.seed, collaborative=collaborative
        ),
    )
    with torch.no_grad():
        data = torch.from_numpy(vectors)  # [item, dim]
        treated = treat_collisions(
            config.collisions,
            quantizer.encode(data).numpy(),
            quantizer.latents(data).numpy(),
            [codebook.numpy() for codebook in quantizer.codebooks],
            run.dataset.item_ids,
        )
    return Coded(head, vectors, quantizer, report, treated.spec, treated.codes, treated.report)


@torch.no_grad()
def first_codes(coded: Coded, features: NDArray[np.float32]) -> NDArray[np.int64]:
    """The first code of features [item, feature] -> [item]."""
    vectors = torch.from_numpy(coded.head.vectors(features))  # [item, dim]
    codes: NDArray[np.int64] = coded.quantizer.encode(vectors).numpy()
    return codes[:, 0]


def collaborative_vectors(run: Run) -> NDArray[np.float32]:
    """The vectors that SASRec learns in the training part: [item, dim], NaN for items that are not in it."""
    num_items = run.dataset.num_items
    config = replace(run.config, generator=SasRecConfig(), training=sasrec_training())
    spec, codes = SidSpec(levels=(num_items,)), codes_of_items(num_items)
    generator = generate(replace(run, config=config), codes, spec).generator
    assert isinstance(generator, SasRecGenerator)
    found = generator.item_embeddings()
    return np.where(found.is_learnt[:, None], found.vectors, np.nan).astype(np.float32)


class Generated(NamedTuple):
    """A trained generator and the course of its training."""

    generator: Generator
    curve: Curve


def generate(
    run: Run,
    codes: NDArray[np.int64],
    spec: SidSpec,
    *,
    vectors: NDArray[np.float32] | None = None,
    make: Callable[[], Generator] | None = None,
    more_inputs: tuple[Any, ...] = (),
) -> Generated:
    """Train the configuration's generator on codes [item, level].

    `vectors` [item, dim]: the vectors behind the codes, for a generator that starts from them. `make` makes
    another generator than the configuration's; `more_inputs` are what it depends on besides.
    """
    split, config, cache = run.split, run.config, run.cache
    torch.manual_seed(config.seed)
    generator = make() if make else make_generator(config, codes, spec, split.train, vectors)
    inputs: tuple[Any, ...] = (
        codes, vectors, split.train, split.validation.targets, spec, config.generator, config.training,
        config.history_length, config.seed, versions.of_generator(config.generator),
    )  # fmt: skip
    if split.validation.are_repeats:  # earlier releases validated without the history here too
        inputs = (*inputs, "repeats")
    inputs = (*inputs, *more_inputs)
    checkpoint = cache.path("generator", ".checkpoint", *inputs)

    def train(target: Path) -> None:
        curve = train_generator(
            generator,
            codes=codes,
            split=split,
            config=config.training,
            history_length=config.history_length,
            seed=config.seed,
            checkpoint=checkpoint,
        )
        torch.save((generator.state_dict(), curve), target)

    weights, curve = cache.get(cache.path("generator", ".pt", *inputs), train, _load)
    checkpoint.unlink(missing_ok=True)
    generator.load_state_dict(weights)
    return Generated(generator.eval(), curve)


def make_generator(
    config: RunConfig,
    codes: NDArray[np.int64],
    spec: SidSpec,
    train: Sequences,
    vectors: NDArray[np.float32] | None = None,
) -> Generator:
    """An untrained generator of the configuration. Seed torch before the call.

    codes [item, level]; vectors [item, dim]; `train`: the sequences of item indices.
    """
    seen = np.unique(np.concatenate(train))
    match config.generator:
        case TreeConfig() as tree_config:
            return TreeGenerator(
                config=tree_config,
                spec=spec,
                history_length=config.history_length,
                seen_codes=codes[seen],
                seen_vectors=None if vectors is None else vectors[seen],
            )
        case SasRecConfig() as sasrec_config:
            return SasRecGenerator(
                config=sasrec_config, spec=spec, history_length=config.history_length, seen_codes=codes[seen]
            )
        case TigerConfig() as tiger_config:
            return TigerGenerator(config=tiger_config, spec=spec, seen_codes=codes[seen])


@contextmanager
def deterministic() -> Iterator[None]:
    """Make torch deterministic, so that equal seeds give equal bundles.

    Otherwise the order in which threads finish decides the order in which gradients are added up.
    """
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)  # GPUs lack some operations: warn and go on
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _stage(cache: StageCache, name: str, inputs: tuple[Any, ...], make: Callable[[], Any]) -> Any:
    """The result of `make`, from the cache if it is there for these inputs."""
    path = cache.path(name, ".pt", *inputs)
    return cache.get(path, lambda target: torch.save(make(), target), _load)


def _load(path: Path) -> Any:
    return torch.load(path, weights_only=False)  # this user's own cache
