"""POST /events: which recommended items users took. Whole services with a real Redis."""

import asyncio
import random
from contextlib import suppress

import pytest
from redis.exceptions import RedisError

from model_export.local_service import free_port
from service.flows.served_pages import PAGES_PER_ID, Attribution, ServedPages
from service.store.events import Event, EventStore
from tests.known_bundle import KNOWN_ITEMS, write_known_bundle
from tests.service.catalogs import until, until_true
from tests.service.redis_nodes import node
from tests.service.running import is_problem, running, starting, until_ready
from tests.service.scraping import by_label, scrape, value

MODEL = "ba9876543210"
OTHER = "00000000beef"


async def page_of(client, request_id=None, **body):
    """-> the request id and the items of a page."""
    headers = {"X-Request-ID": request_id} if request_id else {}
    body = {"history": ["item-0"], "limit": 20} | body
    answer = await client.post("/recommend", json=body, headers=headers)
    assert answer.status_code == 200
    return answer.headers["x-request-id"], [item["item_id"] for item in answer.json()["items"]]


async def post(client, *events):
    """(event id, request id, item id) each -> accepted, duplicates."""
    names = ("event_id", "request_id", "item_id")
    body = {"events": [dict(zip(names, event, strict=True)) for event in events]}
    answer = await client.post("/events", json=body)
    assert answer.status_code == 202, answer.text
    return answer.json()["accepted"], answer.json()["duplicates"]


async def attributed(client, recommender_id=MODEL):
    """-> events, hits at 1, 5 and 10, sum of reciprocal ranks."""
    found = await scrape(client)
    names = [("attributed_total", {}), *(("hits_total", {"k": str(k)}) for k in (1, 5, 10))]
    names.append(("reciprocal_rank_total", {}))
    return [
        found.get(
            (
                f"glyphrec_feedback_{name}",
                tuple(sorted({"recommender_id": recommender_id, **labels}.items())),
            ),
            0,
        )
        for name, labels in names
    ]


async def until_attributed(client, *expected, recommender_id=MODEL):
    async def is_so():
        return await attributed(client, recommender_id) == list(expected)

    try:
        await until_true(is_so)
    except TimeoutError:
        pytest.fail(f"attributed are {await attributed(client, recommender_id)}")


@pytest.fixture
async def pair(bundle, redis_url):
    async with running(bundle, redis_url) as first, running(bundle, redis_url) as second:
        yield first, second


async def test_what_is_taken_counts_by_its_rank_on_the_replica_that_served_the_page(pair):
    server, other = pair
    request_id, items = await page_of(server)
    assert len(items) == 20
    assert await post(other, ("e1", request_id, items[0])) == (1, 0)
    await until_attributed(server, 1, 1, 1, 1, 1)
    assert await post(other, ("e2", request_id, items[3]), ("e3", request_id, items[9])) == (2, 0)
    await until_attributed(server, 3, 1, 2, 3, 1 + 1 / 4 + 1 / 10)
    assert await post(server, ("e4", request_id, items[19])) == (1, 0)
    await until_attributed(server, 4, 1, 2, 3, pytest.approx(1 + 1 / 4 + 1 / 10 + 1 / 20))
    assert await attributed(other) == [0, 0, 0, 0, 0]
    for client, taken in ((server, 1), (other, 3)):
        found = await scrape(client)
        assert by_label(found, "feedback_events_total", "outcome") == {"taken": taken, "duplicate": 0}
    assert value(await scrape(server), "feedback_remembered_pages") == 1


async def test_an_event_counts_once_however_often_and_wherever_it_is_posted(pair):
    server, other = pair
    request_id, items = await page_of(server)
    event = ("once", request_id, items[0])
    assert await post(server, event, event) == (1, 1)
    assert await post(other, event) == (0, 1)
    assert await post(server, ("once", request_id, items[1]), ("last", request_id, items[1])) == (1, 1)
    await until_attributed(server, 2, 1, 2, 2, 1.5)
    found = await scrape(server)
    assert by_label(found, "feedback_events_total", "outcome") == {"taken": 2, "duplicate": 2}


async def test_an_item_that_was_not_on_the_page_counts_without_a_hit_and_an_unknown_page_for_nothing(pair):
    server, _ = pair
    request_id, items = await page_of(server, limit=3)
    elsewhere = next(each.item_id for each in KNOWN_ITEMS if each.item_id not in items)
    events = [("a", "never-served", items[0]), ("b", request_id, elsewhere), ("c", request_id, "no-such")]
    assert await post(server, *events) == (3, 0)
    await until_attributed(server, 2, 0, 0, 0, 0)


async def test_of_pages_with_the_same_request_id_the_one_with_the_item_counts_else_the_newest(client):
    _, first = await page_of(client, "mine", limit=2)
    _, second = await page_of(client, "mine", limit=3, exclude_item_ids=first)
    absent = next(each.item_id for each in KNOWN_ITEMS if each.item_id not in [*first, *second])
    await post(client, ("a", "mine", second[2]), ("b", "mine", first[0]), ("c", "mine", absent))
    await until_attributed(client, 3, 1, 2, 2, 1 + 1 / 3)


async def test_an_event_counts_once_although_two_replicas_served_pages_with_its_request_id(pair):
    server, other = pair
    _, items = await page_of(server, "shared")
    assert (await page_of(other, "shared"))[1] == items
    for number, item_id in enumerate(items):
        await post(other, (f"e{number}", "shared", item_id))

    async def counts():
        return [await attributed(client) for client in pair]

    async def all_are_counted():
        return sum(each[0] for each in await counts()) >= len(items)

    await until_true(all_are_counted)
    await post(
        server, ("last", (await page_of(server))[0], items[0]), ("end", (await page_of(other))[0], items[0])
    )

    async def both_are_past_the_end():
        return sum(each[0] for each in await counts()) >= len(items) + 2

    await until_true(both_are_past_the_end)
    assert [sum(column) for column in zip(*await counts(), strict=True)] == [
        len(items) + 2,
        1 + 2,
        5 + 2,
        10 + 2,
        pytest.approx(sum(1 / rank for rank in range(1, len(items) + 1)) + 2),
    ]


async def test_of_replicas_with_pages_of_one_request_id_the_one_whose_page_has_the_item_counts(pair):
    for (with_it, without_it), number in ((pair, 0), (pair[::-1], 1)):
        shared = f"shared-{number}"
        _, items = await page_of(with_it, shared, limit=3)
        await page_of(without_it, shared, limit=3, exclude_item_ids=items)
        before = await attributed(with_it)
        await post(without_it, (f"e{number}", shared, items[1]))
        await until_attributed(with_it, *(a + b for a, b in zip(before, (1, 0, 1, 1, 0.5), strict=True)))
    absent = next(each.item_id for each in KNOWN_ITEMS if each.item_id not in items)
    await page_of(pair[0], "neither", limit=1)
    await page_of(pair[1], "neither", limit=1)
    await post(pair[0], ("absent", "neither", absent))

    async def is_counted_once():
        return sum([(await attributed(client))[0] for client in pair]) == 3

    await until_true(is_counted_once)
    assert sum([(await attributed(client))[2] for client in pair]) == 2


async def test_a_claim_is_safe_to_repeat_and_the_first_store_that_claims_owns_the_event(redis):
    one, other = (EventStore(redis, catalog="shop", keep_s=100) for _ in range(2))
    assert await one.claim([b"1-0", b"2-0"]) == [True, True]
    assert await other.claim([b"2-0", b"3-0"]) == [False, True]
    assert await one.claim([b"1-0", b"2-0", b"3-0"]) == [True, True, False]
    assert 98 <= await redis.ttl("{shop}:event_owner:1-0") <= 100


async def test_a_page_counts_for_the_model_that_served_it(bundle, redis_url, tmp_path):
    write_known_bundle(tmp_path / "other", KNOWN_ITEMS, recommender_id=OTHER)
    settings = {
        "bundles_dir": tmp_path,
        "admin_keys": ("the-key-of-an-admin",),
        "api_keys": ("the-key-of-a-writer",),
    }
    async with running(bundle, redis_url, **settings) as client:
        client.headers["X-API-Key"] = "the-key-of-an-admin"
        before, items = await page_of(client)
        assert (await client.post("/admin/bundles", json={"bundle": "other"})).status_code == 200
        after, _ = await page_of(client)
        await post(client, ("a", before, items[0]), ("b", after, items[1]), ("c", after, "none"))
        await until_attributed(client, 1, 1, 1, 1, 1)
        await until_attributed(client, 2, 0, 1, 1, 0.5, recommender_id=OTHER)


async def test_a_page_that_is_too_old_counts_for_nothing(bundle, redis_url):
    async with running(bundle, redis_url, attribution_s=0.001) as client:
        old, items = await page_of(client)
        await asyncio.sleep(0.01)  # ten times what a page counts for
        assert await post(client, ("a", old, items[0])) == (1, 0)
        async with running(bundle, redis_url) as other:  # its page marks the end of what was posted before
            request_id, _ = await page_of(other)
            await post(client, ("b", request_id, items[0]))
            await until_attributed(other, 1, 1, 1, 1, 1)
        assert await attributed(client) == [0, 0, 0, 0, 0]


async def test_a_replica_that_remembers_nothing_takes_events_for_the_others(bundle, redis_url):
    async with (
        running(bundle, redis_url) as server,
        running(bundle, redis_url, remembered_pages=0) as forgetful,
    ):
        forgotten, items = await page_of(forgetful)
        request_id, _ = await page_of(server)
        assert await post(forgetful, ("a", forgotten, items[0]), ("b", request_id, items[0])) == (2, 0)
        await until_attributed(server, 1, 1, 1, 1, 1)
        assert await attributed(forgetful) == [0, 0, 0, 0, 0]
        assert value(await scrape(forgetful), "feedback_remembered_pages") == 0


async def test_without_redis_events_are_refused_and_a_restart_of_it_loses_neither_events_nor_ids(
    bundle, tmp_path
):
    port = free_port()
    async with node(tmp_path, port) as redis, starting(bundle, f"redis://127.0.0.1:{port}") as (app, client):
        await until_ready(app)
        request_id, items = await page_of(client)
        event = ("a", request_id, items[0])
        assert await post(client, event) == (1, 0)
        await until_attributed(client, 1, 1, 1, 1, 1)
        with suppress(RedisError):
            await redis.execute_command("SHUTDOWN")
        follower = app.state.service.model().follower
        await until(lambda: follower.lost is not None)
        body = {"events": [{"event_id": "b", "request_id": request_id, "item_id": items[1]}]}
        refused = await client.post("/events", json=body)
        assert is_problem(refused, 503, "store-unavailable")
        assert int(refused.headers["retry-after"]) > 0
        later, _ = await page_of(client)
        async with node(tmp_path, port):
            await until(lambda: follower.lost is None)
            assert await post(client, event, ("b", request_id, items[1]), ("c", later, items[0])) == (2, 1)
            await until_attributed(client, 3, 2, 3, 3, 2.5)


async def test_a_full_redis_takes_no_event_at_all(bundle, tmp_path):
    port = free_port()
    async with node(tmp_path, port) as redis, running(bundle, f"redis://127.0.0.1:{port}") as client:
        request_id, items = await page_of(client)
        await redis.config_set("maxmemory", "1")
        body = {"events": [{"event_id": e, "request_id": request_id, "item_id": items[0]} for e in "ab"]}
        assert is_problem(await client.post("/events", json=body), 503, "store-unavailable")
        await redis.config_set("maxmemory", "0")
        assert await post(client, ("a", request_id, items[0]), ("b", request_id, items[0])) == (2, 0)
        await until_attributed(client, 2, 2, 2, 2, 2)


async def test_what_is_not_an_event_is_refused_whole(client):
    good = {"event_id": "a", "request_id": "b", "item_id": "c"}
    for events in (
        [],
        [good, good | {"event_id": ""}],
        [good | {"event_id": "x" * 129}],
        [good | {"request_id": 1}],
        [good | {"rank": 1}],
        [{"event_id": "a", "request_id": "b"}],
        [good] * 1_001,
    ):
        assert is_problem(await client.post("/events", json={"events": events}), 422, "invalid-request")
    assert await post(client, ("a", "b", "c"), *((f"{n}", "b", "c") for n in range(999))) == (1_000, 0)


async def test_events_are_kept_as_long_as_asked_for_and_no_more_than_that(redis):
    brief, lasting = (EventStore(redis, catalog="shop", keep_s=keep_s) for keep_s in (0, 100))
    first, second = Event("first", "r", "i"), Event("second", "r", "i")
    assert await lasting.take([first]) == 1
    assert await lasting.take([second, first]) == 1
    assert await redis.zcard("{shop}:event_ids") == 2
    assert 100 <= await redis.ttl("{shop}:event_ids") <= 101
    assert 100 <= await redis.ttl("{shop}:events") <= 101
    assert await brief.take([Event("third", "r", "i")]) == 1
    assert await redis.zcard("{shop}:event_ids") == 0
    told = await lasting.after(b"0-0", 1)
    assert [(each.request_id, each.item_id) for each in told] == 3 * [("r", "i")]
    assert await lasting.last_entry_id() == told[-1].entry_id
    await redis.xadd("{shop}:events", {"somebody": "else", "item": b"\xff"})
    assert [each.request_id for each in await lasting.after(told[-1].entry_id, 1)] == [""]


@pytest.mark.parametrize("max_pages", [1, 7, 8, 100, 200])
def test_pages_are_remembered_up_to_their_number_the_newest_ones(max_pages):
    pages = ServedPages(max_pages, 1_000.0, clock=lambda: 5.0)
    for n in range(1, 500):
        pages.remember(f"request-{n}", MODEL, [f"item-{n}", "other"], [f"before-{n}"])
        assert 1 <= pages.num_pages <= max_pages
        assert pages.num_pages >= min(n, max_pages - max_pages // 64)
        assert pages.find(f"request-{n}", "other") == Attribution(MODEL, 2, (f"before-{n}",))
        kept = pages.num_pages
        oldest = max(1, n - kept + 1)
        assert pages.find(f"request-{oldest}", f"item-{oldest}") == Attribution(
            MODEL, 1, (f"before-{oldest}",)
        )
        assert pages.find(f"request-{oldest - 1}", "other") is None


@pytest.mark.parametrize("seed", range(5))
def test_pages_are_remembered_for_their_time_and_no_longer(seed):
    rng, now, truth = random.Random(seed), 0.0, {}
    pages = ServedPages(10_000, 100.0, clock=lambda: now)
    for _ in range(600):
        now += rng.choice([0.0, 0.5, 1.0, 20.0])
        request_id = f"request-{rng.randrange(200)}"
        model, items = rng.choice([MODEL, OTHER]), [f"item-{rng.randrange(9)}" for _ in range(3)]
        history = tuple(f"item-{rng.randrange(9)}" for _ in range(rng.randrange(3)))
        pages.remember(request_id, model, items, history)
        truth.setdefault(request_id, []).insert(0, (now, model, items, history))
        asked, item = f"request-{rng.randrange(200)}", f"item-{rng.randrange(9)}"
        served = [each for each in truth.get(asked, []) if now - each[0] <= 100][:PAGES_PER_ID]
        _, model, items, history = next(
            (each for each in served if item in each[2]), (*served, 4 * [None])[0]
        )
        rank = items.index(item) + 1 if served and item in items else None
        assert pages.find(asked, item) == (Attribution(model, rank, history) if served else None)
        assert pages.num_pages >= sum(now - each[0] <= 100 for each in truth[request_id][:PAGES_PER_ID])
    now += 101
    assert pages.num_pages == 0


def test_a_request_id_that_comes_again_is_the_newest_one():
    pages = ServedPages(3, 1_000.0, clock=lambda: 5.0)
    for request_id in ("first", "second", "first", "third"):
        pages.remember(request_id, MODEL, ["item"])
    found = [request_id for request_id in ("first", "second", "third") if pages.find(request_id, "item")]
    assert found == ["first", "third"]


def test_pages_of_one_request_id_are_bounded_and_count_as_pages():
    pages = ServedPages(1_000, 1_000.0, clock=lambda: 5.0)
    for number in range(100):
        pages.remember("constant", MODEL, [f"item-{number}"])
        assert pages.num_pages == min(number + 1, PAGES_PER_ID)
    assert pages.find("constant", f"item-{100 - PAGES_PER_ID}").rank == 1
    assert pages.find("constant", f"item-{100 - PAGES_PER_ID - 1}").rank is None
    for number in range(3_000):
        pages.remember(f"request-{number // 5}", MODEL, [f"item-{number}"])
        assert pages.num_pages <= 1_000
