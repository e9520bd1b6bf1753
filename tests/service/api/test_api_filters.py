"""Filters and diversity over HTTP."""

import re

import pytest

from tests.known_bundle import KNOWN_ITEMS
from tests.service.running import is_problem, running
from tests.service.scraping import by_label, scrape

SHOP = [
    {"item_id": "tea", "title": "Green tea", "categories": ["food", "drinks"], "brand": "Leaf", "price": 4},
    {
        "item_id": "milk",
        "title": "Oat milk",
        "categories": ["food", "drinks"],
        "brand": "Oat",
        "price": "2.5",
    },
    {"item_id": "bread", "title": "Rye bread", "categories": "food", "brand": "Leaf", "available": False},
    {"item_id": "soap", "title": "Olive soap", "categories": ["bath"], "price": 9},
]


@pytest.fixture
async def shop(bundle, redis_url):
    fields = {"filter_fields": "brand:text,price:number", "seed_catalog": False}
    async with running(bundle, redis_url, **fields) as client:
        await client.post("/items", json={"items": SHOP})
        yield client


@pytest.mark.parametrize(
    ("asked", "passing"),
    [
        ({}, "tea milk bread soap"),
        ({"categories_any": ["bath", "drinks"]}, "tea milk soap"),
        ({"categories_all": ["food", "drinks"]}, "tea milk"),
        ({"categories_none": ["drinks"]}, "bread soap"),
        ({"attributes": {"brand": "Leaf"}}, "tea bread"),
        ({"attributes": {"price": 2.5}}, "milk"),
        ({"attributes": {"price": {"gte": 2.5, "lt": 9}}}, "tea milk"),
        ({"attributes": {"price": {"gt": 2.5}, "brand": "Leaf"}}, "tea"),
        ({"available": True}, "tea milk soap"),
        ({"available": False}, "bread"),
        ({"item_ids": ["tea", "soap", "nothing"]}, "tea soap"),
        ({"item_ids": []}, ""),
        ({"categories_any": ["food"], "attributes": {"price": {"gt": 100}}}, ""),
    ],
)
async def test_a_filter_lets_through_exactly_what_it_says(shop, asked, passing):
    for history in (["tea"], []):
        body = {"history": history, "exclude_history": False, "filter": asked}
        answer = (await shop.post("/recommend", json=body)).json()
        assert {item["item_id"] for item in answer["items"]} == set(passing.split())
        assert answer["matching_items"] == (len(passing.split()) if asked else None)
        assert answer["source"] == ("model" if history else "popular")
        assert answer["exact"] is bool(history)
        if history and not passing:
            assert answer["search"] is None
        without_one = body | {"filter": asked | {"exclude_item_ids": ["milk"]}, "exclude_item_ids": ["soap"]}
        answer = (await shop.post("/recommend", json=without_one)).json()
        assert {item["item_id"] for item in answer["items"]} == set(passing.split()) - {"milk", "soap"}
        assert answer["matching_items"] == (len(passing.split()) if asked else None), (
            "excluded ones are in it"
        )


async def test_a_changed_item_passes_other_filters_at_once(shop):
    async def passing(**asked):
        answer = (await shop.post("/recommend", json={"history": [], "filter": asked})).json()
        return {item["item_id"] for item in answer["items"]}

    assert await passing(available=False) == {"bread"}
    await shop.patch("/items/bread", json={"available": True})
    assert await passing(available=False) == set()
    assert await passing(categories_any=["bath"]) == {"soap"}
    await shop.post("/items", json={"item_id": "sponge", "title": "Sponge", "categories": ["bath"]})
    assert await passing(categories_any=["bath"]) == {"soap", "sponge"}
    await shop.delete("/items/soap")
    assert await passing(categories_any=["bath"]) == {"sponge"}


async def test_a_page_holds_no_more_of_a_category_than_asked_for(shop):
    body = {"history": ["soap"], "diversity": {"max_per_category": 1}}
    answer = (await shop.post("/recommend", json=body)).json()
    assert len(answer["items"]) == 1, "all others are food first"
    anything = (await shop.post("/recommend", json={"history": ["soap"]})).json()
    assert answer["items"] == anything["items"][:1]


async def test_metrics_and_info_tell_of_filters(shop):
    for asked in ({"available": True}, {"available": True}, {"categories_any": ["bath"]}):
        await shop.post("/recommend", json={"history": ["tea"], "filter": asked})
    text = (await shop.get("/metrics")).text
    for line in (
        "glyphrec_filter_views 2.0",
        "glyphrec_filter_view_hits_total 1.0",
        "glyphrec_filter_view_misses_total 2.0",
        "glyphrec_filter_view_evictions_total 0.0",
        'glyphrec_recommendations_total{exact="true",filtered="true",source="model"} 3.0',
    ):
        assert line in text, line
    assert re.search(r"^glyphrec_filter_view_bytes [1-9]", text, re.MULTILINE)
    assert (await shop.get("/info")).json()["filter_fields"] == {"brand": "text", "price": "number"}


async def test_a_page_is_as_diverse_as_asked_for(client):
    body = {"history": ["item-0"], "limit": 100, "diversity": {"max_per_first_code": 1}}
    answer = (await client.post("/recommend", json=body)).json()
    first_codes = [item["semantic_id"].split("-")[0] for item in answer["items"]]
    assert sorted(first_codes) == sorted({str(each.codes[0]) for each in KNOWN_ITEMS[1:]})
    anything = body | {"diversity": {"max_per_first_code": None}}
    assert len((await client.post("/recommend", json=anything)).json()["items"]) == len(KNOWN_ITEMS) - 1


async def test_the_answer_to_a_post_says_which_values_filters_cannot_use_and_why(shop):
    odd = {"item_id": "odd", "title": "Odd", "available": "false", "brand": ["Leaf"], "price": "5 EUR"}
    odd["categories"] = ["food", 7]
    items = (await shop.post("/items", json={"items": [SHOP[0], odd]})).json()["items"]
    assert items[0]["unused_values"] == []
    reasons = {each["field"]: each["reason"] for each in items[1]["unused_values"]}
    assert set(reasons) == {"available", "brand", "price", "categories"}
    assert reasons["brand"] == "is declared as text, and is a list"
    again = (await shop.post("/items", json=odd)).json()["items"][0]
    assert (again["status"], len(again["unused_values"])) == ("unchanged", 4)
    patched = (await shop.patch("/items/odd", json={"price": 5, "available": None, "brand": "Leaf"})).json()
    assert [each["field"] for each in patched["unused_values"]] == ["categories"]
    found = await scrape(shop)
    assert by_label(found, "unused_values_total", "field") == {
        "available": 2,
        "brand": 2,
        "price": 2,
        "categories": 3,
    }


async def test_a_number_that_a_double_cannot_hold_is_exact_or_refused(shop):
    for price in (2**53 + 1, 12345678901234567890):
        posted = await shop.post("/items", json={"item_id": "big", "title": "Big", "price": price})
        assert [each["field"] for each in posted.json()["items"][0]["unused_values"]] == ["price"]
        assert (await shop.get("/items/big")).json()["item"]["price"] == price
        for condition in (price, {"lte": price}):
            asked = {"history": [], "filter": {"attributes": {"price": condition}}}
            assert is_problem(await shop.post("/recommend", json=asked), 422, "invalid-filter")
    near = {"history": [], "filter": {"attributes": {"price": 2**53}}}
    assert (await shop.post("/recommend", json=near)).json()["matching_items"] == 0
    for literal in ("9007199254740993.0", "12345678901234567.89", "1e-400"):
        body = f'{{"item_id": "lossy", "title": "Lossy", "price": {literal}}}'
        refused = await shop.post("/items", content=body, headers={"Content-Type": "application/json"})
        assert is_problem(refused, 400, "invalid-json")
        assert literal in refused.json()["detail"]
    assert (await shop.get("/items/lossy")).status_code == 404
