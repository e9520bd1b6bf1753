"""The way through FastAPI of a route that is asked a thousand times a second.

FastAPI describes it as any other, but resolves no dependencies for it and does not validate an answer that
was valid when it was made: together that takes longer than the search of a small model.
"""

from collections.abc import Callable, Coroutine
from http import HTTPStatus
from typing import Any

from fastapi import HTTPException, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.requests import ClientDisconnect

from service.api.dependencies import call_of, require_json
from service.api.json_body import JsonRoute, parse
from service.metrics import Stages


class DirectRoute(JsonRoute):
    """For an endpoint that takes `body`, a model, and `call`, the Call; and returns a model.

    It starts the stage `write`.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        endpoint = self.endpoint
        validate = TypeAdapter(endpoint.__annotations__["body"]).validate_python

        async def handle(request: Request) -> Response:
            await require_json(request)
            try:
                sent = await request.body()
            except ClientDisconnect:  # nobody waits for an answer; other routes do the same
                raise HTTPException(HTTPStatus.BAD_REQUEST) from None
            stages: Stages = request.scope["state"]["stages"]
            stages.start("parse")
            given = parse(sent) if sent else None
            try:
                body = validate(given)
            except ValidationError as error:
                details = error.errors(include_url=False)
                raise RequestValidationError(
                    [{**each, "loc": ("body", *each["loc"])} for each in details]
                ) from None
            stages.stop("parse")
            answer: BaseModel = await endpoint(body=body, call=call_of(request))
            written = answer.__pydantic_serializer__.to_json(answer)
            stages.stop("write")
            return Response(written, media_type="application/json")

        return handle
