"""Every wrong request gets the right status and a problem document, and the service keeps answering."""

import asyncio
import json

import pytest

from tests.known_bundle import KNOWN_ITEMS
from tests.service.running import is_problem, running


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "history"),
        ({"history": "item-0"}, "history"),
        ({"history": [1]}, "history.0"),
        ({"history": [None]}, "history.0"),
        ({"history": [""]}, "history.0"),
        ({"history": ["x" * 257]}, "history.0"),
        ({"history": ["\ud800"]}, "history.0"),
        ({"history": ["a"] * 501}, "history"),
        ({"history": [], "limit": 0}, "limit"),
        ({"history": [], "limit": -1}, "limit"),
        ({"history": [], "limit": 101}, "limit"),
        ({"history": [], "limit": "10"}, "limit"),
        ({"history": [], "limit": 1.5}, "limit"),
        ({"history": [], "limit": True}, "limit"),
        ({"history": [], "limit": None}, "limit"),
        ({"history": [], "exclude_history": "yes"}, "exclude_history"),
        ({"history": [], "exclude_item_ids": {"a": 1}}, "exclude_item_ids"),
        ({"history": [], "guarantee": "perfect"}, "guarantee"),
        ({"history": [], "filter": ["item-0"]}, "filter"),
        ({"history": [], "filter": {"category": "a"}}, "filter.category"),
        ({"history": [], "filter": {"categories_any": "a"}}, "filter.categories_any"),
        ({"history": [], "filter": {"categories_all": [1]}}, "filter.categories_all.0"),
        ({"history": [], "filter": {"categories_none": [""]}}, "filter.categories_none.0"),
        ({"history": [], "filter": {"categories_any": ["a"] * 101}}, "filter.categories_any"),
        ({"history": [], "filter": {"available": 1}}, "filter.available"),
        ({"history": [], "filter": {"item_ids": "item-0"}}, "filter.item_ids"),
        ({"history": [], "filter": {"item_ids": ["a"] * 10_001}}, "filter.item_ids"),
        ({"history": [], "filter": {"exclude_item_ids": [""]}}, "filter.exclude_item_ids.0"),
        ({"history": [], "filter": {"attributes": ["price"]}}, "filter.attributes"),
        ({"history": [], "filter": {"attributes": {"price": {"min": 1}}}}, "filter.attributes.price.min"),
        ({"history": [], "filter": {"attributes": {"price": {"lt": "1"}}}}, "filter.attributes.price.lt"),
        ({"history": [], "filter": {"attributes": {str(i): 1 for i in range(21)}}}, "filter.attributes"),
        ({"history": [], "diversity": 1}, "diversity"),
        ({"history": [], "diversity": {"max_per_first_code": 0}}, "diversity.max_per_first_code"),
        ({"history": [], "diversity": {"max_per_category": "1"}}, "diversity.max_per_category"),
        ({"history": [], "diversity": {"max_per_brand": 1}}, "diversity.max_per_brand"),
        ({"history": [], "histroy": []}, "histroy"),
        ({"history": [], "\ud800": 1}, None),
        ([], "body"),
        ("text", "body"),
        (7, "body"),
        (None, "body"),
    ],
)
async def test_a_malformed_recommend_names_the_field(client, body, field):
    response = await client.post(
        "/recommend", content=json.dumps(body), headers={"Content-Type": "application/json"}
    )
    assert is_problem(response, 422, "invalid-request")
    if field is not None:
        assert field in [error["field"] for error in response.json()["errors"]]


@pytest.mark.parametrize(
    ("attributes", "slug", "complaint"),
    [
        (
            {"color": "red"},
            "unknown-filter-field",
            "'color', which is not declared. The declared fields are brand:text, price:number",
        ),
        ({"categories": "a"}, "unknown-filter-field", "'categories'"),
        ({"brand": 1}, "invalid-filter", "brand: is declared as text"),
        ({"brand": {"gte": 1}}, "invalid-filter", "brand: is declared as text; only a number"),
        ({"price": True}, "invalid-filter", "price: is declared as number"),
        ({"price": {}}, "invalid-filter", "price: needs at least one of"),
        ({"price": {"lt": None}}, "invalid-filter", "price: needs at least one of"),
    ],
)
async def test_a_filter_that_asks_what_no_item_can_answer_is_refused_with_what_can_be_asked(
    bundle, redis_url, attributes, slug, complaint
):
    async with running(bundle, redis_url, filter_fields="brand:text,price:number") as client:
        body = {"history": ["item-0"], "filter": {"attributes": attributes}}
        response = await client.post("/recommend", json=body)
        assert is_problem(response, 422, slug)
        assert complaint in response.json()["detail"]


@pytest.mark.parametrize(
    ("body", "slug"),
    [
        ({"items": []}, "invalid-request"),
        ({"items": {"item_id": "a"}}, "invalid-request"),
        ({"items": [{"item_id": "a", "title": "x"}], "dry_run": True}, "invalid-request"),
        ({}, "invalid-request"),
        ([], "invalid-request"),
        ([{"item_id": "a", "title": "x"}], "invalid-request"),
        ({"item_id": "a"}, "invalid-item"),
        ({"item_id": 7, "title": "x"}, "invalid-item"),
        ({"item_id": "a", "title": ""}, "invalid-item"),
        ({"item_id": "a", "title": "\0"}, "invalid-item"),
        ({"item_id": "a", "title": "x" * 1_000_000}, "invalid-item"),
        ({"items": [{"item_id": str(i), "title": "x"} for i in range(1_001)]}, "too-many-items"),
        ({"items": [{"item_id": str(i), "title": "x"} for i in range(10_001)]}, "too-many-items"),
    ],
)
async def test_a_malformed_post_of_items_is_refused_and_stores_nothing(client, body, slug):
    assert is_problem(await client.post("/items", json=body), 422, slug)
    assert (await client.get("/info")).json()["catalog"]["items"] == len(KNOWN_ITEMS)


async def test_a_bad_item_does_not_harm_the_others(client):
    items = [
        {"item_id": "good-1", "title": "🍕 pizza"},
        {"item_id": "big", "title": "x" * 1_000_000},
        {"title": "no id"},
        {"item_id": "good-2", "title": "עברית"},
        {"item_id": "empty", "title": ""},
        "not an item",
        {"item_id": "good-3", "title": "NUL\0inside"},
    ]
    response = await client.post("/items", json={"items": items})
    assert response.status_code == 200
    results = response.json()["items"]
    assert [each["status"] for each in results] == [
        *("created", "failed", "failed", "created", "failed", "failed", "created")
    ]
    assert [each["item_id"] for each in results] == ["good-1", "big", None, "good-2", "empty", None, "good-3"]
    for each in results:
        assert (each["error"] is not None) == (each["status"] == "failed")
    assert results[1]["error"]["type"] == "urn:glyphrec:problem:invalid-item"
    assert results[1]["error"]["errors"][0]["field"] == "item"
    found = {each["item"]["item_id"] for each in (await client.get("/items?limit=1000")).json()["items"]}
    assert {"good-1", "good-2", "good-3"} <= found
    assert not {"big", "empty"} & found


@pytest.mark.parametrize(
    "body",
    [
        b'{"history": ["a"',
        b"",
        b"{",
        b"\xff\xfe",
        b'{"history": ["\xc3\x28"]}',
        b"[" * 100_000,
        b'{"history": [], "limit": ' + b"9" * 5_000 + b"}",
        b"history=a",
    ],
)
@pytest.mark.parametrize("path", ["/recommend", "/items"])
async def test_a_body_that_is_no_json_or_was_cut_off_is_a_400(client, path, body):
    response = await client.post(path, content=body, headers={"Content-Type": "application/json"})
    expected = (422, "invalid-request") if not body else (400, "invalid-json")
    assert is_problem(response, *expected)


@pytest.mark.parametrize(
    "content_type", [None, "text/plain", "application/x-www-form-urlencoded", "json", "a/b;" * 99]
)
async def test_a_body_must_be_called_json(client, content_type):
    headers = {"Content-Type": content_type} if content_type else {}
    for method, path in (("POST", "/recommend"), ("POST", "/items"), ("PATCH", "/items/item-0")):
        response = await client.request(method, path, content=b'{"history": []}', headers=headers)
        assert is_problem(response, 415, "not-json")


async def test_json_with_a_charset_or_a_suffix_is_json(client):
    for content_type in ("application/json; charset=utf-8", "application/vnd.shop+json"):
        response = await client.post(
            "/recommend", content=b'{"history": []}', headers={"Content-Type": content_type}
        )
        assert response.status_code == 200


async def test_a_body_over_the_limit_is_refused_whether_or_not_it_says_its_length(bundle, redis_url):
    async with running(bundle, redis_url, max_body_bytes=2_000) as client:
        body = json.dumps({"item_id": "a", "title": "x" * 2_000}).encode()
        assert is_problem(await client.post("/items", content=body), 413, "body-too-large")

        async def chunks():
            for start in range(0, len(body), 100):
                yield body[start : start + 100]

        headers = {"Content-Type": "application/json"}
        assert is_problem(
            await client.post("/items", content=chunks(), headers=headers), 413, "body-too-large"
        )
        assert (await client.post("/items", json={"item_id": "a", "title": "x" * 1_000})).status_code == 200


async def test_a_body_that_stops_coming_is_given_up(bundle, redis_url):
    async with running(bundle, redis_url, body_timeout_s=0.05) as client:

        async def stalls():
            yield b'{"history":'
            await asyncio.Event().wait()

        response = await client.post(
            "/recommend", content=stalls(), headers={"Content-Type": "application/json"}
        )
        assert is_problem(response, 408, "body-too-slow")


@pytest.mark.parametrize(
    ("method", "path", "status", "slug"),
    [
        ("GET", "/nothing/here", 404, "no-such-route"),
        ("POST", "/recommend/", 404, "no-such-route"),
        ("GET", "/recommend", 405, "method-not-allowed"),
        ("PUT", "/items", 405, "method-not-allowed"),
        ("BREW", "/items", 405, "method-not-allowed"),
        ("GET", "/items/nobody", 404, "item-not-found"),
        ("GET", "/items/nobody/similar", 404, "item-not-found"),
        ("GET", "/items/item-0/similar?limit=0", 422, "invalid-request"),
        ("GET", "/items?limit=0", 422, "invalid-request"),
        ("GET", "/items?limit=abc", 422, "invalid-request"),
        ("GET", "/items?cursor=nonsense", 422, "invalid-cursor"),
        ("GET", "/items?cursor=%00", 422, "invalid-request"),
        ("GET", "/items?cursor=", 422, "invalid-request"),
        ("GET", "/items/%00", 422, "invalid-item"),
        ("DELETE", "/items/%00", 422, "invalid-item"),
        ("GET", f"/items/{'x' * 257}", 422, "invalid-request"),
    ],
)
async def test_every_refusal_is_a_problem(client, method, path, status, slug):
    assert is_problem(await client.request(method, path), status, slug)


async def test_after_all_bad_requests_the_service_is_well(client):
    for body in (b"{", b"\xff", b'{"items": 7}', b'{"item_id": "a", "title": "\\u0000"}'):
        await client.post("/items", content=body, headers={"Content-Type": "application/json"})
    assert (await client.get("/health/ready")).status_code == 200
    assert (await client.post("/recommend", json={"history": ["item-0"]})).status_code == 200
