"""Which numbers a double keeps."""

import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.core.doubles import exact_double


@pytest.mark.parametrize(
    ("number", "double"),
    [
        (0, 0.0),
        ("0.000", 0.0),
        ("-0.0", 0.0),
        ("149.99", 149.99),
        ("3.33333333333333333333", 10 / 3),
        (2**53, 2.0**53),
        (2**53 + 1, None),
        ("9007199254740993", None),
        ("9007199254740993.0", None),
        ("9007199254740992.0", 2.0**53),
        ("12345678901234567.89", None),
        (2**60, None),  # its shortest form is 1.152921504606847e18, another number
        (10**22, 1e22),
        (10**23, 1e23),
        ("1e300", 1e300),
        ("5e-324", 5e-324),
        ("1e-400", None),
        ("-1e-99999999999999999999", None),
        ("1e999", None),
        (10**400, None),
        (math.inf, None),
        (math.nan, None),
    ],
)
def test_a_double_stands_for_one_number(number: int | float | str, double: float | None) -> None:
    assert exact_double(number) == double


@pytest.mark.parametrize("text", ["", "1,5", "$5", "0x10"])
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="convert"):
        exact_double(text)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_double_stands_for_itself_as_it_is_written(double: float) -> None:
    assert exact_double(double) == exact_double(repr(double)) == double


@given(st.sets(st.integers(2**53 - 20, 2**53 + 20) | st.integers(10**17, 10**17 + 300), min_size=2))
def test_different_whole_numbers_have_different_doubles_in_their_order(numbers: set[int]) -> None:
    kept = [exact_double(number) for number in sorted(numbers)]
    doubles = [double for double in kept if double is not None]
    assert all(one < other for one, other in zip(doubles, doubles[1:], strict=False))
    assert all(
        abs(Fraction(double) - number) <= math.ulp(double)
        for double, number in zip(kept, sorted(numbers), strict=True)
        if double is not None
    )
