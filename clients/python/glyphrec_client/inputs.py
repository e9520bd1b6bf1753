"""What callers write: plain dictionaries, typed. The names are those of the service's OpenAPI document."""

from collections.abc import Mapping
from typing import Any, TypedDict

Item = Mapping[str, Any]  # "item_id", and any other fields


class Range(TypedDict, total=False):
    """A number within all given bounds."""

    gte: float | None
    gt: float | None
    lte: float | None
    lt: float | None


class Filter(TypedDict, total=False):
    """An item must meet all conditions; a condition that is left out asks for nothing."""

    categories_any: list[str] | None
    categories_all: list[str] | None
    categories_none: list[str] | None
    attributes: dict[str, Range | str | bool | int | float] | None
    available: bool | None
    item_ids: list[str] | None
    exclude_item_ids: list[str] | None


class Diversity(TypedDict, total=False):
    """Limits on similar items on one page."""

    max_per_first_code: int | None
    max_per_category: int | None


class Event(TypedDict):
    """A user took an item from a page. `request_id` is that of the answer with the page."""

    event_id: str  # unique; the same if the event is sent again
    request_id: str
    item_id: str
