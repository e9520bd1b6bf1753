"""Any number of items, in as many requests as the service wants, over a real service; both clients alike."""

import asyncio
import json

import pytest

from glyphrec_client import AsyncClient, Client, UnexpectedAnswer, problems
from glyphrec_client.many import BODY_ROOM, Limits, batches
from tests.answering import Other, running

pytestmark = pytest.mark.slow


def numbered(prefix, count, **fields):
    return [{"item_id": f"{prefix}-{n}", "title": f"Thing {n}", **fields} for n in range(count)]


def put_plain(url, items):
    with Client(url) as client:
        return list(client.put_many(items))


def put_awaited(url, items):
    async def main():
        async with AsyncClient(url) as client:
            return [result async for result in client.put_many(items)]

    return asyncio.run(main())


both = pytest.mark.parametrize("put", [put_plain, put_awaited])


@both
def test_more_items_than_one_request_may_have_are_all_put_in_their_order(served, put):
    items = numbered(put.__name__, 45)  # the service takes 20 at once
    items.insert(30, {"title": "no id"})
    results = put(served, iter(items))
    assert [each.item_id for each in results] == [each.get("item_id") for each in items]
    assert [each.status for each in results] == ["created"] * 30 + ["failed"] + ["created"] * 15
    assert "item_id" in results[30].error.detail
    assert {each.status for each in put(served, items) if each.item_id} == {"unchanged"}


@both
def test_items_of_many_bytes_go_in_requests_that_the_service_takes(served, put):
    items = numbered(f"long-{put.__name__}", 12, text="ü" * 9_000)  # 18 KB each, and 100 KB in a request
    assert [each.status for each in put(served, items)] == ["created"] * 12


@both
def test_an_item_that_no_request_can_hold_fails_alone(served, put):
    big = {"item_id": "big", "title": "Big", "text": "x" * 200_000}
    results = put(served, [*numbered(f"b-{put.__name__}", 2), big, *numbered(f"c-{put.__name__}", 2)])
    assert [each.status for each in results] == ["created", "created", "failed", "created", "created"]
    assert results[2].item_id == "big"
    assert results[2].error.type == "urn:glyphrec:problem:body-too-large"


def test_nothing_is_posted_before_the_results_are_read(served):
    with Client(served) as client:
        results = client.put_many(numbered("lazy", 30), batch=10)
        for _ in range(10):
            next(results)
        assert client.get_item("lazy-9").item["title"] == "Thing 9"
        with pytest.raises(problems.ItemNotFound):
            client.get_item("lazy-10")


@pytest.mark.parametrize("page_size", [1, 7, 1000])
def test_all_pages_are_every_item_once(served, page_size):
    with Client(served) as client:
        found = [each.item["item_id"] for each in client.all_items(page_size=page_size)]
        assert len(found) == len(set(found)) == client.info().catalog.items

    async def main():
        async with AsyncClient(served) as other:
            return [each.item["item_id"] async for each in other.all_items(page_size=page_size)]

    assert asyncio.run(main()) == found


def test_a_filter_diversity_and_ids_are_sent_as_the_service_reads_them(served):
    with Client(served) as client:
        list(client.put_many(numbered("pen", 5, price=3, categories=["Pens"])))
        cheap = {"categories_any": ["Pens"], "attributes": {"price": {"lte": 3, "gte": 2.5}}}
        page = client.recommend(["item-0"], filter=cheap, request_id="trace-1", exclude_item_ids=["pen-0"])
        assert {each.item_id for each in page.items} == {f"pen-{n}" for n in range(1, 5)}
        assert (page.matching_items, page.request_id) == (5, "trace-1")
        alike = client.similar_items("pen-0", filter=cheap)
        assert {each.item_id for each in alike.items} <= {f"pen-{n}" for n in range(1, 5)}
        narrow = client.recommend(["item-0"], limit=50, diversity={"max_per_first_code": 1})
        firsts = [each.semantic_id.split("-")[0] for each in narrow.items]
        assert len(firsts) == len(set(firsts))
        with pytest.raises(problems.UnknownFilterField, match="color"):
            client.recommend([], filter={"attributes": {"color": "red"}})
        with pytest.raises(problems.InvalidRequest) as error:
            client.recommend([], limit=0)
        assert error.value.document["errors"][0]["field"] == "limit"


def test_a_change_of_what_was_seen_before_is_refused_once_it_is_another(served):
    with Client(served) as client:
        (etag,) = {client.put_item({"item_id": "seen", "title": "One"}).etag, client.get_item("seen").etag}
        assert client.patch_item("seen", {"dims": {"w": 1, "h": 2}}).item["dims"] == {"w": 1, "h": 2}
        with pytest.raises(problems.PreconditionFailed):
            client.patch_item("seen", {"price": 1}, if_match=etag)
        with pytest.raises(problems.PreconditionFailed):
            client.delete_item("seen", if_match=etag)
        merged = client.patch_item("seen", {"dims": {"w": 5}}, merge=True)
        assert merged.item["dims"] == {"w": 5, "h": 2}
        client.delete_item("seen", if_match=merged.etag)
        with pytest.raises(problems.NoAdminKey):
            client.bundles()


def test_a_batch_never_passes_either_limit_and_loses_nothing():
    items = [{"item_id": str(n), "t": "x" * (n % 7)} for n in range(50)]
    for num_items, num_bytes in ((1, 10_000), (3, 10_000), (50, 120), (7, 1)):
        found = list(batches(iter(items), Limits(num_items, num_bytes)))
        assert [json.loads(each) for batch in found for each in batch] == items
        for batch in found:
            assert len(batch) <= num_items
            body = BODY_ROOM + sum(map(len, batch)) + len(batch) - 1
            assert body <= num_bytes or len(batch) == 1


def test_a_wrong_number_of_results_is_no_answer_of_the_service():
    with (
        running(Other((200, {}, b'{"items": [], "catalog_version": 1}'))) as other,
        Client(other.url) as client,
        pytest.raises(UnexpectedAnswer, match="0 results for 1 items"),
    ):
        client.put_items([{"item_id": "a"}])
