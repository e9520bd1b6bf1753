"""The cell of VL-CLIP: Semantic IDs from the vectors of a joint space."""

from dataclasses import replace

import numpy as np
import pytest

from model_export.configs import tiny
from model_export.data.neutral import read_folder
from model_export.export import export
from model_export.pipeline.cache import StageCache
from model_export.pipeline.run import Run
from model_export.study.plan import PLANS
from model_export.study.run import Work, run_cell, versions_of_cell
from model_export.study.vl_clip import read_jointly
from model_export.vl_clip.configs import GroundingConfig, VlClipPictures
from service.errors import GlyphrecError
from tests.model_export.vl_clip.shop import write_shop

FULL = {cell.name: cell for cell in PLANS["full"]().cells}
TINY = {cell.name: cell for cell in PLANS["tiny"]().cells}
NAME = "pictures_vl_clip"


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    return read_folder(write_shop(tmp_path_factory.mktemp("shop") / "s", count=36))


def test_the_cell_differs_from_the_drawn_text_by_its_vectors_alone():
    drawn, ours = FULL["pictures_drawn"].config, FULL[NAME].config
    assert replace(ours, pictures=None) == drawn
    assert isinstance(ours.pictures, VlClipPictures)
    assert FULL[NAME].has_photos
    assert NAME in TINY
    grounded = FULL["pictures_vl_clip_grounded"].config
    assert replace(grounded, pictures=ours.pictures) == ours


def test_its_versions_name_the_steps_of_the_space_and_of_the_grounding():
    assert {"joint_space", "photo_reader", "linear_space"} <= set(versions_of_cell(FULL[NAME]))
    assert "class_maps" in versions_of_cell(FULL["pictures_vl_clip_grounded"])
    assert "class_maps" not in versions_of_cell(FULL[NAME])


@pytest.mark.slow
def test_the_cell_runs_and_an_item_without_a_photo_has_its_text_alone(shop, tmp_path):
    bare = replace(shop, images={item: path for item, path in shop.images.items() if item != 3})
    work = Work(TINY[NAME], bare, 0)
    run = Run.of(bare, work.config, tmp_path)
    read = read_jointly(run)
    dim = work.config.pictures.space.dim
    assert read.features.shape == (36, 2 * dim)
    lengths = np.linalg.norm(read.features.reshape(36, 2, dim), axis=2)  # [item, side]
    expected = np.ones((36, 2))
    expected[3, 1] = 0
    np.testing.assert_allclose(lengths, expected, atol=1e-5)
    result = run_cell(work, run.split, StageCache(tmp_path), lambda _line: None)
    assert len(result.ranks_excluded) == len(run.split.test)
    assert 0 <= result.figures["lost_variance"] < 1

    pictures = replace(work.config.pictures, grounding=GroundingConfig("classes", size_px=64, threshold=0.0))
    grounded = read_jointly(replace(run, config=replace(work.config, pictures=pictures)))
    # The table of classes knows no toys, so all photos stay whole and nothing changes.
    np.testing.assert_array_equal(grounded.features, read.features)


def test_a_configuration_with_a_joint_space_is_not_exported(shop, tmp_path):
    config = replace(tiny(), pictures=VlClipPictures())
    with pytest.raises(GlyphrecError, match="joint space.*cannot be exported"):
        export(shop, tmp_path / "out", config, cache_folder=tmp_path, say=lambda _line: None)
