"""HTTP in and out, over a whole service with a real Redis; every refusal is a problem document."""

import asyncio
import json
import subprocess
import sys
from urllib.parse import quote

import pytest

from service.redis_client import connect
from tests.known_bundle import (
    SPEC,
    KnownItem,
    items_without_text_twice,
    known_codes,
    ranking,
    write_known_bundle,
)
from tests.service.running import running, starting, until_ready

ITEMS = items_without_text_twice(30, 0)
WRITE_KEY, READ_KEY = "a-key-that-may-write", "a-key-that-may-read-only"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return write_known_bundle(tmp_path_factory.mktemp("known"), ITEMS)


@pytest.fixture
async def client(bundle, redis_url):
    async with running(bundle, redis_url) as client:
        yield client


def is_problem(response, status, slug):
    """The status, and a whole RFC 9457 document with the request's id."""
    problem = response.json()
    assert response.status_code == status, problem
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["type"] == f"urn:glyphrec:problem:{slug}"
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    assert problem["instance"] == quote(response.request.url.path)
    assert problem["request_id"] == response.headers["x-request-id"]
    assert "Traceback" not in response.text
    assert "pydantic" not in response.text
    return True


# --- the two flows ---


async def test_a_new_catalogue_starts_with_the_items_and_codes_of_the_bundle(client):
    info = (await client.get("/info")).json()
    assert info["catalog"]["items"] == len(ITEMS)
    for each in ITEMS:
        found = (await client.get(f"/items/{each.item_id}")).json()
        assert (tuple(found["codes"]), found["item"]) == (each.codes, each.item)


async def test_recommendations_are_the_ranking_of_the_model(client):
    history = [ITEMS[3], ITEMS[8]]
    body = {"history": [each.item_id for each in history], "limit": 5, "guarantee": "exact"}
    answer = (await client.post("/recommend", json=body)).json()
    ranked = ranking([each.codes for each in history], {each.codes for each in ITEMS})
    scores = {codes: score for score, codes in ranked}
    best = sorted(
        (each for each in ITEMS if each not in history),
        key=lambda each: (-scores[each.codes], each.codes, ITEMS.index(each)),
    )[:5]
    assert [item["item_id"] for item in answer["items"]] == [each.item_id for each in best]
    assert [item["score"] for item in answer["items"]] == [scores[each.codes] for each in best]
    assert answer["exact"] is True
    assert answer["source"] == "model"
    assert answer["model_version"] == "ba9876543210"
    assert answer["catalog_version"] == len(ITEMS)
    assert answer["unknown_item_ids"] == []


async def test_a_posted_item_is_recommended_by_the_next_request_and_a_deleted_one_by_none(client):
    body = {"history": ["item-0"], "limit": 100}

    async def recommended():
        return {item["item_id"] for item in (await client.post("/recommend", json=body)).json()["items"]}

    assert "new" not in await recommended()
    answer = (await client.post("/items", json={"item_id": "new", "title": "Brand new"})).json()
    assert [item["status"] for item in answer["items"]] == ["created"]
    assert tuple(answer["items"][0]["codes"]) == known_codes({"item_id": "new", "title": "Brand new"})
    assert "new" in await recommended()
    deleted = await client.delete("/items/new")
    assert deleted.json()["catalog_version"] == answer["catalog_version"] + 1
    assert "new" not in await recommended()
    assert is_problem(await client.delete("/items/new"), 404, "item-not-found")


async def test_an_item_can_be_the_history_at_once(client):
    await client.post("/items", json={"item_id": "new", "title": "Brand new"})
    answer = (await client.post("/recommend", json={"history": ["new"]})).json()
    assert (answer["source"], answer["unknown_item_ids"], len(answer["items"])) == ("model", [], 10)


async def test_excluded_items_never_come_and_history_only_where_asked_for(client):
    excluded = [each.item_id for each in ITEMS[5:]]
    body = {"history": ["item-0"], "exclude_item_ids": excluded}
    answer = (await client.post("/recommend", json=body)).json()
    assert {item["item_id"] for item in answer["items"]} == {f"item-{i}" for i in range(1, 5)}
    answer = (await client.post("/recommend", json=body | {"exclude_history": False})).json()
    assert {item["item_id"] for item in answer["items"]} == {f"item-{i}" for i in range(5)}


async def test_unknown_histories_get_popular_items_and_are_reported(client):
    answer = (await client.post("/recommend", json={"history": ["nobody", "knows"], "limit": 4})).json()
    best = sorted(ITEMS, key=lambda each: (-each.popularity, each.item_id))[:4]
    assert [item["item_id"] for item in answer["items"]] == [each.item_id for each in best]
    assert all(item["score"] is None for item in answer["items"])
    assert (answer["source"], answer["unknown_item_ids"]) == ("popular", ["nobody", "knows"])


async def test_patching_text_reads_the_item_anew_and_null_removes_a_field(client):
    await client.post("/items", json={"item_id": "p", "title": "Tea", "brand": "Old"})
    patched = (await client.patch("/items/p", json={"title": "Coffee", "brand": None, "price": 3})).json()
    expected = {"item_id": "p", "title": "Coffee", "price": 3}
    assert (patched["item"], patched["status"]) == (expected, "moved")
    assert tuple(patched["codes"]) == known_codes(expected)
    assert (await client.get("/items/p")).json()["item"] == expected
    assert (await client.patch("/items/p", json={})).json()["status"] == "unchanged"
    assert is_problem(await client.patch("/items/p", json={"item_id": "q"}), 422, "invalid-item")
    assert is_problem(
        await client.patch("/items/p", json={"title": None, "price": None}), 422, "invalid-item"
    )
    assert is_problem(await client.patch("/items/nobody", json={"title": "x"}), 404, "item-not-found")
    assert is_problem(await client.patch("/items/p", json=["title"]), 422, "invalid-request")


async def test_paging_gives_every_item_once_in_trie_order(client):
    found, cursor = [], None
    while True:
        params = {"limit": 7} | ({"cursor": cursor} if cursor else {})
        page = (await client.get("/items", params=params)).json()
        found += page["items"]
        cursor = page["next_cursor"]
        if cursor is None:
            break
    assert sorted(each["item"]["item_id"] for each in found) == sorted(each.item_id for each in ITEMS)
    assert [each["codes"] for each in found] == sorted(each["codes"] for each in found)


async def test_similar_items_share_the_longest_prefix_first_then_popularity(client):
    for own in ITEMS:
        answer = (await client.get(f"/items/{own.item_id}/similar", params={"limit": 100})).json()

        def shared(other, own=own):
            return next((i for i in range(3) if own.codes[i] != other.codes[i]), 3)

        expected = sorted(
            (each for each in ITEMS if each is not own and shared(each)),
            key=lambda each: (-shared(each), -each.popularity, each.codes, ITEMS.index(each)),
        )
        assert [(n["item_id"], n["shared_levels"]) for n in answer["items"]] == [
            (each.item_id, shared(each)) for each in expected
        ]
        fewer = (await client.get(f"/items/{own.item_id}/similar", params={"limit": 1})).json()
        assert fewer["items"] == answer["items"][:1]


async def test_an_item_can_be_looked_at(client):
    response = await client.get("/items/item-0/image")
    assert response.headers["content-type"] == "image/png"
    assert response.content.startswith(b"\x89PNG")
    assert is_problem(await client.get("/items/nobody/image"), 404, "item-not-found")


@pytest.mark.parametrize("item_id", ["a/b", "a b", "é🍕", "%2F", "a?b#c", "..", "שלום"])
async def test_an_id_may_be_any_text(client, item_id):
    assert (await client.post("/items", json={"item_id": item_id, "title": "x"})).status_code == 200
    path = "/items/" + "".join(f"%{byte:02X}" for byte in item_id.encode())
    assert (await client.get(path)).json()["item"]["item_id"] == item_id
    assert (await client.get(path + "/similar")).json()["item_id"] == item_id
    assert (await client.delete(path)).json()["item_id"] == item_id
    assert is_problem(await client.get(path), 404, "item-not-found")


async def test_two_replicas_see_each_others_items(bundle, redis_url):
    async with running(bundle, redis_url) as one, running(bundle, redis_url) as two:
        posted = (await one.post("/items", json={"item_id": "new", "title": "From one"})).json()
        async with asyncio.timeout(5):
            while (await two.get("/info")).json()["catalog"]["version"] < posted["catalog_version"]:
                await asyncio.sleep(0.01)
        body = {"history": ["new"], "limit": 100, "exclude_history": False}
        answers = [(await each.post("/recommend", json=body)).json() for each in (one, two)]
        assert answers[0] == answers[1]
        digests = {(await each.get("/info")).json()["catalog"]["digest"] for each in (one, two)}
        assert len(digests) == 1


async def test_a_restart_keeps_what_was_posted_and_deleted(bundle, redis_url):
    async with running(bundle, redis_url) as client:
        posted = (await client.post("/items", json={"item_id": "new", "title": "Brand new"})).json()
        await client.post("/items", json={"item_id": "item-1", "title": "Changed"})
        await client.delete("/items/item-2")
        await until_active(redis_url)
        before = (await client.get("/info")).json()["catalog"]
    async with running(bundle, redis_url) as client:
        assert (await client.get("/info")).json()["catalog"] == before
        assert (await client.get("/items/new")).json()["codes"] == posted["items"][0]["codes"]
        assert (await client.get("/items/item-1")).json()["item"]["title"] == "Changed"
        assert (await client.get("/items/item-2")).status_code == 404


async def until_active(redis_url):
    """The start ends in the background with one last write."""
    redis = connect(redis_url)
    async with asyncio.timeout(10):
        while not await redis.get("{glyphrec}:active"):
            await asyncio.sleep(0.01)
    await redis.aclose()


async def test_a_catalogue_that_is_not_seeded_starts_empty(bundle, redis_url):
    async with running(bundle, redis_url, seed_catalog=False) as client:
        assert (await client.get("/info")).json()["catalog"]["items"] == 0
        answer = (await client.post("/recommend", json={"history": ["a"]})).json()
        assert (answer["items"], answer["source"]) == ([], "popular")


async def test_a_new_tokenizer_reads_what_is_in_redis_and_takes_the_exports_codes_where_it_knows_them(
    bundle, redis_url, tmp_path
):
    async with running(bundle, redis_url) as client:
        await client.post("/items", json={"item_id": "new", "title": "Brand new"})
        await client.delete("/items/item-2")
        await until_active(redis_url)
    # Another tokenizer: other codes for what it exports, one item that is only its own, and other ids.
    items = [each._replace(codes=(31, 3, 2)) for each in ITEMS[:10]]
    items.append(KnownItem("only-here", (0, 0, 0), 9, {"item_id": "only-here", "title": "Only here"}))
    other = write_known_bundle(tmp_path / "other", items)
    manifest = other / "manifest.json"
    manifest.write_text(manifest.read_text().replace("0123456789ab", "ffffffffffff"))
    async with running(other, redis_url) as client:
        redis = connect(redis_url)
        async with asyncio.timeout(10):
            while await redis.get("{glyphrec}:active") != b"ffffffffffff":
                await asyncio.sleep(0.01)
            while (await client.get("/info")).json()["catalog"]["items"] < len(ITEMS):
                await asyncio.sleep(0.01)
        await redis.aclose()
        for each in ITEMS[:10]:
            if each.item_id != "item-2":
                assert (await client.get(f"/items/{each.item_id}")).json()["codes"] == [31, 3, 2]
        for each in ITEMS[10:]:
            assert tuple((await client.get(f"/items/{each.item_id}")).json()["codes"]) == known_codes(
                each.item
            )
        assert (await client.get("/items/item-2")).status_code == 404
        assert (await client.get("/items/only-here")).status_code == 404
        assert (await client.get("/items/new")).status_code == 200


# --- bad requests ---


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
    assert (await client.get("/info")).json()["catalog"]["items"] == len(ITEMS)


async def test_a_bad_item_does_not_harm_its_neighbours(client):
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
        ("GET", "/", 404, "no-such-route"),
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
        ("GET", "/items?cursor=%00", 422, "invalid-cursor"),
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


# --- keys ---


def by_key(key):
    return {"X-API-Key": key}


async def test_keys_decide_who_may_read_and_write(bundle, redis_url):
    item = {"item_id": "a", "title": "x"}
    async with running(bundle, redis_url, api_keys=(WRITE_KEY,), read_keys=(READ_KEY,)) as client:
        for headers in ({}, by_key("wrong"), by_key(""), {"Authorization": "Basic " + WRITE_KEY}):
            for method, path in (
                ("GET", "/info"),
                ("POST", "/recommend"),
                ("POST", "/items"),
                ("GET", "/nowhere"),
            ):
                response = await client.request(method, path, json={"history": []}, headers=headers)
                assert is_problem(response, 401, "missing-key")
                assert response.headers["www-authenticate"].startswith("Bearer")
        for headers in (
            by_key(READ_KEY),
            {"Authorization": f"Bearer {READ_KEY}"},
            {"Authorization": f"bearer {READ_KEY}"},
        ):
            assert (await client.get("/info", headers=headers)).status_code == 200
            assert (await client.post("/recommend", json={"history": []}, headers=headers)).status_code == 200
            for method, path in (("POST", "/items"), ("DELETE", "/items/item-0"), ("PATCH", "/items/item-0")):
                response = await client.request(method, path, json=item, headers=headers)
                assert is_problem(response, 403, "read-only-key")
        for headers in (by_key(WRITE_KEY), {"Authorization": f"Bearer {WRITE_KEY}"}):
            assert (await client.get("/info", headers=headers)).status_code == 200
            assert (await client.post("/items", json=item, headers=headers)).status_code == 200
        for path in ("/health/live", "/health/ready", "/livez", "/readyz", "/healthz", "/metrics", "/docs"):
            assert (await client.get(path)).status_code == 200


# --- around every request ---


async def test_a_request_id_comes_back_where_it_is_fit_to(client):
    kept = await client.get("/health/live", headers={"X-Request-ID": "trace-1:a.b_c"})
    assert kept.headers["x-request-id"] == "trace-1:a.b_c"
    for unfit in ("with space", "x" * 129, "", "new\tline"):
        response = await client.get("/health/live", headers={"X-Request-ID": unfit})
        assert response.headers["x-request-id"] not in ("", unfit)


async def test_server_timing_gives_the_stages_of_both_flows(client):
    recommended = await client.post("/recommend", json={"history": ["item-0"]})
    assert stages_of(recommended) == ["history", "queue", "decode", "resolve", "total"]
    indexed = await client.post("/items", json={"item_id": "a", "title": "x"})
    assert stages_of(indexed) == ["held", "render", "queue", "tokenise", "store", "follow", "total"]
    assert stages_of(await client.get("/nowhere")) == ["total"]


def stages_of(response):
    return [part.split(";dur=")[0].strip() for part in response.headers["server-timing"].split(",")]


async def test_metrics_count_requests_by_route_and_describe_the_replica(client):
    for _ in range(3):
        await client.post("/recommend", json={"history": ["item-0"]})
    await client.get("/items/item-0")
    await client.get("/items/item-1")
    await client.get("/no/such/route")
    await client.request("BREW", "/items")
    text = (await client.get("/metrics")).text
    for line in (
        'glyphrec_http_requests_total{method="POST",route="/recommend",status="200"} 3.0',
        'glyphrec_http_requests_total{method="GET",route="/items/{item_id:path}",status="200"} 2.0',
        'glyphrec_http_requests_total{method="GET",route="unmatched",status="404"} 1.0',
        'glyphrec_http_requests_total{method="other",route="/items",status="405"} 1.0',
        'glyphrec_stage_seconds_count{flow="recommend",stage="decode"} 3.0',
        'glyphrec_recommendations_total{exact="true",source="model"} 3.0',
        f"glyphrec_catalog_items {len(ITEMS)}.0",
        f"glyphrec_catalog_version {len(ITEMS)}.0",
        "glyphrec_catalog_stale_seconds 0.0",
        "glyphrec_ready 1.0",
        'glyphrec_queue_units{queue="recommender"} 0.0',
        'glyphrec_model_info{config="known",data="known",generator="known",recommender_id="ba9876543210",'
        'tokenizer_id="0123456789ab"} 1.0',
    ):
        assert line in text, line
    assert "process_resident_memory_bytes" in text


async def test_info_says_what_is_served(client):
    info = (await client.get("/info")).json()
    assert (info["tokenizer_id"], info["recommender_id"]) == ("0123456789ab", "ba9876543210")
    assert info["levels"] == list(SPEC.levels)
    assert info["metrics"] == {"recall@10": 0.5}
    assert info["render"]["height_px"] == 16
    assert info["limits"]["beam_limit"] == 64
    assert info["redis"]["eviction"] == "noeviction"


async def test_the_api_describes_itself(client):
    openapi = (await client.get("/openapi.json")).json()
    assert {"/items", "/recommend", "/info", "/health/live", "/health/ready"} <= openapi["paths"].keys()
    assert "HTTPValidationError" not in openapi["components"]["schemas"]
    posted = openapi["paths"]["/items"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert [each.get("title") or each["$ref"] for each in posted["oneOf"]] == [
        "#/components/schemas/ItemsRequest",
        "Item",
    ]


# --- starting, losing Redis, ending ---


async def test_until_redis_is_there_it_lives_but_is_not_ready_and_says_why(
    bundle, redis_server, redis, tmp_path
):
    late = tmp_path / "late.sock"
    async with starting(bundle, f"unix://{late}") as (app, client):
        assert (await client.get("/health/live")).json() == {"status": "alive"}
        async with asyncio.timeout(10):
            while "Redis" not in (await client.get("/health/ready")).json()["phase"]:
                await asyncio.sleep(0.01)
        response = await client.get("/health/ready")
        assert response.status_code == 503
        assert response.json()["status"] == "starting"
        assert is_problem(await client.post("/recommend", json={"history": []}), 503, "not-ready")
        assert is_problem(await client.get("/items/item-0"), 503, "not-ready")
        assert (await client.get("/metrics")).status_code == 200
        await redis.flushall()
        late.symlink_to(redis_server.url.removeprefix("unix://"))
        await until_ready(app)
        assert (await client.get("/health/ready")).json()["catalog_items"] == len(ITEMS)


async def test_without_redis_it_goes_on_recommending_says_so_and_refuses_changes(
    bundle, redis_server, redis, tmp_path
):
    assert await redis.dbsize() == 0
    socket = tmp_path / "redis.sock"
    socket.symlink_to(redis_server.url.removeprefix("unix://"))
    async with running(bundle, f"unix://{socket}") as client:
        before = (await client.post("/recommend", json={"history": ["item-0"]})).json()
        socket.unlink()
        await redis.client_kill_filter(_type="normal", skipme=True)
        async with asyncio.timeout(10):
            while not (await client.get("/health/ready")).json()["stale"]:
                await asyncio.sleep(0.01)
        ready = await client.get("/health/ready")
        assert (ready.status_code, ready.json()["status"]) == (200, "ready")
        assert ready.json()["stale_for_s"] > 0
        assert (await client.post("/recommend", json={"history": ["item-0"]})).json() == before
        refused = await client.post("/items", json={"items": [{"item_id": "a", "title": "x"}]})
        assert is_problem(refused, 503, "store-unavailable")
        assert int(refused.headers["retry-after"]) > 0
        assert (await client.get("/info")).json()["redis"] == {}
        socket.symlink_to(redis_server.url.removeprefix("unix://"))
        async with asyncio.timeout(10):
            while (await client.get("/health/ready")).json()["stale"]:
                await asyncio.sleep(0.01)
        assert (await client.post("/items", json={"item_id": "a", "title": "x"})).status_code == 200


async def test_a_failure_inside_is_a_problem_that_tells_nothing_of_itself(bundle, redis_url, caplog):
    async with starting(bundle, redis_url) as (app, client):
        await until_ready(app)

        @app.get("/broken")
        async def broken():
            raise KeyError("a secret of the house")

        response = await client.get("/broken", headers={"X-Request-ID": "find-me"})
        assert is_problem(response, 500, "internal")
        assert "secret" not in response.text
        assert "find-me" in caplog.text
        assert "a secret of the house" in caplog.text


async def test_overload_is_answered_with_when_to_come_back(bundle, redis_url):
    async with running(bundle, redis_url, max_queued_beams=50, num_beams=50) as client:
        answers = await asyncio.gather(
            *(client.post("/recommend", json={"history": ["item-0"]}) for _ in range(30))
        )
        refused = [answer for answer in answers if answer.status_code != 200]
        assert 0 < len(refused) < 30
        for answer in refused:
            assert is_problem(answer, 429, "overloaded")
            assert int(answer.headers["retry-after"]) >= 1


def test_the_service_imports_no_training_code():
    code = (
        "import sys, service.app, service.cli; "
        "print([m for m in ('torch', 'transformers', 'model_export', 'onnx') if m in sys.modules])"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert shown.stdout.strip() == "[]"
