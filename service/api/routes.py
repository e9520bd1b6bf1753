"""All routes of the service, and the policies that they declare."""

from collections.abc import Iterator

from fastapi import FastAPI
from starlette.routing import Mount, Route

from service.api import (
    admin,
    description,
    events,
    explorer,
    health,
    images,
    items,
    rank,
    recommend,
    recommend_batch,
    search,
)
from service.api.direct import ApiRoute
from service.api.policies import Policies, RoutePolicy
from service.http.security import Scope

# The routes of images come before the others of items, as an id may have slashes.
CLIENT_ROUTERS = (
    recommend.router,
    rank.router,
    recommend_batch.router,
    search.router,
    images.router,
    items.router,
    events.router,
)
ROUTERS = (*CLIENT_ROUTERS, health.router, admin.router, description.router)

# The description of the API has no secrets.
DESCRIPTION = RoutePolicy(Scope.OPEN)
# Scopes of paths that no route takes; see Policies.
AREAS = {"/docs/": Scope.OPEN, "/health/": Scope.OPEN, "/admin": Scope.ADMIN, "/admin/": Scope.ADMIN}


def add_routes(app: FastAPI, *, has_explorer: bool = True) -> Policies:
    """Add our routes to a new app -> the policies of all its routes."""
    policies = Policies(AREAS)
    for route in app.routes:  # FastAPI's own
        if isinstance(route, Route):
            policies.add(route, DESCRIPTION)
        elif isinstance(route, Mount):
            policies.add_files(route)
    for router in (*ROUTERS, *([explorer.router] if has_explorer else [])):
        app.include_router(router)
        for route in router.routes:
            assert isinstance(route, ApiRoute), f"{router} has another route class"
            policies.add(route)
    return policies


def client_routes() -> Iterator[tuple[str, str]]:
    """The template and the method of each route that the objectives are about."""
    for router in CLIENT_ROUTERS:
        for route in router.routes:
            assert isinstance(route, ApiRoute), f"{router} has another route class"
            for method in sorted(route.methods or ()):
                yield route.path, method
