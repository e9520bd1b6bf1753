"""The codes of new items as CARD's units, each drawn with its nearest items by content.

A new item was never bought, so it has no neighbors by purchases. A service draws its unit alone. Here it is
drawn as `find_neighbors` draws an item that SASRec does not know, so both ways can be compared.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_export.configs import FamaeConfig, MiniLmConfig
from model_export.data.dataset import Item
from model_export.encoders.choose import make_encoder
from model_export.encoders.fusion import Photos
from model_export.encoders.images.base import ImageSession
from model_export.encoders.images.choose import make_image_encoder
from model_export.picture_configs import PicturesConfig
from model_export.pipeline import stages
from model_export.pipeline.neighbors import nearest_with_picture
from model_export.pipeline.run import Run
from model_export.pipeline.stages import Coded, Read
from model_export.pipeline.units import compose
from service.core.cpus import usable_cpus


def codes_of_units(
    run: Run, read: Read, coded: Coded, items: Sequence[Item], photos: Sequence[Path | None]
) -> NDArray[np.int64]:
    """The codes [item, level] of `items`, which are not in the run's catalog and have these photos."""
    config, dataset = run.config, run.dataset
    assert isinstance(config.pictures, PicturesConfig)
    assert not isinstance(config.encoder, MiniLmConfig | FamaeConfig)
    assert read.fusion is not None
    words = stages.read_text(run)
    assert words.pooling is not None
    encoder = make_encoder(config.render, config.encoder, config.seed)
    text = words.pooling.pool(encoder.read(stages.draw(items, config)))  # [item, feature]
    num_trained = dataset.num_items
    has_picture = np.isin(
        np.arange(num_trained + len(items)), list(dataset.images)
    )  # new items are not shown
    near = nearest_with_picture(np.concatenate([words.features, text]), has_picture)[num_trained:]
    own = {num_trained + place: photo for place, photo in enumerate(photos) if photo is not None}
    both = replace(dataset, items=[*dataset.items, *items], images={**dataset.images, **own})
    units = [compose(both, num_trained + place, shown, config.render) for place, shown in enumerate(near)]
    session = ImageSession(make_image_encoder(config.pictures), threads=usable_cpus().num_threads)
    features = read.fusion.fuse(text, Photos(session.features(units), np.arange(len(items))))
    return coded.codes_of(features)
