import hashlib
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from service.core.bundle import RenderSpec
from service.core.render import content_hash, font_sha256, item_text, render_text
from service.errors import ContractMismatch

SPEC = RenderSpec()
LONG = " ".join(f"word{n}" for n in range(500))

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def text_of(**item) -> str:
    return item_text({"item_id": "42", **item}, SPEC)


def ink(strips: np.ndarray) -> int:
    return int((255 - strips.astype(np.int64)).sum())


def test_fields_stand_in_the_recipes_order_and_others_by_name():
    item = {"description": "Long.", "weight": 2, "title": "Drill", "color": "red", "brand": "Acme"}
    assert text_of(**item) == "Drill; Acme; color red; weight 2; Long."
    assert text_of(**dict(reversed(item.items()))) == text_of(**item)


def test_the_item_id_is_never_part_of_the_text():
    everything = RenderSpec(fields=("item_id", "*"))
    assert item_text({"item_id": "secret", "title": "Drill"}, everything) == "title Drill"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (["Tools", "Drills"], "size Tools, Drills"),
        ([["a", "b"], ["c"]], "size a, b, c"),
        ({"b": 1, "a": [2, 3]}, "size a 2, 3, b 1"),
        (12.0, "size 12"),
        (12.5, "size 12.5"),
        (0, "size 0"),
        (True, "size yes"),
        ("two\twords\n", "size two words"),
    ],
)
def test_values_of_every_json_type_are_written_in_words(value, words):
    assert text_of(size=value) == words


def test_categories_are_a_path():
    assert text_of(categories=["Tools", "Drills"]) == "Tools > Drills"
    assert text_of(categories=[["Tools", "Drills"], ["Gifts"]]) == "Tools > Drills, Gifts"


@pytest.mark.parametrize("empty", [None, "", "  \n", [], {}, [None, ""], float("nan"), {"a": []}])
def test_empty_values_leave_nothing_behind(empty):
    assert text_of(title="Drill", size=empty, brand=empty) == "Drill"


def test_equivalent_unicode_is_the_same_text():
    assert text_of(title="Cafe\u0301") == text_of(title="Caf\u00e9")
    assert text_of(title="a\u200b\u00adb\u0000c\u2003d") == "ab c d"


def test_a_content_hash_is_the_same_for_the_same_text_only():
    assert content_hash("a drill") == hashlib.sha256(b"a drill").hexdigest()[:32]
    assert content_hash("a drill") != content_hash("a drill ")


def test_a_word_more_adds_ink_and_an_empty_text_is_one_white_strip():
    empty, one, two = (render_text(text, SPEC).strips for text in ("", "drill", "drill bit"))
    assert empty.shape == (1, SPEC.height_px, SPEC.width_px)
    assert empty.dtype == np.uint8
    assert ink(empty) == 0 < ink(one) < ink(two)


def test_the_same_text_gives_the_same_bytes_in_whatever_order_texts_are_drawn():
    texts = ["Blue drill", "Żółty młot", "12 x 3/4 in."]
    first = [render_text(text, SPEC).strips.tobytes() for text in texts]
    assert [render_text(text, SPEC).strips.tobytes() for text in reversed(texts)] == first[::-1]


def test_a_long_text_is_cut_at_max_strips_and_says_so():
    whole = render_text(LONG, SPEC.model_copy(update={"max_strips": 64}))
    cut = render_text(LONG, SPEC)
    assert cut.truncated
    assert len(cut.strips) == SPEC.max_strips
    np.testing.assert_array_equal(cut.strips, whole.strips[: SPEC.max_strips])


def test_a_text_that_just_fits_is_not_called_truncated():
    one_strip = SPEC.model_copy(update={"max_strips": 1})
    words = LONG.split()
    fitting = max(n for n in range(1, 30) if len(render_text(" ".join(words[:n]), SPEC).strips) == 1)
    assert not render_text(" ".join(words[:fitting]), one_strip).truncated
    assert render_text(" ".join(words[: fitting + 1]), one_strip).truncated


def test_words_stay_whole_and_every_strip_holds_ink():
    """Each strip is the picture of its own words, which are found by adding words until one more wraps."""
    words, strips = (
        LONG.split()[:60],
        render_text(" ".join(LONG.split()[:60]), RenderSpec(max_strips=64)).strips,
    )
    for strip in strips:
        count = 1
        while count < len(words) and len(render_text(" ".join(words[: count + 1]), SPEC).strips) == 1:
            count += 1
        np.testing.assert_array_equal(strip, render_text(" ".join(words[:count]), SPEC).strips[0])
        words = words[count:]
    assert not words


def test_a_word_wider_than_a_strip_is_broken_inside():
    rendered = render_text("x" * 150, SPEC)
    assert not rendered.truncated
    assert len(rendered.strips) > 1
    assert all(ink(strip) > 0 for strip in rendered.strips)


def test_letters_stay_clear_of_the_strips_edges():
    strips = render_text("Mg" * 60, SPEC).strips
    assert (strips[:, :, -1] == 255).all()
    assert (strips[:, :, 0] == 255).all()


def test_characters_the_font_lacks_are_drawn_as_code_points_and_reported():
    drill = render_text("漢字 drill 漢", SPEC)
    assert drill.missing == "字漢"
    np.testing.assert_array_equal(drill.strips, render_text("[6F22][5B57] drill [6F22]", SPEC).strips)
    assert render_text("Żółty Ελλάδα Привет שלום مرحبا", SPEC).missing == ""


def test_two_characters_the_font_lacks_stay_distinct():
    assert render_text("漢", SPEC).strips.tobytes() != render_text("字", SPEC).strips.tobytes()


@dataclass
class Case:
    name: str
    text: str


@pytest.mark.parametrize(
    "case",
    [
        Case("NUL and controls", "a\x00b\x1b[2Jc"),
        Case("lone surrogate", "\ud83d drill"),
        Case("emoji", "drill 😀👩‍👩‍👧"),
        Case("right to left", "\u202eمرحبا שלום"),
        Case("stacked marks", "e" + "\u0301" * 3000),
        Case("a megabyte of one word", "a" * 1_000_000),
        Case("a megabyte of words", "ab " * 333_333),
        Case("wide ligature", "\ufdfd" * 30 + "ﬃ" * 500),
    ],
    ids=lambda case: case.name,
)
def test_awkward_text_is_drawn_within_the_recipe(case):
    text = text_of(title=case.text)
    rendered = render_text(text, SPEC)
    content_hash(text)
    assert 1 <= len(rendered.strips) <= SPEC.max_strips
    assert rendered.strips.shape[1:] == (SPEC.height_px, SPEC.width_px)


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(max_size=10), json_values, max_size=5))
def test_any_item_of_json_becomes_clean_text_and_strips(item):
    text = item_text(item, SPEC)
    assert text.split() == text.split(" ") or text == ""
    assert "\x00" not in text
    assert content_hash(text)
    assert 1 <= len(render_text(text, SPEC).strips) <= SPEC.max_strips


def test_endlessly_nested_values_do_not_overflow_the_stack():
    value: list = []
    for _ in range(100_000):
        value = [value]
    assert text_of(title="Drill", size=value) == "Drill"


@pytest.mark.parametrize("height_px", [8, 24, 48])
def test_a_recipe_decides_the_strips_size(height_px):
    spec = RenderSpec(height_px=height_px, width_px=300, squeeze=0.8)
    assert render_text("drill", spec).strips.shape == (1, height_px, 300)


@pytest.mark.parametrize("num_words", [0, 1, 20, 60])
def test_a_page_holds_the_lines_of_as_many_strips_and_white_below_them(num_words):
    text = " ".join(LONG.split()[:num_words])
    lines = render_text(text, RenderSpec(max_strips=64)).strips  # [line, line height, width]
    pages = render_text(text, RenderSpec(height_px=48, lines_per_strip=3, max_strips=32)).strips
    assert pages.shape == (max(1, -(-len(lines) // 3)), 48, SPEC.width_px)
    drawn = pages.reshape(-1, SPEC.height_px, SPEC.width_px)
    np.testing.assert_array_equal(drawn[: len(lines)], lines)
    assert (drawn[len(lines) :] == 255).all()


def test_a_text_is_truncated_where_the_last_page_is_full():
    spec = RenderSpec(height_px=32, lines_per_strip=2, max_strips=2)
    four_lines = render_text(LONG, RenderSpec(max_strips=4)).strips
    rendered = render_text(LONG, spec)
    assert rendered.truncated
    np.testing.assert_array_equal(rendered.strips.reshape(four_lines.shape), four_lines)


@pytest.mark.parametrize(("height_px", "lines"), [(50, 3), (16, 4), (65, 1), (640, 2)])
def test_lines_that_do_not_share_a_page_in_readable_heights_are_refused(height_px, lines):
    with pytest.raises(ValidationError, match=f"{lines} lines do not share height_px={height_px}"):
        RenderSpec(height_px=height_px, lines_per_strip=lines)


def test_another_font_file_than_the_recipes_is_refused():
    known = SPEC.model_copy(update={"font_sha256": font_sha256(SPEC)})
    assert not render_text("drill", known).truncated
    with pytest.raises(ContractMismatch, match="the bundle's recipe says 000000"):
        render_text("drill", SPEC.model_copy(update={"font_sha256": "0" * 64}))


@pytest.mark.parametrize("font", ["Comic.ttf", "../render.py", "", "/etc/passwd"])
def test_an_unknown_font_is_refused_by_naming_the_known_ones(font):
    with pytest.raises(ContractMismatch, match=r"DejaVuSans\.ttf"):
        render_text("drill", SPEC.model_copy(update={"font": font}))
