"""Columns with one value for each place. All places are compared at once. Pure.

Columns grow by segments, so growth copies nothing. Texts and lists of categories repeat, so a column holds a
number for each of them, and the value itself is kept once.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.core.filters import Condition, Equals, Filter, Value

SEGMENT = 65_536  # places in one array
ABSENT = -1

Mask = NDArray[np.bool_]
Test = Callable[[int], Mask]  # number of a segment -> which of its places pass
T = TypeVar("T", str, tuple[str, ...])


def nothing(_segment: int) -> Mask:
    """A test that no place passes."""
    return np.zeros(SEGMENT, dtype=np.bool_)


class Column:
    """Numbers of one dtype, one for each place, in segments of SEGMENT places. New places hold `absent`."""

    def __init__(self, dtype: type[np.generic], absent: float) -> None:
        self.segments: list[NDArray[Any]] = []
        self._dtype = dtype
        self._absent = absent

    def __getitem__(self, place: int) -> Any:
        return self.segments[place // SEGMENT].item(place % SEGMENT)

    def __setitem__(self, place: int, value: float) -> None:
        self.segments[place // SEGMENT][place % SEGMENT] = value

    def grow(self) -> None:
        """Add one segment, filled with the value for absent."""
        self.segments.append(np.full(SEGMENT, self._absent, dtype=self._dtype))

    def extend(self, place: int, values: Sequence[float]) -> None:
        """Set the values from this place on. It must be the first place that no item has ever had."""
        while values:
            start = place % SEGMENT
            if start == 0:
                self.grow()
            part = values[: SEGMENT - start]
            self.segments[-1][start : start + len(part)] = part
            place, values = place + len(part), values[len(part) :]

    def equal(self, value: float) -> Test:
        """A test for places whose number equals `value`. It compares a whole segment at once."""

        def test(segment: int) -> Mask:
            passing: Mask = self.segments[segment] == value
            return passing

        return test


class ValueColumn(Protocol):
    """A column of values of one kind."""

    def grow(self) -> None:
        """Add one segment of places without a value."""

    def at(self, place: int) -> Value | None:
        """The value at a place, or None."""

    def set(self, place: int, value: Value | None) -> None:
        """Replace the value at a place. None removes it."""

    def fill(self, place: int, values: Iterable[Value | None]) -> None:
        """Set consecutive values from this place on. It must be the first place that no item has ever had."""

    def holding(self, condition: Condition) -> Test:
        """A test for places whose value meets the condition. A place without a value never passes."""


class NumberColumn(Column):
    """Numbers as float64. NaN marks an absent value."""

    def __init__(self) -> None:
        super().__init__(np.float64, math.nan)  # no condition holds for it

    def at(self, place: int) -> float | None:
        """The number at a place, or None where it is NaN."""
        value: float = self[place]
        return None if math.isnan(value) else value

    def set(self, place: int, value: Value | None) -> None:
        """Stored as a float; None becomes NaN."""
        self[place] = math.nan if value is None else float(value)

    def fill(self, place: int, values: Iterable[Value | None]) -> None:
        """Stored as floats; None becomes NaN."""
        self.extend(place, [math.nan if value is None else float(value) for value in values])

    def holding(self, condition: Condition) -> Test:
        """For Equals one comparison for each segment, for Range one for each bound."""
        if isinstance(condition, Equals):
            return self.equal(float(condition.value))
        comparisons = [(_COMPARE[name], bound) for name, bound in condition.bounds.items()]

        def test(segment: int) -> Mask:
            values = self.segments[segment]
            passing: Mask = ~np.isnan(values)
            for compare, bound in comparisons:
                passing &= compare(values, bound)
            return passing

        return test


_COMPARE: dict[str, Callable[[NDArray[Any], float], Mask]] = {
    "gte": np.greater_equal,
    "gt": np.greater,
    "lte": np.less_equal,
    "lt": np.less,
}


class FlagColumn(Column):
    """Booleans as int8: 0, 1, or ABSENT."""

    def __init__(self) -> None:
        super().__init__(np.int8, ABSENT)

    def at(self, place: int) -> bool | None:
        """True or False, or None where the place holds ABSENT."""
        flag = self[place]
        return None if flag == ABSENT else flag == 1

    def set(self, place: int, value: Value | None) -> None:
        """Stored as 0 or 1; None becomes ABSENT."""
        self[place] = ABSENT if value is None else int(value)

    def fill(self, place: int, values: Iterable[Value | None]) -> None:
        """Stored as 0 or 1; None becomes ABSENT."""
        self.extend(place, [ABSENT if value is None else int(value) for value in values])

    def holding(self, condition: Condition) -> Test:
        """Only Equals can pass: a range is a condition on numbers."""
        return self.equal(int(condition.value)) if isinstance(condition, Equals) else nothing


class _Interned(Column, Generic[T]):
    """The column holds numbers of values. The number of a value that is gone is used again."""

    def __init__(self) -> None:
        super().__init__(np.int32, ABSENT)
        self._number_of: dict[T, int] = {}
        self._value_of: list[T | None] = []
        self._num_places: list[int] = []  # [number] -> places that hold this value
        self._free: list[int] = []

    def at(self, place: int) -> T | None:
        """The value itself, looked up by the number at this place. None if there is none."""
        number = self[place]
        return None if number == ABSENT else self._value_of[number]

    def _replace(self, place: int, value: T | None) -> None:
        held = self[place]
        self[place] = self._take(value)  # before the release: it may be the same value
        if held != ABSENT:
            self._release(held)

    def _take(self, value: T | None) -> int:
        if value is None:
            return ABSENT
        number = self._number_of.get(value)
        if number is None:
            if not self._free:
                self._free.append(len(self._value_of))
                self._value_of.append(None)
                self._num_places.append(0)
            number = self._number_of[value] = self._free.pop()
            self._value_of[number] = value
            self._came(value, number)
        self._num_places[number] += 1
        return number

    def _release(self, number: int) -> None:
        self._num_places[number] -= 1
        value = self._value_of[number]
        if self._num_places[number] == 0 and value is not None:
            self._value_of[number] = None
            del self._number_of[value]
            self._free.append(number)
            self._went(value, number)

    def _came(self, value: T, number: int) -> None:
        """Called when a value gets its first place."""

    def _went(self, value: T, number: int) -> None:
        """Called when a value has lost its last place."""


class TextColumn(_Interned[str]):
    """Texts. Equal texts share one number."""

    def set(self, place: int, value: Value | None) -> None:
        """Replace the text at a place, and forget the old one if no other place has it."""
        self._replace(place, None if value is None else str(value))

    def fill(self, place: int, values: Iterable[Value | None]) -> None:
        """Intern the texts and append their numbers."""
        self.extend(place, [self._take(None if value is None else str(value)) for value in values])

    def holding(self, condition: Condition) -> Test:
        """Compares numbers, not texts. If no item has the text, no place passes. A range never passes."""
        number = self._number_of.get(str(condition.value)) if isinstance(condition, Equals) else None
        return nothing if number is None else self.equal(number)


class CategoryColumn(_Interned[tuple[str, ...]]):
    """Lists of categories. There are few different ones, so a filter is decided list by list."""

    def __init__(self) -> None:
        super().__init__()
        self._numbers_with: dict[str, set[int]] = {}  # category -> numbers of the lists that have it

    def at(self, place: int) -> tuple[str, ...]:
        """The categories at a place. Empty if there are none."""
        return super().at(place) or ()

    def set(self, place: int, value: tuple[str, ...]) -> None:
        """Replace the categories at a place. An empty tuple removes them."""
        self._replace(place, value or None)

    def fill(self, place: int, values: Iterable[tuple[str, ...]]) -> None:
        """Intern the lists of categories and append their numbers."""
        self.extend(place, [self._take(value or None) for value in values])

    def passing(self, asked: Filter) -> Test:
        """A test for the filter's conditions on categories. Each list of categories is decided once."""
        passes = np.ones(len(self._value_of) + 1, dtype=np.bool_)  # by number; -1, the last, has no category
        if asked.categories_any:
            passes &= self._with(asked.categories_any)
        for category in asked.categories_all:
            passes &= self._with([category])
        passes &= ~self._with(asked.categories_none)

        def test(segment: int) -> Mask:
            passing: Mask = passes[self.segments[segment]]
            return passing

        return test

    def num_by_category(self) -> dict[str, int]:
        """How many places have each category."""
        return {
            category: sum(self._num_places[number] for number in numbers)
            for category, numbers in self._numbers_with.items()
        }

    def _with(self, categories: Iterable[str]) -> Mask:
        """Which lists have at least one of these categories."""
        found = np.zeros(len(self._value_of) + 1, dtype=np.bool_)
        for category in categories:
            numbers = self._numbers_with.get(category, set())
            found[np.fromiter(numbers, dtype=np.int64, count=len(numbers))] = True
        return found

    def _came(self, value: tuple[str, ...], number: int) -> None:
        for category in value:
            self._numbers_with.setdefault(category, set()).add(number)

    def _went(self, value: tuple[str, ...], number: int) -> None:
        for category in value:
            numbers = self._numbers_with[category]
            numbers.discard(number)
            if not numbers:
                del self._numbers_with[category]
