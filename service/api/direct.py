"""The way past FastAPI for a route that is asked a thousand times a second.

FastAPI describes it as any other. Envelope calls it by itself: to find the route, to resolve its dependencies
and to validate an answer that was valid when it was made takes longer than the search of a small model.
"""

from collections.abc import Callable, Coroutine, Mapping
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.dependencies import call_of, require_json
from service.http.json_body import JsonRoute, parse
from service.http.problems import RefusedBody, on_invalid_request
from service.telemetry.stages import Stages


class DirectRoute(JsonRoute):
    """For an endpoint that takes `body`, a model, and `call`, the Call; and returns a model.

    It starts the stage `write`.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        endpoint = self.endpoint
        validate = TypeAdapter(endpoint.__annotations__["body"]).validate_python

        async def handle(request: Request) -> Response:
            await require_json(request)
            sent = await request.body()
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


def direct_routes(app: FastAPI, *routers: APIRouter) -> Mapping[tuple[str, str], ASGIApp]:
    """The DirectRoutes of the routers, by method and path. They leave a ServiceError to their caller."""
    return {
        (method, route.path): _as_asgi(app, route)
        for router in routers
        for route in router.routes
        if isinstance(route, DirectRoute)
        for method in route.methods or ()
    }


def _as_asgi(app: FastAPI, route: DirectRoute) -> ASGIApp:
    handle = route.get_route_handler()

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        scope["app"], scope["route"] = app, route
        request = Request(scope, receive)
        try:
            response = await handle(request)
        except RequestValidationError as error:
            response = await on_invalid_request(request, error)
        except RefusedBody as refused:
            raise refused.error from None
        await response(scope, receive, send)

    return answer
