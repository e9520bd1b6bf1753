"""GET /items/{id}/similar?by=codes takes the filter of POST /recommend: what passes it is the answer."""

import asyncio
import json

import pytest

from tests.service.running import is_problem, running

ITEMS = [
    {
        "item_id": f"i{n}",
        "title": f"Thing {n}",
        "categories": [["food", "bath"][n % 2], "all"],
        "price": n,
        "available": n % 3 > 0,
    }
    for n in range(60)
]
FILTERS = [
    {},
    {"categories_any": ["food"]},
    {"categories_none": ["food"]},
    {"attributes": {"price": {"gte": 20, "lt": 40}}},
    {"available": True, "categories_all": ["all", "bath"]},
    {"item_ids": ["i1", "i2", "i3", "nobody"]},
    {"item_ids": []},
    {"exclude_item_ids": ["i1", "i4"]},
    {"exclude_item_ids": ["i1", "i4"], "categories_any": ["food"]},
    {"categories_any": None},
]


@pytest.fixture
async def shop(bundle, redis_url):
    fields = {"filter_fields": "price:number", "seed_catalog": False}
    async with running(bundle, redis_url, **fields) as client:
        await client.post("/items", json={"items": ITEMS})
        yield client


async def similar(client, item_id, **params):
    answer = await client.get(f"/items/{item_id}/similar", params={"limit": 100, "by": "codes"} | params)
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("asked", FILTERS)
async def test_with_a_filter_the_answer_is_the_whole_answer_without_what_does_not_pass(shop, asked):
    page = {"history": [], "limit": 100, "exclude_history": False, "filter": asked}
    passing = {row["item_id"] for row in (await shop.post("/recommend", json=page)).json()["items"]}
    num_found = 0
    for item_id in (f"i{n}" for n in range(60)):
        whole = (await similar(shop, item_id))["items"]
        found = (await similar(shop, item_id, filter=json.dumps(asked)))["items"]
        assert found == [row for row in whole if row["item_id"] in passing]
        few = (await similar(shop, item_id, filter=json.dumps(asked), limit=1))["items"]
        assert few == found[:1]
        num_found += len(found)
    assert num_found or asked.get("item_ids") is not None


async def test_it_follows_changes_and_many_may_ask_at_once(shop):
    asked = json.dumps({"categories_any": ["food"]})
    for own in (f"i{n}" for n in range(60)):
        before = await similar(shop, own, filter=asked)
        if before["items"]:
            break
    names = [row["item_id"] for row in before["items"]]
    gone = names[-1]
    await asyncio.gather(
        shop.delete(f"/items/{gone}"),
        *(similar(shop, f"i{n}", filter=json.dumps({"item_ids": [f"i{n + 1}"]})) for n in range(20, 50)),
    )
    after = await similar(shop, own, filter=asked)
    assert [row["item_id"] for row in after["items"]] == [name for name in names if name != gone]
    assert after["catalog_version"] > before["catalog_version"]


@pytest.mark.parametrize(
    ("asked", "slug", "said"),
    [
        ("{", "invalid-filter", "filter: is not JSON."),
        ("[]", "invalid-filter", "filter: must be an object, not a list."),
        ('{"category": ["a"]}', "invalid-filter", "filter.category: "),
        ('{"categories_any": "a"}', "invalid-filter", "filter.categories_any: "),
        ('{"available": true, "available": false}', "invalid-filter", "twice"),
        ('{"attributes": {"color": "red"}}', "unknown-filter-field", "'color', which is not declared"),
        ('{"attributes": {"price": "1"}}', "invalid-filter", "price: is declared as number"),
        ('{"item_ids": ["\\ud800"]}', "invalid-filter", "filter.item_ids.0"),
        ("", "invalid-filter", "filter: is not JSON."),
    ],
)
async def test_a_filter_that_means_nothing_is_refused_as_by_recommend(shop, asked, slug, said):
    answer = await shop.get("/items/i0/similar", params={"filter": asked})
    assert is_problem(answer, 422, slug)
    assert said in answer.json()["detail"]


async def test_an_item_that_is_not_there_is_told_also_with_a_filter(shop):
    answer = await shop.get("/items/nobody/similar", params={"filter": '{"available": true}'})
    assert is_problem(answer, 404, "item-not-found")
