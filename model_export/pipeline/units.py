"""The stage that composes CARD's visual semantic units of a catalog and reads them (service/core/unit.py)."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model_export.data.dataset import Dataset
from model_export.data.photos import Pixels, kept_of
from model_export.encoders.fusion import Photos
from model_export.encoders.images.choose import image_encoder_files, image_encoder_version
from model_export.picture_configs import CardConfig
from model_export.pipeline import neighbors
from model_export.pipeline.generating import collaborative_vectors
from model_export.pipeline.neighbors import NO_ITEM, NUM_NEIGHBORS, inside, nearest_with_picture
from model_export.pipeline.parts import load_array, save_array
from model_export.pipeline.photos import features_of, spec_of
from model_export.pipeline.run import Run
from service.core import pictures, unit
from service.core.bundle import RenderSpec
from service.core.pictures import open_kept
from service.core.unit import Neighbor, compose_unit, unit_text

Shown = NDArray[np.int64]  # [item, NUM_NEIGHBORS]  items, the nearest first, then NO_ITEM


def read_units(run: Run, content: NDArray[np.float32]) -> Photos:
    """The features of every item's unit. `content` [item, dim]: features of the items' texts."""
    dataset, config = run.dataset, run.config.pictures
    assert isinstance(config, CardConfig)
    shown = neighbors_of(run, content)
    render = run.config.render
    texts = [list(unit_text(item, render)) for item in dataset.items]
    inputs = (
        texts, {str(item): found for item, found in dataset.image_hashes.items()}, shown, spec_of(config),
        config.kind, config.checkpoint, *image_encoder_files(config),
        {"pictures": pictures.VERSION, "unit": unit.VERSION} | image_encoder_version(config),
    )  # fmt: skip

    def look(item: int) -> Pixels:
        return compose(dataset, item, shown[item], render)

    features = features_of(run, "units", inputs, dataset.num_items, look)
    return Photos(features, np.arange(dataset.num_items))


def neighbors_of(run: Run, content: NDArray[np.float32]) -> Shown:
    """The items that are shown below each item, as the configuration says."""
    dataset, config = run.dataset, run.config.pictures
    assert isinstance(config, CardConfig)
    match config.neighbors:
        case "none":
            return np.full((dataset.num_items, NUM_NEIGHBORS), NO_ITEM, np.int64)
        case "content":
            has_picture = np.isin(np.arange(dataset.num_items), list(dataset.images))
            return nearest_with_picture(content, has_picture)
    inputs = (
        content, run.split.train, sorted(dataset.images), run.config.seed, run.config.history_length,
        {"neighbors": neighbors.VERSION},
    )  # fmt: skip
    path = run.cache.path("neighbors", ".npy", *inputs)
    found: Shown = run.cache.get(
        path, lambda target: save_array(target, find_neighbors(run, content).items), load_array
    )
    return found


def find_neighbors(run: Run, content: NDArray[np.float32]) -> neighbors.Neighbors:
    """Find the neighbors with a picture. `content` [item, dim]: vectors of the items themselves."""
    has_picture = np.isin(np.arange(run.dataset.num_items), list(run.dataset.images))
    collaborative = collaborative_vectors(replace(run, split=inside(run.split.train)))
    is_known = ~np.isnan(collaborative[:, 0])  # [item]
    items = nearest_with_picture(content, has_picture)
    known = np.flatnonzero(is_known)
    if len(known):
        found = nearest_with_picture(collaborative[known], has_picture[known])  # places in `known`
        items[known] = np.where(found == NO_ITEM, NO_ITEM, known[found])
    return neighbors.Neighbors(items, is_known)


def compose(
    dataset: Dataset, item: int, shown: Sequence[int] | NDArray[np.int64], render: RenderSpec
) -> Pixels:
    """The unit of an item of the catalog, with the items `shown` below it. NO_ITEM shows nothing."""
    below = []
    for other in shown:
        photo = _photo(dataset, int(other)) if other != NO_ITEM else None
        if photo is not None:
            below.append(Neighbor(photo, unit_text(dataset.items[int(other)], render).title))
    return compose_unit(_photo(dataset, item), unit_text(dataset.items[item], render), below)


def _photo(dataset: Dataset, item: int) -> Image.Image | None:
    kept = kept_of(dataset, item)
    return None if kept is None else open_kept(kept)
