"""The joint space in a bundle: one vector of an item or a query, from its drawn text, its photo or both.

    frames of strips ── letter grams ─ Projection ─▶ vector of the text ──┐
    features of photos ─────────────── Projection ─▶ vector of the photo ─┴─ weighted sum ─▶ vector

A text and a photo of one product have nearly the same vector. So an item with both lies between its two, and
a query of either kind finds items of every kind (decision 25).
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from model_export.data.dataset import Dataset
from model_export.data.photos import kept_of
from model_export.encoders.compact.letter_grams import LetterGrams
from model_export.picture_configs import JointPicturesConfig, SpaceConfig
from model_export.pipeline.run import Run
from model_export.pipeline.versions import Versions
from model_export.vl_clip.catalog import paired_items
from model_export.vl_clip.catalog_space import split_pairs
from model_export.vl_clip.joint_space import JointSpace, Projections
from model_export.vl_clip.readings import Photos, Readings
from model_export.vl_clip.space import Vectors
from model_export.vl_clip.spaces import learn
from model_export.vl_clip.stored_space import load_space
from model_export.vl_clip.versions import of_space
from service.core.bundle import RenderSpec
from service.core.graphs import NO_PICTURE
from service.core.pictures import open_kept
from service.core.render import item_text
from service.errors import GlyphrecError

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py
PHOTO_WEIGHT = 0.5  # beside the text's, which is 1 (docs/log.md)


class JointVectors(nn.Module):
    """The part of the tokenizer graph that gives the vectors of a search."""

    def __init__(self, pooling: LetterGrams, projections: Projections) -> None:
        super().__init__()
        self.pooling, self.text, self.photo = pooling, projections.text, projections.photo
        self.dim = projections.text.linear.out_features

    def forward(
        self, strips: Tensor, frames: Tensor, first_strip: Tensor, photos: Tensor, picture_of: Tensor
    ) -> Tensor:
        """strips [strip, height, width], frames [strip, frame, dim], first_strip [item],
        photos [picture, feature], picture_of [item] -> vectors [item, dim].
        """
        return self.join(self.pooling(strips, frames, first_strip), photos, picture_of)

    def join(self, texts: Tensor, photos: Tensor, photo_of: Tensor) -> Tensor:
        """Features of texts [item, feature] and photos [photo, feature] -> vectors [item, dim] of length 1.

        photo_of [item] holds a row of `photos`, or NO_PICTURE. Where nothing was read the vector is zero.
        """
        has_text = texts.abs().sum(dim=1, keepdim=True) > 0  # [item, 1]
        of_text = self.text(texts) * has_text  # [item, dim]
        rows = self.photo(photos)  # [photo, dim]
        table = torch.cat([rows.new_zeros(1, self.dim), rows])  # the first is that of NO_PICTURE
        return F.normalize(of_text + PHOTO_WEIGHT * table[photo_of + 1], dim=-1)


@dataclass(frozen=True)
class JointlyRead:
    """A catalog in its joint space."""

    part: JointVectors
    vectors: Vectors  # [item, dim]
    mrr: float  # of the validation pairs, from text to photo


def read_jointly(run: Run) -> JointlyRead:
    """Learn the space of a configuration, or load it, and read the catalog with it.

    Raises GlyphrecError without pairs of text and photo, or if a stored space does not fit.
    """
    pictures = run.config.pictures
    assert isinstance(pictures, JointPicturesConfig)
    readings = Readings(run.cache, run.config.render)
    texts = [item_text(item, run.config.render) for item in run.dataset.items]
    readings.texts(texts)  # all of them at once, as the pairs are among them
    if pictures.space_folder:
        space = _loaded(pictures, run.config.render)
    else:
        space = _learned(run, readings, pictures.space)
    part = JointVectors(space.pooling, space.projections).eval()
    owners = sorted(run.dataset.images)
    names = [run.dataset.image_hashes[owner] for owner in owners]
    photos = readings.photos(Photos(names, partial(_photo, run.dataset, owners)), pictures.size_px)
    is_usable = ~np.isnan(photos).any(axis=1)
    photo_of = np.full(run.dataset.num_items, NO_PICTURE, np.int64)  # [item]
    photo_of[np.array(owners)[is_usable]] = np.arange(is_usable.sum())
    features = space.pooling.pool(readings.texts(texts))
    with torch.no_grad():
        vectors = part.join(*map(torch.from_numpy, (features, photos[is_usable], photo_of))).numpy()
    return JointlyRead(part, vectors, max(space.projections.curve))


def versions_of_joined(space: SpaceConfig) -> Versions:
    """The versions of everything that decides the vectors of the joint space in a bundle."""
    return of_space(space) | {"joined": VERSION}


def _learned(run: Run, readings: Readings, config: SpaceConfig) -> JointSpace:
    pairs = paired_items(run.dataset, run.config.render)
    readings.read_ahead(pairs, config.size_px)
    own = split_pairs(pairs, run.config.seed)
    learned = learn(readings, own.train, own.validation, config, seed=run.config.seed)
    assert isinstance(learned.space, JointSpace)
    run.say(
        f"      the joint space is learned from {len(own.train):,} pairs; MRR on {len(own.validation):,} "
        f"others is {max(learned.curve):.3f}"
    )
    return learned.space


def _loaded(pictures: JointPicturesConfig, render: RenderSpec) -> JointSpace:
    space = load_space(pictures.space_folder)
    if _drawing(space.render) != _drawing(render):
        raise GlyphrecError(
            f"pictures.space_folder = {pictures.space_folder}: its texts are drawn in another way than "
            "`render` says. Leave the settings of `render` as they are, except max_strips and fields."
        )
    if space.config.size_px != pictures.size_px:
        raise GlyphrecError(
            f"pictures.size_px = {pictures.size_px}: the space in {pictures.space_folder} reads photos of "
            f"{space.config.size_px} pixels. Set pictures.size_px={space.config.size_px}."
        )
    return space


def _drawing(render: RenderSpec) -> RenderSpec:
    """The recipe without what decides which text is drawn, and how much of it."""
    return render.model_copy(update={"max_strips": 1, "fields": (), "font_sha256": ""})


def _photo(dataset: Dataset, owners: list[int], place: int) -> Image.Image | None:
    kept = kept_of(dataset, owners[place])
    return None if kept is None else open_kept(kept)
