"""CLIP's towers as the joint space, tested with a tiny checkpoint."""

import numpy as np
import pytest
import torch

from model_export.vl_clip.clip_space import ClipSpace
from model_export.vl_clip.configs import ClipConfig
from service.errors import GlyphrecError
from tests.model_export.encoders.hub_checkpoints import save_trocr
from tests.model_export.vl_clip.checkpoints import save_clip
from tests.model_export.vl_clip.shop import COLORS, SHAPES, draw

PHOTOS = [draw(color, shape) for color in COLORS for shape in SHAPES]
TEXTS = [f"{color} {shape}" for color in COLORS for shape in SHAPES]


@pytest.fixture
def space(tmp_path) -> ClipSpace:
    save_clip(tmp_path)
    return ClipSpace(str(tmp_path))


def test_vectors_are_those_of_the_checkpoint(space):
    inputs = space._tokenizer(TEXTS, padding=True, return_tensors="pt")
    pixels = space._processor(PHOTOS, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        output = space.model(**inputs, pixel_values=pixels)
    np.testing.assert_allclose(space.texts(TEXTS), output.text_embeds.numpy(), atol=1e-5)
    np.testing.assert_allclose(space.photos(PHOTOS), output.image_embeds.numpy(), atol=1e-5)
    assert space.texts(["a very long text " * 50]).shape == (1, 12)
    assert space.photos([]).shape == (0, 12)


def test_fine_tuning_learns_the_pairs_and_keeps_the_best_epoch(space, tmp_path):
    config = ClipConfig("", batch_size=18, max_epochs=12, learning_rate=3e-3, patience=12)
    before = space.texts(TEXTS)
    curve = space.fine_tune(TEXTS, PHOTOS, TEXTS, PHOTOS, config, seed=0)
    assert max(curve) > curve[0] + 0.1
    assert space._quality(TEXTS, PHOTOS) == pytest.approx(max(curve))
    after = space.texts(TEXTS)
    assert np.abs(after - before).max() > 0.01
    space.save(tmp_path / "tuned")
    np.testing.assert_allclose(ClipSpace(str(tmp_path / "tuned")).texts(TEXTS), after, atol=1e-5)


def test_no_epochs_leave_the_checkpoint_as_it_is(space):
    before = space.texts(TEXTS)
    assert len(space.fine_tune(TEXTS, PHOTOS, TEXTS, PHOTOS, ClipConfig("", max_epochs=0), seed=0)) == 1
    np.testing.assert_array_equal(space.texts(TEXTS), before)


def test_another_checkpoint_is_refused(tmp_path):
    save_trocr(tmp_path)
    with pytest.raises(GlyphrecError, match="clip"):
        ClipSpace(str(tmp_path))
