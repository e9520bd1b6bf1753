"""Semantic IDs from the vectors of a joint space of texts and photos (VL-CLIP, arXiv 2507.17080).

The space is learned on the catalog's own pairs, which need no purchases. An item's vector is that of its text
beside that of its photo. What is missing is zero.
"""

from functools import partial

import numpy as np
from PIL import Image

from model_export.data.photos import kept_of
from model_export.picture_configs import PicturesConfig
from model_export.pipeline.run import Run
from model_export.pipeline.stages import Read
from model_export.pipeline.versions import Versions
from model_export.vl_clip.boxes import Box
from model_export.vl_clip.catalog import paired_items
from model_export.vl_clip.catalog_space import split_pairs
from model_export.vl_clip.configs import RENDER, VlClipPictures
from model_export.vl_clip.grounding import Photo, ground, make_grounder, used
from model_export.vl_clip.readings import Boxes, Photos, Readings
from model_export.vl_clip.spaces import Learned, learn
from model_export.vl_clip.text_reader import product_type
from model_export.vl_clip.versions import of_grounding, of_space
from service.core.pictures import open_kept
from service.core.render import item_text


def is_vl_clip(pictures: PicturesConfig | None) -> bool:
    """Whether the configuration has a joint space."""
    return isinstance(pictures, VlClipPictures)


def versions_of_space(pictures: PicturesConfig | None) -> Versions:
    """The versions of the steps of VL-CLIP."""
    assert isinstance(pictures, VlClipPictures)
    return of_space(pictures.space) | of_grounding(pictures.grounding)


def read_jointly(run: Run) -> Read:
    """The vectors of a catalog [item, 2 * dim]. Raises GlyphrecError without pairs of text and photo."""
    config, dataset = run.config, run.dataset
    assert isinstance(config.pictures, VlClipPictures)
    pictures, render = config.pictures, RENDER
    pairs = paired_items(dataset, render)
    train, validation = split_pairs(pairs, config.seed)
    readings = Readings(run.cache, render)
    readings.read_ahead(pairs, pictures.space.size_px)
    learning = partial(
        learn, readings, train, validation, pictures.space, seed=config.seed,
        region_px=pictures.grounding.size_px,
    )  # fmt: skip
    learned, owners = learning(), sorted(dataset.images)
    boxes: Boxes = None
    if pictures.grounding.way != "none":
        found = _boxes(run, pictures, learned, owners)
        boxes, box_of = found, dict(zip(owners, found, strict=True))
        learned = learning(
            boxes=(
                [box_of[int(item)] for item in train.items],
                [box_of[int(item)] for item in validation.items],
            )
        )
    texts = [item_text(item, render) for item in dataset.items]
    has_text = np.array([bool(text) for text in texts])
    of_texts = np.zeros((dataset.num_items, pictures.space.dim), np.float32)
    of_texts[has_text] = learned.read_texts([text for text in texts if text])
    of_photos = np.zeros_like(of_texts)
    names = [dataset.image_hashes[item] for item in owners]
    of_photos[owners] = learned.read_photos(Photos(names, partial(_owned, run, owners), boxes))
    return Read(np.concatenate([of_texts, np.nan_to_num(of_photos)], axis=1), None)


def _boxes(run: Run, pictures: VlClipPictures, learned: Learned, owners: list[int]) -> list[Box | None]:
    grounder = make_grounder(pictures.grounding, learned.space, learned.key)
    by_type = pictures.grounding.phrase == "type"
    items = [run.dataset.items[item] for item in owners]
    photos = [
        Photo(
            run.dataset.image_hashes[owner],
            product_type(item) if by_type else item_text(item, run.config.render),
            partial(_owned, run, owners, place),
        )
        for place, (owner, item) in enumerate(zip(owners, items, strict=True))
    ]
    return used(ground(run.cache, photos, grounder), grounder, pictures.grounding)


def _owned(run: Run, owners: list[int], place: int) -> Image.Image | None:
    kept = kept_of(run.dataset, owners[place])
    return None if kept is None else open_kept(kept)
