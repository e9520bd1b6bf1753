"""The probes of the stages that read photos (probes.py)."""

import io
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from PIL import Image

from model_export.configs import HeadConfig, PicturesConfig, TreeConfig
from model_export.encoders import fusion
from model_export.encoders.head import train_head
from model_export.encoders.images.base import ImageSession
from model_export.encoders.images.efficientnet_lite0 import EfficientNetLite0
from model_export.study import late_fusion
from service.core import pictures
from service.core.bundle import PictureSpec
from service.core.sid import SidSpec
from tests.model_export.probe_inputs import (
    CODES,
    DIM,
    HISTORY_LENGTH,
    NUM_ITEMS,
    SID,
    Output,
    split,
    vectors,
)  # fmt: skip

SPEC = PictureSpec(size_px=64)


def files() -> list[bytes]:
    """A smooth picture and one of squares, larger and smaller than what is kept."""
    rows, columns = np.mgrid[:300, :400]
    smooth = np.stack([rows * 255 // 300, columns * 255 // 400, 255 - rows * 255 // 300], axis=-1)
    squares = np.where(((rows // 20 + columns // 20) % 2)[..., None] > 0, [200, 30, 60], [240, 240, 90])
    return [_png(smooth), _png(squares[:90, :60])]


def _png(pixels: "np.ndarray") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


def read() -> Output:
    """The features of two patterns, as a service sees them."""
    encoder = EfficientNetLite0(64)
    photos = [pictures.picture_pixels(pictures.keep_picture(file).data, SPEC) for file in files()]
    found = ImageSession(encoder, threads=1).features(photos)  # [photo, feature]
    return found[:, ::40].tolist()


def keep() -> Output:
    """The size of kept pictures, and their pixels, each averaged over squares of 16 pixels."""
    kept = [pictures.keep_picture(file) for file in files()]
    squares = [
        pictures.picture_pixels(each.data, SPEC).reshape(4, 16, 4, 16, 3).mean(axis=(1, 3)) for each in kept
    ]
    return [[each.width, each.height, means.tolist()] for each, means in zip(kept, squares, strict=True)]


def fuse() -> Output:
    """The vectors of the three heads, with a text or a photo missing here and there."""
    photos = fusion.Photos(
        vectors(seed=3)[:20], np.where(np.arange(NUM_ITEMS) < 20, np.arange(NUM_ITEMS), -1)
    )
    texts = vectors() * (np.arange(NUM_ITEMS) % 7 > 0)[:, None]
    found = []
    for how in ("head", "sum", "photo"):
        config = PicturesConfig(fusion=how, photo_dim=6, hidden_share=0.2)
        fused = fusion.Fusion(text_dim=0 if how == "photo" else DIM, dim=DIM, config=config)
        fused.fit(photos.features)
        features = fused.fuse(texts, photos)
        head_config = HeadConfig(vector_dim=8, hidden_dim=16, max_steps=6, batch_size=16)
        make = partial(fusion.make_head, fused, head_config, config)
        found.append(train_head(features, split().train, head_config, 0, make).vectors(features).tolist())
    return found


def generate_late(tree: TreeConfig) -> Output:
    """The scores of a tree whose history has the codes of photos too."""
    torch.manual_seed(0)
    generator = late_fusion.PhotoHistory(
        SidSpec(levels=(3, 4)),
        np.stack([np.arange(20) % 3, np.arange(20) % 4], axis=1),
        config=replace(tree, likeness=0.0),
        spec=SID,
        history_length=HISTORY_LENGTH,
        seen_codes=CODES[:20],
        seen_vectors=vectors()[:20],
    ).eval()
    history = torch.from_numpy(np.stack([CODES[[1, 2, 3]], CODES[[9, 7, 22]]]))  # [batch, position, level]
    with torch.no_grad():
        scores, _ = generator.step(0, generator.start(history), torch.zeros(2, 1, dtype=torch.long))
    return scores.tolist()
