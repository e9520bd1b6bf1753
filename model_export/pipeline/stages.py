"""From items and purchases to codes: the stages that exports and the study share, up to the generator.

    items ─ draw ─ read ─ pool ─ fuse ─ head ─ quantize ─ codes ─ collisions ─▶ generating.py

Each stage is stored under a key of its inputs, its configuration and its version. So an interrupted or
changed run repeats only the stages that changed. Everything is fitted on `Split.train` alone.
"""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from model_export.configs import FamaeConfig, FamaePicturesConfig, MiniLmConfig, ReadableConfig, RunConfig
from model_export.data.item_fields import ItemFields, field_as_codes, read_fields
from model_export.encoders import choose as choose_encoder
from model_export.encoders import famae, minilm
from model_export.encoders import fusion as fusion_module
from model_export.encoders import head as head_module
from model_export.encoders.base import Pooling, Reading
from model_export.encoders.famae import FamaeResult, FieldPictures
from model_export.encoders.fusion import NUM_FLAGS, Fusion, make_head
from model_export.encoders.head import ItemHead, UnchangedFeatures, train_head
from model_export.picture_configs import CardConfig
from model_export.pipeline import versions
from model_export.pipeline.cache import StageCache
from model_export.pipeline.drawn_fields import FieldDrawer
from model_export.pipeline.generating import collaborative_vectors
from model_export.pipeline.photos import read_photos
from model_export.pipeline.run import Run, Say, silent
from model_export.pipeline.units import read_units
from model_export.quantizers import choose as choose_quantizer
from model_export.quantizers.base import QuantizerReport, ResidualQuantizer
from model_export.quantizers.collisions import CollisionReport, treat_collisions
from model_export.quantizers.readable import with_first_codes
from service.core.render import item_text, render_text
from service.core.sid import SidSpec

Strips = list[NDArray[np.uint8]]  # of each item [strip, height, width]


@dataclass(frozen=True)
class Read:
    """The output of an encoder for a catalog."""

    features: NDArray[np.float32]  # [item, feature], of text and photo if there is a fusion
    pooling: Pooling | None  # None if the encoder read text, or fields by their values
    fusion: Fusion | None = None  # None if only the text was read
    famae: FamaeResult | None = None  # if fields were read
    drawn_text: NDArray[np.float32] | None = None  # [item, feature] of texts, if fields were read as pictures
    figures: dict[str, float] = field(
        default_factory=dict
    )  # how good an encoder is that learns from purchases

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
    first: ItemFields | None = None  # the field that is the first code, if codes are readable

    @torch.no_grad()
    def codes_of(self, features: NDArray[np.float32]) -> NDArray[np.int64]:
        """The quantizer's codes of features [item, feature] -> [item, level].

        Collisions are not treated, so a new item has these codes, and a trained one may have others.
        """
        codes: NDArray[np.int64] = self.quantizer.encode(
            torch.from_numpy(self.head.vectors(features))
        ).numpy()
        return codes


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
    photos = read_units(run, words.features) if isinstance(pictures, CardConfig) else read_photos(run)
    fusion = Fusion(text_dim=text_dim, dim=photos.features.shape[1], config=pictures)
    fusion.fit(photos.features)
    return Read(fusion.fuse(words.features, photos), words.pooling, fusion)


def read_text(run: Run) -> Read:
    """The features of the catalog's texts.

    The encoder reads drawn texts or, for comparison, the texts themselves.
    """
    config, cache = run.config, run.cache
    if isinstance(config.encoder, FamaeConfig):
        return _learn_famae(run, config.encoder)
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


def _learn_famae(run: Run, config: FamaeConfig) -> Read:
    """FAMAE's vectors, and its two diagnostics. Validation users decide when its training ends."""
    train, validation, seed = run.split.train, run.split.validation, run.config.seed
    is_bought = np.isin(np.arange(run.dataset.num_items), np.concatenate(train))  # [item]
    fields = read_fields(run.dataset.items, config.fields, is_bought)
    inputs: tuple[Any, ...] = (
        [(name, list(known.items())) for name, known in fields.vocabulary.numbers.items()], fields.numbers,
        train, validation.histories, validation.targets, config, seed, versions.of_reading(run.config),
    )  # fmt: skip
    pooling, drawn_text = None, None
    if isinstance(config, FamaePicturesConfig):
        of_text = read_text(replace(run, config=replace(run.config, encoder=config.reader)))
        pooling, drawn_text = of_text.pooling, of_text.features
        assert pooling is not None
        drawer = FieldDrawer(run.config, fields.vocabulary, pooling)
        texts = [item_text(item, run.config.render) for item in run.dataset.items]
        inputs = (*inputs, texts, run.config.render)
        learn = partial(_learn_pictures, run, drawer, fields, config)
    else:
        learn = partial(famae.train_famae, fields, train, validation, config, seed=seed)
    found: FamaeResult = _stage(run.cache, "famae", inputs, learn)
    run.say(f"      fields: {', '.join(found.fields)}")
    recall = found.diagnostics._asdict()
    figures = {f"famae_recall_{name}": share for name, share in recall.items()}
    return Read(found.vectors, pooling, famae=found, drawn_text=drawn_text, figures=figures)


def _learn_pictures(
    run: Run, drawer: FieldDrawer, fields: ItemFields, config: FamaePicturesConfig
) -> FamaeResult:
    """FAMAE on pictures of fields. The vectors are made as those of new items: from what is drawn of them."""
    found = famae.train_famae(
        fields, run.split.train, run.split.validation, config,
        seed=run.config.seed, features=drawer.of_values(run.dataset.items),
    )  # fmt: skip
    return replace(found, vectors=vectors_of_fields(found, drawer, run.dataset.items))


@torch.no_grad()
def vectors_of_fields(
    found: FamaeResult, drawer: FieldDrawer, items: Sequence[Mapping[str, Any]]
) -> NDArray[np.float32]:
    """The vectors [item, dim] of items whose fields are read as pictures, of the catalog or new."""
    assert isinstance(found.tables, FieldPictures)
    drawn = drawer.of_items(items)
    features, has_value = torch.from_numpy(drawn.features), torch.from_numpy(drawn.has_value)
    vectors: NDArray[np.float32] = found.tables.vectors(features, has_value).numpy()
    return vectors


def vectors_of(run: Run, read: Read) -> tuple[ItemHead, NDArray[np.float32]]:
    """The head and the catalog's vectors [item, dim]. The head is trained on items bought close together.

    FAMAE has learned from purchases already, so its vectors stay as they are.
    """
    if isinstance(run.config.encoder, FamaeConfig):
        return UnchangedFeatures(feature_dim=read.features.shape[1], config=run.config.head), read.features
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


def first_field(run: Run) -> ItemFields | None:
    """The field that is the first code, if codes are readable. Raises GlyphrecError if no item has it."""
    quantizer = run.config.quantizer
    if not isinstance(quantizer, ReadableConfig):
        return None
    return field_as_codes(run.dataset.items, quantizer.field, run.config.sid.levels[0])


def code(run: Run, read: Read) -> Coded:
    """The codes of what was read, from the head, the quantizer and the treatment of collisions."""
    config = run.config
    head, vectors = vectors_of(run, read)
    collaborative = None
    if choose_quantizer.learns_from_purchases(config.quantizer):
        collaborative = collaborative_vectors(run)
    first = first_field(run)
    divided = vectors if first is None else with_first_codes(vectors, first.numbers[:, 0])
    if first is not None:
        run.say(f"      the first code is {first.vocabulary.names[0]}")
    inputs: tuple[Any, ...] = (
        divided, collaborative, config.quantizer, config.sid, config.seed,
        versions.of_quantizer(config.quantizer),
    )  # fmt: skip
    if choose_quantizer.fits_few_items(config.quantizer, config.sid, len(divided)):
        inputs = (*inputs, "few items")  # the codes of larger catalogs stay as they are
    quantizer, report = _stage(
        run.cache,
        "quantizer",
        inputs,
        lambda: choose_quantizer.train_quantizer(
            divided, config.sid, config.quantizer, seed=config.seed, collaborative=collaborative
        ),
    )
    with torch.no_grad():
        data = torch.from_numpy(divided)
        treated = treat_collisions(
            config.collisions,
            quantizer.encode(data).numpy(),
            quantizer.latents(data).numpy(),
            [codebook.numpy() for codebook in quantizer.codebooks],
            run.dataset.item_ids,
        )
    return Coded(head, vectors, quantizer, report, treated.spec, treated.codes, treated.report, first)


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
