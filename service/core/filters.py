"""Filters: the conditions that a request may set, and the attributes of an item that they read. Pure.

`Filter.passes` defines a filter's meaning for one item; views.py gives the same answer for all items at once.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, get_args

from service.core.doubles import exact_double
from service.errors import InvalidFilter, UnknownFilterField

FieldKind = Literal["text", "number", "boolean"]
Value = str | float | bool

KINDS: tuple[FieldKind, ...] = get_args(FieldKind)
RESERVED = ("item_id", "categories", "available")  # every filter has conditions of its own for these


class Attributes(NamedTuple):
    """Everything that filters know about an item."""

    categories: tuple[str, ...]  # as posted, without repeats; diversity counts the first
    available: bool
    values: Mapping[str, Value]  # of the declared fields that the item has


class UnusedValue(NamedTuple):
    """A value of an item that filters cannot use. They treat the item as if it did not have the value."""

    field: str
    reason: str


NO_ATTRIBUTES = Attributes((), True, MappingProxyType({}))


@dataclass(frozen=True)
class Equals:
    """A value that must match in kind too: true does not equal 1. Numbers are compared as floats."""

    value: Value
    kind: FieldKind = field(init=False)  # without it, true would equal 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "kind", kind_of(self.value))
        if not isinstance(self.value, str | bool):
            object.__setattr__(self, "value", _as_float(self.value))

    def holds(self, value: Value) -> bool:
        """Whether the item's value has the same kind and is equal."""
        return kind_of(value) == self.kind and value == self.value


@dataclass(frozen=True)
class Range:
    """A number within all given bounds."""

    gte: float | None = None
    gt: float | None = None
    lte: float | None = None
    lt: float | None = None

    def __post_init__(self) -> None:
        for name, bound in self.bounds.items():
            object.__setattr__(self, name, _as_float(bound))

    @property
    def bounds(self) -> dict[str, float]:
        """The bounds that were given, by name: gte, gt, lte, lt."""
        given = {"gte": self.gte, "gt": self.gt, "lte": self.lte, "lt": self.lt}
        return {name: bound for name, bound in given.items() if bound is not None}

    def holds(self, value: Value) -> bool:
        """False for texts and booleans. A range without bounds holds for every number."""
        return (
            not isinstance(value, (str, bool))
            and (self.gte is None or value >= self.gte)
            and (self.gt is None or value > self.gt)
            and (self.lte is None or value <= self.lte)
            and (self.lt is None or value < self.lt)
        )


Condition = Equals | Range


@dataclass(frozen=True)
class Filter:
    """An item passes if all conditions hold. Filters with the same conditions in another order are equal."""

    categories_any: frozenset[str] = frozenset()  # has at least one; empty: no condition, also below
    categories_all: frozenset[str] = frozenset()
    categories_none: frozenset[str] = frozenset()
    attributes: tuple[tuple[str, Condition], ...] = ()  # an item without the field does not pass
    available: bool | None = None
    item_ids: frozenset[str] | None = None  # only these pass; an empty set lets no item pass

    def __post_init__(self) -> None:
        in_order = sorted(set(self.attributes), key=repr)
        object.__setattr__(self, "attributes", tuple(in_order))

    @property
    def is_empty(self) -> bool:
        """Whether every item passes."""
        return self == _EMPTY

    def passes(self, item_id: str, attributes: Attributes) -> bool:
        """Decide one item. The columns of the catalog decide all items at once and must agree with this."""
        if self.item_ids is not None and item_id not in self.item_ids:
            return False
        if self.available is not None and attributes.available != self.available:
            return False
        has = attributes.categories
        if self.categories_any and self.categories_any.isdisjoint(has):
            return False
        if not (self.categories_all.issubset(has) and self.categories_none.isdisjoint(has)):
            return False
        values = attributes.values
        return all(name in values and condition.holds(values[name]) for name, condition in self.attributes)


_EMPTY = Filter()


@dataclass(frozen=True)
class DeclaredFields:
    """The fields of an item that filters may name, with their kinds."""

    kinds: Mapping[str, FieldKind] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> "DeclaredFields":
        """Read "brand:text,price:number". Raises ValueError."""
        kinds: dict[str, FieldKind] = {}
        for part in filter(None, map(str.strip, text.split(","))):
            name, _, kind = (word.strip() for word in part.partition(":"))
            known = next((each for each in KINDS if each == kind), None)
            if not name or known is None:
                raise ValueError(
                    f"{part!r} is not a field and its kind; write it as in brand:text, {_A_KIND}"
                )
            if name in RESERVED:
                raise ValueError(f"{name!r} needs no declaration; every filter knows {', '.join(RESERVED)}")
            if name in kinds:
                raise ValueError(f"{name!r} is declared twice")
            kinds[name] = known
        return cls(kinds)

    def __str__(self) -> str:
        return ",".join(f"{name}:{kind}" for name, kind in sorted(self.kinds.items()))

    def attributes_of(self, item: Mapping[str, Any]) -> Attributes:
        """The attributes of an item as it was posted.

        `categories` is a text or a list of texts, nested or not. `available` is true unless it is false. A
        number may be given as text ("149.99"). A value of another kind counts as absent, and so does a number
        that no double holds, as a filter would take it for its neighbor. `unused_in` tells them.
        """
        values = {}
        for name, kind in self.kinds.items():
            value = _read(kind, item.get(name))
            if value is not None:
                values[name] = value
        categories = tuple(dict.fromkeys(_texts(item.get("categories"))))
        return Attributes(categories, item.get("available") is not False, values)

    def unused_in(self, item: Mapping[str, Any]) -> list[UnusedValue]:
        """The values of an item that `attributes_of` leaves out, and why."""
        unused = [
            UnusedValue(name, _why_unused(kind, item[name]))
            for name, kind in self.kinds.items()
            if item.get(name) is not None and _read(kind, item[name]) is None
        ]
        categories, available = item.get("categories"), item.get("available")
        if num_others := _num_others(categories):
            is_list = isinstance(categories, list)
            some = f"has {num_others} values that are not text" if is_list else f"is {_name_of(categories)}"
            unused.append(UnusedValue("categories", f"{some}; give a text or a list of texts"))
        if available is not None and not isinstance(available, bool):
            unused.append(
                UnusedValue("available", "is not true or false (without quotes), so the item is available")
            )
        return unused

    def check(self, asked: Filter) -> None:
        """Raise UnknownFilterField or InvalidFilter if a condition cannot be decided for any item."""
        for name, condition in asked.attributes:
            kind = self.kinds.get(name)
            if kind is None:
                raise UnknownFilterField(name, str(self).replace(",", ", "))
            if isinstance(condition, Equals):
                if condition.kind != kind:
                    raise InvalidFilter(
                        name, f"is declared as {kind}, so it cannot equal {condition.value!r}"
                    )
                numbers = [condition.value] if kind == "number" else []
            elif kind != "number":
                raise InvalidFilter(name, f"is declared as {kind}; only a number can be in a range")
            else:
                numbers = list(condition.bounds.values())
                if not numbers:
                    raise InvalidFilter(name, "needs at least one of gte, gt, lte and lt")
            for number in numbers:
                if not isinstance(number, float):
                    raise InvalidFilter(name, "is compared with a number that has more digits than a double")
                if not math.isfinite(number):
                    raise InvalidFilter(name, "is compared with a number that is not finite")


_A_KIND = f"where the kind is {', '.join(KINDS[:-1])} or {KINDS[-1]}"


def kind_of(value: Value) -> FieldKind:
    """The kind of a value. A boolean is checked first, because Python counts it as an int."""
    if isinstance(value, bool):
        return "boolean"
    return "text" if isinstance(value, str) else "number"


def _read(kind: FieldKind, raw: object) -> Value | None:
    if kind == "number":
        return _number(raw)
    wanted = str if kind == "text" else bool
    return raw if isinstance(raw, wanted) else None


def _number(raw: object) -> float | None:
    if isinstance(raw, bool) or not isinstance(raw, int | float | str):
        return None
    if isinstance(raw, str) and "_" in raw:  # Python would ignore it
        return None
    with suppress(ValueError):
        return exact_double(raw)
    return None


def _as_float(number: float) -> float:
    """The number as a float. A whole number that no double holds stays an int."""
    double = exact_double(number)
    return number if double is None else double


def _why_unused(kind: FieldKind, raw: object) -> str:
    if kind == "number" and isinstance(raw, str):
        why = "is text without a number that a double holds; write it like 149.99"
    elif kind == "number" and isinstance(raw, int | float) and not isinstance(raw, bool):
        why = "has more digits than a double"
    else:
        why = f"is {_name_of(raw)}" + ("; write true or false without quotes" if kind == "boolean" else "")
    return f"is declared as {kind}, and {why}"


def _name_of(raw: object) -> str:
    if isinstance(raw, str | int | float):
        return {"text": "a text", "number": "a number", "boolean": "true or false"}[kind_of(raw)]
    return "a list" if isinstance(raw, list) else "an object"


def _num_others(raw: object) -> int:
    """How many of the categories, nested or not, are no text."""
    if isinstance(raw, list):
        return sum(map(_num_others, raw))
    return int(raw is not None and not isinstance(raw, str))


def _texts(raw: object) -> Iterator[str]:
    if isinstance(raw, str):
        yield raw
    elif isinstance(raw, list):
        for each in raw:
            yield from _texts(each)
