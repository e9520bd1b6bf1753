"""The way past FastAPI for a route that gets a thousand requests a second.

FastAPI describes a direct route like any other, but the envelope calls it by itself. FastAPI would find the
route, resolve its dependencies and validate the answer, which takes longer than the search of a small model.
"""

from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, TypeAdapter, ValidationError
from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send

from service.api.dependencies import call_of, require_json
from service.api.policies import policy_of
from service.http.json_body import JsonRoute, parse
from service.http.problems import RefusedBody, on_invalid_request
from service.http.security import Scope as KeyScope
from service.telemetry.stages import Stages

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class ApiRoute(JsonRoute):
    """For `APIRouter(route_class=ApiRoute)`: a JsonRoute, direct if the policy of its endpoint says so.

    An id in a path is any text, so it may end like another route, as in `/items/a%2Fsimilar`. What follows an
    id in the template of a route must therefore follow a slash that came unencoded.
    """

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Starlette's match, unless an id ends in what looks like the end of this route."""
        match, child = super().matches(scope)
        if match is Match.NONE:
            return match, child
        if "" in child.get("path_params", {}).values():  # /items/ names no item
            return Match.NONE, {}
        after_id = self.path.rpartition("}")[2] if "}" in self.path else ""
        sent = scope.get("raw_path")
        if after_id and sent is not None:
            last = unquote(sent.partition(b"?")[0].rpartition(b"/")[2].decode("ascii", "replace"))
            if f"/{last}" != after_id:
                return Match.NONE, {}
        return match, child

    def get_route_handler(self) -> Handler:
        """Make the route's handler. A direct route validates its body without FastAPI.

        A query parameter that the route does not know, or that comes twice, is refused as fields of bodies
        are. Routes that are open to everybody take any, because monitors add some of their own.
        """
        handle = _direct_handler(self.endpoint) if self.is_direct else super().get_route_handler()
        declared = policy_of(self.endpoint)
        if declared is None or declared.scope is KeyScope.OPEN:
            return handle
        known = tuple(_query_names(self.dependant))

        async def handle_known(request: Request) -> Response:
            if request.scope["query_string"]:
                _check_parameters(request, known)
            return await handle(request)

        return handle_known

    @property
    def is_direct(self) -> bool:
        """Whether the envelope calls the endpoint. False if the endpoint declares no policy."""
        declared = policy_of(self.endpoint)
        return declared is not None and declared.is_direct


def direct_routes(app: FastAPI, routers: Iterable[APIRouter]) -> Mapping[tuple[str, str], ASGIApp]:
    """The direct routes of the routers, by method and path. They leave a ServiceError to their caller."""
    return {
        (method, route.path): _as_asgi(app, route)
        for router in routers
        for route in router.routes
        if isinstance(route, ApiRoute) and route.is_direct
        for method in route.methods or ()
    }


def _query_names(dependant: Dependant) -> Iterator[str]:
    """The query parameters of an endpoint and of what it depends on."""
    yield from (field.alias for field in dependant.query_params)
    for each in dependant.dependencies:
        yield from _query_names(each)


def _check_parameters(request: Request, known: tuple[str, ...]) -> None:
    """Raise RequestValidationError for names that the route does not know, or that come twice."""
    names = [name for name, _ in request.query_params.multi_items()]
    takes = f"The route takes {', '.join(known)}" if known else "The route takes none"
    where = "" if request.method in ("GET", "DELETE") else "; other values belong into the body"
    problems = {
        name: f"is no query parameter here. {takes}{where}" if name not in known else "is given twice"
        for name in names
        if name not in known or names.count(name) > 1
    }
    if problems:
        raise RequestValidationError(
            [
                {"type": "extra_forbidden", "loc": ("query", name), "msg": problem}
                for name, problem in problems.items()
            ]
        )


def _direct_handler(endpoint: Callable[..., Any]) -> Handler:
    """`endpoint` takes `body`, a pydantic model, and `call`, a Call; it returns a pydantic model.

    It starts the stage `write`.
    """
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


def _as_asgi(app: FastAPI, route: ApiRoute) -> ASGIApp:
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
