"""A refusal speaks of what the client meant, and what can only be meant in one way is taken."""

import pytest

from tests.service.running import is_problem


@pytest.mark.parametrize("name", ["id", "itemId", "item-id", "ItemID", "_id", "product_id", "sku", "asin"])
async def test_an_item_whose_id_has_another_name_hears_of_item_id(client, name):
    answer = await client.post("/items", json={name: "a", "title": "Thing"})
    assert is_problem(answer, 422, "invalid-item")
    assert f"item_id: is missing. Rename the field '{name}' to 'item_id'" in answer.json()["detail"]
    answer = await client.post("/items", json={"items": [{name: "a", "title": "Thing"}]})
    (row,) = answer.json()["items"]
    assert f"Rename the field '{name}' to 'item_id'" in row["error"]["detail"]
    event = {"event_id": "e", "request_id": "r", name: "a"}
    answer = await client.post("/events", json={"events": [event]})
    assert "events.0.item_id" in [error["field"] for error in answer.json()["errors"]]


async def test_an_id_beside_item_id_is_a_field_like_any_other(client):
    item = {"item_id": "a", "id": "b", "title": "Thing"}
    assert (await client.post("/items", json=item)).status_code == 200
    assert (await client.get("/items/a")).json()["item"] == item


async def test_a_bare_list_of_items_is_told_where_it_goes(client):
    answer = await client.post("/items", json=[{"item_id": "a", "title": "Thing"}])
    assert is_problem(answer, 422, "invalid-request")
    assert 'body: is a list. Send several items as {"items": […]}.' in answer.json()["detail"]


@pytest.mark.parametrize("name", ["data", "Items", "products"])
async def test_a_batch_under_another_name_hears_of_items(client, name):
    answer = await client.post("/items", json={name: [{"item_id": "a", "title": "Thing"}]})
    assert is_problem(answer, 422, "invalid-request")
    assert {error["field"] for error in answer.json()["errors"]} == {"items", name}


@pytest.mark.parametrize(
    ("method", "path", "body", "said"),
    [
        ("POST", "/recommend", [], "body: must be an object, not a list."),
        ("POST", "/recommend", {"history": [], "filter": "a"}, "filter: must be an object, not text."),
        (
            "POST",
            "/recommend",
            {"history": [], "diversity": 2},
            "diversity: must be an object, not a number.",
        ),
        ("POST", "/items", "a", "body: must be an object, not text."),
        ("POST", "/events", True, "body: must be an object, not true or false."),
        ("PATCH", "/items/item-0", [], "body: must be an object, not a list."),
    ],
)
async def test_what_is_no_object_is_told_in_words_of_json(client, method, path, body, said):
    answer = await client.request(method, path, json=body)
    assert is_problem(answer, 422, "invalid-request")
    assert answer.json()["detail"].startswith(said)
    assert "instance of" not in answer.text


NULLS = {
    "exclude_item_ids": None,
    "filter": {
        **{"categories_any": None, "categories_all": None, "categories_none": None, "attributes": None},
        **{"available": None, "item_ids": None, "exclude_item_ids": None},
    },
    "diversity": None,
}


@pytest.mark.parametrize("name", NULLS)
async def test_null_for_an_optional_list_or_object_is_as_if_it_were_left_out(client, name):
    """As programs send it that write out every field of a class."""
    bare = (await client.post("/recommend", json={"history": ["item-0"]})).json()
    assert (await client.post("/recommend", json={"history": ["item-0"], name: NULLS[name]})).json() == bare


async def test_every_optional_list_and_object_takes_null(client):
    """By the description itself, so that a new field is not forgotten."""
    schemas = (await client.get("/openapi.json")).json()["components"]["schemas"]
    for name in ("RecommendRequest", "FilterIn", "DiversityIn"):
        for field, schema in schemas[name]["properties"].items():
            if field in schemas[name].get("required", ()):
                continue
            kinds = [each.get("type", "object") for each in schema.get("anyOf", [schema])]
            assert "null" in kinds or not {"array", "object"} & set(kinds), (name, field)


@pytest.mark.parametrize(
    "path", ["/items", "/recommend", "/events", "/info", "/health/ready", "/admin/bundles"]
)
async def test_a_slash_at_the_end_is_named(client, path):
    for method in ("GET", "POST", "PUT"):
        answer = await client.request(method, f"{path}/", json={})
        if path.startswith("/admin"):  # nobody may know whether it is a route
            assert answer.status_code == 403
            continue
        assert is_problem(answer, 404, "no-such-route")
        assert f"It is {path}, without the slash at the end." in answer.json()["detail"]


@pytest.mark.parametrize("given", ["Root=1-678-abc;Parent=5a", "{0f1a}", "a/b+c=="])
async def test_an_event_counts_for_the_page_whatever_the_gateway_calls_its_request(client, given):
    page = await client.post("/recommend", json={"history": ["item-0"]}, headers={"X-Request-ID": given})
    assert page.headers["x-request-id"] == given
    event = {"event_id": given, "request_id": given, "item_id": page.json()["items"][0]["item_id"]}
    assert (await client.post("/events", json={"events": [event]})).json()["accepted"] == 1
