"""Filters as clients write them: an object in a body, or the same object as JSON in a query parameter."""

from typing import Annotated

from fastapi import Depends, Query
from pydantic import ValidationError

from service.api.dependencies import StateDep
from service.api.schemas import FilterIn, RangeIn
from service.core.filters import Equals, Filter, Range
from service.errors import InvalidFilter, InvalidJson
from service.http.json_body import parse
from service.http.problems import field_of, words_of


def filter_of(asked: FilterIn | None) -> Filter | None:
    """The conditions of a filter; None if it asks for nothing. `exclude_item_ids` is no part of them."""
    if asked is None:
        return None
    conditions = {
        name: Range(**each.model_dump()) if isinstance(each, RangeIn) else Equals(each)
        for name, each in (asked.attributes or {}).items()
    }
    found = Filter(
        categories_any=frozenset(asked.categories_any or ()),
        categories_all=frozenset(asked.categories_all or ()),
        categories_none=frozenset(asked.categories_none or ()),
        attributes=tuple(conditions.items()),
        available=asked.available,
        item_ids=None if asked.item_ids is None else frozenset(asked.item_ids),
    )
    return None if found.is_empty else found


async def get_filter(
    state: StateDep,
    given: Annotated[
        str | None,
        Query(
            alias="filter",
            description="the filter of POST /recommend as JSON, percent-encoded: only items that pass it",
            examples=['{"categories_any": ["Pens"], "available": true}'],
        ),
    ] = None,
) -> FilterIn | None:
    """The parameter `filter` of this request. Raises InvalidFilter, UnknownFilterField."""
    if given is None:
        return None
    try:
        asked = FilterIn.model_validate(parse(given.encode("utf-8", "surrogatepass")))
    except InvalidJson as error:
        raise InvalidFilter("filter", f"is not JSON. {error}".rstrip(".")) from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(part for part in ("filter", field_of(first["loc"])) if part)
        raise InvalidFilter(where, words_of(first).rstrip(".")) from None
    if (conditions := filter_of(asked)) is not None:
        state.options.filter_fields.check(conditions)
    return asked


FilterDep = Annotated[FilterIn | None, Depends(get_filter)]
