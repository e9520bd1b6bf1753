"""Models change while a whole service answers, over a real Redis. Another reader is another tokenizer."""

import asyncio
import json
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

import pytest

from service.core.bundle import RECOMMENDER
from service.core.filters import DeclaredFields
from service.store.client import connect
from tests.known_bundle import KNOWN_ITEMS, known_codes, ranking, tokenizer_id_of, write_known_bundle
from tests.service.catalogs import assert_in_step, read_raw, until
from tests.service.running import is_problem, running

ADMIN = {"X-API-Key": "an-admin-key-of-this-test"}
TIMEOUT_S = 30
OLD, NEW = tokenizer_id_of(0), tokenizer_id_of(1)


@pytest.fixture(scope="session")
def bundles(tmp_path_factory):
    """old and new have different tokenizers; retrained shares the tokenizer of old."""
    folder = tmp_path_factory.mktemp("bundles")
    # Only titles are drawn, so that other fields can change without a new SID.
    write = partial(write_known_bundle, fields=("title",))
    write(folder / "old", KNOWN_ITEMS)
    write(folder / "new", KNOWN_ITEMS[:10], reader=1)
    write(folder / "retrained", KNOWN_ITEMS, recommender_id="00000000beef", beam_limit=32)
    damaged = write(folder / "damaged", KNOWN_ITEMS, reader=2)
    graph = bytearray((damaged / RECOMMENDER).read_bytes())
    graph[len(graph) // 2] ^= 1
    (damaged / RECOMMENDER).write_bytes(graph)
    return folder


@asynccontextmanager
async def replica(bundles, redis_url, name="old", **settings):
    given = {"bundles_dir": bundles, "admin_keys": (ADMIN["X-API-Key"],)} | settings
    async with running(bundles / name, redis_url, **given) as client:
        client.headers.update(ADMIN)
        yield client


@pytest.fixture
async def client(bundles, redis_url):
    async with replica(bundles, redis_url, filter_fields=DeclaredFields({"price": "number"})) as client:
        yield client


@pytest.fixture
async def pair(bundles, redis_url):
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(replica(bundles, redis_url)) for _ in range(2)]


async def change(client, name):
    return await client.post("/admin/bundles", json={"bundle": name})


async def info(client):
    return (await client.get("/info")).json()


async def until_serving(client, tokenizer_id):
    async with asyncio.timeout(TIMEOUT_S):
        while (await info(client))["tokenizer_id"] != tokenizer_id:
            await asyncio.sleep(0.02)


async def post(client, item_id, title, **fields):
    item = {"item_id": item_id, "title": title, **fields}
    answer = await client.post("/items", json=item)
    assert answer.status_code == 200, answer.text
    return item


async def recommended(client, **body):
    answer = await client.post("/recommend", json={"history": ["item-0"], "limit": 100, **body})
    assert answer.status_code == 200, answer.text
    return [each["item_id"] for each in answer.json()["items"]]


# --- who may, and what is refused ---


async def test_only_an_admin_key_may_change_the_bundle_and_without_any_nobody(bundles, redis_url):
    body = {"bundle": "new"}
    async with replica(bundles, redis_url, api_keys=("a-key-that-may-write",)) as client:
        for key, status, slug in (
            ("a-key-that-may-write", 403, "admin-key-needed"),
            ("x" * 20, 401, "missing-key"),
            ("", 401, "missing-key"),
        ):
            client.headers["X-API-Key"] = key
            assert is_problem(await client.post("/admin/bundles", json=body), status, slug)
            assert is_problem(await client.get("/admin/bundles"), status, slug)
        client.headers.update(ADMIN)
        assert (await client.get("/admin/bundles")).status_code == 200
    async with replica(bundles, redis_url, admin_keys=()) as client:
        assert is_problem(await client.post("/admin/bundles", json=body), 403, "no-admin-key")


@pytest.mark.parametrize(
    "name", ["..", ".", ".hidden", "a/b", "/etc", "old\n", "", "http://x", "a\\b", "x" * 200]
)
async def test_a_name_that_is_no_folder_name_is_refused(client, name):
    assert is_problem(await change(client, name), 422, "invalid-request")


async def test_a_bundle_that_is_not_there_or_not_whole_changes_nothing_and_is_told(client, bundles):
    before = await recommended(client)
    assert is_problem(await change(client, "nothing"), 404, "bundle-not-found")
    refused = await change(client, "damaged")
    assert is_problem(refused, 409, "bundle-refused")
    assert "recommender.onnx: sha256" in refused.json()["detail"]
    assert str(bundles) not in refused.text
    assert (await info(client))["bundle"] == "old"
    assert await recommended(client) == before
    text = (await client.get("/metrics")).text
    assert 'glyphrec_bundle_swaps_total{result="failed"} 1.0' in text
    assert 'glyphrec_bundle_swaps_total{result="switched"} 0.0' in text


async def test_without_a_folder_the_setting_is_named(bundles, redis_url):
    async with replica(bundles, redis_url, bundles_dir=None) as client:
        refused = await change(client, "new")
        assert is_problem(refused, 409, "no-bundles-folder")
        assert "GLYPHREC_BUNDLES_DIR" in refused.json()["detail"]


# --- the same tokenizer ---


async def test_a_recommender_of_the_same_tokenizer_is_swapped_at_once_and_metrics_and_info_follow(client):
    await post(client, "here", "Posted before")
    answer = await change(client, "retrained")
    assert answer.status_code == 200, answer.text
    assert answer.json()["serving"] == {
        "bundle": "retrained",
        "tokenizer_id": OLD,
        "recommender_id": "00000000beef",
        "ranker_id": None,
    }
    shown = await info(client)
    assert (shown["recommender_id"], shown["limits"]["beam_limit"]) == ("00000000beef", 32)
    assert "here" in await recommended(client)
    answer = await client.post("/recommend", json={"history": ["here"]})
    assert answer.json()["model_version"] == "00000000beef"
    text = (await client.get("/metrics")).text
    assert text.count("glyphrec_model_info{") == 1
    assert 'recommender_id="00000000beef"' in text
    assert 'glyphrec_bundle_swaps_total{result="switched"} 1.0' in text
    # Counters go on from the counts of the earlier model, or a rate over the change would be wrong.
    assert 'glyphrec_admissions_total{queue="tokenizer"} 1.0' in text
    await post(client, "later", "Posted afterwards")
    assert "later" in await recommended(client)


# --- another tokenizer ---


@pytest.mark.slow
async def test_all_replicas_switch_and_the_catalog_is_what_the_new_tokenizer_reads(pair, redis):
    first, second = pair
    posted = [await post(first, f"before-{n}", f"Posted before {n}") for n in range(5)]
    await first.delete("/items/item-29")
    answer = await change(first, "new")
    assert answer.status_code == 202, answer.text
    assert answer.json()["change"]["phase"] == "reading"
    await asyncio.gather(*(until_serving(each, NEW) for each in pair))
    assert await redis.get("{glyphrec}:active") == NEW.encode()
    posted.append(await post(second, "after", "Posted after"))
    for client in pair:
        shown = await info(client)
        assert (shown["bundle"], shown["change"]["phase"]) == ("new", "switched")
        assert shown["catalog"]["items"] == len(KNOWN_ITEMS) - 1 + len(posted)
        for each in KNOWN_ITEMS[:10]:
            found = (await client.get(f"/items/{each.item_id}")).json()
            assert tuple(found["codes"]) == each.codes, "the export's own codes, as the bundle has the item"
        for item in [*(each.item for each in KNOWN_ITEMS[10:29]), *posted]:
            found = (await client.get(f"/items/{item['item_id']}")).json()
            assert tuple(found["codes"]) == known_codes(item, reader=1)
        assert (await client.get("/items/item-29")).status_code == 404
    raw = await read_raw(redis, "glyphrec", NEW)
    assert_in_step(raw)


async def test_recommendations_afterwards_are_those_of_the_new_catalog(client):
    assert (await change(client, "new")).status_code == 202
    await until_serving(client, NEW)
    codes = {each.item_id: each.codes for each in KNOWN_ITEMS[:10]}
    codes |= {each.item_id: known_codes(each.item, reader=1) for each in KNOWN_ITEMS[10:]}
    ranked = [found for _, found in ranking([codes["item-3"]], set(codes.values()))]
    body = {"history": ["item-3"], "limit": 20, "guarantee": "exact"}
    answer = (await client.post("/recommend", json=body)).json()
    assert answer["exact"]
    places = [ranked.index(codes[each["item_id"]]) for each in answer["items"]]
    assert places == sorted(places)
    expected = [i for i in codes if i != "item-3" and ranked.index(codes[i]) < places[-1]]
    assert set(expected) <= {each["item_id"] for each in answer["items"]}


@pytest.mark.slow
async def test_what_is_put_changed_and_deleted_during_the_change_is_so_after_it(pair):
    """Writers on both replicas work before, during and after the change. The last write of an item holds."""
    last: dict[str, dict | None] = {}
    num_written = {f"w{n}": 0 for n in range(3)}
    is_over = asyncio.Event()

    async def write(client, name):
        number = 0
        while not is_over.is_set():
            number += 1
            num_written[name] += 1
            item_id = f"{name}-{number % 7}"
            if number % 5 == 0:
                answer = await client.delete(f"/items/{item_id}")
                assert answer.status_code in (200, 404), answer.text
                last[item_id] = None
            elif number % 3 == 0:  # only what filters read changes
                held = last.get(item_id) or {"title": f"{name} number {number}"}
                title = held["title"]
                last[item_id] = await post(client, item_id, title, available=bool(number % 2))
            else:
                last[item_id] = await post(client, item_id, f"{name} number {number}")
                body = {"history": ["item-0"], "limit": 100, "filter": {"item_ids": [item_id]}}
                answer = (await client.post("/recommend", json=body)).json()
                assert [each["item_id"] for each in answer["items"]] == [item_id], "its own write is seen"

    writers = [asyncio.create_task(write(each, f"w{n}")) for n, each in enumerate([*pair, pair[0]])]
    await until(lambda: min(num_written.values()) > 5, TIMEOUT_S)
    assert (await change(pair[1], "new")).status_code == 202
    await asyncio.gather(*(until_serving(each, NEW) for each in pair))
    before = num_written.copy()
    await until(lambda: all(num_written[name] > before[name] + 5 for name in before), TIMEOUT_S)
    is_over.set()
    await asyncio.gather(*writers)
    alive = {item_id for item_id, item in last.items() if item is not None}
    available = {i for i in alive if last[i].get("available", True)}
    versions = [(await info(each))["catalog"]["version"] for each in pair]
    async with asyncio.timeout(TIMEOUT_S):
        while min(versions) != max(versions):
            versions = [(await info(each))["catalog"]["version"] for each in pair]
    for client in pair:
        for item_id in last:
            found = await client.get(f"/items/{item_id}")
            if item_id in alive:
                assert found.json()["item"] == last[item_id]
                assert tuple(found.json()["codes"]) == known_codes(
                    {"title": last[item_id]["title"]}, reader=1
                )
            else:
                assert found.status_code == 404
        among = {"filter": {"item_ids": sorted(last), "available": True}}
        assert set(await recommended(client, **among)) == available
        among["filter"]["available"] = False
        assert set(await recommended(client, **among)) == alive - available


@asynccontextmanager
async def held_up_while_joining(client, redis):
    """A change that waits for a living replica which does not get ready."""

    async def report():
        slow = {"replica_id": "slow", "tokenizer_id": OLD, "in_use": [OLD], "prepared": OLD, "trouble": ""}
        while True:
            value = json.dumps({"at": (await redis.time())[0], "report": slow})
            await redis.hset("{glyphrec}:replicas", "slow", value)
            await asyncio.sleep(0.2)  # as often as a replica reports

    reporting = asyncio.create_task(report())
    assert (await change(client, "new")).status_code == 202
    async with asyncio.timeout(TIMEOUT_S):
        while not any(
            each["is_prepared"] for each in (await client.get("/admin/bundles")).json()["change"]["replicas"]
        ):
            await asyncio.sleep(0.02)
    yield
    reporting.cancel()
    await asyncio.gather(reporting, return_exceptions=True)
    await redis.hdel("{glyphrec}:replicas", "slow")


@pytest.mark.slow
async def test_while_replicas_join_what_is_acknowledged_is_under_both_tokenizers(client, redis):
    async with held_up_while_joining(client, redis):
        for n in range(20):
            await post(client, f"both-{n}", f"Posted while joining {n}")
            assert await redis.hexists(f"{{glyphrec}}:codes:{NEW}", f"both-{n}")
            assert await redis.hexists(f"{{glyphrec}}:codes:{OLD}", f"both-{n}")
        for n in range(0, 20, 2):
            assert (await client.delete(f"/items/both-{n}")).status_code == 200
            assert not await redis.hexists(f"{{glyphrec}}:codes:{NEW}", f"both-{n}")
        for each in KNOWN_ITEMS[:20]:
            await post(client, each.item_id, each.item["title"], price=7)
        assert (await info(client))["tokenizer_id"] == OLD
        assert (await change(client, "new")).status_code == 202
        told = (await client.get("/admin/bundles")).json()["change"]
        assert told["phase"] == "joining"
        assert sorted(each["is_prepared"] for each in told["replicas"]) == [False, True]
    await until_serving(client, NEW)
    assert_in_step(await read_raw(redis, "glyphrec", NEW))
    found = await recommended(client, history=[], filter={"attributes": {"price": 7}})
    assert set(found) == {each.item_id for each in KNOWN_ITEMS[:20]}


async def test_a_replica_that_never_gets_ready_does_not_hold_the_others_for_ever(bundles, redis_url, redis):
    async with (
        replica(bundles, redis_url, join_timeout_s=1) as client,
        held_up_while_joining(client, redis),
    ):
        await until_serving(client, NEW)


@pytest.mark.slow
async def test_the_catalog_is_read_slowly_with_progress_and_a_second_change_has_to_wait(bundles, redis_url):
    async with replica(bundles, redis_url, reread_share=0.01) as client:
        items = [{"item_id": f"many-{n}", "title": f"One of many {n}"} for n in range(200)]
        assert (await client.post("/items", json={"items": items})).status_code == 200
        assert (await change(client, "new")).status_code == 202
        seen = set()
        async with asyncio.timeout(TIMEOUT_S):
            while len(seen) < 3:
                told = (await client.get("/admin/bundles")).json()["change"]
                assert told["phase"] == "reading"
                assert told["items"] == len(KNOWN_ITEMS) + len(items)
                seen.add(told["read_items"])
                assert (await info(client))["tokenizer_id"] == OLD
                await asyncio.sleep(0.05)
        text = (await client.get("/metrics")).text
        assert f"glyphrec_rollout_items {len(KNOWN_ITEMS) + len(items)}.0" in text
        assert "glyphrec_rollout_read_items" in text
        assert (await change(client, "new")).status_code == 202, "the same again changes nothing"
        assert is_problem(await change(client, "retrained"), 409, "change-under-way")


@pytest.mark.slow
async def test_going_back_is_the_same_call_and_knows_what_was_posted_since(pair):
    first, second = pair
    assert (await change(first, "new")).status_code == 202
    await asyncio.gather(*(until_serving(each, NEW) for each in pair))
    item = await post(first, "since", "Posted since")
    await second.delete("/items/item-5")
    await post(first, "item-6", KNOWN_ITEMS[6].item["title"], available=False)
    assert (await change(second, "old")).status_code == 202
    await asyncio.gather(*(until_serving(each, OLD) for each in pair))
    for client in pair:
        assert tuple((await client.get("/items/since")).json()["codes"]) == known_codes(item)
        assert tuple((await client.get("/items/item-20")).json()["codes"]) == KNOWN_ITEMS[20].codes
        assert (await client.get("/items/item-5")).status_code == 404
        assert "since" in await recommended(client)
        assert "item-5" not in await recommended(client)
        assert "item-6" not in await recommended(client, filter={"available": True})


@pytest.mark.slow
async def test_the_old_codes_go_when_their_time_is_over_and_never_the_active_ones(bundles, redis_url, redis):
    async with replica(bundles, redis_url, keep_old_codes_s=2) as client:
        assert (await change(client, "new")).status_code == 202
        await until_serving(client, NEW)
        assert await redis.exists(*keys_of(OLD)) == 3, "kept for a while"
        async with asyncio.timeout(TIMEOUT_S):
            while await redis.exists(*keys_of(OLD)):
                await asyncio.sleep(0.05)
        assert await redis.exists(*keys_of(NEW)) == 3
        # Back to a tokenizer whose codes are deleted: every item is read again.
        assert (await change(client, "old")).status_code == 202
        await until_serving(client, OLD)
        assert (await info(client))["catalog"]["items"] == len(KNOWN_ITEMS)
        assert tuple((await client.get("/items/item-3")).json()["codes"]) == KNOWN_ITEMS[3].codes


def keys_of(tokenizer_id):
    return [f"{{glyphrec}}:{kind}:{tokenizer_id}" for kind in ("codes", "trie", "log")]


# --- replicas that are not like the others ---


@pytest.mark.slow
async def test_a_replica_without_the_bundle_stays_behind_loudly_and_its_items_reach_the_others(
    bundles, redis_url, tmp_path
):
    write_known_bundle(tmp_path / "old", KNOWN_ITEMS, fields=("title",))
    async with replica(bundles, redis_url) as first, replica(tmp_path, redis_url) as poor:
        assert (await change(first, "new")).status_code == 202
        await until_serving(first, NEW)
        async with asyncio.timeout(TIMEOUT_S):
            while "GLYPHREC_BUNDLES_DIR" not in (phase := (await poor.get("/health/ready")).json()["phase"]):
                await asyncio.sleep(0.05)
        assert phase.startswith("ready, but")
        assert (await poor.get("/health/ready")).status_code == 200
        assert "glyphrec_behind 1.0" in (await poor.get("/metrics")).text
        troubles = [each["trouble"] for each in (await info(first))["change"]["replicas"]]
        assert sorted(map(bool, troubles)) == [False, True]
        item = await post(poor, "from-behind", "Posted there")
        assert "from-behind" in await recommended(poor)
        async with asyncio.timeout(TIMEOUT_S):
            while "from-behind" not in await recommended(first):
                await asyncio.sleep(0.05)
        assert tuple((await first.get("/items/from-behind")).json()["codes"]) == known_codes(item, reader=1)
        await poor.delete("/items/item-7")
        async with asyncio.timeout(TIMEOUT_S):
            while "item-7" in await recommended(first):
                await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_a_replica_that_starts_later_serves_the_active_bundle_and_does_not_switch_back(
    bundles, redis_url, redis
):
    async with replica(bundles, redis_url) as first:
        assert (await change(first, "new")).status_code == 202
        await until_serving(first, NEW)
        async with replica(bundles, redis_url, "old") as second:
            assert (await info(second))["bundle"] == "new"
        async with replica(bundles, redis_url, "old", bundles_dir=None) as third:
            assert (await info(third))["tokenizer_id"] == OLD
            await asyncio.sleep(1.5)  # nothing must happen within more than it takes to read what is unread
            assert await redis.get("{glyphrec}:active") == NEW.encode()
            assert "ready, but" in (await third.get("/health/ready")).json()["phase"]


@pytest.mark.slow
async def test_a_replica_that_is_told_to_take_over_does(bundles, redis_url, redis):
    async with replica(bundles, redis_url) as first:
        assert (await change(first, "new")).status_code == 202
        await until_serving(first, NEW)
    async with replica(bundles, redis_url, "old", take_over=True) as second:
        assert (await info(second))["tokenizer_id"] == OLD
        async with asyncio.timeout(TIMEOUT_S):
            while await redis.get("{glyphrec}:active") != OLD.encode():
                await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_a_change_whose_leader_died_waits_and_any_replica_takes_it_up_when_asked_again(
    bundles, redis_url, redis
):
    """A dead leader leaves an announced change, a lease that runs out, and some items that are read."""
    async with replica(bundles, redis_url) as client:
        await redis.hset(
            "{glyphrec}:rollout",
            mapping={
                "bundle": "new",
                "tokenizer": NEW,
                "previous": OLD,
                "phase": "reading",
                "reason": "",
                "read_to": 0,
            },
        )
        await redis.set("{glyphrec}:rollout:leader", "dead", px=1_500)
        assert (await change(client, "new")).status_code == 202
        await until_serving(client, NEW)
        assert (await info(client))["change"]["phase"] == "switched"
    probe = connect(redis_url)
    assert_in_step(await read_raw(probe, "glyphrec", NEW))
    await probe.aclose()
