"""PATCH /items/{id}: which fields it changes, by the kind of the patch."""

import pytest

from tests.known_bundle import known_codes
from tests.service.running import is_problem


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


async def test_a_merge_patch_keeps_nested_fields_and_other_patches_replace_them(client):
    size = {"width": 3, "height": 4}
    await client.post("/items", json={"item_id": "p", "title": "Tea", "size": size})
    body, kind = b'{"size": {"width": 5, "height": null}}', {"Content-Type": "application/merge-patch+json"}
    patched = (await client.patch("/items/p", content=body, headers=kind)).json()
    assert patched["item"] == {"item_id": "p", "title": "Tea", "size": {"width": 5}}
    assert patched["item"] == (await client.get("/items/p")).json()["item"]
    body = {"size": {"depth": 1, "height": None}}
    patched = (await client.patch("/items/p", json=body)).json()
    assert patched["item"] == {"item_id": "p", "title": "Tea", "size": {"depth": 1}}
    assert (
        patched["item"] == (await client.get("/items/p")).json()["item"]
    )  # what is stored, not what was sent


@pytest.mark.parametrize("kind", ["application/json-patch+json", "application/ld+json"])
async def test_a_patch_of_an_unknown_kind_is_refused_and_the_known_ones_are_named(client, kind):
    await client.post("/items", json={"item_id": "p", "title": "Tea"})
    refused = await client.patch("/items/p", content=b'{"title": "x"}', headers={"Content-Type": kind})
    assert is_problem(refused, 415, "not-a-patch")
    assert refused.headers["accept-patch"] == "application/json, application/merge-patch+json"
    assert (await client.get("/items/p")).json()["item"]["title"] == "Tea"


@pytest.mark.parametrize("path", ["/items", "/recommend", "/events"])
async def test_a_patch_is_refused_where_nothing_is_patched(client, path):
    kind = {"Content-Type": "application/merge-patch+json"}
    assert is_problem(await client.post(path, content=b"{}", headers=kind), 415, "not-json")
