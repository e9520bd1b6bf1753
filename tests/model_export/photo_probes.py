"""The probes of the stages that read photos, for probes.py."""

import io
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from model_export.configs import HeadConfig, TreeConfig
from model_export.encoders import fusion, head
from model_export.encoders.images import clip, efficientnet_lite0, mobilenet_v2, siglip2
from model_export.encoders.images.base import ImageSession
from model_export.encoders.images.choose import make_image_encoder
from model_export.picture_configs import ImageEncoderKind, PicturesConfig
from model_export.pipeline import neighbors
from model_export.study import late_fusion, overlap
from service.core import pictures, unit
from service.core.bundle import PictureSpec
from service.core.graphs import NO_PICTURE
from service.core.sid import SidSpec
from tests.model_export.probe_inputs import (
    CODES,
    HISTORY_LENGTH,
    NUM_ITEMS,
    SID,
    Output,
    cosines,
    split,
    vectors,
)  # fmt: skip

SIZE_PX = 64
SHOWN = 8  # items, some without a text or a photo


def waves(height: int, width: int, channels: int, seed: int) -> NDArray[np.uint8]:
    """Smooth pixels [row, column, channel], of which every decoder and every resize makes much the same."""
    rng = np.random.default_rng(seed)
    rows, columns = np.linspace(0, 1, height)[:, None, None], np.linspace(0, 1, width)[None, :, None]
    slopes, phases = rng.uniform(2, 9, (2, channels)), rng.uniform(0, 6, channels)
    return (127.5 + 127 * np.sin(slopes[0] * rows + slopes[1] * columns + phases)).astype(np.uint8)


def _keep() -> Output:
    """Sizes of kept pictures, and the levels of each eighth of the square."""
    files = {
        "jpeg": Image.fromarray(waves(300, 200, 3, 0)),
        "png": Image.fromarray(waves(40, 90, 4, 1)),  # with transparency
        "webp": Image.fromarray(waves(700, 600, 3, 2)),
    }
    found = {}
    for form, picture in files.items():
        file = io.BytesIO()
        picture.save(file, form)
        kept = pictures.keep_picture(file.getvalue())
        pixels = pictures.picture_pixels(kept.data, PictureSpec(size_px=SIZE_PX))
        levels = pixels.reshape(8, SIZE_PX // 8, 8, SIZE_PX // 8, 3).mean(axis=(1, 3))
        found[form] = [kept.width, kept.height, levels.tolist()]
    return found


def _read_by(kind: ImageEncoderKind, size_px: int = SIZE_PX, checkpoint: str = "") -> Output:
    encoder = make_image_encoder(PicturesConfig(kind=kind, size_px=size_px, checkpoint=checkpoint))
    photos = [waves(size_px, size_px, 3, seed) for seed in range(4)]
    features = ImageSession(encoder, threads=1).features(photos)
    return {"features": features[:, :16].tolist(), "cosines": cosines(features)}


def _read_by_tower(kind: ImageEncoderKind) -> Output:
    from tests.model_export.encoders.images import tower_checkpoints

    save = {"clip": tower_checkpoints.save_clip, "siglip2": tower_checkpoints.save_siglip}[kind]
    with tempfile.TemporaryDirectory() as folder:
        save(Path(folder))
        return _read_by(kind, tower_checkpoints.SIZE_PX, folder)


def _fuse() -> Output:
    photo_of = np.where(
        np.arange(NUM_ITEMS) % 4 == 0, NO_PICTURE, np.cumsum(np.arange(NUM_ITEMS) % 4 != 0) - 1
    )
    photos = fusion.Photos(vectors(dim=8, seed=5)[: photo_of.max() + 1], photo_of)
    text = vectors()
    text[5] = 0
    config = HeadConfig(vector_dim=8, hidden_dim=16, max_steps=12, batch_size=32, learning_rate=1e-2)
    found = {}
    for name in ("head", "sum", "photo"):
        chosen = PicturesConfig(fusion=name, photo_dim=6, weight=0.7, hidden_share=0.1)  # type: ignore[arg-type]  one of the names
        made = fusion.Fusion(text_dim=0 if name == "photo" else text.shape[1], dim=8, config=chosen)
        made.fit(photos.features)
        largest = made.axes.abs().argmax(dim=0)  # [axis]; libraries differ in the signs of the axes
        made.axes.mul_(made.axes[largest, torch.arange(made.photo_dim)].sign())
        features = made.fuse(text, photos)
        trained = head.train_head(
            features, split().train, config, 0, partial(fusion.make_head, made, config, chosen)
        )
        without = fusion.without_photos(features, made)
        found[name] = {
            "fused": cosines(features[:SHOWN]),
            "trained": cosines(trained.vectors(features[:SHOWN])),
            "without photos": cosines(trained.vectors(without[:SHOWN])),
        }
    return found


def _generate_late() -> Output:
    """The scores of a tree whose history has the codes of photos too."""
    torch.manual_seed(0)
    generator = late_fusion.PhotoHistory(
        SidSpec(levels=(3, 4)),
        np.stack([np.arange(20) % 3, np.arange(20) % 4], axis=1),
        config=TreeConfig(width=16, num_layers=1, num_heads=2, ffn_dim=16, likeness=0.0),
        spec=SID,
        history_length=HISTORY_LENGTH,
        seen_codes=CODES[:20],
        seen_vectors=vectors()[:20],
    ).eval()
    history = torch.from_numpy(np.stack([CODES[[1, 2, 3]], CODES[[9, 7, 22]]]))  # [batch, position, level]
    with torch.no_grad():
        scores, _ = generator.step(0, generator.start(history), torch.zeros(2, 1, dtype=torch.long))
    found: Output = scores.tolist()
    return found


def _overlap() -> Output:
    shared = vectors()
    return [
        overlap.neighborhood_overlap(shared, shared + weight * vectors(seed=4), 5) for weight in (0.5, 3.0)
    ]


def _compose() -> Output:
    """The levels of each eighth of a unit, with and without a photo and neighbors."""
    photos = [Image.fromarray(waves(200, 150, 3, seed)) for seed in range(3)]
    text = unit.UnitText("Hex nuts, M8 zinc plated, 100 count", "Acme", ("Tools", "Fasteners"))
    below = [unit.Neighbor(photo, f"Hex nuts, M{place}") for place, photo in enumerate(photos[1:])]
    found = [unit.compose_unit(photos[0], text, below), unit.compose_unit(None, text)]
    return [each.reshape(8, 64, 8, 64, 3).mean(axis=(1, 3)).tolist() for each in found]


def _nearest() -> Output:
    has_picture = np.arange(NUM_ITEMS) % 3 > 0
    return neighbors.nearest_with_picture(vectors(), has_picture).tolist()


PHOTO_PROBES: dict[str, tuple[ModuleType, Callable[[], Output]]] = {
    "pictures": (pictures, _keep),
    "efficientnet_lite0": (efficientnet_lite0, partial(_read_by, "efficientnet-lite0")),
    "mobilenet_v2": (mobilenet_v2, partial(_read_by, "mobilenet-v2")),
    "clip": (clip, partial(_read_by_tower, "clip")),
    "siglip2": (siglip2, partial(_read_by_tower, "siglip2")),
    "fusion": (fusion, _fuse),
    "late_fusion": (late_fusion, _generate_late),
    "overlap": (overlap, _overlap),
    "unit": (unit, _compose),
    "neighbors": (neighbors, _nearest),
}
