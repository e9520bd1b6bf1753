"""An id is any text that POST /items takes, and every route that names an item reaches it."""

from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.core.items import MAX_ID_CHARS, check_item_id
from service.errors import InvalidItem
from tests.service.running import is_problem, running

ENDS = ["similar", "/similar", "a/similar", "a/image", "a/similar/image", "similar/", "a/similar/similar"]
SIGNS = [
    "..",
    ".",
    "a/../b",
    "//",
    "/",
    " a ",
    "+",
    "a+b c",
    "%2F",
    "%",
    "a?b#c",
    "a;b=c",
    "\\",
    "a&b",
    "é🍕",
    "שלום",
]
LONG = ["🍕" * MAX_ID_CHARS, "/" * MAX_ID_CHARS]


async def reaches(client: httpx.AsyncClient, item_id: str) -> None:
    """Each route with an id in its path is about this item, and about no other one."""
    posted = await client.post("/items", json={"item_id": item_id, "title": "Own"})
    assert posted.status_code == 200, posted.text
    path = f"/items/{quote(item_id, safe='').replace('.', '%2E')}"  # httpx takes .. away, but not %2E%2E
    stored = await client.get(path)
    assert stored.json()["item"] == {"item_id": item_id, "title": "Own"}
    assert (await client.get(f"{path}/similar")).json()["item_id"] == item_id
    assert (await client.get(f"{path}/image")).headers["content-type"] == "image/png"
    patched = await client.patch(path, json={"price": 3})
    assert patched.json()["item"] == {"item_id": item_id, "title": "Own", "price": 3}
    page = {"history": [], "filter": {"item_ids": [item_id]}}
    found = (await client.post("/recommend", json=page)).json()["items"]
    assert [each["item_id"] for each in found] == [item_id]
    assert (await client.delete(path)).json()["item_id"] == item_id
    assert is_problem(await client.get(path), 404, "item-not-found")


@pytest.mark.parametrize("item_id", [*ENDS, *SIGNS, *LONG])
async def test_every_route_reaches_an_id_whatever_it_holds_or_ends_with(
    client: httpx.AsyncClient, item_id: str
) -> None:
    await reaches(client, item_id)


PARTS = st.one_of(st.sampled_from(["/", "similar", "image", "%", ".", "%2F", "items"]), st.text(max_size=3))


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(PARTS, min_size=1, max_size=5).map("".join))
async def test_any_id_that_is_taken_is_reached(bundle, redis_url, item_id: str) -> None:
    try:
        check_item_id(item_id)
    except InvalidItem:
        return
    async with running(bundle, redis_url) as client:
        await reaches(client, item_id)


async def test_two_items_whose_ids_look_like_routes_of_each_other_stay_apart(
    client: httpx.AsyncClient,
) -> None:
    for item_id in ("a", "a/similar", "a/similar/similar"):
        await client.post("/items", json={"item_id": item_id, "title": item_id})
    assert (await client.get("/items/a/similar")).json()["item_id"] == "a"
    assert (await client.get("/items/a/%73imilar")).json()["item_id"] == "a"  # as RFC 3986 has it, 6.2.2.2
    assert (await client.get("/items/a%2Fsimilar")).json()["item"]["title"] == "a/similar"
    assert (await client.get("/items/a%2fsimilar/similar")).json()["item_id"] == "a/similar"
    assert (await client.get("/items/a/similar/similar")).json()["item_id"] == "a/similar"
    assert (await client.delete("/items/a/similar")).json()["item_id"] == "a/similar"
    assert (await client.get("/items/a")).json()["item"]["title"] == "a"


@pytest.mark.parametrize("path", ["/items/%FF", "/items/a%C3/similar", "/items/%ED%A0%80"])
async def test_bytes_that_are_no_text_reach_no_item(client: httpx.AsyncClient, path: str) -> None:
    await client.post("/items", json={"item_id": "\ufffd", "title": "A replacement character"})
    refused = await client.get(path)
    assert (refused.status_code, refused.json()["type"]) == (400, "urn:glyphrec:problem:target-not-utf8")
