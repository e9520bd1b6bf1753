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
    def __init__(self, dtype: type[np.generic], absent: float) -> None:
        self.segments: list[NDArray[Any]] = []
        self._dtype = dtype
        self._absent = absent

    def __getitem__(self, place: int) -> Any:
        return self.segments[place // SEGMENT].item(place % SEGMENT)

    def __setitem__(self, place: int, value: float) -> None:
        self.segments[place // SEGMENT][place % SEGMENT] = value

    def grow(self) -> None:
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
        def test(segment: int) -> Mask:
            passing: Mask = self.segments[segment] == value
            return passing

        return test


class ValueColumn(Protocol):
    """A column of values of one kind."""

    def grow(self) -> None: ...
    def at(self, place: int) -> Value | None: ...
    def set(self, place: int, value: Value | None) -> None: ...
    def fill(self, place: int, values: Iterable[Value | None]) -> None: ...
    def holding(self, condition: Condition) -> Test: ...


class NumberColumn(Column):
    def __init__(self) -> None:
        super().__init__(np.float64, math.nan)  # no condition holds for it

    def at(self, place: int) -> float | None:
        value: float = self[place]
        return None if math.isnan(value) else value

    def set(self, place: int, value: Value | None) -> None:
        self[place] = math.nan if value is None else float(value)

    def fill(self, place: int, values: Iterable[Value | None]) -> None:
        self.extend(place, [math.nan if value is None else float(value) for value in values])

    def holding(self, condition: Condition) -> Test:
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
    def __init__(self) -> None:
        super().__init__(np.int8, ABSENT)

    def at(self, place: int) -> bool | None:
        flag = self[place]
        return None if flag == ABSENT else flag == 1

    def set(self, place: int, value: Value | None) -> None:
        self[place] = ABSENT if value is None else int(value)

    def fill(self, place: int, values: Iterable[Value | None]) -> None:
        self.extend(place, [ABSENT if value is None else int(value) for value in values])

    def holding(self, condition: Condition) -> Test:
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
    def set(self, place: int, value: Value | None) -> None:
        self._replace(place, None if value is None else str(value))

    def fill(self, place: int, values: Iterable[Value | None]) -> None:
        self.extend(place, [self._take(None if value is None else str(value)) for value in values])

    def holding(self, condition: Condition) -> Test:
        number = self._number_of.get(str(condition.value)) if isinstance(condition, Equals) else None
        return nothing if number is None else self.equal(number)


class CategoryColumn(_Interned[tuple[str, ...]]):
    """Lists of categories. There are few different ones, so a filter is decided list by list."""

    def __init__(self) -> None:
        super().__init__()
        self._numbers_with: dict[str, set[int]] = {}  # category -> numbers of the lists that have it

    def at(self, place: int) -> tuple[str, ...]:
        return super().at(place) or ()

    def set(self, place: int, value: tuple[str, ...]) -> None:
        self._replace(place, value or None)

    def fill(self, place: int, values: Iterable[tuple[str, ...]]) -> None:
        self.extend(place, [self._take(value or None) for value in values])

    def passing(self, asked: Filter) -> Test:
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
