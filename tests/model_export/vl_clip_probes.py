"""The probes of VL-CLIP's steps, for probes.py."""

import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from PIL import Image

from model_export.picture_configs import SpaceConfig
from model_export.vl_clip import (
    class_maps,
    clip_space,
    clutter,
    detector,
    joined,
    joint_space,
    linear_space,
    photo_reader,
    regions,
)
from model_export.vl_clip.configs import ClipConfig
from model_export.vl_clip.joint_space import TextPhotoPairs
from model_export.vl_clip.space import TextPhotoSpace
from tests.model_export.photo_probes import waves
from tests.model_export.probe_inputs import Output, cosines, vectors

SIZE_PX = 64


def _photos(count: int) -> list[Image.Image]:
    return [Image.fromarray(waves(60, 44, 3, seed)) for seed in range(count)]


def _read() -> Output:
    """Features of photos, and every 97th number of the cells of one."""
    reader = photo_reader.PhotoReader(SIZE_PX)
    photos = torch.from_numpy(np.stack([waves(SIZE_PX, SIZE_PX, 3, seed) for seed in range(3)]))
    with torch.no_grad():
        features, cells = reader(photos).numpy(), reader.cells(photos[:1]).numpy()
    return {"features": features[:, ::97].tolist(), "cells": cells[..., ::97].tolist()}


def _linear() -> Output:
    """Likeness of both sides, as libraries differ in the signs of axes."""
    left, right = vectors(), vectors() * 0.5 + vectors(seed=4)
    space = linear_space.fit_linear_space(left, right, 4, 0.1)
    texts = [f"{'red' if n % 2 else 'blue'} {'hat' if n % 3 else 'shoe'} {n % 5}" for n in range(len(left))]
    words = linear_space.WordSpace(texts, right, dim=4, text_dim=4, ridge=0.1, seed=0)
    return {
        "linear": (space.of_left(left[:6]) @ space.of_right(right[:6]).T).tolist(),
        "words": (words.texts(texts[:6]) @ words.photos(right[:6]).T).tolist(),
    }


def _join() -> Output:
    left, right = vectors(), vectors() * 0.5 + vectors(seed=4)
    pairs = TextPhotoPairs(left, vectors(seed=6), right)
    held = TextPhotoPairs(*(side[:8] for side in pairs))
    config = SpaceConfig(dim=4, hidden_dim=8, batch_size=8, max_epochs=3, learning_rate=1e-3)
    found = joint_space.train_projections(pairs, held, config, 0)
    likeness = found.text.vectors(left[:6]) @ found.photo.vectors(right[:6]).T
    return {"curve": list(found.curve), "likeness": likeness.tolist()}


def _join_vectors() -> Output:
    """Likeness of items with a text, a photo, both and neither, as libraries differ in the signs of axes."""
    left, right = vectors(), vectors() * 0.5 + vectors(seed=4)
    pairs = TextPhotoPairs(left, vectors(seed=6), right)
    config = SpaceConfig(dim=4, hidden_dim=8, max_epochs=0)
    found = joint_space.train_projections(pairs, TextPhotoPairs(*(side[:0] for side in pairs)), config, 0)
    texts = torch.from_numpy(left[:5]).clone()
    texts[2:4] = 0
    part = joined.JointVectors(torch.nn.Identity(), found).eval()
    with torch.no_grad():
        rows = part.join(texts, torch.from_numpy(right[:3]), torch.tensor([0, -1, 1, -1, 2]))
    return (rows @ rows.T).tolist()


def _map_classes() -> Output:
    boxes = class_maps.ClassMaps(SIZE_PX * 2).boxes(_photos(1)[0], "Trousers")
    return [list(box) for box in boxes[:2]]


class _Levels(TextPhotoSpace):
    """The shares of the three colors, so that regions are pinned apart from our space."""

    def texts(self, texts):
        return np.eye(3, dtype=np.float32)[[len(text) % 3 for text in texts]]

    def photos(self, photos):
        rows = np.stack([np.asarray(photo, np.float32).mean(axis=(0, 1)) for photo in photos])
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _compare_regions() -> Output:
    boxes = regions.Regions(_Levels()).boxes(_photos(1)[0], "red")
    return [list(box) for box in boxes[::9]]


def _detect() -> Output:
    from tests.model_export.vl_clip.checkpoints import save_grounding_dino

    with tempfile.TemporaryDirectory() as folder:
        save_grounding_dino(Path(folder))
        boxes = detector.Detector(folder).boxes(_photos(1)[0], "Navy ball")
    return [list(box) for box in sorted(boxes, key=lambda box: box.confidence)]


def _fine_tune() -> Output:
    from tests.model_export.vl_clip.checkpoints import save_clip

    texts, photos = ["navy ball", "gold box", "black kite", "a ball"], _photos(4)
    with tempfile.TemporaryDirectory() as folder:
        save_clip(Path(folder))
        space = clip_space.ClipSpace(folder)
        before = (space.texts(texts) @ space.photos(photos).T).tolist()
        config = ClipConfig(folder, batch_size=4, max_epochs=1, learning_rate=1e-4)
        curve = space.fine_tune(texts, photos, texts, photos, config, 0)
    return {"before": before, "texts": cosines(space.texts(texts)), "curve": curve}


def _place() -> Output:
    placed = clutter.place_beside(range(12), ["hat", "shoe", "bag"] * 4, 5, 0)
    both = clutter.beside(*_photos(2), is_right=True)
    levels = np.asarray(both.resize((8, 8), Image.Resampling.BOX), np.float32)
    return {"placed": [list(each) for each in placed], "levels": levels.tolist()}


VL_CLIP_PROBES: dict[str, tuple[ModuleType, Callable[[], Output]]] = {
    "photo_reader": (photo_reader, _read),
    "linear_space": (linear_space, _linear),
    "joint_space": (joint_space, _join),
    "joined": (joined, _join_vectors),
    "class_maps": (class_maps, _map_classes),
    "regions": (regions, _compare_regions),
    "detector": (detector, _detect),
    "clip_space": (clip_space, _fine_tune),
    "clutter": (clutter, _place),
}
