"""The store with a Redis that refuses, hangs, restarts, loses data, or holds values of other programs."""

import asyncio
import itertools
import os
import random
import re
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import unquote

import pytest
from redis.asyncio import Redis

from service.core.sid import Sid
from service.errors import (
    GlyphrecError,
    ServiceError,
    StoreFault,
    StoreUnavailable,
)
from service.store.client import connect
from service.store.items import ItemStore, PutResult
from service.store.server import RedisServer, start_server
from tests.proxy import Proxy
from tests.service.catalogs import (
    CATALOG,
    ITEMS,
    LOG,
    TOKENIZER,
    assert_in_step,
    put,
    random_codes,
    read_raw,
    record,
    store_on,
    until,
)


@pytest.fixture
async def own_server(tmp_path: Path) -> AsyncIterator[RedisServer]:
    """A server that a test may break."""
    with start_server(tmp_path / "redis") as server:
        yield server


@pytest.fixture
async def own_redis(own_server: RedisServer) -> AsyncIterator[Redis]:
    client = connect(own_server.url, response_timeout_s=0.2)
    yield client
    await client.aclose()


async def test_scripts_are_found_again_when_redis_forgets_them(store: ItemStore, redis: Redis) -> None:
    await put(store, record("a"), (1, 2, 3))
    await redis.script_flush()
    results = await store.put([(record("a"), (1, 2, 3)), (record("b"), (1, 2, 3))])
    assert [r.status for r in results if isinstance(r, PutResult)] == ["unchanged", "created"]
    await redis.script_flush()
    assert (await store.drop(["a"]))[0].existed


async def test_values_that_are_not_ours_are_skipped_and_counted(store: ItemStore, redis: Redis) -> None:
    for item_id in ("a", "b", "c"):
        await put(store, record(item_id, item_id), (1, 2, 3))
    tag = f"{{{CATALOG}}}"
    await redis.zadd(
        f"{tag}:trie:{TOKENIZER}", {b"x": 0, b"\xff" * 20: 0, b"\x00\x01\x00\x02\x00\x03\x00\x09\xff": 0}
    )
    await redis.hset(ITEMS, mapping={"b": "rubbish", "zz": "f" * 32 + " [1]"})
    await redis.hset(f"{tag}:codes:{TOKENIZER}", "c", "rubbish")
    page = await store.page(None, 100)
    assert [item.item_id for item in page.items] == ["a"]
    assert await store.get("b") is None
    assert set(await store.held(["a", "b", "c"])) == {"a", "b"}
    assert [entry.item_id async for entries in store.snapshot() for entry in entries] == ["a", "b", "c"]
    assert store.num_unreadable > 0
    await redis.xadd(LOG, {"somebody": "else"}, id="4-0")
    assert (await store.changes(3))[0].op == "unreadable"
    assert (await put(store, record("d"), (1, 2, 3))).version == 5


async def test_a_key_of_another_type_is_a_fault_and_nothing_is_half_done(
    store: ItemStore, redis: Redis
) -> None:
    for kind in (f"codes:{TOKENIZER}", f"trie:{TOKENIZER}", f"log:{TOKENIZER}", "items"):
        await redis.flushall()
        await redis.set(f"{{{CATALOG}}}:{kind}", "not ours")
        (result,) = await store.put([(record("a"), (1, 2, 3))])
        assert isinstance(result, StoreFault)
        assert "not ours" not in str(result)
        assert await redis.keys() == [f"{{{CATALOG}}}:{kind}".encode()]


async def test_a_redis_out_of_memory_refuses_puts_whole_and_lets_drops_pass(own_redis: Redis) -> None:
    store = store_on(own_redis)
    await put(store, record("a"), (1, 2, 3))
    await own_redis.config_set("maxmemory", "1")
    with pytest.raises(StoreUnavailable, match="out of memory"):
        await store.put([(record("a", "new"), (0, 0, 0)), (record("b"), (1, 2, 3))])
    raw = await read_raw(own_redis)
    assert_in_step(raw)
    assert raw.sids == {"a": Sid((1, 2, 3), 0)}
    assert (await store.drop(["a"]))[0].existed
    assert_in_step(await read_raw(own_redis))


async def test_a_read_only_redis_says_so(own_redis: Redis) -> None:
    store = store_on(own_redis)
    await put(store, record("a"), (1, 2, 3))
    await own_redis.execute_command("REPLICAOF", "127.0.0.1", "1")
    with pytest.raises(StoreUnavailable, match="read-only"):
        await store.drop(["a"])
    assert await store.get("a") is not None


async def test_a_redis_that_cannot_write_to_its_disk_says_so(own_redis: Redis, tmp_path: Path) -> None:
    store = store_on(own_redis)
    await own_redis.config_set("save", "3600 1000000")  # a failed snapshot stops writes where they are on
    (tmp_path / "redis" / "dump.rdb").mkdir()  # where a snapshot should go
    await own_redis.bgsave()
    async with asyncio.timeout(10):
        while (await store.persistence()).last_snapshot_ok:
            await asyncio.sleep(0.01)
    with pytest.raises(StoreUnavailable, match="cannot write to its disk"):
        await store.put([(record("a"), (1, 2, 3))])
    await own_redis.config_set("save", "")  # or the server would not end without a snapshot


async def test_a_redis_that_hangs_is_given_up_within_the_timeout(
    own_server: RedisServer, own_redis: Redis
) -> None:
    store = store_on(own_redis)
    await put(store, record("a"), (1, 2, 3))
    os.kill(own_server.pid, signal.SIGSTOP)
    try:
        async with asyncio.timeout(5):
            with pytest.raises(StoreUnavailable, match="does not answer") as caught:
                await store.put([(record("b"), (1, 2, 3))])
            with pytest.raises(StoreUnavailable):
                await store.ping()
    finally:
        os.kill(own_server.pid, signal.SIGCONT)
    assert caught.value.status == 503
    assert caught.value.retry_after_s
    await store.ping()
    await put(store, record("b"), (1, 2, 3))
    assert_in_step(await read_raw(own_redis))


async def test_a_redis_that_is_away_is_an_error_that_names_no_address(tmp_path: Path) -> None:
    client = connect(f"unix://{tmp_path}/nowhere.sock")
    store = store_on(client)
    for call in (store.get("a"), store.page(None, 1), store.position(), store.changes(0), store.active()):
        with pytest.raises(StoreUnavailable) as caught:
            await call
        assert "nowhere" not in str(caught.value)
    await client.aclose()


def test_a_url_that_is_none_is_refused_without_repeating_it() -> None:
    with pytest.raises(GlyphrecError, match="REDIS_URL") as caught:
        connect("http://user:secret@host")
    assert "secret" not in str(caught.value)


async def test_what_was_acknowledged_outlives_killed_servers(tmp_path: Path) -> None:
    """Kill and restart the server under four writers: every acknowledged sid is there, and all keys agree.

    With another policy Redis may acknowledge a change before it writes it, while its disk is busy.
    """
    folder = tmp_path / "redis"
    server = start_server(folder, fsync="always")
    client = connect(server.url)
    acknowledged: dict[str, Sid] = {}
    is_over = asyncio.Event()

    async def write(writer: int) -> None:
        store, rng = store_on(client), random.Random(writer)
        for i in itertools.count():
            if is_over.is_set():
                return
            batch = [(record(f"{writer}-{i}-{j}", f"{j}"), random_codes(rng)) for j in range(5)]
            try:
                results = await store.put(batch)
            except StoreUnavailable:
                await asyncio.sleep(0.01)
                continue
            acknowledged.update({r.item_id: r.sid for r in results if isinstance(r, PutResult)})

    writers = [asyncio.create_task(write(writer)) for writer in range(4)]
    for _ in range(3):
        enough = len(acknowledged) + 200
        await until(lambda enough=enough: len(acknowledged) >= enough, timeout_s=20)
        os.kill(server.pid, signal.SIGKILL)
        server.stop()
        server = start_server(folder, fsync="always")
    is_over.set()
    await asyncio.gather(*writers)
    raw = await read_raw(client)
    assert_in_step(raw)
    assert acknowledged.items() <= raw.sids.items()
    await client.aclose()
    server.stop()


async def test_lost_connections_in_the_middle_of_batches_leave_all_in_step(
    redis: Redis, redis_url: str
) -> None:
    writer = connect(redis_url)
    store, rng = store_on(writer), random.Random(3)
    for i in range(20):
        batch = [(record(f"{i}-{j}", f"{i}-{j}"), random_codes(rng)) for j in range(300)]
        task = asyncio.create_task(store.put(batch))
        for _ in range(rng.randrange(6)):
            await asyncio.sleep(0)
        await redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        try:
            results = await task
        except StoreUnavailable:
            results = await store.put(batch)
        again = await store.put(
            [pair for pair, r in zip(batch, results, strict=True) if isinstance(r, ServiceError)]
        )
        assert not any(isinstance(result, ServiceError) for result in again)
    raw = await read_raw(redis)
    assert_in_step(raw)
    assert len(raw.items) == 6000
    await writer.aclose()


async def test_the_server_is_new_enough_and_says_how_it_keeps_data(own_redis: Redis) -> None:
    store = store_on(own_redis)
    await store.check_server()
    kept = await store.persistence()
    assert kept.append_only
    assert kept.last_append_ok
    assert kept.eviction == "noeviction"
    assert not list(kept.warnings())


@pytest.mark.parametrize(
    ("append_only", "fsync", "seconds", "words"),
    [
        ("yes", "always", 0, "None"),
        ("yes", "everysec", 2, "about one second"),
        ("yes", "no", 30, "30 seconds"),
        ("no", "always", None, "since the last snapshot"),
    ],
)
async def test_the_loss_window_is_that_of_the_policy_in_force(
    own_redis: Redis, append_only: str, fsync: str, seconds: float | None, words: str
) -> None:
    await own_redis.config_set("appendonly", append_only)
    await own_redis.config_set("appendfsync", fsync)
    kept = await store_on(own_redis).persistence()
    shown = kept.as_json()
    assert (shown["append_only"], shown["append_fsync"]) == (append_only == "yes", fsync)
    assert shown["loss_window_s"] == seconds
    assert words in shown["loss_window"]
    assert bool(list(kept.warnings())) == (append_only == "no")


async def test_a_snapshot_that_fails_and_the_memory_that_is_allowed_are_told(
    own_redis: Redis, tmp_path: Path
) -> None:
    await own_redis.config_set("maxmemory", 50_000_000)
    kept = await store_on(own_redis).persistence()
    assert kept.failing == {"append": False, "rewrite": False, "snapshot": False}
    assert 0 < kept.used_memory_bytes < kept.max_memory_bytes == 50_000_000
    shutil.rmtree(
        tmp_path / "redis"
    )  # its working directory, so that it can make no file; the connection stays
    await own_redis.bgsave()
    async with asyncio.timeout(10):
        while not (await store_on(own_redis).persistence()).failing["snapshot"]:
            await asyncio.sleep(0.05)


async def test_a_redis_that_may_not_be_asked_for_its_policy_says_unknown(
    own_redis: Redis, own_server: RedisServer
) -> None:
    await own_redis.config_set("maxmemory-policy", "allkeys-lru")
    await own_redis.execute_command("ACL", "SETUSER", "app", "on", ">secret", "~*", "+@all", "-config")
    client = connect(own_server.url.replace("unix://", "unix://app:secret@"))
    kept = await store_on(client).persistence()
    assert kept.append_fsync == "unknown"
    assert kept.as_json()["loss_window_s"] is None
    assert "does not tell" in kept.loss_window.sentence
    assert [warning for warning in kept.warnings() if "allkeys-lru" in warning]
    await client.aclose()


async def test_a_redis_that_is_too_old_for_the_scripts_is_refused(redis_server: RedisServer) -> None:
    """No such server is at hand, so a proxy changes what a real one says of itself."""

    def aged(data: bytes) -> bytes:
        return re.sub(rb"redis_version:\d+", b"redis_version:6", data)

    with Proxy(unquote(redis_server.url.removeprefix("unix://")), aged) as proxy:
        client = connect(proxy.url)
        with pytest.raises(GlyphrecError, match=r"Redis 6\.\S+ is too old: use Redis 7 or later, or Valkey"):
            await store_on(client).check_server()
        await client.aclose()
