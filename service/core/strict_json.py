"""JSON as in RFC 8259, read as the API reads it. Pure.

Parsers disagree about NaN, a name that comes twice, and numbers that no double holds. All three are errors.
"""

import json
import math
from typing import Any, NoReturn

from service.core.doubles import exact_double


def strict_json(text: str) -> Any:
    """One JSON value. Raises ValueError with the reason, also for a number of thousands of digits."""
    try:
        return DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at character {error.pos}") from None
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(str(error).partition(";")[0]) from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has the name {twice[:100]!r} twice")
    return found


def _number(literal: str) -> float:
    """The float, also if it is infinite: the field at fault is named later."""
    double = float(literal)
    if math.isfinite(double) and exact_double(literal) is None:
        raise ValueError(
            f"{literal[:50]} is a number that no double holds. Send it with fewer digits, or as text"
        )
    return double


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")


DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_number)
