"""Segments: shares agree with counting by hand, and each kind is half of the catalog or of the purchases."""

import numpy as np
import pytest

from model_export.study.segments import Segments, attribute_share, segments_of


@pytest.mark.parametrize(
    ("text", "stated", "words"),
    [
        ("Holds what has to hold", 0, 5),
        ("Bolt M3-0.5 x 12 mm", 3, 5),
        ("Epoxy 1/2 oz PVC", 3, 4),
        ('Binder, 1.5", white', 2, 4),
        ("FRZN BAGGED VEGETABLES 16 OZ", 2, 5),  # in capitals, only the digits and the unit count
        ("All-in-one tool in a box", 0, 5),
        ("", 0, 1),
    ],
)
def test_the_share_of_words_that_state_an_attribute(text, stated, words):
    assert attribute_share(text) == pytest.approx(stated / words)


def test_each_item_belongs_to_one_kind_of_each_pair():
    texts = ["Bolt 12 mm", "A long and narrative description of a thing", "Tube 5 ml", "A soft toy"]
    train = [np.array([0, 0, 2], dtype=np.int32), np.array([0, 3], dtype=np.int32)]
    found = segments_of(texts, train)
    assert np.flatnonzero(found.attribute_dense).tolist() == [0, 2]
    assert np.flatnonzero(found.long).tolist() == [1]
    assert np.flatnonzero(found.popular).tolist() == [0]
    for one, other in (
        (found.attribute_dense, found.narrative),
        (found.long, found.short),
        (found.popular, found.rare),
    ):
        assert (one ^ other).all()
        assert one.dtype == bool


def test_popular_items_have_half_of_the_purchases_and_equal_counts_stay_together():
    counts = np.array([10, 5, 5, 5, 1, 1, 1, 0])
    train = [np.repeat(np.arange(8), counts).astype(np.int32)]
    popular = segments_of([""] * 8, train).popular
    assert np.flatnonzero(popular).tolist() == [0, 1, 2, 3]
    assert counts[popular].sum() >= counts.sum() / 2


def test_no_items_and_no_purchases_are_no_error():
    assert all(len(mask) == 0 for mask in segments_of([], []))
    found = segments_of(["a", "b"], [])
    assert isinstance(found, Segments)
    assert not found.popular.any()
    assert found.rare.all()
