"""Bodies are JSON as in RFC 8259: UTF-8, no NaN, and no name twice, because parsers disagree about those."""

import codecs
import json
import math
from collections.abc import Callable, Coroutine
from typing import Any, NoReturn

from fastapi import Request, Response
from fastapi.routing import APIRoute

from service.core.doubles import exact_double
from service.errors import InvalidJson
from service.http.problems import RefusedBody

OTHER_BYTES = {  # by their first bytes
    b"\x1f\x8b": "packed by gzip, which the service does not unpack",
    b"\x28\xb5\x2f\xfd": "packed by zstd, which the service does not unpack",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


class JsonRoute(APIRoute):
    """For `APIRouter(route_class=JsonRoute)`.

    The stage `parse` begins here and `write` ends here. An endpoint may stop the one and start the other.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's handler of the route, but with a request whose body is read by `parse`."""
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
    """The value of a body. Raises InvalidJson with the reason, also for a number of thousands of digits."""
    try:
        text = body.decode("utf-8-sig")  # some tools begin with a byte order mark
    except UnicodeDecodeError as error:
        for magic, what in OTHER_BYTES.items():
            if body.startswith(magic):
                raise InvalidJson(f"it is {what}") from None
        raise InvalidJson(f"byte {error.start} is not UTF-8") from None
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_number)
    except json.JSONDecodeError as error:
        raise InvalidJson(f"{error.msg} at character {error.pos}") from None
    except ValueError as error:
        raise InvalidJson(str(error).partition(";")[0]) from None
    except RecursionError:
        raise InvalidJson("it is nested too deeply") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidJson(f"an object has the name {twice[:100]!r} twice")
    return found


def _number(literal: str) -> float:
    """The float, also if it is infinite: the field at fault is named later."""
    double = float(literal)
    if math.isfinite(double) and exact_double(literal) is None:
        raise InvalidJson(
            f"{literal[:50]} is a number that no double holds. Send it with fewer digits, or as text"
        )
    return double


def _refuse(constant: str) -> NoReturn:
    raise InvalidJson(f"{constant} is not a JSON number")
