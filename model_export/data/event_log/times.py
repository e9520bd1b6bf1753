"""Times as ISO texts, or as numbers of seconds, milliseconds, microseconds or nanoseconds."""

from dataclasses import dataclass
from datetime import UTC, datetime

from model_export.data.dataset import DataError
from model_export.data.event_log.engine import present, text_of
from model_export.data.event_log.options import EventOptions

# A number below the first bound is in seconds, and so on. In seconds, 1e11 is the year 5138; in milliseconds
# it is the spring of 1973.
UNIT_BELOW = {"s": 1e11, "ms": 1e14, "us": 1e17, "ns": float("inf")}
PER_SECOND = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}
UNIT_NAMES = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds"}
NO_TIME_FROM = 2.0**63
NO_TIME_BELOW = 1e8  # smaller numbers are days, weeks or ranks: only their order is known


@dataclass(frozen=True)
class TimeForm:
    """How a column tells the time."""

    words: str
    is_number: bool
    sql: str  # the time of a row: a number in the column's unit, or milliseconds since 1970
    factor: float = 1.0  # from `sql` to milliseconds


def form_of(column: str, first: list[str], options: EventOptions) -> TimeForm:
    """The form that most of a column's first values have."""
    value = present(column)
    if options.time_format:
        parsed = f"try_strptime({value}, {text_of(options.time_format)})"
        return TimeForm(f"as {options.time_format}", False, f"epoch_ms({parsed})")
    if 2 * sum(map(_is_number, first)) >= len(first):
        if all(map(_is_compact_date, first)):
            return TimeForm("dates as YYYYMMDD", False, f"epoch_ms(try_strptime({value}, '%Y%m%d'))")
        return TimeForm("numbers", True, _finite(value))
    return TimeForm("ISO", False, f"epoch_ms(try_cast({value} AS TIMESTAMPTZ))")


def unit_of(where: str, low: float, middle: float, high: float, unit: str | None) -> tuple[str, float]:
    """The unit of numbers, in words, and the factor to milliseconds, by the smallest, median and largest.

    Raises DataError if one column mixes units.
    """
    if max(abs(low), abs(high)) >= NO_TIME_FROM:
        raise DataError(f"{where} holds {max(low, high, key=abs):.0e}, which is no time. Correct it.")
    if unit is None:
        if high < NO_TIME_BELOW:
            return "plain numbers, of which only the order is known", 1.0
        unit = next(name for name, bound in UNIT_BELOW.items() if middle < bound)
        if high >= UNIT_BELOW[unit]:
            other = next(name for name, bound in UNIT_BELOW.items() if high < bound)
            raise DataError(
                f"{where} mixes {UNIT_NAMES[unit]} and {UNIT_NAMES[other]} ({low:.0f} to {high:.0f}). Write "
                "one unit, or name it with --time-unit."
            )
    return f"{UNIT_NAMES[unit]} since 1970", 1e3 / PER_SECOND[unit]


def day_of(milliseconds: int) -> str:
    """The day of a time, for people."""
    try:
        return datetime.fromtimestamp(milliseconds / 1000, UTC).date().isoformat()
    except (OverflowError, ValueError, OSError):
        return "no day that a calendar has"


def milliseconds_of(text: str, flag: str) -> int:
    """Milliseconds since 1970 of an ISO time, in UTC unless it says otherwise. Raises DataError."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise DataError(
            f"{flag} {text}: not an ISO time. Write it like 2024-06-01 or 2024-06-01T12:00."
        ) from None
    return round((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp() * 1000)


def _finite(value: str) -> str:
    number = f"try_cast({value} AS DOUBLE)"
    return f"CASE WHEN isfinite({number}) THEN {number} END"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_compact_date(text: str) -> bool:
    try:
        return len(text) == 8 and 1900 < datetime.strptime(text, "%Y%m%d").replace(tzinfo=UTC).year < 2100
    except ValueError:
        return False
