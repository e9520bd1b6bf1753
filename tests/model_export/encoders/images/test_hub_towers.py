"""The image towers of CLIP and SigLIP, tested with tiny checkpoints. The real ones are far too large."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from model_export.encoders.hub.base import load_processor
from model_export.encoders.images.base import ImageEncoder, image_body
from model_export.encoders.images.choose import image_encoder_files, make_image_encoder
from model_export.picture_configs import ImageEncoderKind, PicturesConfig
from service.errors import GlyphrecError
from tests.model_export.encoders.hub_checkpoints import save_trocr
from tests.model_export.encoders.images.tower_checkpoints import SIZE_PX, save_clip, save_siglip


class Tower(NamedTuple):
    name: ImageEncoderKind
    save: Callable[..., nn.Module]
    pooled: Callable[[Any, Tensor], Tensor]  # (the saved model, pixels) -> features


CLIP = Tower("clip", save_clip, lambda model, pixels: model.get_image_features(pixels).pooler_output)
SIGLIP = Tower("siglip2", save_siglip, lambda model, pixels: model.get_image_features(pixels).pooler_output)
both = pytest.mark.parametrize("tower", [CLIP, SIGLIP], ids=lambda tower: tower.name)


def made(tower: Tower, folder: Path | str, size_px: int = SIZE_PX) -> ImageEncoder:
    return make_image_encoder(PicturesConfig(kind=tower.name, checkpoint=str(folder), size_px=size_px))


def photos(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, SIZE_PX, SIZE_PX, 3), dtype=np.uint8)


@both
@torch.no_grad()
def test_features_are_the_checkpoints_own_of_length_1(tmp_path, tower):
    model, encoder = tower.save(tmp_path), made(tower, tmp_path)
    seen = photos(3)
    processor = load_processor(str(tmp_path))
    pixels = processor([Image.fromarray(photo) for photo in seen], return_tensors="pt")["pixel_values"]
    expected = nn.functional.normalize(tower.pooled(model, pixels), dim=-1)
    features = encoder(torch.from_numpy(seen))
    assert features.shape == (3, encoder.feature_dim)
    torch.testing.assert_close(features, expected, atol=1e-4, rtol=1e-4)
    assert expected.std(dim=0).max() > 0.01  # the photos are told apart


@both
def test_an_image_tower_saved_alone_equals_that_of_the_whole_checkpoint(tmp_path, tower):
    tower.save(tmp_path / "whole")
    whole = made(tower, tmp_path / "whole")
    tower.save(tmp_path / "alone", alone=True)
    image_tower: Any = whole.tower
    image_tower.save_pretrained(tmp_path / "alone")
    seen = torch.from_numpy(photos(2))
    with torch.no_grad():
        torch.testing.assert_close(made(tower, tmp_path / "alone")(seen), whole(seen))


@both
def test_the_graph_takes_any_number_of_photos_and_equals_torch(tmp_path, tower):
    tower.save(tmp_path)
    encoder = made(tower, tmp_path)
    session = onnxruntime.InferenceSession(
        image_body(encoder).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    for count in (1, 3):
        seen = photos(count)
        with torch.no_grad():
            expected = encoder(torch.from_numpy(seen)).numpy()
        (found,) = session.run(["features"], {"pictures": seen})
        np.testing.assert_allclose(found, expected, atol=1e-5, rtol=1e-4)
    # A batch of items without photos. PyTorch itself refuses it.
    (none,) = session.run(["features"], {"pictures": photos(0)})
    assert none.shape == (0, encoder.feature_dim)


@both
def test_all_files_of_the_folder_are_part_of_the_key(tmp_path, tower):
    tower.save(tmp_path)
    config = PicturesConfig(kind=tower.name, checkpoint=str(tmp_path))
    assert image_encoder_files(config) == sorted(tmp_path.iterdir())
    assert len(image_encoder_files(config)) == 3


@both
def test_another_size_is_refused_with_the_setting_that_repairs_it(tmp_path, tower):
    tower.save(tmp_path)
    with pytest.raises(
        GlyphrecError, match=r"squares of 32 pixels, but the configuration says 224\. Add --set"
    ):
        made(tower, tmp_path, 224)


@both
def test_a_checkpoint_of_another_type_is_refused(tmp_path, tower):
    save_trocr(tmp_path)
    with pytest.raises(GlyphrecError, match="holds an encoder of type 'vision-encoder-decoder', but we need"):
        made(tower, tmp_path)


@both
def test_no_checkpoint_is_refused(tower):
    for use in (make_image_encoder, image_encoder_files):
        with pytest.raises(GlyphrecError, match="--set pictures.checkpoint=FOLDER"):
            use(PicturesConfig(kind=tower.name))


@both
def test_a_checkpoint_without_weights_is_refused_with_what_it_must_hold(tmp_path, tower):
    tower.save(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(GlyphrecError, match=r"model\.safetensors: not found"):
        made(tower, tmp_path)


def test_an_image_processor_with_another_size_than_the_tower_is_refused(tmp_path):
    save_clip(tmp_path, crop_px=24)
    with pytest.raises(GlyphrecError, match=r"Compare preprocessor_config\.json with config\.json"):
        made(CLIP, tmp_path)
