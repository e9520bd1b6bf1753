"""Bodies are JSON as in RFC 8259: UTF-8, no NaN, and no name twice, because parsers disagree about those."""

import codecs
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute

from service.core.strict_json import strict_json
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
        return strict_json(text)
    except ValueError as error:
        raise InvalidJson(str(error)) from None
