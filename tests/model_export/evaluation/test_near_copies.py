import numpy as np
import pytest

from model_export.evaluation.near_copies import near_copy, shared_levels


@pytest.mark.parametrize(
    ("item", "field"),
    [
        ({"item_id": "1", "title": "Paint, red, 500 ml"}, "title"),  # a color comes first
        ({"item_id": "1", "title": "Bolt M3 x 12"}, "title"),
        ({"item_id": "1", "title": "Bolt", "size": "12 mm"}, "size"),
        ({"item_id": "1", "title": "Bolt", "brand": "Acme"}, "title"),  # nothing to change: a color is added
    ],
)
def test_a_near_copy_differs_in_one_field_and_has_no_id(item, field):
    copy = near_copy(item, np.random.default_rng(0))
    assert "item_id" not in copy
    changed = [name for name in copy if copy[name] != item[name]]
    assert changed == [field]


def test_the_color_becomes_another_color():
    copy = near_copy({"title": "Paint, red, 500 ml"}, np.random.default_rng(0))
    assert copy["title"].startswith("Paint, ")
    assert copy["title"].endswith(", 500 ml")
    assert "red" not in copy["title"].lower()


def test_shared_levels_counts_from_the_first_code_on():
    codes = np.array([[1, 2, 3], [1, 2, 3], [1, 2, 3], [1, 2, 3]])
    others = np.array([[1, 2, 3], [1, 2, 0], [1, 0, 3], [0, 2, 3]])
    assert shared_levels(codes, others).tolist() == [3, 2, 1, 0]
