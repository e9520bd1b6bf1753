"""Boxes, maps of ImageNet's classes, and regions compared in a space."""

import json

import numpy as np
import pytest
from PIL import Image

from model_export.pipeline.cache import StageCache
from model_export.vl_clip.boxes import (
    WHOLE,
    Box,
    as_rows,
    best_box,
    crop,
    from_rows,
    from_square,
    on_square,
    widened,
)
from model_export.vl_clip.class_maps import TABLE, ClassMaps, class_heat, classes_of
from model_export.vl_clip.clutter import beside, is_found, place_beside
from model_export.vl_clip.configs import GroundingConfig
from model_export.vl_clip.grounding import Photo, ground, used
from model_export.vl_clip.heat import boxes_of_heat
from model_export.vl_clip.regions import Regions, candidates
from model_export.vl_clip.sheet import Shown, write_sheet
from model_export.vl_clip.space import TextPhotoSpace


def test_the_most_confident_box_is_used_if_it_reaches_the_threshold():
    boxes = [
        Box(0, 0, 0.5, 1, 0.4),
        Box(0.5, 0, 1, 1, 0.7),
        Box(0, 0, 1, 0.5, 0.7),
        Box(0.2, 0.2, 0.2, 1, 0.9),
    ]
    assert best_box(boxes) == boxes[1]  # the last one is empty
    assert best_box([]) is None
    for threshold, is_used in ((0.35, True), (0.7, True), (0.8, False)):
        config = GroundingConfig("classes", threshold=threshold, margin=0.0)
        assert used([boxes[1]], ClassMaps(64), config) == [boxes[1] if is_used else None]


def test_a_margin_stays_inside_the_photo():
    assert widened(Box(0.2, 0.4, 0.6, 0.8), 0.05) == pytest.approx(Box(0.18, 0.38, 0.62, 0.82))
    assert widened(Box(0, 0.5, 1, 1), 0.05) == pytest.approx(Box(0, 0.475, 1, 1))


def test_a_crop_shows_the_box_and_never_nothing():
    photo = Image.new("RGB", (40, 20), "white")
    photo.paste((255, 0, 0), (20, 0, 40, 10))
    assert crop(photo, Box(0.5, 0, 1, 0.5)).getcolors() == [(200, (255, 0, 0))]
    assert crop(photo, None).size == (40, 20)
    assert crop(photo, Box(0.999, 0.999, 1, 1)).size == (1, 1)


@pytest.mark.parametrize("size", [(160, 240), (240, 160), (100, 100)])
def test_a_box_goes_to_the_square_and_back(size):
    box = Box(0.1, 0.2, 0.7, 0.9, 0.5)
    assert from_square(on_square(box, *size), *size) == pytest.approx(box)
    assert from_square(WHOLE, *size) == pytest.approx(WHOLE)  # the white around the photo belongs to nothing


def test_boxes_are_stored_as_rows():
    boxes = [None, Box(0.1, 0.2, 0.3, 0.4, 0.5)]
    found = from_rows(as_rows(boxes))
    assert found[0] is None
    assert found[1] == pytest.approx(boxes[1])
    assert as_rows([]).shape == (0, 5)


def test_the_hottest_area_of_a_map_comes_first():
    heat = np.zeros((4, 8), np.float32)
    heat[1:3, 5:8] = 1.0
    heat[0, 0] = 0.9
    boxes = boxes_of_heat(heat)
    assert boxes[0][:4] == (5 / 8, 1 / 4, 1.0, 3 / 4)
    assert boxes[1][:4] == (0, 0, 1 / 8, 1 / 4)
    assert sum(box.confidence for box in boxes) == pytest.approx(1)
    assert boxes_of_heat(np.ones((3, 3), np.float32)) == []


def test_product_types_are_known_by_their_longest_name():
    table = json.loads(TABLE.read_text(encoding="utf-8"))["types"]
    assert classes_of("Vest top") == table["vest top"] != table["top"]
    assert classes_of("Swimwear bottom") == table["swimwear bottom"]
    assert classes_of("Leggings/Tights") == table["leggings"]
    assert classes_of("T-shirt") == table["t-shirt"] != table["shirt"]
    assert classes_of("Dresses") == []  # a plural that the table does not know is no dress by chance
    assert classes_of("Hammer") == classes_of("") == []


def test_every_class_of_the_table_is_named_and_exists():
    table = json.loads(TABLE.read_text(encoding="utf-8"))
    used_classes = {place for classes in table["types"].values() for place in classes}
    assert used_classes == {int(place) for place in table["classes"]}
    assert all(0 <= place < 1000 for place in used_classes)


def test_heat_is_highest_where_the_classes_are():
    logits = np.zeros((2, 3, 1000), np.float32)
    logits[1, 2, 608] = 5.0
    logits[0, 0, 7] = 9.0  # another class says nothing about these
    heat = class_heat(logits, [608, 806])
    assert np.unravel_index(heat.argmax(), heat.shape) == (1, 2)


class ColorSpace(TextPhotoSpace):
    """A space whose vectors are the shares of red, green and blue."""

    def texts(self, texts):
        return np.eye(3, dtype=np.float32)[[["red", "green", "blue"].index(text) for text in texts]]

    def photos(self, photos):
        means = np.stack([np.asarray(photo, np.float32).mean(axis=(0, 1)) + 1e-3 for photo in photos])
        return means / np.linalg.norm(means, axis=1, keepdims=True)


def in_color(*colors: str) -> Image.Image:
    """Colors side by side."""
    photo = Image.new("RGB", (30 * len(colors), 40))
    for place, color in enumerate(colors):
        photo.paste(color, (30 * place, 0, 30 * place + 30, 40))
    return photo


def test_the_region_that_is_most_like_the_phrase_is_found():
    regions = Regions(ColorSpace())
    photo = in_color("#f00", "#00f")
    for phrase, right in (("red", False), ("blue", True)):
        best = best_box(regions.boxes(photo, phrase))
        assert (best.left >= 0.5) is right
        assert best.confidence == pytest.approx(1 - 0.5**0.5, abs=1e-3)
    assert regions.boxes(photo, " ") == []


def test_a_photo_of_the_product_alone_gains_nothing_and_stays_whole(tmp_path):
    regions, config = Regions(ColorSpace()), GroundingConfig("regions")
    photos = [
        Photo("one", "red", lambda: in_color("#f00")),
        Photo("two", "red", lambda: in_color("#f00", "#0f0")),
    ]
    alone, beside_another = used(ground(StageCache(tmp_path), photos, regions), regions, config)
    assert alone is None
    assert beside_another.right <= 0.55


def test_regions_cover_the_photo_and_are_never_the_whole_of_it():
    found = candidates()
    assert len(found) == len(set(found)) > 50
    assert all(0 < box.area < 1 for box in found)
    covered = np.zeros((6, 6))
    for box in found:
        covered[round(box.top * 6) : round(box.bottom * 6), round(box.left * 6) : round(box.right * 6)] += 1
    assert (covered > 0).all()


def test_items_are_shown_beside_another_type_on_either_side():
    types = ["hat", "shoe"] * 20
    placed = place_beside(range(40), types, 30, seed=0)
    assert len({each.item for each in placed}) == 30
    assert all(types[each.item] != types[each.other] for each in placed)
    assert {each.is_right for each in placed} == {True, False}
    assert place_beside(range(4), ["hat"] * 4, 4, seed=0) == []


def test_photos_stand_side_by_side_at_one_height():
    both = beside(in_color("#f00"), in_color("#00f").resize((15, 20)), is_right=True)
    assert both.size == (60, 40)
    assert both.getpixel((10, 20)) == (0, 0, 255)
    assert both.getpixel((50, 20)) == (255, 0, 0)


def test_a_box_is_right_if_its_middle_is_in_the_half_of_the_product():
    assert is_found(Box(0.4, 0, 0.9, 1), is_right=True)
    assert not is_found(Box(0.4, 0, 0.9, 1), is_right=False)
    assert is_found(Box(0, 0, 0.4, 1), is_right=False)
    assert not is_found(None, is_right=True)


def test_the_page_shows_photos_with_boxes_and_hides_no_markup(tmp_path):
    path = tmp_path / "page.html"
    write_sheet(
        path,
        "A & B",
        [
            Shown(in_color("#f00"), Box(0.25, 0, 1, 1, 0.8), "<hat>", "Hat"),
            Shown(in_color("#0f0"), None, "x", "y"),
        ],
    )
    text = path.read_text(encoding="utf-8")
    assert "A &amp; B" in text
    assert "&lt;hat&gt;" in text
    assert "left:25.0%;top:0.0%;width:75.0%" in text
    assert text.count("data:image/jpeg;base64,") == 2
    assert text.count("<b ") == 1
