"""The description of the API and its page: open, whole, with the keys, and right behind a proxy's prefix."""

import re
from urllib.parse import urljoin

import pytest

from service.core.keys import hash_of
from service.settings import BadSettings, load_settings
from tests.service.running import running

KEY = "a-key-of-sixteen-letters"
OPEN = {"/health/live", "/health/ready"}


@pytest.mark.parametrize("prefix", ["", "/shop", "/docs", "/a/b"])
async def test_the_page_needs_no_key_and_finds_its_files_below_any_prefix(bundle, redis_url, prefix):
    """As a browser resolves the addresses, and as a proxy takes the prefix away."""
    async with running(bundle, redis_url, api_keys=(KEY,)) as client:
        page = (await client.get("/docs")).text
        sources = re.findall(r"""(?:src|href)=["']([^"']+)["']|url: ["']([^"']+)["']""", page)
        named = {one or other for one, other in sources}
        assert {each.rpartition("/")[2] for each in named} >= {"swagger-ui-bundle.js", "openapi.json"}
        for each in named:
            path = urljoin(f"{prefix}/docs", each)
            assert path.startswith(f"{prefix}/")
            assert (await client.get(path.removeprefix(prefix))).status_code == 200


async def servers(client, **headers):
    document = (await client.get("/openapi.json", headers=headers)).json()
    return [each["url"] for each in document.get("servers", [])]


async def test_the_description_names_the_prefix_that_the_proxy_sends(bundle, redis_url):
    async with running(bundle, redis_url) as client:
        assert await servers(client) == []
        for prefix in ("/shop", "/docs", "/a/b"):
            assert await servers(client, **{"X-Forwarded-Prefix": prefix}) == [prefix]
        assert await servers(client, **{"X-Forwarded-Prefix": "/shop/"}) == ["/shop"]
        for strange in ("shop", "//evil.example", "/a b", "/a/../b?c", "http://evil.example", '/"'):
            assert await servers(client, **{"X-Forwarded-Prefix": strange}) == []
        assert await servers(client) == []


async def test_the_prefix_of_the_operator_counts_whatever_a_client_sends(bundle, redis_url):
    async with running(bundle, redis_url, path_prefix="/mine") as client:
        assert await servers(client, **{"X-Forwarded-Prefix": "/other"}) == ["/mine"]


async def test_no_route_and_no_scope_is_found_by_a_prefix_that_a_client_sends(bundle, redis_url):
    async with running(bundle, redis_url, admin_keys=(hash_of(KEY),)) as client:
        for prefix in ("/x", "/admin", "/items", "/health"):
            headers = {"X-Forwarded-Prefix": prefix}
            for path in (f"{prefix}/admin/bundles", f"{prefix}/items", "/admin/bundles", "/items"):
                expected = (await client.get(path)).status_code
                assert (await client.get(path, headers=headers)).status_code == expected


@pytest.mark.parametrize("prefix", ["shop", "/shop/", "/a b", "//a", "/a?b"])
def test_a_prefix_that_is_no_path_is_refused(prefix, monkeypatch):
    monkeypatch.setenv("GLYPHREC_PATH_PREFIX", prefix)
    with pytest.raises(BadSettings, match="GLYPHREC_PATH_PREFIX"):
        load_settings(bundle="b")


@pytest.mark.parametrize("kind", ["read_keys", "api_keys", "admin_keys"])
async def test_with_keys_the_page_can_send_one_to_every_route_that_needs_it(bundle, redis_url, kind):
    async with running(bundle, redis_url, **{kind: (KEY,)}) as client:
        document = (await client.get("/openapi.json")).json()
        schemes = document["components"]["securitySchemes"]
        assert schemes["key"] == {"type": "apiKey", "in": "header", "name": "X-API-Key"}
        assert schemes["bearer"] == {"type": "http", "scheme": "bearer"}
        for path, operations in document["paths"].items():
            for operation in operations.values():
                expected = None if path in OPEN else [{"key": []}, {"bearer": []}]
                assert operation.get("security") == expected, path
        # Both ways are those that the service takes.
        for headers in ({"X-API-Key": KEY}, {"Authorization": f"Bearer {KEY}"}):
            assert (await client.get("/info", headers=headers)).status_code == 200
        assert (await client.get("/info")).status_code == 401


async def test_without_keys_the_description_asks_for_none(client):
    document = (await client.get("/openapi.json")).json()
    assert "securitySchemes" not in document["components"]
    assert not any("security" in each for routes in document["paths"].values() for each in routes.values())


async def test_there_is_no_cors_so_no_page_of_another_site_reads_an_answer(client):
    """docs/serving.md says why."""
    asked = {"Origin": "https://other.example", "Access-Control-Request-Method": "POST"}
    for answer in (
        await client.options("/recommend", headers=asked),
        await client.post("/recommend", json={"history": []}, headers=asked),
        await client.get("/openapi.json", headers=asked),
    ):
        assert not [name for name in answer.headers if name.startswith("access-control-")]
