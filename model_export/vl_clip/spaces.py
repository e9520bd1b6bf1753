"""Learning a joint space on pairs, ours or CLIP's, and reading parts of a catalog with it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from model_export.configs import CompactConfig
from model_export.encoders.compact import reader as compact
from model_export.encoders.compact.letter_grams import LetterGrams
from model_export.encoders.hub.base import checkpoint_files
from model_export.encoders.images.efficientnet_lite0 import FEATURE_DIM
from model_export.picture_configs import SpaceConfig
from model_export.pipeline.cache import StageCache
from model_export.vl_clip import clip_space, joint_space, linear_space, photo_reader
from model_export.vl_clip.boxes import as_rows, crop
from model_export.vl_clip.catalog import PairedItems
from model_export.vl_clip.clip_space import ClipSpace
from model_export.vl_clip.configs import ClipConfig
from model_export.vl_clip.joint_space import JointSpace, TextPhotoPairs, train_projections
from model_export.vl_clip.linear_space import WordSpace
from model_export.vl_clip.readings import Boxes, Photos, Readings
from model_export.vl_clip.retrieval import figures_of, ranks_of_pairs
from model_export.vl_clip.space import TextPhotoSpace, Vectors
from service.errors import GlyphrecError

BASELINE_RIDGE = 0.1  # of the linear space of words and photos


@dataclass(frozen=True)
class Learned:
    """A space that was learned on pairs."""

    space: TextPhotoSpace
    curve: tuple[float, ...]  # validation MRR before the first epoch and after each one
    key: tuple[Any, ...]  # what identifies it in the keys of stages
    read_texts: Callable[[Sequence[str]], Vectors]  # -> [text, dim]
    read_photos: Callable[[Photos], Vectors]  # -> [photo, dim], NaN for a photo that cannot be used

    def figures(self, texts: Sequence[str], photos: Photos) -> dict[str, float]:
        """How often a text finds its own photo among all of them."""
        found = self.read_photos(photos)
        usable = ~np.isnan(found[:, 0])
        return figures_of(ranks_of_pairs(self.read_texts(texts)[usable], found[usable]))


def learn(
    readings: Readings,
    train: PairedItems,
    validation: PairedItems,
    config: SpaceConfig | ClipConfig,
    *,
    seed: int,
    boxes: tuple[Boxes, Boxes] = (None, None),
    region_px: int = 384,
) -> Learned:
    """Learn a space on pairs. `boxes` are those of the training and of the validation pairs.

    Raises GlyphrecError if no photo can be read, or if weights or a checkpoint cannot be used.
    """
    photos = (Photos.of(train, boxes[0]), Photos.of(validation, boxes[1]))
    if isinstance(config, ClipConfig):
        return _learn_clip(readings.cache, (train, validation), photos, config, seed)
    return _learn_ours(readings, (train, validation), photos, config, seed, region_px)


def _learn_ours(
    readings: Readings,
    parts: tuple[PairedItems, PairedItems],
    photos: tuple[Photos, Photos],
    config: SpaceConfig,
    seed: int,
    region_px: int,
) -> Learned:
    pooling = fit_pooling(readings, parts[0], config, seed)

    def features_of(texts: Sequence[str]) -> NDArray[np.float32]:
        return pooling.pool(readings.texts(texts))

    def read(some: Photos) -> NDArray[np.float32]:
        return readings.photos(some, config.size_px)

    both = []
    for pairs, shown in zip(parts, photos, strict=True):
        features = read(shown)
        usable = ~np.isnan(features[:, 0]) if len(features) else np.zeros(0, np.bool_)
        texts, short = features_of(pairs.texts), features_of(pairs.short_texts)
        both.append(TextPhotoPairs(texts[usable], short[usable], features[usable]))
    if len(both[0].photos) < 2:
        raise GlyphrecError(
            f"{parts[0].dataset.name}: {len(both[0].photos)} of its {len(parts[0])} photos can be read. The "
            "joint space needs two at least; check the files that `image` names."
        )
    key = (
        *both[0], *both[1], config, seed,
        {"joint_space": joint_space.VERSION, "linear_space": linear_space.VERSION},
    )  # fmt: skip
    path = readings.cache.path("vl_clip_space", ".pt", *key)
    projections = readings.cache.get(
        path,
        lambda target: torch.save(train_projections(both[0], both[1], config, seed), target),
        lambda source: torch.load(source, weights_only=False),  # this user's own cache
    )
    space = JointSpace(projections, pooling, config, readings.render, region_px=region_px)

    def vectors(some: Photos) -> Vectors:
        features = read(some)
        found: Vectors = np.full((len(features), config.dim), np.nan, np.float32)
        usable = ~np.isnan(features).any(axis=1)
        found[usable] = projections.photo.vectors(features[usable])
        return found

    return Learned(
        space,
        projections.curve,
        (path.name, compact.VERSION, photo_reader.VERSION),
        lambda texts: projections.text.vectors(features_of(texts)),
        vectors,
    )


def fit_pooling(readings: Readings, train: PairedItems, config: SpaceConfig, seed: int) -> LetterGrams:
    """The pooling of letters, fitted to the long and the short texts of the training alone.

    Its axes are not whitened: canonical correlations and training would fit the noise of the narrow ones.
    """
    cache, render = readings.cache, readings.render
    texts = [*train.texts, *train.short_texts]
    chosen = CompactConfig(num_grams=config.num_grams, feature_dim=config.text_dim)
    path = cache.path("vl_clip_pooling", ".pt", texts, render, chosen, seed, {"compact": compact.VERSION})

    def fit(target: Any) -> None:
        torch.save(compact.CompactReader(render, chosen, seed).fit(readings.texts(texts)), target)

    found: LetterGrams = cache.get(path, fit, lambda source: torch.load(source, weights_only=False))
    return found.with_own_spread()


def _learn_clip(
    cache: StageCache,
    parts: tuple[PairedItems, PairedItems],
    photos: tuple[Photos, Photos],
    config: ClipConfig,
    seed: int,
) -> Learned:
    key = (
        [pairs.texts for pairs in parts], [some.names for some in photos],
        *(as_rows(some.boxes) for some in photos if some.boxes is not None),
        config, seed, *checkpoint_files(config.checkpoint), {"clip_space": clip_space.VERSION},
    )  # fmt: skip
    path = cache.path("vl_clip_clip", ".pt", *key)
    space = ClipSpace(config.checkpoint)

    def fine_tune(target: Any) -> None:
        pictures = [_loaded(some) for some in photos]
        usable = [[place for place, each in enumerate(some) if each is not None] for some in pictures]
        texts = [
            [pairs.texts[place] for place in chosen] for pairs, chosen in zip(parts, usable, strict=True)
        ]
        kept = [[each for each in some if each is not None] for some in pictures]
        curve = space.fine_tune(texts[0], kept[0], texts[1], kept[1], config, seed)
        torch.save({"weights": space.model.state_dict(), "curve": curve}, target)

    found = cache.get(path, fine_tune, lambda source: torch.load(source, weights_only=True))
    space.model.load_state_dict(found["weights"])

    def vectors(some: Photos) -> Vectors:
        pictures = _loaded(some)
        usable = np.array([each is not None for each in pictures], np.bool_)
        read = space.photos([each for each in pictures if each is not None])
        result: Vectors = np.full((len(pictures), read.shape[1]), np.nan, np.float32)
        result[usable] = read
        return result

    return Learned(space, tuple(found["curve"]), (path.name,), space.texts, vectors)


def _loaded(photos: Photos) -> list[Image.Image | None]:
    found = []
    for place in range(len(photos.names)):
        picture = photos.load(place)
        box = None if photos.boxes is None else photos.boxes[place]
        found.append(None if picture is None else crop(picture, box))
    return found


def word_space_figures(
    readings: Readings, train: PairedItems, test: PairedItems, config: SpaceConfig, *, seed: int
) -> dict[str, float]:
    """The figures of the baseline: the linear space of words and photos, learned on the same pairs."""
    sides = []
    for pairs in (train, test):
        features = readings.photos(Photos.of(pairs), config.size_px)
        usable = ~np.isnan(features[:, 0])
        sides.append(
            ([text for text, fine in zip(pairs.texts, usable, strict=True) if fine], features[usable])
        )
    (texts, photos), (test_texts, test_photos) = sides
    deep = slice(0, FEATURE_DIM)  # the last map alone, as in the usual features
    space = WordSpace(
        texts, photos[:, deep], dim=config.dim, text_dim=config.text_dim, ridge=BASELINE_RIDGE, seed=seed
    )
    return figures_of(ranks_of_pairs(space.texts(test_texts), space.photos(test_photos[:, deep])))
