"""The field `image`: what each value wants, and what a change of a whole item means for the picture."""

import pytest

from service.core.image_field import (
    PictureReference,
    after_change,
    names_a_picture,
    reference_in,
    split_image,
    with_reference,
    without_reference,
)
from service.errors import InvalidItem

KEPT = PictureReference("a" * 64, 30, 20)
PLAIN = {"item_id": "i", "title": "Lamp"}
WITH = with_reference(PLAIN, KEPT)


@pytest.mark.parametrize(
    ("image", "kind", "stays"),
    [
        (None, "remove", False),
        ({"data": "AAAA"}, "replace", False),
        ({"data": "AAAA", "sha256": "b" * 64, "width": 1, "height": 1}, "replace", False),  # of a merge patch
        (b"bytes", "replace", False),
        ({"sha256": "a" * 64}, "same", False),
        (KEPT.as_field(), "same", False),
        ("https://example.org/a.jpg", "leave", True),
        (["a.jpg"], "leave", True),
        (7, "leave", True),
    ],
)
def test_each_value_says_what_is_wanted(image, kind, stays):
    item, wish = split_image(PLAIN | {"image": image})
    assert wish.kind == kind
    assert item == (PLAIN | {"image": image} if stays else PLAIN)
    assert wish.is_named == stays


def test_an_item_without_the_field_leaves_the_picture():
    item, wish = split_image(PLAIN)
    assert (item, wish.kind, wish.is_named) == (PLAIN, "leave", False)


@pytest.mark.parametrize("image", [{}, {"url": "x"}, {"data": 1}, {"sha256": "A" * 64}, {"sha256": 1}])
def test_an_object_that_is_no_picture_is_refused(image):
    with pytest.raises(InvalidItem, match=r'^image: .*Send the picture as {"data": "<base64>"}'):
        split_image(PLAIN | {"image": image})


@pytest.mark.parametrize(
    "image",
    ["a", None, {}, {"sha256": "a" * 64}, {"sha256": "a" * 63, "width": 1, "height": 1},
     {"sha256": "a" * 64, "width": True, "height": 1}, {"sha256": "a" * 64, "width": 1.5, "height": 1}],
)  # fmt: skip
def test_only_a_whole_reference_is_one(image):
    assert reference_in(PLAIN | {"image": image}) is None
    assert reference_in(WITH) == KEPT


def test_a_reference_is_neither_a_name_nor_shipped():
    assert not names_a_picture(WITH)
    assert not names_a_picture(PLAIN)
    assert names_a_picture(PLAIN | {"image": "a.jpg"})
    assert without_reference(WITH) == PLAIN
    assert without_reference(PLAIN | {"image": "a.jpg"}) == PLAIN | {"image": "a.jpg"}


def test_a_changed_item_means_what_became_of_its_reference():
    tall = {"item_id": "i", "title": "Tall lamp"}
    assert after_change(WITH | {"title": "Tall lamp"}, WITH) == tall  # it is still there: nothing is wanted
    assert after_change(tall, WITH) == tall | {"image": None}  # it is gone: remove it
    assert after_change(WITH | {"image": {"data": "AAAA"}}, WITH)["image"] == {"data": "AAAA"}
    assert after_change(tall, PLAIN) == tall
