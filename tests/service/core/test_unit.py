"""The visual semantic unit: photos of one color, whose boxes are known, and texts whose lines are counted."""

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.core.bundle import RenderSpec
from service.core.unit import Neighbor, UnitText, compose_unit, unit_text

DRAWN = RenderSpec()  # every field
RED, LIME, BLUE, GOLD = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 215, 0)
LONG = "Stainless steel hexagonal bolt with washer and nut for outdoor use " * 20
# Ascent and descent of DejaVu Sans: 24 pixels at size 20, 17 at size 14, 14 at size 11.
TITLE_STEP, DETAILS_STEP, CAPTION_STEP = 24 + 2, 17 + 2, 14 + 1


class Box(NamedTuple):
    """The first and the last column and row."""

    left: int
    top: int
    right: int
    bottom: int


def photo(color: tuple[int, int, int], width: int = 100, height: int = 100) -> Image.Image:
    return Image.new("RGB", (width, height), color)


def box_of(mask: np.ndarray) -> Box:
    rows, columns = np.nonzero(mask)
    assert len(rows)
    return Box(*map(int, (columns.min(), rows.min(), columns.max(), rows.max())))


def colored(unit: np.ndarray, color: tuple[int, int, int]) -> Box:
    """The box of a color, which it fills."""
    mask = (unit == color).all(axis=2)
    box = box_of(mask)
    assert mask[box.top : box.bottom + 1, box.left : box.right + 1].all()
    return box


def inked(unit: np.ndarray, top: int = 0, bottom: int = 512) -> np.ndarray:
    """Where text is: gray pixels darker than white [row, column], in the rows from `top` to `bottom`."""
    is_gray = (unit.max(axis=2) == unit.min(axis=2)) & (unit[..., 0] < 200)
    is_gray[:top] = is_gray[bottom:] = False
    return is_gray


def num_lines(unit: np.ndarray, step: int, top: int, bottom: int = 512) -> int:
    """How many rows of text there are, in steps of `step` pixels from `top`."""
    mask = inked(unit)
    return sum(bool(mask[y : y + step].any()) for y in range(top, bottom - step + 1, step))


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((100, 100), Box(140, 12, 371, 243)),  # 232 x 232
        ((1000, 1000), Box(140, 12, 371, 243)),
        ((300, 50), Box(12, 12, 499, 92)),  # 488 x 81
        ((50, 300), Box(236, 12, 274, 243)),  # 39 x 232
        ((488, 232), Box(12, 12, 499, 243)),
        ((1, 1000), Box(255, 12, 255, 243)),
    ],
)
def test_the_photo_fits_into_the_upper_half_centered_at_the_top(size, expected):
    unit = compose_unit(photo(RED, *size), None)
    assert unit.shape == (512, 512, 3)
    assert unit.dtype == np.uint8
    assert colored(unit, RED) == expected
    assert (unit[~(unit == RED).all(axis=2)] == 255).all()


def test_text_begins_below_the_photo_and_keeps_its_margins():
    unit = compose_unit(photo(RED), UnitText("Iron bolt"))
    box = box_of(inked(unit))
    assert 12 <= box.left <= 14
    assert box.top >= 260
    assert box.bottom < 260 + 24
    assert inked(unit).any()
    assert tuple(unit[inked(unit)].min(axis=0)) == (20, 20, 20)


def test_a_long_title_is_broken_at_characters_into_three_lines_and_ends_in_an_ellipsis():
    digits = "0123456789" * 40  # each 13 pixels wide, so 37 in 488 pixels
    unit = compose_unit(None, UnitText(digits))
    assert num_lines(unit, TITLE_STEP, 4) == 3
    lines = [digits[:37], digits[37:74], digits[74:110] + "…"]  # an ellipsis is 20 pixels wide
    for place, line in enumerate(lines):
        alone = compose_unit(None, UnitText(line))
        top = 4 + place * TITLE_STEP
        np.testing.assert_array_equal(unit[top : top + TITLE_STEP], alone[4 : 4 + TITLE_STEP])
        assert num_lines(alone, TITLE_STEP, 4) == 1


def test_a_title_that_fits_has_no_ellipsis():
    exact = compose_unit(None, UnitText("Iron bolt"))
    cut = compose_unit(None, UnitText("Iron bolt" + LONG))
    assert num_lines(exact, TITLE_STEP, 4) == 1
    assert box_of(inked(exact)).right < 120
    assert num_lines(cut, TITLE_STEP, 4) == 3


def test_brand_and_category_follow_the_title_and_stay_inside_the_text_zone():
    unit = compose_unit(photo(RED), UnitText(LONG, LONG, [LONG, LONG]))
    rest = 260 + 3 * TITLE_STEP
    assert num_lines(unit, DETAILS_STEP, rest) == 3  # one of the brand, two of the categories
    assert box_of(inked(unit)).bottom < 256 + 143
    short = compose_unit(photo(RED), UnitText("Bolt", "Acme", ["Hardware", "Bolts"]))
    assert num_lines(short, DETAILS_STEP, 260 + TITLE_STEP) == 2


def test_an_empty_brand_or_category_takes_no_line():
    bare = compose_unit(None, UnitText("Bolt"))
    np.testing.assert_array_equal(bare, compose_unit(None, UnitText("Bolt", "", [])))
    only_category = compose_unit(None, UnitText("Bolt", "", ["Hardware"]))
    assert num_lines(only_category, DETAILS_STEP, 4 + TITLE_STEP) == 1


@pytest.mark.parametrize(
    ("count", "width", "lefts"), [(1, 488, [12]), (2, 238, [12, 262]), (3, 154, [12, 178, 344])]
)
def test_each_neighbor_has_a_column_of_its_own(count, width, lefts):
    neighbors = [Neighbor(photo(color), "Nut") for color in (LIME, BLUE, GOLD)][:count]
    unit = compose_unit(photo(RED), UnitText("Bolt"), neighbors)
    top = 260 + TITLE_STEP + 10
    height = min(width, (500 - top) - int(0.35 * (500 - top)))  # 133
    for left, color in zip(lefts, (LIME, BLUE, GOLD), strict=False):
        start = left + (width - height) // 2
        assert colored(unit, color) == Box(start, top, start + height - 1, top + height - 1)
        caption = inked(unit, top + height)[:, left : left + width]
        assert 0 <= box_of(caption).left <= 2
        assert box_of(caption).bottom < top + height + CAPTION_STEP


def test_a_wide_photo_of_a_neighbor_is_bounded_by_its_column():
    neighbors = [Neighbor(photo(color, 600, 100), "Nut") for color in (LIME, BLUE, GOLD)]
    unit = compose_unit(photo(RED), UnitText("Bolt"), neighbors)
    assert colored(unit, BLUE) == Box(178, 296, 178 + 153, 296 + 25)  # 154 x 26


def test_a_caption_has_at_most_three_lines_inside_its_column_and_above_the_margin():
    neighbors = [Neighbor(photo(color), LONG) for color in (LIME, BLUE, GOLD)]
    unit = compose_unit(photo(RED), UnitText("Bolt"), neighbors)
    caption_top = 296 + 133
    assert num_lines(unit, CAPTION_STEP, caption_top) == 3
    below = inked(unit, caption_top)
    assert box_of(below).bottom < 500
    assert not below[:, 166:178].any()
    assert not below[:, 332:344].any()
    assert not below[:, 498:].any()


def test_captions_that_do_not_fit_are_cut_at_the_margin_by_whole_lines():
    neighbors = [Neighbor(photo(LIME), LONG)] * 3
    unit = compose_unit(photo(RED), UnitText(LONG, LONG, [LONG]), neighbors)
    top = 260 + 3 * TITLE_STEP + 3 * DETAILS_STEP + 10  # 405, so 95 pixels are left and 33 are for captions
    assert box_of(inked(unit, top)).bottom < 500
    assert num_lines(unit, CAPTION_STEP, top + 62) == 2


def test_neighbors_flow_up_if_the_text_is_short():
    tops = [
        colored(compose_unit(photo(RED), text, [Neighbor(photo(LIME), "Nut")]), LIME).top
        for text in (None, UnitText("Bolt"), UnitText("Bolt", "Acme"), UnitText("Bolt", "Acme", ["A"]))
    ]
    one, two, three = 260 + TITLE_STEP, 260 + TITLE_STEP + DETAILS_STEP, 260 + TITLE_STEP + 2 * DETAILS_STEP
    assert tops == [256 + 10, one + 10, two + 10, three + 10]


def test_without_a_photo_everything_moves_up_by_its_half():
    neighbors = [Neighbor(photo(LIME), "Nut")]
    low = compose_unit(photo(RED), UnitText(LONG, "Acme"), neighbors)
    high = compose_unit(None, UnitText(LONG, "Acme"), neighbors)
    text_end = 260 + 3 * TITLE_STEP + DETAILS_STEP
    np.testing.assert_array_equal(high[: text_end - 256], low[256:text_end])
    assert colored(high, LIME).top == colored(low, LIME).top - 256


def test_without_neighbors_the_rest_is_white():
    unit = compose_unit(photo(RED), UnitText("Bolt"))
    assert (unit[260 + TITLE_STEP :] == 255).all()


def test_neighbors_after_the_third_are_left_out():
    neighbors = [Neighbor(photo(color), "Nut") for color in (LIME, BLUE, GOLD, RED)]
    np.testing.assert_array_equal(
        compose_unit(None, None, neighbors), compose_unit(None, None, neighbors[:3])
    )


def test_the_title_brand_and_first_path_of_categories_are_shown():
    item = {
        "item_id": "1",
        "title": " Iron\n bolt ",
        "brand": "Acme",
        "categories": [["Tools", "", "Bolts", "Hex", "M3", "Steel"], ["Gifts"]],
        "image": "x.jpg",
    }
    assert unit_text(item, DRAWN) == ("Iron bolt", "Acme", ["Tools", "Bolts", "Hex", "M3"])
    path = ["Tools", "Bolts"]
    assert unit_text({"title": "Bolt", "categories": path}, DRAWN) == ("Bolt", "", path)
    assert unit_text({"title": "Bolt", "categories": "Tools"}, DRAWN) == ("Bolt", "", ["Tools"])
    assert unit_text({"name": "Bolt", "size": 3}, DRAWN) == ("name Bolt; size 3", "", [])
    assert unit_text({"item_id": "1"}, DRAWN) == ("", "", [])


def test_a_unit_shows_only_fields_that_are_drawn():
    item = {"item_id": "1", "title": "Iron bolt", "brand": "Acme", "categories": ["Tools"], "size": 3}
    assert unit_text(item, RenderSpec(fields=("title",))) == ("Iron bolt", "", [])
    assert unit_text(item, RenderSpec(fields=("categories", "size"))) == ("Tools; 3", "", ["Tools"])
    assert unit_text(item, RenderSpec(fields=("*",))) == ("Iron bolt", "Acme", ["Tools"])


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=200), st.text(max_size=40), st.integers(1, 900), st.integers(1, 900))
def test_any_text_and_any_proportions_give_a_unit_with_white_margins(title, brand, width, height):
    item = {"item_id": "1", "title": title, "brand": brand, "categories": [title, brand]}
    text = unit_text(item, DRAWN)
    neighbors = [Neighbor(photo(LIME, height, width), title), Neighbor(photo(BLUE, width, height), brand)]
    unit = compose_unit(photo(RED, width, height), text, neighbors)
    assert unit.shape == (512, 512, 3)
    assert (unit[:12] == 255).all()
    assert (unit[506:] == 255).all()
    np.testing.assert_array_equal(unit, compose_unit(photo(RED, width, height), text, neighbors))
