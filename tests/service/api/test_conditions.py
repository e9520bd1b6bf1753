"""A change that was computed from what an item was never undoes another change, nor brings the item back."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from service.api.conditions import parse_if_match
from tests.service.catalogs import assert_in_step, read_raw
from tests.service.running import is_problem, running

LONG = " ".join(f"A long text number {n}" for n in range(300))


@pytest.fixture
async def pair(bundle, redis_url):
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(running(bundle, redis_url)) for _ in range(2)]


async def posted(client, **item):
    answer = await client.post("/items", json={"item_id": "p", "title": "Tea", **item})
    assert answer.status_code == 200, answer.text
    return answer.headers["etag"]


async def shown(client):
    return (await client.get("/items/p")).json()["item"]


# --- without a condition ---


@pytest.mark.parametrize("writer", [0, 1], ids=["the same replica", "another replica"])
async def test_a_patch_does_not_bring_back_an_item_that_is_deleted_meanwhile(pair, redis, writer):
    told = set()
    for number in range(12):
        await posted(pair[0])
        patch = asyncio.create_task(pair[0].patch("/items/p", json={"description": f"{LONG} {number}"}))
        await asyncio.sleep(number / 1_000)
        assert (await pair[writer].delete("/items/p")).status_code == 200
        answer = await patch
        told.add(answer.status_code)
        if answer.status_code == 200:  # it came first
            assert answer.json()["status"] != "created"
        else:
            assert is_problem(answer, 404, "item-not-found")
        assert (await pair[0].get("/items/p")).status_code == 404
        assert (await pair[1].get("/items/p")).status_code == 404
    assert 404 in told, "or nothing was shown"
    assert_in_step(await read_raw(redis, "glyphrec"))


@pytest.mark.parametrize("fields", [("price", "stock"), ("description", "brand"), ("price", "description")])
async def test_patches_of_different_fields_at_once_are_both_in(pair, fields):
    await posted(pair[0])
    for number in range(10):
        values = {name: f"{name} {number}" for name in fields}
        answers = await asyncio.gather(
            *(each.patch("/items/p", json={n: v}) for each, (n, v) in zip(pair, values.items(), strict=True))
        )
        assert [each.status_code for each in answers] == [200, 200]
        assert await shown(pair[0]) == {"item_id": "p", "title": "Tea"} | values
        assert await shown(pair[0]) in [each.json()["item"] for each in answers], "the last one shows both"


async def test_thirty_patches_at_once_on_two_replicas_are_all_in(pair):
    await posted(pair[0])
    patches = {f"field {n}": n for n in range(30)}
    answers = await asyncio.gather(
        *(pair[n % 2].patch("/items/p", json={name: n}) for name, n in patches.items())
    )
    assert {each.status_code for each in answers} == {200}
    assert await shown(pair[1]) == {"item_id": "p", "title": "Tea"} | patches


async def test_a_post_and_a_patch_at_once_leave_the_post_with_or_without_the_patch(pair):
    for number in range(10):
        await posted(pair[0], stock=0)
        post = {"item_id": "p", "title": f"Coffee {number}", "price": number}
        put, patch = await asyncio.gather(
            pair[0].post("/items", json=post), pair[1].patch("/items/p", json={"stock": 5})
        )
        assert (put.status_code, patch.status_code) == (200, 200)
        assert await shown(pair[0]) in (post, post | {"stock": 5}), "never what the post has replaced"


# --- with If-Match ---


async def test_every_answer_with_an_item_has_an_etag_that_changes_with_it(client):
    first = await posted(client)
    assert (await client.get("/items/p")).headers["etag"] == first
    assert await posted(client) == first, "unchanged"
    patched = await client.patch("/items/p", json={"price": 3})
    assert patched.headers["etag"] != first
    assert (await client.get("/items/p")).headers["etag"] == patched.headers["etag"]
    assert await posted(client) == first, "the same item again"
    moved = await client.patch("/items/p", json={"title": "Coffee"})
    assert moved.json()["status"] == "moved"
    assert moved.headers["etag"] not in (first, patched.headers["etag"])


async def test_a_change_with_if_match_is_made_only_of_what_was_seen(client):
    seen = await posted(client)
    now = (await client.patch("/items/p", json={"price": 3}, headers={"If-Match": seen})).headers["etag"]
    late = {"If-Match": seen}
    requests = [
        lambda **more: client.patch("/items/p", json={"stock": 1}, **more),
        lambda **more: client.patch("/items/p", json={"title": "Coffee"}, **more),
        lambda **more: client.post("/items", json={"item_id": "p", "title": "Tea", "stock": 1}, **more),
        lambda **more: client.post("/items", json={"item_id": "p", "title": "Coffee"}, **more),
        lambda **more: client.delete("/items/p", **more),
    ]
    for request in requests:
        assert is_problem(await request(headers=late), 412, "precondition-failed")
        assert (await client.get("/items/p")).headers["etag"] == now
    for request in requests:
        answer = await request(headers={"If-Match": f'{seen}, "another", {now}'})
        assert answer.status_code == 200, answer.text
        now = answer.headers.get("etag", "")
    assert (await client.get("/items/p")).status_code == 404


async def test_a_change_without_a_reply_can_be_sent_again_with_the_same_if_match(client):
    seen = {"If-Match": await posted(client)}
    for status in ("moved", "unchanged"):
        answer = await client.patch("/items/p", json={"title": "Coffee"}, headers=seen)
        assert (answer.status_code, answer.json()["status"]) == (200, status)


async def test_if_match_asks_for_an_item_that_exists(client):
    anything, nothing = {"If-Match": "*"}, {"If-Match": '"nothing"'}
    item = {"item_id": "p", "title": "Tea"}
    for condition in (anything, nothing):
        post = await client.post("/items", json=item, headers=condition)
        assert is_problem(post, 412, "precondition-failed")
        patch = await client.patch("/items/p", json={"price": 1}, headers=condition)
        assert is_problem(patch, 404, "item-not-found")
        assert is_problem(await client.delete("/items/p", headers=condition), 404, "item-not-found")
    await posted(client)
    for method, path, body in (
        ("POST", "/items", item),
        ("PATCH", "/items/p", {"price": 2}),
        ("DELETE", "/items/p", None),
    ):
        refused = await client.request(method, path, json=body, headers=nothing)
        if method == "POST":
            assert refused.json()["items"][0]["status"] == "unchanged", "a change that is done already"
        else:
            assert is_problem(refused, 412, "precondition-failed")
        assert (await client.request(method, path, json=body, headers=anything)).status_code == 200


async def test_of_two_that_have_seen_the_same_one_is_told(pair):
    for number in range(10):
        seen = {"If-Match": await posted(pair[0], stock=number)}
        answers = await asyncio.gather(
            *(
                each.patch("/items/p", json={"title": f"{LONG} {n}"}, headers=seen)
                for n, each in enumerate(pair)
            )
        )
        assert sorted(each.status_code for each in answers) == [200, 412]


async def test_a_condition_on_a_batch_or_of_no_tags_is_refused(client):
    batch = {"items": [{"item_id": "p", "title": "Tea"}]}
    refused = await client.post("/items", json=batch, headers={"If-Match": "*"})
    assert is_problem(refused, 422, "invalid-condition")
    for header in ("", "abc", '"a', '"a","', 'w/"a"', '* , "a"'):
        refused = await client.patch("/items/item-0", json={"price": 1}, headers={"If-Match": header})
        assert is_problem(refused, 422, "invalid-condition"), header
    assert "price" not in (await client.get("/items/item-0")).json()["item"]


def test_a_weak_tag_or_one_that_is_not_ours_allows_nothing():
    ours, other = "0" * 40, "1" * 40
    assert parse_if_match(f'"{ours}"').allows(ours)
    assert parse_if_match(f'W/"{ours}", "{other}"').revisions == {other}
    assert parse_if_match('"x"').revisions == frozenset()
    assert not parse_if_match('"x"').allows("")
    assert parse_if_match(" * ").allows(ours)


async def test_the_description_of_the_api_tells_of_both_headers(client):
    paths = (await client.get("/openapi.json")).json()["paths"]
    for path, method, has_etag in (
        ("/items", "post", True),
        ("/items/{item_id}", "patch", True),
        ("/items/{item_id}", "delete", False),
    ):
        operation = paths[path][method]
        assert "if-match" in [each["name"] for each in operation["parameters"]]
        assert "412" in operation["responses"]
        assert ("ETag" in operation["responses"]["200"].get("headers", {})) == has_etag
    assert "ETag" in paths["/items/{item_id}"]["get"]["responses"]["200"]["headers"]
