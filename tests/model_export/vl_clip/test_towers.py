"""The two ONNX graphs compute what the space computes in PyTorch."""

import numpy as np
import onnxruntime
import pytest
import torch

from model_export.configs import CompactConfig
from model_export.encoders.compact.reader import CompactReader
from model_export.picture_configs import SpaceConfig
from model_export.vl_clip import towers
from model_export.vl_clip.boxes import Box
from model_export.vl_clip.boxes import on_square as box_on_square
from model_export.vl_clip.joint_space import JointSpace, Projection, Projections
from model_export.vl_clip.photo_reader import PhotoReader, cell_session, features_of
from model_export.vl_clip.towers import PHOTO_TOWER, TEXT_TOWER, write_towers
from service.core.bundle import RenderSpec
from service.core.pictures import on_square
from service.core.render import render_text
from service.errors import ContractMismatch
from tests.model_export.vl_clip.shop import COLORS, SHAPES, draw

CONFIG = SpaceConfig(dim=8, hidden_dim=16, size_px=64)
TEXTS = [f"{color} {shape}, {len(color)} in a pack" for color in COLORS for shape in SHAPES]


@pytest.fixture(scope="module")
def space() -> JointSpace:
    render = RenderSpec(max_strips=2)
    reader = CompactReader(render, CompactConfig(num_grams=256, feature_dim=12), 0)
    pooling = reader.fit(reader.read([render_text(text, render).strips for text in TEXTS]))
    torch.manual_seed(0)
    sides = [Projection(dim, CONFIG).eval() for dim in (pooling.feature_dim, PhotoReader.feature_dim)]
    return JointSpace(Projections(sides[0], sides[1], ()), pooling, CONFIG, render, region_px=64)


@pytest.mark.slow
def test_a_region_of_a_photo_is_the_average_of_its_cells(space):
    photo = draw("navy", "ball").resize((96, 64))
    cells = cell_session(64).cells(on_square(photo, 64))  # two rows, two columns
    boxes = [Box(0, 0, 0.5, 1), Box(0, 0, 1, 1), Box(0.5, 0, 1, 0.5)]
    for box, found in zip(boxes, space.regions(photo, boxes), strict=True):
        square = box_on_square(box, *photo.size)
        rows = [row for row in range(2) if square.top <= (row + 0.5) / 2 <= square.bottom]
        columns = [column for column in range(2) if square.left <= (column + 0.5) / 2 <= square.right]
        average = np.mean([cells[row, column] for row in rows for column in columns], axis=0)[None]
        expected = space.projections.photo.vectors(features_of(torch.from_numpy(average)).numpy())[0]
        np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.slow
def test_the_towers_give_the_vectors_of_the_space(space, tmp_path, monkeypatch):
    assert write_towers(space, tmp_path) < 1e-3
    drawn = [render_text(text, space.render).strips for text in TEXTS[:5]]
    first = np.cumsum([0, *map(len, drawn)])[:-1].astype(np.int64)
    session = onnxruntime.InferenceSession(tmp_path / TEXT_TOWER, providers=["CPUExecutionProvider"])
    found = session.run(["vector"], {"strips": np.concatenate(drawn), "first_strip": first})[0]
    np.testing.assert_allclose(found, space.texts(TEXTS[:5]), atol=1e-3)

    photos = [draw("navy", "ball"), draw("gold", "kite"), draw("black", "box").resize((90, 30))]
    session = onnxruntime.InferenceSession(tmp_path / PHOTO_TOWER, providers=["CPUExecutionProvider"])
    pixels = np.stack([on_square(photo, 64) for photo in photos])
    found = session.run(["vector"], {"pictures": pixels})[0]
    np.testing.assert_allclose(found, space.photos(photos), atol=1e-3)

    monkeypatch.setattr(towers, "TOLERANCE", -1.0)  # any difference is too large
    with pytest.raises(ContractMismatch, match="differ by.*from PyTorch"):
        towers._apart(
            tmp_path / PHOTO_TOWER,
            towers.PhotoTower(64, space.projections.photo).eval(),
            {"pictures": torch.from_numpy(pixels)},
        )
