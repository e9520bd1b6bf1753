"""Every path says truly which methods it takes, and HEAD is taken wherever GET is."""

import pytest

from service.core.keys import hash_of
from tests.service.running import is_problem, running

TAKEN = {
    "/info": {"GET"},
    "/metrics": {"GET"},
    "/livez": {"GET"},
    "/readyz": {"GET"},
    "/healthz": {"GET"},
    "/health/live": {"GET"},
    "/health/ready": {"GET"},
    "/items": {"GET", "POST"},
    "/items/item-0": {"GET", "PATCH", "DELETE"},
    "/items/item-0/image": {"GET", "PUT", "PATCH", "DELETE"},  # which is an id, too
    "/items/item-0/similar": {"GET", "PATCH", "DELETE"},
    "/recommend": {"POST"},
    "/recommend/batch": {"POST"},
    "/events": {"POST"},
    "/admin/bundles": {"GET", "POST"},
    "/docs": {"GET"},
    "/openapi.json": {"GET"},
    "/docs/assets/swagger-ui.css": {"GET"},
}
METHODS = {"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE"}
CHANGES_EACH_TIME = {"x-request-id", "server-timing"}
ADMIN_KEY = "a-key-of-some-length"


def allowed(path):
    return TAKEN[path] | {"OPTIONS"} | ({"HEAD"} if "GET" in TAKEN[path] else set())


@pytest.fixture
async def client(bundle, redis_url):
    async with running(bundle, redis_url, admin_keys=(hash_of(ADMIN_KEY),)) as client:
        client.headers["X-API-Key"] = ADMIN_KEY
        yield client


async def test_a_method_that_a_path_does_not_take_is_told_which_ones_it_takes(client):
    for path in TAKEN:
        for method in METHODS - allowed(path):
            answer = await client.request(method, path)
            methods = ", ".join(sorted(allowed(path)))
            assert (answer.status_code, answer.headers["allow"]) == (405, methods), (method, path)
            if method != "HEAD":  # an answer to it has no body
                assert is_problem(answer, 405, "method-not-allowed")
                assert f"does not take {method}. Use {methods}." in answer.json()["detail"]
        for method in allowed(path):  # an empty body is refused, but not for its method
            assert (await client.request(method, path)).status_code != 405, (method, path)


async def test_options_tells_the_methods_and_does_nothing(client):
    for path in TAKEN:
        answer = await client.options(path)
        assert (answer.status_code, answer.content) == (204, b"")
        assert set(answer.headers["allow"].split(", ")) == allowed(path)
    assert is_problem(await client.options("/nowhere"), 404, "no-such-route")


async def test_head_answers_as_get_does_without_a_body(client):
    paths = [path for path, methods in TAKEN.items() if "GET" in methods]
    for path in [*paths, "/items?limit=2", "/items/no-such-item", "/nowhere"]:
        got, headed = await client.get(path), await client.head(path)
        assert headed.status_code == got.status_code, path
        assert headed.content == b""
        assert headed.headers.keys() == got.headers.keys()
        if path != "/metrics":  # counts this request
            same = got.headers.keys() - CHANGES_EACH_TIME
            assert {name: headed.headers[name] for name in same} == {name: got.headers[name] for name in same}


async def test_head_needs_the_key_that_get_needs(client):
    del client.headers["X-API-Key"]
    for path, methods in TAKEN.items():
        if "GET" in methods:
            assert (await client.head(path)).status_code == (await client.get(path)).status_code, path


async def test_head_counts_for_the_route_of_get(client):
    await client.head("/items/item-0")
    counted = [line for line in (await client.get("/metrics")).text.splitlines() if 'method="HEAD"' in line]
    assert any('route="/items/{item_id:path}",status="200"} 1.0' in line for line in counted)
