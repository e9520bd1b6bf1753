"""If-Match and ETag (RFC 9110, sections 8.8.3 and 13.1.1): a change only of what the client has seen."""

import re
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import Depends, Header
from pydantic import WithJsonSchema

from service.errors import InvalidCondition
from service.http.problems import problems
from service.store.records import IfMatch

MAX_CHARS = 2_000
_TAG = r'(?:W/)?"[!#-+\--~]*"'  # without commas, which no tag of ours has
_TAGS = re.compile(rf" *(?:\*|{_TAG}(?: *, *{_TAG})*) *")
_OURS = re.compile(r'(?<!W/)"([0-9a-f]{40})"')

OF_A_CONDITION = problems(HTTPStatus.PRECONDITION_FAILED)
WITH_ETAG: dict[int | str, dict[str, Any]] = {
    200: {
        "headers": {
            "ETag": {
                "description": "names this state of the item, for If-Match. It changes with the item and "
                "with its Semantic ID",
                "schema": {"type": "string"},
            }
        }
    }
}


async def get_if_match(
    if_match: Annotated[
        str | None,
        WithJsonSchema({"type": "string", "maxLength": MAX_CHARS}),  # a header is never null
        Header(
            max_length=MAX_CHARS,
            description="ETags in quotes, as they came: the item is changed only if its present ETag is one "
            "of these, or, with `*`, if it exists. Otherwise the answer is 412, and nothing has changed",
        ),
    ] = None,
) -> IfMatch | None:
    """The header of this request; None without it. Raises InvalidCondition."""
    return None if if_match is None else parse_if_match(if_match)


def parse_if_match(header: str) -> IfMatch:
    """Read a header. A weak tag allows nothing, as does one that is not ours. Raises InvalidCondition."""
    if not _TAGS.fullmatch(header):
        raise InvalidCondition(
            f"is {header[:60]!r}. Send ETags as they came, with their quotes and commas between, or *."
        )
    return IfMatch(None if header.strip() == "*" else frozenset(_OURS.findall(header)))


def etag_of(revision: str) -> dict[str, str]:
    """The header of an answer that shows an item of this revision."""
    return {"ETag": f'"{revision}"'}


IfMatchDep = Annotated[IfMatch | None, Depends(get_if_match)]
