"""Quantities get the forms that were worked out by hand, and other numbers stay."""

import numpy as np
import pytest

from model_export.study.units import is_unit, with_other_units


def ways(text: str) -> set[str]:
    """Every text that `text` can become, over many random numbers."""
    return {with_other_units(text, np.random.default_rng(seed)) for seed in range(60)}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1/2 in", {'0.5"', "0.5 in", "0.5 inch", "12.7 mm", "1.27 cm"}),
        ('0.5"', {"0.5 in", "0.5 inch", "12.7 mm", "1.27 cm"}),
        ("12.7 mm", {'0.5"', "0.5 in", "0.5 inch", "1.27 cm"}),
        ("1-1/2 lb", {"1.5 lb", "1.5 pounds", "24 oz", "24 ounce", "680.39 g", "0.6804 kg"}),
        ("16oz", {"16 oz", "16 ounce", "1 lb", "1 pounds", "453.59 g", "0.4536 kg"}),
        ("250 mL", {"0.25 l", "8.45 fl oz"}),
        ("Pack of 12", {"12 ct", "12 count", "12 pack"}),
        ("12-Pack", {"12 ct", "12 count", "12 pack", "pack of 12"}),
        ("600-Piece", {"600 pcs", "600 pieces"}),
        ("1,000 g", {"1 kg", "1000 g", "35.27 oz", "35.27 ounce", "2.2 lb", "2.2 pounds"}),
    ],
)
def test_a_quantity_becomes_another_way_to_write_it(text, expected):
    assert ways(text) == expected


def test_all_numbers_of_a_size_get_the_same_unit():
    assert ways("8.5 x 11 Inches") == {
        '8.5 x 11"',
        "8.5 x 11 in",
        "8.5 x 11 inch",
        "21.59 x 27.94 cm",
        "215.9 x 279.4 mm",
        "0.7083 x 0.9167 ft",
        "0.7083 x 0.9167 feet",
    }


def test_a_part_number_before_a_size_stays():
    assert all(text.startswith("Eagle 9018 ") for text in ways("Eagle 9018 3/4-Inch"))
    assert "Eagle 9018 19.05 mm" in ways("Eagle 9018 3/4-Inch")


@pytest.mark.parametrize(
    "text",
    ["4 in 1 tool", "2 in the box", "5-10 mm", "W465-14 mm", "M3 x 0.5", "5 G phone", "1/0 in", "12 inched"],
)
def test_a_text_without_quantities_stays(text):
    assert ways(text) == {text}


def test_every_quantity_changes_and_the_rest_of_the_text_stays():
    for text in ways("Bolt, 1/2 in, zinc (Pack of 6)"):
        head, size, tail = text.split(", ")
        assert (head, size != "1/2 in", tail.startswith("zinc (")) == ("Bolt", True, True)
        assert "Pack of 6" not in tail


def test_a_single_unit_is_known_except_the_preposition_in():
    assert all(map(is_unit, ["mm", "Inch", "OZ", "lbs", "ct", "pcs"]))
    assert not any(map(is_unit, ["in", "In", "millimetric", "zinc", ""]))
