"""Each route declares what it demands, and the guard, the admission and the envelope follow it."""

import re
from types import SimpleNamespace

import pytest
from fastapi import APIRouter
from hypothesis import given
from hypothesis import strategies as st
from starlette.routing import Route

from service.api.direct import direct_routes
from service.api.policies import Policies, RoutePolicy, policy, policy_of
from service.api.routes import AREAS, DESCRIPTION, ROUTERS
from service.app import create_app
from service.errors import Overloaded
from service.http.security import Scope
from service.inference.batching import MicroBatcher
from service.settings import Settings

OPEN, READ, WRITE, ADMIN = Scope.OPEN, Scope.READ, Scope.WRITE, Scope.ADMIN
PARTS = [
    *("items", "recommend", "health", "live", "ready", "docs", "admin", "bundles", "assets", "info"),
    *(
        "metrics",
        "healthz",
        "events",
        "openapi.json",
        "similar",
        "search",
        "rank",
        "batch",
        "image",
        "..",
        "",
        "a",
        "é",
    ),
]
METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "BREW")

TRUTH = {
    ("POST", "/recommend"): READ,
    ("POST", "/rank"): READ,
    ("POST", "/recommend/batch"): READ,
    ("POST", "/search"): READ,
    ("POST", "/items"): WRITE,
    ("GET", "/items"): READ,
    ("GET", "/items/{item_id:path}/similar"): READ,
    ("GET", "/items/{item_id:path}/image"): READ,
    ("PUT", "/items/{item_id:path}/image"): WRITE,
    ("DELETE", "/items/{item_id:path}/image"): WRITE,
    ("GET", "/items/{item_id:path}"): READ,
    ("PATCH", "/items/{item_id:path}"): WRITE,
    ("DELETE", "/items/{item_id:path}"): WRITE,
    ("POST", "/events"): WRITE,
    ("GET", "/livez"): OPEN,
    ("GET", "/health/live"): OPEN,
    ("GET", "/readyz"): OPEN,
    ("GET", "/healthz"): OPEN,
    ("GET", "/health/ready"): OPEN,
    ("GET", "/info"): READ,
    ("GET", "/metrics"): OPEN,
    ("POST", "/admin/bundles"): ADMIN,
    ("GET", "/admin/bundles"): ADMIN,
    ("GET", "/docs"): OPEN,
    ("GET", "/openapi.json"): OPEN,
    ("HEAD", "/openapi.json"): OPEN,
    ("GET", "/"): OPEN,
    ("GET", "/explorer/files/{name}"): OPEN,
    ("GET", "/explorer/items"): READ,
    ("GET", "/explorer/branches"): READ,
    ("GET", "/explorer/categories"): READ,
    ("POST", "/explorer/contents"): READ,
    ("POST", "/explorer/beam"): READ,
}


def truth_by_path(method: str, path: str) -> Scope:
    """The scope of every request, told by its method and path alone."""
    open_paths = {"/metrics", "/livez", "/readyz", "/healthz", "/docs", "/openapi.json", "/"}
    if path in open_paths or path.startswith(("/health/", "/docs/")):
        return OPEN
    if path == "/admin" or path.startswith("/admin/"):
        return ADMIN
    queries = {
        ("POST", "/recommend"),
        ("POST", "/recommend/batch"),
        ("POST", "/rank"),
        ("POST", "/search"),
        ("POST", "/explorer/contents"),
        ("POST", "/explorer/beam"),
    }
    if method in {"GET", "HEAD", "OPTIONS"} or (method, path) in queries:
        return READ
    return WRITE


@pytest.fixture(scope="module")
def app(bundle):
    return create_app(Settings(bundle=bundle, threads=1))


@pytest.fixture(scope="module")
def policies(app):
    return app.state.service.policies


def routes_of(app):
    """All of them, also those of the routers that the app includes."""
    for each in app.routes:
        yield from each.original_router.routes if hasattr(each, "original_router") else [each]


def test_every_route_of_ours_declares_a_policy_and_needs_the_scope_of_the_table(app, policies):
    found = {}
    for route in routes_of(app):
        if not isinstance(route, Route):
            assert route.path == "/docs/assets"
            continue
        declared = policy_of(route.endpoint)
        assert (declared is None) == (route.path == "/openapi.json"), route.path
        for method in route.methods:
            found[method, route.path] = (declared or DESCRIPTION).scope
            path = re.sub("{.*?}", "some/item", re.sub("{name}", "app.js", route.path))
            assert policies.scope_of(method, path) is TRUTH[method, route.path]
    assert found == TRUTH


@given(
    method=st.sampled_from(METHODS),
    path=st.one_of(
        st.text(max_size=30).map("/".__add__),
        st.lists(st.sampled_from(PARTS), max_size=5).map(lambda parts: "/" + "/".join(parts)),
    ).filter(lambda path: not path.endswith("\n")),  # the router takes /info and a newline for /info
)
def test_every_path_with_every_method_needs_the_same_scope_with_a_route_or_without(policies, method, path):
    assert policies.scope_of(method, path) is truth_by_path(method, path)


@pytest.mark.parametrize(
    ("method", "path", "scope"),
    [
        ("GET", "/health/../items", OPEN),  # which is no route: the router resolves no dots
        ("GET", "/healthy", READ),
        ("GET", "/health", READ),
        ("POST", "/recommend/", WRITE),
        ("PUT", "/recommend", WRITE),
        ("POST", "/metrics", OPEN),
        ("BREW", "/items", WRITE),
        ("OPTIONS", "/admin/bundles", ADMIN),
        ("GET", "/administrators", READ),
        ("POST", "/items/a/similar", WRITE),
        ("GET", "/docs/assets/swagger-ui.css", OPEN),
    ],
)
def test_a_path_counts_as_the_router_sees_it(policies, method, path, scope):
    assert policies.scope_of(method, path) is scope
    assert truth_by_path(method, path) is scope


def test_head_needs_the_scope_of_get_also_for_a_route_that_declares_nothing():
    policies = Policies(AREAS)
    policies.add(Route("/new", undeclared, methods=["GET"]))
    policies.add(Route("/new/{name}", undeclared, methods=["GET"]))
    assert policies.scope_of("HEAD", "/new") is policies.scope_of("HEAD", "/new/one") is WRITE
    assert policies.methods_of("/new/one") == ["GET", "HEAD", "OPTIONS"]
    assert policies.methods_of("/old") == []


def test_a_newline_at_the_end_of_a_path_changes_no_scope_because_the_router_takes_the_route(policies):
    assert policies.scope_of("POST", "/items\n") is WRITE
    assert policies.scope_of("POST", "/admin/bundles\n") is ADMIN


async def undeclared():
    pass


def test_a_route_that_declares_nothing_needs_the_write_scope_or_that_of_its_area():
    policies = Policies(AREAS)
    for path in ("/new", "/health/new", "/admin/new", "/new/{name}"):
        policies.add(Route(path, undeclared, methods=["GET"]))
    assert policies.scope_of("GET", "/new") is WRITE
    assert policies.scope_of("GET", "/health/new") is WRITE
    assert policies.scope_of("GET", "/admin/new") is ADMIN
    assert policies.scope_of("GET", "/new/one") is WRITE
    assert policies.scope_of("GET", "/new/one/more") is READ  # no route


def test_a_route_is_declared_before_those_that_it_would_be_hidden_by():
    policies = Policies()
    policies.add(Route("/items/{name}", undeclared))
    with pytest.raises(AssertionError, match="an earlier route takes /items/first"):
        policies.add(Route("/items/first", undeclared), RoutePolicy(READ))


def test_only_a_fixed_path_is_direct():
    with pytest.raises(AssertionError, match="has a parameter"):
        Policies().add(Route("/items/{name}", undeclared), RoutePolicy(READ, is_direct=True))


def test_routes_with_a_queue_alone_reserve_room_and_are_called_directly(app, policies):
    queries = {
        ("POST", "/recommend"),
        ("POST", "/recommend/batch"),
        ("POST", "/rank"),
        ("POST", "/search"),
    }
    assert policies.admissions.keys() == queries | {("POST", "/explorer/beam")}
    assert direct_routes(app, ROUTERS).keys() == queries - {("POST", "/recommend/batch")}


async def test_a_request_reserves_what_its_route_declares_once_a_model_is_there(app, monkeypatch):
    state = app.state.service
    assert state.admit("POST", "/recommend") is None
    queue = MicroBatcher(list, name="queue", max_batch_units=50, max_queued_units=50)
    model = SimpleNamespace(searches=queue, loaded=SimpleNamespace(num_beams=30))
    monkeypatch.setattr(state.readiness, "model", model)
    assert state.admit("GET", "/recommend") is None
    assert state.admit("POST", "/items") is None
    reservation = state.admit("POST", "/recommend")
    assert queue.reserved_units == 30
    with pytest.raises(Overloaded):
        state.admit("POST", "/recommend")
    reservation.release()
    assert queue.reserved_units == 0


def test_a_policy_is_that_of_the_endpoint_under_each_of_its_paths():
    router = APIRouter()

    @router.get("/one")
    @router.get("/two")
    @policy(Scope.OPEN)
    async def endpoint():
        pass

    assert {policy_of(route.endpoint) for route in router.routes} == {RoutePolicy(Scope.OPEN)}
