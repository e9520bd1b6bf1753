"""From a response to a value, or to an error. Nothing here sends."""

from collections.abc import Callable
from typing import Any, TypeVar

import httpx
from pydantic import ValidationError

from glyphrec_client.errors import PROBLEM_TYPES, UnexpectedAnswer, one_line
from glyphrec_client.models import Answer
from glyphrec_client.problems import problem_error

A = TypeVar("A", bound=Answer)

HEADERS = {"request_id": "X-Request-ID", "etag": "ETag"}  # fields of answers that come from headers


def read_json(response: httpx.Response) -> Any:
    """The JSON of a success. Raises ProblemError and UnexpectedAnswer."""
    if response.is_redirect:
        target = one_line(response.headers.get("location", "nowhere"))
        raise UnexpectedAnswer(response, f"a redirect to {target}", has_json=False)
    try:
        value = response.json()
    except (ValueError, RecursionError):
        reason = "without JSON. Another program answers there"
        raise UnexpectedAnswer(response, reason, has_json=False) from None
    if response.is_error and is_problem(value):
        raise problem_error(response, value)
    if not response.is_success:
        raise UnexpectedAnswer(response, f"not as glyphrec does: {one_line(response.text)}", value)
    return value


def reader(model: type[A], *, also: frozenset[int] = frozenset()) -> Callable[[httpx.Response], A]:
    """Reads an answer of this model. Its fields in HEADERS come from headers.

    The statuses `also` are no errors if their body is of the model.
    """

    def read(response: httpx.Response) -> A:
        value = _json_of(response) if response.status_code in also else None
        if value is None or is_problem(value):
            value = read_json(response)
        found = {
            field: response.headers.get(name, "")
            for field, name in HEADERS.items()
            if field in model.model_fields
        }
        try:
            return model.model_validate(value | found if isinstance(value, dict) else value)
        except ValidationError:
            shown = one_line(response.text)
            raise UnexpectedAnswer(response, f"not as glyphrec does: {shown}", value) from None

    return read


def read_bytes(response: httpx.Response) -> bytes:
    """The body of a success. Raises ProblemError and UnexpectedAnswer."""
    if not response.is_success:
        read_json(response)
    return response.content


def slug_of(response: httpx.Response) -> str:
    """The last part of the type of the problem in a response; '' if it has none of the service's."""
    value = _json_of(response)
    return str(value["type"]).removeprefix(PROBLEM_TYPES) if is_problem(value) else ""


def is_problem(value: Any) -> bool:
    """Whether a value is a problem document of the service."""
    return (
        isinstance(value, dict)
        and str(value.get("type")).startswith(PROBLEM_TYPES)
        and isinstance(value.get("detail"), str)
    )


def _json_of(response: httpx.Response) -> Any:
    try:
        return response.json()
    except (ValueError, RecursionError):
        return None
