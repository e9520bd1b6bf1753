"""Which numbers a double keeps: readers of JSON have no other numbers (RFC 8259, section 6). Pure."""

import math
from decimal import Decimal, InvalidOperation

ALL_WHOLE = 2.0**53  # a double holds every whole number up to here


def exact_double(number: int | float | str) -> float | None:
    """The double that stands for this number. None if it would stand for another number too.

    `number` may be a literal. Fractions below 2 ** 53 stand for the nearest double, as in every reader. From
    there on, and near 0, the shortest decimal form of the double must be the number itself. Raises ValueError
    if a literal spells no number.
    """
    try:
        double = float(number)
    except OverflowError:
        return None
    if isinstance(number, float) or 0 < abs(double) < ALL_WHOLE:
        return double if math.isfinite(double) else None
    if not math.isfinite(double):
        return None
    try:
        return double if Decimal(number) == Decimal(repr(double)) else None
    except InvalidOperation:  # the exponent is out of all bounds
        return None
