"""Grounding by a checkpoint of `transformers`, tested with a tiny Grounding DINO."""

import pytest
from safetensors.torch import load_file, save_file

from model_export.pipeline.cache import StageCache
from model_export.vl_clip.configs import GroundingConfig
from model_export.vl_clip.detector import Detector
from model_export.vl_clip.grounding import Photo, ground, make_grounder, used
from service.errors import GlyphrecError
from tests.model_export.encoders.hub_checkpoints import save_trocr
from tests.model_export.vl_clip.checkpoints import save_grounding_dino
from tests.model_export.vl_clip.shop import draw


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("dino")
    save_grounding_dino(found)
    return found


def test_boxes_are_those_of_the_checkpoint_in_shares_of_the_photo(folder):
    detector, photo = Detector(str(folder)), draw("navy", "ball")
    boxes = detector.boxes(photo, "Navy ball.")
    assert 0 < len(boxes) <= 6
    for box in boxes:
        assert 0 <= box.left <= box.right <= 1
        assert 0 <= box.top <= box.bottom <= 1
        assert 0 <= box.confidence <= 1
    inputs = detector._processor(images=photo, text="navy ball.", return_tensors="pt")
    output = detector._model(**inputs)
    center_x, center_y, width, height = output.pred_boxes[0, 0].tolist()
    confidence = output.logits[0, 0].sigmoid().max().item()
    (first,) = [box for box in boxes if box.confidence == pytest.approx(confidence, abs=1e-5)]
    assert first.left == pytest.approx(max(0, center_x - width / 2), abs=1e-4)
    assert first.bottom == pytest.approx(min(1, center_y + height / 2), abs=1e-4)


def test_a_photo_is_grounded_once_and_a_threshold_leaves_it_whole(folder, tmp_path):
    cache, config = StageCache(tmp_path), GroundingConfig("detector", str(folder), threshold=0.0)
    loaded = []

    def load():
        loaded.append(1)
        return draw("gold", "box")

    photos = [Photo("a", "gold box", load), Photo("b", "", load), Photo("c", "box", lambda: None)]
    grounder = make_grounder(config, None, ())
    boxes = ground(cache, photos, grounder)
    assert [box is None for box in boxes] == [False, True, True]
    assert ground(cache, photos, grounder) == boxes
    assert len(loaded) == 2
    (cropped, *_), (whole, *_) = (
        used(boxes, grounder, GroundingConfig("detector", str(folder), threshold=threshold))
        for threshold in (0.0, 1.0)
    )
    assert whole is None
    assert cropped.area >= boxes[0].area


def test_a_checkpoint_of_another_kind_or_none_is_refused(tmp_path):
    with pytest.raises(GlyphrecError, match="Add --detector FOLDER"):
        Detector("")
    with pytest.raises(GlyphrecError, match="missing: no such folder"):
        Detector(str(tmp_path / "missing"))
    save_trocr(tmp_path)
    with pytest.raises(GlyphrecError, match="'vision-encoder-decoder', but we need grounding-dino or"):
        Detector(str(tmp_path))


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path):
    save_grounding_dino(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    missing = next(iter(weights))
    save_file(
        {name: each for name, each in weights.items() if name != missing}, tmp_path / "model.safetensors"
    )
    with pytest.raises(GlyphrecError, match="weights of GroundingDinoForObjectDetection are missing"):
        Detector(str(tmp_path))
