"""Events that move recommendations. Whole services with a real Redis, whose scores are known."""

import asyncio
import time
from collections import defaultdict
from contextlib import suppress
from itertools import product
from math import sqrt

import pytest
from redis.exceptions import RedisError

from model_export.local_service import free_port
from service.catalog.catalog import Catalog
from service.core.co_counts import CoCountSpec, CoRow
from service.core.sid import Sid
from service.flows.learning import Learned, Learner
from service.store.co_counts import CoCountStore, Taken
from service.store.events import Event
from service.telemetry.metrics import Metrics
from tests.known_bundle import KNOWN_ITEMS, known_score, tokenizer_id_of, write_known_bundle
from tests.known_bundle import SPEC as LEVELS
from tests.service.catalogs import until, until_true
from tests.service.redis_nodes import node
from tests.service.running import running, starting, until_ready
from tests.service.scraping import scrape, value

SPEC = CoCountSpec(num_positions=3, decay=0.5, smoothing=0.01, window=2, backward=0.5)
CODES = {each.item_id: each.codes for each in KNOWN_ITEMS}
ROWS = [
    CoRow("item-0", 4.0, {"item-5": 2.0, "item-6": 1.0, "gone": 3.0}),
    CoRow("item-5", 2.0, {"item-0": 1.0}),
    CoRow("item-6", 1.0, {}),
    CoRow("gone", 1.0, {}),
]


@pytest.fixture(scope="module")
def counting(tmp_path_factory):
    """A bundle in whose searches counts have a say. It has none itself."""
    return write_known_bundle(tmp_path_factory.mktemp("counting"), KNOWN_ITEMS, co_counts=SPEC)


@pytest.fixture(scope="module")
def seeding(tmp_path_factory):
    return write_known_bundle(tmp_path_factory.mktemp("seeding"), KNOWN_ITEMS, co_counts=SPEC, rows=ROWS)


async def page_of(client, *history, **body):
    """-> the request id of a page of all items, and their scores."""
    asked = {"history": history, "limit": 30, "exclude_history": False} | body
    answer = await client.post("/recommend", json=asked)
    assert answer.status_code == 200, answer.text
    found = answer.json()["items"]
    return answer.headers["x-request-id"], {item["item_id"]: item["score"] for item in found}


async def post(client, *events):
    body = {"events": [Event(*event)._asdict() for event in events]}
    answer = await client.post("/events", json=body)
    assert answer.status_code == 202, answer.text


def expected(history, mass, without=()):
    """The score of every item. `mass`: of items."""
    of_codes = defaultdict(float)
    for item_id, amount in mass.items():
        of_codes[CODES[item_id]] += amount
    codes = [CODES[item_id] for item_id in history]
    return {
        i: pytest.approx(known_score(codes, c, of_codes), abs=1e-3)
        for i, c in CODES.items()
        if i not in without
    }


async def until_scores(client, history, mass, without=()):
    async def is_so():
        return (await page_of(client, *history))[1] == expected(history, mass, without)

    try:
        await until_true(is_so)
    except TimeoutError:
        assert (await page_of(client, *history))[1] == expected(history, mass, without)


async def test_an_event_on_one_replica_moves_the_next_answer_of_another_within_a_second(counting, redis_url):
    async with running(counting, redis_url) as first, running(counting, redis_url) as second:
        request_id, before = await page_of(first, "item-0", "item-1", "item-2")
        assert before == expected(["item-0", "item-1", "item-2"], {})
        taken = min(before, key=before.__getitem__)  # the last of the page
        await post(second, ("e1", request_id, taken))
        posted_at = time.monotonic()
        # At distance 1 from item-2. Both were taken once.
        await until_scores(second, ["item-2"], {taken: 1 / SPEC.smoothing})
        assert time.monotonic() - posted_at < 1
        await until_scores(first, ["item-1"], {taken: 1 / 2 / SPEC.smoothing})
        await until_scores(first, ["item-0"], {})  # beyond the window
        await until_scores(second, ["item-2", "item-1"], {taken: (1 / 2 + SPEC.decay) / SPEC.smoothing})
        backward = {"item-2": SPEC.backward / SPEC.smoothing, "item-1": SPEC.backward / 2 / SPEC.smoothing}
        await until_scores(second, [taken], backward)
        assert value(await scrape(first), "learned_events_total") == 1
        assert value(await scrape(second), "learned_events_total") == 0
        assert value(await scrape(second), "co_count_items") == 3
        assert value(await scrape(second), "co_count_lag_entries") == 0


async def test_an_event_is_learned_once_and_an_item_beside_the_page_too(counting, redis_url):
    async with running(counting, redis_url) as client:
        request_id, page = await page_of(client, "item-3", limit=2)
        taken = next(item_id for item_id in CODES if item_id not in page and item_id != "item-3")
        await post(client, ("once", request_id, taken), ("once", request_id, taken))
        await post(client, ("once", request_id, taken))
        await until_scores(client, ["item-3"], {taken: 1 / SPEC.smoothing})
        await post(client, ("again", request_id, taken))
        # Taken twice after item-3, which is as popular as that: 2 / sqrt(2 * 2).
        await until_true(lambda: learned(client, 2))
        await until_scores(client, ["item-3"], {taken: 1 / SPEC.smoothing})


async def learned(client, num_events):
    return value(await scrape(client), "learned_events_total") == num_events


async def attributed(client, num_events):
    found = await scrape(client)
    return (
        sum(count for (name, _), count in found.items() if name == "glyphrec_feedback_attributed_total")
        == num_events
    )


async def test_hits_on_pairs_that_the_counts_knew_are_told_from_the_others(seeding, redis_url):
    async with running(seeding, redis_url, learn=False) as client:
        request_id, page = await page_of(client, "item-0")
        ranked = list(page)
        taken = [*ranked, "no-such-item"]
        await post(client, *((f"e{place}", request_id, item_id) for place, item_id in enumerate(taken)))
        await post(client, ("no pair", (await page_of(client))[0], "item-5"))
        kinds = [
            (
                "seen" if item_id in ROWS[0].neighbors else "unseen",
                "hit" if item_id in ranked[:10] else "miss",
            )
            for item_id in taken
        ]
        expected = {kind: kinds.count(kind) for kind in product(("seen", "unseen"), ("hit", "miss"))}
        assert expected["seen", "hit"] + expected["seen", "miss"] == 2

        async def all_are_told():
            found = await scrape(client)
            return expected == {
                (pair, result): value(found, "feedback_pairs_total", pair=pair, result=result)
                for pair, result in expected
            }

        await until_true(all_are_told)


async def test_nothing_is_learned_of_unknown_pages_and_unknown_items_nor_if_it_is_off(
    counting, redis, redis_url
):
    async with running(counting, redis_url) as client, running(counting, redis_url, learn=False) as off:
        request_id, _ = await page_of(client, "item-3", "never-posted")
        on_off, _ = await page_of(off, "item-3")
        events = [("a", "no-such-page", "item-4"), ("b", request_id, "no-such-item"), ("c", on_off, "item-4")]
        await post(client, *events)
        await until_true(lambda: attributed(off, 1))
        await post(client, ("d", request_id, "item-4"))
        await until_true(lambda: learned(client, 1))
        rows = await redis.hkeys("{glyphrec}:co_counts")
        assert sorted(rows) == [b"item-3", b"item-4"]
        await until_scores(off, ["item-3"], {"item-4": 1 / SPEC.smoothing})  # it follows what others learn


async def test_a_deleted_item_is_no_neighbor_until_it_comes_back(seeding, redis_url):
    async with running(seeding, redis_url) as client:
        mass = {"item-5": 2 / sqrt(4 * 2) / SPEC.smoothing, "item-6": 1 / sqrt(4) / SPEC.smoothing}
        await until_scores(client, ["item-0"], mass)
        item = (await client.get("/items/item-5")).json()["item"]
        await client.delete("/items/item-5")
        await until_scores(client, ["item-0"], {"item-6": mass["item-6"]}, without=["item-5"])
        answer = await client.post("/items", json={"items": [item]})
        found = tuple(map(int, answer.json()["items"][0]["semantic_id"].split("-")))[:-1]
        _, page = await page_of(client, "item-0")
        of_codes = {found: mass["item-5"]} | {CODES["item-6"]: mass["item-6"]}
        assert page["item-5"] == pytest.approx(known_score([CODES["item-0"]], found, of_codes), abs=1e-3)


async def test_a_bundles_counts_come_into_a_catalog_once(seeding, counting, redis, redis_url):
    mass = {"item-5": 2 / sqrt(4 * 2) / SPEC.smoothing, "item-6": 1 / sqrt(4) / SPEC.smoothing}
    async with running(seeding, redis_url) as client:
        await until_scores(client, ["item-0"], mass)
    await redis.hdel("{glyphrec}:co_counts", "item-6")
    async with running(seeding, redis_url) as client:
        await until_scores(client, ["item-0"], {"item-5": mass["item-5"]})
    async with running(counting, redis_url) as client:  # another model leaves them alone
        await until_scores(client, ["item-0"], {"item-5": mass["item-5"]})


async def test_a_bundle_without_counts_searches_without_any(bundle, seeding, redis_url):
    async with running(seeding, redis_url) as first, running(bundle, redis_url) as second:
        await until_scores(second, ["item-0"], {})
        request_id, _ = await page_of(second, "item-0")
        await post(first, ("e", request_id, "item-7"))
        await until_true(lambda: attributed(second, 1))
        assert value(await scrape(second), "learned_events_total") == 0
        assert value(await scrape(second), "co_count_items") == 0


async def test_a_restart_of_redis_loses_no_count_and_is_followed(counting, tmp_path):
    port = free_port()
    async with (
        node(tmp_path, port) as redis,
        starting(counting, f"redis://127.0.0.1:{port}") as (app, client),
    ):
        await until_ready(app)
        request_id, _ = await page_of(client, "item-1")
        await post(client, ("before", request_id, "item-2"))
        await until_scores(client, ["item-1"], {"item-2": 1 / SPEC.smoothing})
        with suppress(RedisError):
            await redis.execute_command("SHUTDOWN")
        follower = app.state.service.model().follower
        await until(lambda: follower.lost is not None)
        await until_scores(client, ["item-1"], {"item-2": 1 / SPEC.smoothing})
        async with node(tmp_path, port):
            await until(lambda: follower.lost is None)
            await post(client, ("before", request_id, "item-2"), ("after", request_id, "item-4"))
            await until_scores(client, ["item-1"], dict.fromkeys(("item-2", "item-4"), 1 / SPEC.smoothing))


@pytest.fixture
def learner(redis):
    store = CoCountStore(redis, catalog="shop", half_life_s=1e15, keep_s=60)
    catalog = Catalog(LEVELS)
    for item_id in ("a", "b", "c"):
        catalog.put(item_id, Sid((0, 0, 0), 0))
    return Learner(store, lambda: Learned(catalog, SPEC), Metrics())


async def test_a_full_redis_only_delays_learning(redis, learner):
    await learner.learn([Taken("1", ["a"], "b")])
    await redis.config_set("maxmemory", 1)
    await redis.config_resetstat()

    async def was_refused():
        return (await redis.info("errorstats")).get("errorstat_OOM", {}).get("count", 0) > 1

    learning = asyncio.create_task(learner.learn([Taken("2", ["a"], "c")]))
    try:
        await until_true(was_refused)
        assert not learning.done()
    finally:
        await redis.config_set("maxmemory", 0)
    await learning
    assert sorted(await redis.hkeys("{shop}:co_counts")) == [b"a", b"b", b"c"]


async def test_what_redis_rejects_is_lost_and_learning_goes_on(redis, learner):
    await redis.set("{shop}:co_counts", "not a hash")
    await learner.learn([Taken("1", ["a"], "b")])
    await redis.delete("{shop}:co_counts")
    await learner.learn([Taken("2", ["a"], "c")])
    assert sorted(await redis.hkeys("{shop}:co_counts")) == [b"a", b"c"]


async def test_another_model_or_tokenizer_keeps_what_was_learned_and_learns_on(counting, redis_url, tmp_path):
    write_known_bundle(tmp_path / "model", KNOWN_ITEMS, co_counts=SPEC, recommender_id="00000000beef")
    write_known_bundle(tmp_path / "tokenizer", KNOWN_ITEMS, co_counts=SPEC, reader=1)
    settings = {"bundles_dir": tmp_path, "admin_keys": ("an-admin-key-of-a-test",)}
    async with running(counting, redis_url, **settings) as client:
        client.headers["X-API-Key"] = "an-admin-key-of-a-test"
        request_id, _ = await page_of(client, "item-1")
        await post(client, ("e0", request_id, "item-2"))
        mass = {"item-2": 1 / SPEC.smoothing}
        await until_scores(client, ["item-1"], mass)
        for n, name in enumerate(("model", "tokenizer"), start=1):
            answer = await client.post("/admin/bundles", json={"bundle": name})
            assert answer.status_code in (200, 202), answer.text
            if answer.status_code == 202:
                await until_serving(client, tokenizer_id_of(1))
            await until_scores(client, ["item-1"], mass)
            request_id, _ = await page_of(client, "item-1")
            taken = f"item-{n + 2}"
            await post(client, (f"e{n}", request_id, taken))
            mass |= {taken: 1 / SPEC.smoothing}
            await until_scores(client, ["item-1"], mass)


async def until_serving(client, tokenizer_id):
    async with asyncio.timeout(60):
        while (await client.get("/info")).json()["tokenizer_id"] != tokenizer_id:
            await asyncio.sleep(0.1)
