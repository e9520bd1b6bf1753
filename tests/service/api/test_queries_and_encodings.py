"""Parameters nobody knows, packed bodies, and how refusals by the head of a request are counted."""

import gzip
import json

import pytest

from tests.service.running import is_problem, running

JSON = {"Content-Type": "application/json"}
BODY = json.dumps({"history": ["item-0"]}).encode()


@pytest.mark.parametrize(
    ("method", "target", "said"),
    [
        (
            "POST",
            "/recommend?limit=5",
            "limit: is no query parameter here. The route takes none; other values",
        ),
        ("GET", "/items?limits=5", "limits: is no query parameter here. The route takes cursor, limit."),
        ("GET", "/items?limit=5&limit=6", "limit: is given twice."),
        ("GET", "/items/item-0?fields=title", "fields: is no query parameter here. The route takes none."),
        ("PATCH", "/items/item-0?force", "force: is no query parameter here"),
        ("PATCH", "/items/item-0?force=true", "force: is no query parameter here"),
        ("DELETE", "/items/item-0?soft=true", "soft: is no query parameter here"),
        ("GET", "/info?verbose=1", "verbose: is no query parameter here"),
        ("POST", "/items?dry_run=true", "dry_run: is no query parameter here"),
        ("POST", "/events?a=1&b=2", "There are 1 more"),
    ],
)
async def test_a_query_parameter_that_a_route_does_not_know_is_refused_as_a_field_is(
    client, method, target, said
):
    body = {"title": "Other"} if method == "PATCH" else {"history": ["item-0"]}
    answer = await client.request(method, target, json=None if method in ("GET", "DELETE") else body)
    assert is_problem(answer, 422, "invalid-request")
    assert said in answer.json()["detail"]
    assert (await client.get("/items/item-0")).status_code == 200


@pytest.mark.parametrize(
    "path", ["/health/live", "/health/ready", "/metrics", "/docs", "/openapi.json", "/livez"]
)
async def test_monitors_and_browsers_may_add_parameters_of_their_own(client, path):
    assert (await client.get(f"{path}?_=1700000000&verbose=1")).status_code == 200


@pytest.mark.parametrize("encoding", ["gzip", "GZIP", "br", "zstd", "deflate", "gzip, gzip", "nonsense"])
async def test_a_packed_body_is_refused_with_what_is_taken(client, encoding):
    headers = JSON | {"Content-Encoding": encoding}
    for path in ("/recommend", "/items"):
        answer = await client.post(path, content=gzip.compress(BODY), headers=headers)
        assert is_problem(answer, 415, "encoded-body")
        assert answer.headers["accept-encoding"] == "identity"
        assert f"Content-Encoding is {encoding!r}. Send the body as it is" in answer.json()["detail"]


async def test_identity_is_no_packing(client):
    answer = await client.post("/recommend", content=BODY, headers=JSON | {"Content-Encoding": "identity"})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    ("body", "what"),
    [
        (gzip.compress(BODY, mtime=0), "it is packed by gzip"),
        (b"\x28\xb5\x2f\xfd" + BODY, "it is packed by zstd"),
        (BODY.decode().encode("utf-16"), "it is UTF-16"),
        (b"\xff" + BODY, "byte 0 is not UTF-8"),
    ],
)
async def test_a_body_that_is_packed_without_a_word_is_told_as_what_it_is(client, body, what):
    answer = await client.post("/recommend", content=body, headers=JSON)
    assert is_problem(answer, 400, "invalid-json")
    assert what in answer.json()["detail"]


async def test_what_is_refused_by_its_head_counts_for_its_route(bundle, redis_url):
    async with running(bundle, redis_url, api_keys=("a-key-of-sixteen-letters",)) as client:
        await client.post("/recommend", json={"history": []})
        await client.get("/items/a/b")
        await client.get("/items/a/similar")
        await client.head("/info")
        await client.post("/nowhere", json={})
        key = {"X-API-Key": "a-key-of-sixteen-letters"}
        await client.get("/info", headers=key | {"X-Request-Timeout": "soon"})
        await client.post("/items", content=gzip.compress(BODY), headers=key | {"Content-Encoding": "gzip"})
        text = (await client.get("/metrics")).text
    for method, route, status in (
        ("POST", "/recommend", 401),
        ("GET", "/items/{item_id:path}", 401),
        ("GET", "/items/{item_id:path}/similar", 401),
        ("HEAD", "/info", 401),
        ("POST", "unmatched", 401),
        ("GET", "/info", 400),
        ("POST", "/items", 415),
    ):
        labels = f'method="{method}",route="{route}",status="{status}"'
        assert f"glyphrec_http_requests_total{{{labels}}} 1.0" in text, labels
