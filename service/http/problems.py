"""Every error becomes an RFC 9457 problem document here. No route needs to know about it."""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from service.errors import EncodedBody, InvalidItem, NotAPatch, ServiceError
from service.http.security import MissingKey

MEDIA_TYPE = "application/problem+json"
MAX_FIELD_ERRORS = 20
_TAGS = ("batch", "bare", "<range>", "<value>")  # which pydantic adds for the unions in schemas.py
_NO_OBJECT = {"model_type", "model_attributes_type", "dict_type"}
_KINDS: dict[type, str] = {type(None): "null", list: "a list", str: "text", bool: "true or false"}


class FieldError(BaseModel):
    """One value of the request that is wrong, and why."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    field: str = Field(description="place in the request, as names and indexes with dots between")
    message: str


class Problem(BaseModel):
    """RFC 9457. `type` is stable. Everything else is for people."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: str = Field(examples=["urn:glyphrec:problem:item-not-found"])
    title: str
    status: int
    detail: str = Field(description="what is wrong and what to do")
    instance: str = Field(description="the path of the request, percent-encoded")
    request_id: str
    errors: list[FieldError]


def problems(*statuses: HTTPStatus) -> dict[int | str, dict[str, Any]]:
    """For `responses=` of a route: the statuses of its problems."""
    content = {MEDIA_TYPE: {"schema": {"$ref": f"#/components/schemas/{Problem.__name__}"}}}
    return {int(status): {"description": status.phrase, "content": content} for status in statuses}


# Possible on every route: they depend on the client, on the size of the request, and on the replica.
OF_ANY_ROUTE = problems(
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.UNAUTHORIZED,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.REQUEST_URI_TOO_LONG,
    HTTPStatus.UNPROCESSABLE_ENTITY,
    HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE,
    HTTPStatus.INTERNAL_SERVER_ERROR,
    HTTPStatus.SERVICE_UNAVAILABLE,
)
OF_A_BODY = problems(HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.UNSUPPORTED_MEDIA_TYPE)
OF_A_QUEUE = problems(HTTPStatus.TOO_MANY_REQUESTS)
OF_AN_ITEM = problems(HTTPStatus.NOT_FOUND)
OF_VECTORS = problems(HTTPStatus.CONFLICT)
OF_A_RANKER = problems(HTTPStatus.CONFLICT)
OF_A_PUT = OF_A_BODY | OF_A_QUEUE | problems(HTTPStatus.CONFLICT, HTTPStatus.INSUFFICIENT_STORAGE)


class ProblemResponse(Response):
    """A problem document as an answer, with the problem's own status."""

    media_type = MEDIA_TYPE

    def __init__(self, problem: Problem, headers: Mapping[str, str] | None = None) -> None:
        # ASCII with escapes: a refused name may hold half a surrogate pair, which UTF-8 cannot encode.
        content = json.dumps(problem.model_dump()).encode("ascii")
        super().__init__(content, status_code=problem.status, headers=dict(headers or {}))


class RefusedBody(HTTPException):
    """Carries a ServiceError through FastAPI's reading of the body, which makes a 400 of other exceptions."""

    def __init__(self, error: ServiceError) -> None:
        super().__init__(error.status)
        self.error = error


def problem_of(error: ServiceError, *, instance: str, request_id: str) -> Problem:
    """The problem document of an error. An InvalidItem also names its field in `errors`.

    `instance` is the path of the request as it was decoded.
    """
    field_errors = []
    if isinstance(error, InvalidItem):
        field_errors = [FieldError(field=error.field, message=str(error))]
    return _problem(error.slug, error.status, str(error), instance, request_id, field_errors)


def problem_response(error: ServiceError, *, instance: str, request_id: str) -> ProblemResponse:
    """The problem with the headers that the error needs."""
    headers = {}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(error.retry_after_s)
    if isinstance(error, MissingKey):
        headers["WWW-Authenticate"] = 'Bearer realm="glyphrec"'
    if isinstance(error, EncodedBody):
        headers["Accept-Encoding"] = "identity"  # RFC 9110, section 12.5.3
    if isinstance(error, NotAPatch):
        headers["Accept-Patch"] = ", ".join(error.media_types)  # RFC 5789, section 3.1
    return ProblemResponse(problem_of(error, instance=instance, request_id=request_id), headers)


def internal_problem(*, instance: str, request_id: str) -> ProblemResponse:
    """Tells nothing about the failure. The log has it, under the same request id."""
    detail = f"The request failed inside this replica. Search its log for the request id {request_id}."
    status = HTTPStatus.INTERNAL_SERVER_ERROR
    return ProblemResponse(_problem("internal", status, detail, instance, request_id))


def add_problem_handlers(app: FastAPI, methods_of: Callable[[str], list[str]]) -> None:
    """Let the app answer every ServiceError, invalid request and HTTPException with a problem document.

    `methods_of` tells the methods that a path takes. Starlette knows only those of the first route.
    """
    app.add_exception_handler(ServiceError, _on_service_error)
    app.add_exception_handler(RequestValidationError, on_invalid_request)
    app.add_exception_handler(HTTPException, partial(_on_http_exception, methods_of))


async def _on_service_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    return _refused(request, error)


async def on_invalid_request(request: Request, error: Exception) -> Response:
    """Answer 422 with the first MAX_FIELD_ERRORS wrong fields. `error` is a RequestValidationError."""
    assert isinstance(error, RequestValidationError)
    return ProblemResponse(invalid_problem(error.errors(), request.scope["path"], request.state.request_id))


def invalid_problem(details: Sequence[Any], instance: str, request_id: str) -> Problem:
    """The document about wrong fields. `details`: pydantic's, each `loc` behind "body" or "query"."""
    field_errors = [
        FieldError(field=_path(each["loc"]), message=words_of(each)) for each in details[:MAX_FIELD_ERRORS]
    ]
    first = field_errors[0]
    more = f" There are {len(details) - 1} more, see `errors`." if len(details) > 1 else ""
    detail = f"{first.field}: {first.message}.{more} GET /docs describes this route."
    status = HTTPStatus.UNPROCESSABLE_ENTITY
    return _problem("invalid-request", status, detail, instance, request_id, field_errors)


async def _on_http_exception(
    methods_of: Callable[[str], list[str]], request: Request, error: Exception
) -> Response:
    assert isinstance(error, HTTPException)
    instance, request_id = request.scope["path"], request.state.request_id
    headers = error.headers
    if isinstance(error, RefusedBody):
        return _refused(request, error.error)
    status = HTTPStatus(error.status_code)
    match status:
        case HTTPStatus.NOT_FOUND:
            slug, detail = "no-such-route", f"There is no route {instance}. GET /docs lists all routes."
            if instance.endswith("/") and methods_of(bare := instance.rstrip("/")):
                detail = f"There is no route {instance}. It is {bare}, without the slash at the end."
        case HTTPStatus.METHOD_NOT_ALLOWED:
            allowed = ", ".join(methods_of(instance))
            headers = {"Allow": allowed}
            if request.method == "OPTIONS":  # asks for this header, RFC 9110 section 9.3.7
                return Response(status_code=HTTPStatus.NO_CONTENT, headers=headers)
            slug, detail = (
                "method-not-allowed",
                f"{instance} does not take {request.method}. Use {allowed}.",
            )
        case _:
            slug, detail = status.phrase.lower().replace(" ", "-"), f"{status.phrase}."
    return ProblemResponse(_problem(slug, status, detail, instance, request_id), headers)


def _refused(request: Request, error: ServiceError) -> Response:
    request.state.refusal = error  # exchange.py counts it
    return problem_response(error, instance=request.scope["path"], request_id=request.state.request_id)


def _problem(
    slug: str,
    status: HTTPStatus,
    detail: str,
    instance: str,
    request_id: str,
    errors: Sequence[FieldError] = (),
) -> Problem:
    return Problem(
        type=f"urn:glyphrec:problem:{slug}",
        title=slug.replace("-", " ").capitalize(),
        status=status,
        detail=detail,
        instance=quote(instance),
        request_id=request_id,
        errors=list(errors),
    )


def words_of(error: Mapping[str, Any]) -> str:
    """What is wrong with a value, without the names of Python."""
    if error["type"] in _NO_OBJECT:
        return f"must be an object, not {_KINDS.get(type(error.get('input')), 'a number')}"
    return str(error["msg"]).removeprefix("Value error, ")


def field_of(loc: Sequence[Any]) -> str:
    """`("batch", "items", 3)` -> `items.3`: names as the client knows them."""
    return ".".join(str(part) for part in loc if part not in _TAGS)[:200]


def _path(loc: Sequence[Any]) -> str:
    """The place of a value without the part of the request: `("body", "items", 3)` -> `items.3`."""
    return field_of(loc[1:]) or str(loc[0])
