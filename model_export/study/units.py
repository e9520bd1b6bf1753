"""Quantities in product texts (`1/2 in`, `8.5 x 11 Inches`, `Pack of 12`) and other ways to write them."""

import re
from collections.abc import Iterator
from fractions import Fraction
from typing import NamedTuple

import numpy as np


class Unit(NamedTuple):
    """A unit of measure."""

    dimension: str  # units convert only within a dimension
    size: float  # in the smallest unit of its dimension
    spelled: str  # a regular expression; it ignores case unless it says otherwise
    forms: tuple[str, ...]  # the ways to write a quantity of it


UNITS = (
    Unit("length", 1.0, r"mm|millimet(?:er|re)s?", ("{} mm",)),
    Unit("length", 10.0, r"cm|centimet(?:er|re)s?", ("{} cm",)),
    # The "in" of "4 in 1" and of "2 in the box" is no inch.
    Unit("length", 25.4, r"inch(?:es)?|in(?!-|\s+(?!x\b)[a-z\d])|\"|''", ('{}"', "{} in", "{} inch")),
    Unit("length", 304.8, r"ft|foot|feet", ("{} ft", "{} feet")),
    Unit("volume", 1.0, r"ml|millilit(?:er|re)s?", ("{} ml",)),
    Unit("volume", 1000.0, r"(?-i:l|L)|lit(?:er|re)s?", ("{} l",)),
    Unit("volume", 29.5735, r"fl\.?\s*oz|fluid\s+ounces?", ("{} fl oz",)),
    Unit("weight", 1.0, r"(?-i:g)|grams?", ("{} g",)),
    Unit("weight", 1000.0, r"kgs?|kilograms?|kilos?", ("{} kg",)),
    Unit("weight", 28.3495, r"oz|ounces?", ("{} oz", "{} ounce")),
    Unit("weight", 453.592, r"lbs?|pounds?", ("{} lb", "{} pounds")),
    Unit("packs", 1.0, r"ct|count|packs?|pk", ("{} ct", "{} count", "{} pack", "pack of {}")),
    Unit("pieces", 1.0, r"pcs?|pieces?", ("{} pcs", "{} pieces")),
)
WRITABLE = (0.1, 10_000.0)  # range of a converted number: nobody writes 1/2 in as 0.0417 ft

# In 9018 3/4 the whole part is too long for a quantity. It is a part number.
_NUMBER = r"\d{1,2}[ -]\d+/\d+|\d+/\d+|\d[\d,]*(?:\.\d+)?|\.\d+"
_AMOUNT = rf"(?:{_NUMBER})(?:\s*[x×]\s*(?:{_NUMBER}))*"
_SPELLED = "|".join(f"(?P<unit_{place}>{unit.spelled})" for place, unit in enumerate(UNITS))
# Within a word, a part number or a range, a number is only a part of the quantity, so it does not match.
_QUANTITY = re.compile(
    rf"(?<![\w.,/-])(?:pack of (?P<packed>\d+)|(?P<amount>{_AMOUNT})[ -]?(?:{_SPELLED}))(?![a-z\d])",
    re.IGNORECASE,
)
_PACKS = next(unit for unit in UNITS if unit.dimension == "packs")
_UNIT_WORD = re.compile("|".join(unit.spelled for unit in UNITS), re.IGNORECASE)


def is_unit(word: str) -> bool:
    """Whether a single word is a unit. "in" does not count, because it is rarely an inch."""
    return word.lower() != "in" and _UNIT_WORD.fullmatch(word) is not None


def with_other_units(text: str, rng: np.random.Generator) -> str:
    """The text with each quantity in another form, drawn at random: `1/2 in` as `0.5"` or as `12.7 mm`."""

    def other(found: re.Match[str]) -> str:
        forms = [form for form in _forms(found) if form.lower() != found[0].lower()]
        return str(rng.choice(forms)) if forms else found[0]

    return _QUANTITY.sub(other, text)


def _forms(found: re.Match[str]) -> Iterator[str]:
    """Every way to write a quantity. All numbers of `8.5 x 11` get the same unit. A zero gives no forms."""
    amount, unit = found["packed"], _PACKS
    if amount is None:
        amount = found["amount"]
        unit = next(unit for place, unit in enumerate(UNITS) if found[f"unit_{place}"] is not None)
    numbers = [_value(number) for number in re.findall(_NUMBER, amount)]
    if not all(numbers):
        return
    for other in UNITS:
        values = [number * unit.size / other.size for number in numbers]
        is_writable = other is unit or all(WRITABLE[0] <= value < WRITABLE[1] for value in values)
        if other.dimension == unit.dimension and is_writable:
            written = " x ".join(map(_written, values))
            yield from (form.format(written) for form in other.forms)


def _value(number: str) -> float:
    """The value of `1-1/2`, `4 1/2`, `3/8`, `1,000` or `.5`. It is 0 for `1/0`, which is no number."""
    *whole, last = re.split("[ -]", number.replace(",", ""))
    if re.search("/0+$", last):
        return 0.0
    return float(sum(map(int, whole)) + Fraction(last))


def _written(value: float) -> str:
    """A number such as `12.7`. Numbers below 1 are exact enough for sixteenths of an inch."""
    return f"{round(value, 2 if value >= 1 else 4):g}"
