"""The letters that the compact reader was not taught are counted by script."""

import pytest

from model_export.encoders.compact.scripts import untaught_scripts


def test_what_the_reader_was_taught_is_not_counted():
    assert untaught_scripts(["Hex nuts M3 x 1/2 in, 500 ct", "Größe Ångström café", "", "½ µm • ≤ 5 €"]) == {}
    assert untaught_scripts(["cafe\u0301"]) == {}  # as it is drawn: one letter with its accent


def test_other_scripts_have_their_share_of_all_letters_the_largest_first():
    found = untaught_scripts(["Болт", "בורג", "Bolt", "Болт 500"])
    assert list(found) == ["Cyrillic", "Hebrew"]
    assert found == pytest.approx({"Cyrillic": 8 / 16, "Hebrew": 4 / 16})
    assert untaught_scripts(["中文"]) == {"Cjk": 1.0}
