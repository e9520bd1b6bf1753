"""Columns keep nothing of values that are gone, which no filter can show. test_views.py tests the rest."""

from service.catalog.columns import CategoryColumn, TextColumn


def test_numbers_of_texts_that_are_gone_are_given_out_again() -> None:
    column = TextColumn()
    column.fill(0, ["stays", "goes"])
    for i in range(100):
        column.set(1, f"{i}")
        assert (column.at(0), column.at(1)) == ("stays", f"{i}")
        assert column[1] < 3  # two in use, and one while the old is exchanged for the new
    column.set(1, "stays")
    column.set(0, None)
    assert (column.at(0), column.at(1)) == (None, "stays")


def test_numbers_of_category_lists_that_are_gone_are_given_out_again() -> None:
    column = CategoryColumn()
    column.fill(0, [("a", "b"), ()])
    for i in range(100):
        column.set(1, ("a", f"{i}"))
        assert (column.at(0), column.at(1)) == (("a", "b"), ("a", f"{i}"))
        assert column[1] < 3
    column.set(1, ())
    assert (column.at(0), column.at(1)) == (("a", "b"), ())
