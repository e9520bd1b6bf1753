"""Bodies are JSON as RFC 8259 has it: UTF-8, no NaN, and no name twice, which no two parsers read alike."""

import json
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from fastapi import Request, Response
from fastapi.routing import APIRoute

from service.errors import InvalidJson
from service.http.problems import RefusedBody


class JsonRoute(APIRoute):
    """For `APIRouter(route_class=JsonRoute)`.

    The stage `parse` begins here and `write` ends here, for endpoints that stop the one and start the other.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_strictly(request: Request) -> Response:
            response = await handle(_JsonRequest(request.scope, request.receive))
            request.scope["state"]["stages"].stop("write")
            return response

        return handle_strictly


class _JsonRequest(Request):
    async def json(self) -> Any:
        body = await self.body()
        self.scope["state"]["stages"].start("parse")
        try:
            return parse(body)
        except InvalidJson as error:
            raise RefusedBody(error) from error


def parse(body: bytes) -> Any:
    """The value. Raises InvalidJson with the reason, also for a number of thousands of digits."""
    try:
        text = body.decode("utf-8-sig")  # some tools begin with a mark of the byte order
    except UnicodeDecodeError as error:
        raise InvalidJson(f"no UTF-8 at byte {error.start}") from None
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise InvalidJson(f"{error.msg} at character {error.pos}") from None
    except ValueError as error:
        raise InvalidJson(str(error).partition(";")[0]) from None
    except RecursionError:
        raise InvalidJson("nested too deep to read") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidJson(f"one object has the name {twice[:100]!r} twice")
    return found


def _refuse(constant: str) -> NoReturn:
    raise InvalidJson(f"{constant} is no number there")
