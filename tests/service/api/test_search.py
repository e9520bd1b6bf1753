"""POST /search over HTTP: what is found, for which queries, and what is refused."""

import asyncio
import base64
import json

import numpy as np
import pytest

from service.core.pictures import keep_picture
from service.core.vectors import lengths
from tests.known_bundle import KNOWN_ITEMS, PICTURES, known_vector, write_known_bundle
from tests.service.core.photos import photo
from tests.service.running import is_problem, running

RED = photo(1)
ITEMS = [
    {
        "item_id": f"i{n}",
        "title": f"Thing {n}",
        "categories": [["food", "bath"][n % 2]],
        "price": n,
        "available": n % 3 > 0,
    }
    for n in range(60)
]


def sent(data: bytes) -> dict:
    return {"data": base64.b64encode(data).decode()}


def cosine(one: bytes, other: bytes) -> float:
    rows = np.stack([np.frombuffer(each, np.int8) for each in (one, other)])
    left, right = rows.astype(np.float32)
    return float(left @ right) / float(np.prod(lengths(rows)))


def ranked(items: list[dict], query: bytes) -> list[tuple[str, float]]:
    """All items, best first: by one pair of vectors at a time."""
    scored = [(item["item_id"], cosine(known_vector(item), query)) for item in items]
    return sorted(scored, key=lambda pair: (-round(pair[1], 5), pair[0]))


def shown(answer: dict) -> list[tuple[str, float]]:
    return [(row["item_id"], pytest.approx(row["score"], abs=1e-5)) for row in answer["items"]]


@pytest.fixture
async def shop(bundle, redis_url):
    fields = {"filter_fields": "price:number", "seed_catalog": False}
    async with running(bundle, redis_url, **fields) as client:
        await client.post("/items", json={"items": ITEMS})
        yield client


async def search(client, **body) -> dict:
    answer = await client.post("/search", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("text", ["Thing 7", "Thing 52", "oat milk 32 oz", "ö"])
async def test_items_come_in_the_order_of_their_likeness_to_the_text(shop, text):
    answer = await search(shop, query=text, limit=60)
    expected = ranked(ITEMS, known_vector({"title": text}))
    assert shown(answer) == expected
    assert answer["exact"] is True
    assert answer["matching_items"] is None
    assert (answer["truncated"], answer["missing_characters"]) == (False, "")
    assert shown(await search(shop, query=text)) == expected[:10]


async def test_each_found_item_has_the_semantic_id_that_the_catalog_has(shop):
    for row in (await search(shop, query="Thing", limit=60))["items"]:
        stored = (await shop.get(f"/items/{row['item_id']}")).json()
        assert row["semantic_id"] == stored["semantic_id"]


FILTERS = [
    {"categories_any": ["food"]},
    {"attributes": {"price": {"gte": 20, "lt": 40}}},
    {"available": True, "categories_none": ["bath"]},
    {"item_ids": ["i1", "i2", "nobody"]},
    {"item_ids": []},
    {"exclude_item_ids": ["i1", "i4"], "categories_any": ["food"]},
]


@pytest.mark.parametrize("asked", FILTERS)
async def test_a_filter_gives_the_page_of_those_that_pass_and_no_others(shop, asked):
    page = {"history": [], "limit": 60, "filter": asked}
    passing = {row["item_id"] for row in (await shop.post("/recommend", json=page)).json()["items"]}
    expected = [pair for pair in ranked(ITEMS, known_vector({"title": "Thing 8"})) if pair[0] in passing]
    answer = await search(shop, query="Thing 8", limit=60, filter=asked)
    assert shown(answer) == expected
    left = [item_id for item_id, _ in expected[:2]]
    assert shown(await search(shop, query="Thing 8", filter=asked, exclude_item_ids=left)) == expected[2:12]


async def test_the_next_search_knows_every_change(shop):
    query = known_vector({"title": "Thing 30"})
    await shop.delete("/items/i30")
    await shop.patch("/items/i31", json={"title": "Thing 30"})
    await shop.patch("/items/i32", json={"price": 1_000})
    changed = [item for item in ITEMS if item["item_id"] not in ("i30", "i31", "i32")]
    changed += [ITEMS[31] | {"title": "Thing 30"}, ITEMS[32] | {"price": 1_000}]
    assert shown(await search(shop, query="Thing 30", limit=100)) == ranked(changed, query)


async def test_similar_items_by_vector_are_the_search_for_the_item_without_it(shop):
    for n in (0, 17, 59):
        answer = (await shop.get(f"/items/i{n}/similar", params={"limit": 59})).json()
        own = known_vector(ITEMS[n])
        assert answer["by"] == "vector"
        assert shown(answer) == [pair for pair in ranked(ITEMS, own) if pair[0] != f"i{n}"]
        asked = {"filter": json.dumps({"categories_any": ["food"], "exclude_item_ids": ["i2"]})}
        few = (await shop.get(f"/items/i{n}/similar", params=asked)).json()
        food = [i for i in ITEMS if i["categories"] == ["food"] and i["item_id"] not in (f"i{n}", "i2")]
        assert shown(few) == ranked(food, own)[:10]


async def test_similar_items_by_codes_are_asked_for_by_name(shop):
    by_codes = (await shop.get("/items/i1/similar", params={"by": "codes"})).json()
    assert by_codes["by"] == "codes"
    assert all(row["score"] is None and row["shared_levels"] for row in by_codes["items"])
    assert is_problem(await shop.get("/items/nobody/similar", params={"by": "vector"}), 404, "item-not-found")
    assert (await shop.get("/items/i1/similar", params={"by": "name"})).status_code == 422


async def test_without_vectors_the_service_says_so_and_codes_answer(bundle, redis_url):
    async with running(bundle, redis_url, search=False) as client:
        assert is_problem(await client.post("/search", json={"query": "x"}), 409, "search-off")
        path = f"/items/{KNOWN_ITEMS[0].item_id}/similar"
        assert (await client.get(path)).json()["by"] == "codes"
        assert is_problem(await client.get(path, params={"by": "vector"}), 409, "search-off")
        info = (await client.get("/info")).json()["vectors"]
        assert (info["dim"], info["way"], info["items"]) == (None, "off", 0)


async def test_items_of_a_bundle_without_vectors_get_theirs_after_the_start(tmp_path, redis_url):
    old = write_known_bundle(tmp_path / "old", KNOWN_ITEMS, has_vectors=False)
    async with running(old, redis_url) as client:
        before = {each.item_id: each.codes for each in KNOWN_ITEMS}
        async with asyncio.timeout(10):
            while (info := (await client.get("/info")).json()["vectors"])["items_without"]:
                await asyncio.sleep(0.02)
        assert info["items"] == len(KNOWN_ITEMS)
        answer = await search(client, query="Thing number 3", limit=100)
        items = [each.item for each in KNOWN_ITEMS]
        assert shown(answer) == ranked(items, known_vector({"title": "Thing number 3"}))
        for item_id, codes in before.items():  # reading the item again moves it nowhere
            assert (await client.get(f"/items/{item_id}")).json()["codes"] == list(codes)


async def test_a_restart_finds_what_was_found_before(bundle, redis_url):
    async with running(bundle, redis_url) as client:
        await client.post("/items", json={"items": ITEMS})
        before = (await search(client, query="Thing 5", limit=100))["items"]
    async with running(bundle, redis_url) as client:
        assert (await search(client, query="Thing 5", limit=100))["items"] == before


async def test_a_new_tokenizer_brings_its_own_vectors(tmp_path, bundle, redis_url):
    async with running(bundle, redis_url) as client:
        await client.post("/items", json={"items": ITEMS})
    other = write_known_bundle(tmp_path / "other", KNOWN_ITEMS, reader=3, created_at="2026-02-01T00:00:00Z")
    async with running(other, redis_url) as client:
        items = [*ITEMS, *(each.item for each in KNOWN_ITEMS)]
        query = known_vector({"title": "Thing 5"}, reader=3)
        scored = [(item["item_id"], cosine(known_vector(item, 3), query)) for item in items]
        expected = sorted(scored, key=lambda pair: (-round(pair[1], 5), pair[0]))
        assert shown(await search(client, query="Thing 5", limit=100)) == expected


async def test_a_picture_or_both_are_read_as_an_item_would_be(tmp_path, redis_url):
    bundle = write_known_bundle(tmp_path / "photos", [], pictures=PICTURES)
    async with running(bundle, redis_url) as client:
        await client.post("/items", json={"items": [*ITEMS, {"item_id": "red", "image": sent(RED)}]})
        await client.post("/items", json={"item_id": "both", "title": "Lamp", "image": sent(RED)})
        alone = await search(client, image=sent(RED), limit=3)
        assert ("red", pytest.approx(1.0, abs=1e-5)) in shown(alone)
        both = await search(client, query="Lamp", image=sent(RED), limit=100)
        kept = keep_picture(RED).data
        query = known_vector({"title": "Lamp"}, kept=kept)
        own = {"red": known_vector({}, kept=kept), "both": query}
        vectors = {item["item_id"]: known_vector(item) for item in ITEMS} | own
        scored = [(item_id, cosine(vector, query)) for item_id, vector in vectors.items()]
        assert shown(both) == sorted(scored, key=lambda pair: (-round(pair[1], 5), pair[0]))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "nothing to read"),
        ({"query": " \u200b "}, "nothing to read"),
        ({"query": "a\ud800b"}, "query"),
        ({"image": sent(RED)}, "reads no pictures"),
        ({"query": "x", "filter": {"attributes": {"paint": "red"}}}, "paint"),
    ],
)
async def test_a_query_that_cannot_be_read_is_told_why(shop, body, words):
    answer = await shop.post(
        "/search", content=json.dumps(body), headers={"content-type": "application/json"}
    )
    assert answer.status_code in (400, 422)
    assert words in answer.text


@pytest.mark.parametrize(
    "body",
    [
        {"query": "x" * 1_001},
        {"query": 7},
        {"query": "x", "limit": 0},
        {"query": "x", "limit": 101},
        {"query": "x", "image": "https://example.org/a.jpg"},
        {"query": "x", "image": {"url": "https://example.org/a.jpg"}},
        {"query": "x", "what": 1},
        {"query": "x", "exclude_item_ids": [""]},
    ],
)
async def test_a_body_of_another_shape_is_refused(shop, body):
    assert (await shop.post("/search", json=body)).status_code == 422


@pytest.mark.parametrize("image", ["", "%%%", "aGVsbG8=", "data:image/png;base64,aGVsbG8="])
async def test_what_is_no_picture_is_refused_with_the_reason(tmp_path, redis_url, image):
    bundle = write_known_bundle(tmp_path / "photos", [], pictures=PICTURES)
    async with running(bundle, redis_url) as client:
        answer = await client.post("/search", json={"image": {"data": image}})
        assert answer.status_code == 422, answer.text
        assert "image" in answer.text


async def test_searches_are_counted_and_timed(shop):
    await search(shop, query="Thing 1")
    await search(shop, query="Thing 2", filter={"available": True})
    await shop.get("/items/i1/similar")
    metrics = (await shop.get("/metrics")).text
    for line in (
        'glyphrec_item_searches_total{by="text",exact="true",filtered="false"} 1.0',
        'glyphrec_item_searches_total{by="text",exact="true",filtered="true"} 1.0',
        'glyphrec_item_searches_total{by="item",exact="true",filtered="false"} 1.0',
        'glyphrec_stage_seconds_count{flow="search",stage="encode"} 2.0',
        'glyphrec_stage_seconds_count{flow="search",stage="find"} 3.0',
        'glyphrec_admissions_total{queue="query"} 2.0',
        'glyphrec_admissions_total{queue="vectors"} 3.0',
        "glyphrec_vector_items 60.0",
        "glyphrec_vector_missing_items 0.0",
        "glyphrec_vector_recall_ratio NaN",
    ):
        assert line in metrics, line
    assert "encode;dur=" in (await shop.post("/search", json={"query": "x"})).headers["server-timing"]


async def num_read(client) -> tuple[int, int]:
    """Texts that were read, and those that were remembered."""
    lines = dict(line.rsplit(" ", 1) for line in (await client.get("/metrics")).text.splitlines())
    read = lines.get('glyphrec_stage_seconds_count{flow="search",stage="encode"}', 0)
    return int(float(read)), int(float(lines["glyphrec_remembered_queries_total"]))


async def test_a_text_that_was_read_before_is_not_read_again_and_finds_the_items_of_today(shop):
    before = await search(shop, query="Thing 30", limit=60)
    assert await search(shop, query="Thing 30", limit=60) == before
    await shop.delete("/items/i30")
    left = [item for item in ITEMS if item["item_id"] != "i30"]
    query = known_vector({"title": "Thing 30"})
    assert shown(await search(shop, query="Thing 30", limit=100)) == ranked(left, query)
    assert await num_read(shop) == (1, 2)


async def test_a_remembered_text_tells_what_was_not_read(shop):
    text = "Thing \u4e2d " * 70
    first = await search(shop, query=text)
    assert (first["truncated"], first["missing_characters"]) == (True, "\u4e2d")
    assert await search(shop, query=text) == first
    assert await num_read(shop) == (1, 1)


async def test_the_text_that_was_not_searched_for_the_longest_is_forgotten(bundle, redis_url):
    async with running(bundle, redis_url, remembered_queries=2) as client:
        for text in ("a", "b", "a", "c", "a", "b"):
            await search(client, query=text)
        assert await num_read(client) == (4, 2)
    async with running(bundle, redis_url, remembered_queries=0) as client:
        for text in ("a", "a"):
            await search(client, query=text)
        assert await num_read(client) == (2, 0)


async def test_a_picture_is_not_taken_for_its_text(tmp_path, redis_url):
    bundle = write_known_bundle(tmp_path / "photos", [], pictures=PICTURES)
    async with running(bundle, redis_url) as client:
        await client.post("/items", json={"items": [*ITEMS, {"item_id": "red", "image": sent(RED)}]})
        text = await search(client, query="Lamp", limit=100)
        both = await search(client, query="Lamp", image=sent(RED), limit=100)
        assert both["items"] != text["items"]
        assert await search(client, query="Lamp", limit=100) == text
        assert await search(client, query="Lamp", image=sent(RED), limit=100) == both


async def test_an_empty_catalog_has_an_empty_page(bundle, redis_url):
    async with running(bundle, redis_url, seed_catalog=False) as client:
        assert (await search(client, query="x"))["items"] == []
