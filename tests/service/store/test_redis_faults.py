"""The answers of a whole service in each state of Redis, row by row as in the table of the documents."""

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from model_export.local_service import free_port
from service.catalog.follower import CatalogFollower
from service.store.client import RESPONSE_TIMEOUT_S
from service.store.fsck import check
from service.store.server import start_server
from tests.known_bundle import SPEC
from tests.proxy import Proxy
from tests.service.catalogs import TOKENIZER, until, until_true
from tests.service.redis_nodes import node
from tests.service.running import is_problem, running, starting, until_ready

AT_ONCE_S = 0.9 * RESPONSE_TIMEOUT_S  # no request waited for Redis, even on a busy machine
KEPT = {"item_id": "kept", "title": "Kept thing"}


async def test_the_service_warns_of_a_redis_that_keeps_nothing(
    bundle: Path, redis_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "glyphrec"):
        async with running(bundle, redis_url) as client:
            shown = (await client.get("/info")).json()["redis"]
            metrics = (await client.get("/metrics")).text
    assert "--appendonly yes" in caplog.text
    assert shown["append_only"] is False
    assert shown["loss_window_s"] is None
    assert "since the last snapshot" in shown["loss_window"]
    assert "glyphrec_redis_loss_window_seconds +Inf" in metrics


async def test_the_service_says_how_safe_an_acknowledged_item_is(
    bundle: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with start_server(tmp_path / "redis") as server, caplog.at_level(logging.WARNING, "glyphrec"):
        async with running(bundle, server.url) as client:
            shown = (await client.get("/info")).json()["redis"]
            metrics = (await client.get("/metrics")).text
    assert "appendonly" not in caplog.text
    assert (shown["append_only"], shown["append_fsync"]) == (True, "everysec")
    assert shown["loss_window_s"] == 2
    assert "about one second" in shown["loss_window"]
    assert "glyphrec_redis_loss_window_seconds 2.0" in metrics
    assert shown["append_file_bytes"] > 0
    assert f"glyphrec_redis_append_file_bytes {float(shown['append_file_bytes'])}" in metrics
    assert 'glyphrec_redis_failing{what="append"} 0.0' in metrics
    assert "glyphrec_redis_max_memory_bytes 0.0" in metrics


class Fault(NamedTuple):
    client: httpx.AsyncClient
    redis: Redis
    port: int
    follower: CatalogFollower

    async def is_stale(self) -> bool:
        return bool((await self.client.get("/health/ready")).json()["stale"])

    async def is_caught_up(self) -> bool:
        return not await self.is_stale()

    async def refuses_writes(self, words: str, within_s: float, *, drops_too: bool = True) -> None:
        """503 with Retry-After, in time, with a sentence about the state of Redis."""
        calls = [("POST", "/items", {"item_id": "new", "title": "New thing"})]
        calls.append(("PATCH", "/items/kept", {"title": "Other thing"}))
        calls += [("DELETE", "/items/kept", None)] if drops_too else []
        for method, path, body in calls:
            started = time.perf_counter()
            answer = await self.client.request(method, path, json=body)
            seconds = time.perf_counter() - started
            assert is_problem(answer, 503, "store-unavailable")
            assert words in answer.json()["detail"]
            assert int(answer.headers["retry-after"]) > 0
            assert str(self.port) not in answer.text
            assert seconds < within_s, f"{method} took {seconds:.2f} s"

    async def recommends(self) -> None:
        """From the tables in memory, without Redis."""
        started = time.perf_counter()
        allowed = {"history": ["item-0"], "filter": {"item_ids": ["kept"]}}
        page = (await self.client.post("/recommend", json=allowed)).json()["items"]
        assert [row["item_id"] for row in page] == ["kept"]
        assert (await self.client.get("/items/kept/similar")).status_code == 200
        assert (await self.client.get("/info")).status_code == 200
        assert (await self.client.get("/health/ready")).status_code == 200
        assert time.perf_counter() - started < AT_ONCE_S

    async def takes_writes_again(self) -> None:
        await until_true(self.is_caught_up)
        created = await self.client.post("/items", json={"item_id": "after", "title": "After"})
        assert created.json()["items"][0]["status"] == "created"
        assert (await self.client.delete("/items/after")).status_code == 200

    async def stale_seconds(self) -> float:
        text = (await self.client.get("/metrics")).text
        return float(re.search(r"^glyphrec_catalog_stale_seconds (\S+)$", text, re.MULTILINE).group(1))


@asynccontextmanager
async def served(bundle: Path, folder: Path, *options: str) -> AsyncIterator[Fault]:
    """A service on a Redis of its own, with one posted item."""
    port = free_port()
    async with (
        node(folder, port, "--enable-debug-command", "yes", *options) as redis,
        starting(bundle, f"redis://127.0.0.1:{port}") as (app, client),
    ):
        await until_ready(app)
        assert (await client.post("/items", json=KEPT)).status_code == 200
        yield Fault(client, redis, port, app.state.service.readiness.model.follower)


@pytest.mark.slow
async def test_away_reads_go_on_and_writes_are_refused_at_once(bundle: Path, tmp_path: Path) -> None:
    """End it, and start it again at the same address from its own file."""
    async with served(bundle, tmp_path) as fault:
        with suppress(RedisError):
            await fault.redis.execute_command("SHUTDOWN", "NOSAVE")
        await until_true(fault.is_stale)
        for _ in range(3):
            await fault.recommends()
            await fault.refuses_writes("does not answer", AT_ONCE_S)
            for path in ("/items/kept", "/items", "/items/kept/image"):
                assert is_problem(await fault.client.get(path), 503, "store-unavailable")
        assert await fault.stale_seconds() > 0
        async with node(tmp_path, fault.port):
            await fault.takes_writes_again()
            assert await fault.stale_seconds() == 0
            assert fault.follower.num_loads == 1


async def test_full_puts_are_refused_and_drops_pass(bundle: Path, tmp_path: Path) -> None:
    async with served(bundle, tmp_path) as fault:
        await fault.redis.config_set("maxmemory", "1")
        await fault.refuses_writes("out of memory", AT_ONCE_S, drops_too=False)
        both = {"items": [{"item_id": "new", "title": "New"}, {"item_id": "", "title": "No id"}]}
        rows = (await fault.client.post("/items", json=both)).json()["items"]
        assert [row["error"]["status"] for row in rows] == [503, 422]
        await fault.recommends()
        assert await fault.is_caught_up()
        assert (await fault.client.get("/items/kept")).status_code == 200
        assert (await fault.client.delete("/items/kept")).status_code == 200
        await fault.redis.config_set("maxmemory", "0")
        await fault.takes_writes_again()


async def test_read_only_reads_go_on_and_writes_are_refused(bundle: Path, tmp_path: Path) -> None:
    async with served(bundle, tmp_path) as fault:
        await fault.redis.execute_command("REPLICAOF", "127.0.0.1", "1")
        await fault.refuses_writes("read-only", AT_ONCE_S)
        await fault.recommends()
        assert (await fault.client.get("/items/kept")).status_code == 200
        await fault.redis.execute_command("REPLICAOF", "NO", "ONE")
        await fault.takes_writes_again()


@pytest.mark.parametrize("fault", [("CONFIG", "SET", "maxmemory", "1"), ("REPLICAOF", "127.0.0.1", "1")])
async def test_a_replica_that_starts_while_redis_takes_no_writes_recommends(
    bundle: Path, tmp_path: Path, fault: tuple[str, ...]
) -> None:
    async with served(bundle, tmp_path) as first:
        await first.redis.execute_command(*fault)
        async with running(bundle, f"redis://127.0.0.1:{first.port}") as client:
            second = first._replace(client=client)
            await second.recommends()
            assert (await client.get("/items/kept")).status_code == 200


@pytest.mark.slow
async def test_loading_is_as_away_and_says_so(bundle: Path, tmp_path: Path) -> None:
    async with served(bundle, tmp_path) as fault:
        await fault.redis.execute_command("DEBUG", "POPULATE", "2000", "filler", "1000")
        await fault.redis.execute_command("BGREWRITEAOF")

        async def is_rewritten() -> bool:
            info = await fault.redis.info("persistence")
            return not info["aof_rewrite_in_progress"] and not info["aof_rewrite_scheduled"]

        await until_true(is_rewritten)
        with suppress(RedisError):
            await fault.redis.execute_command("SHUTDOWN", "NOSAVE")
        await until_true(fault.is_stale)
        slowly = ("--key-load-delay", "2000", "--loading-process-events-interval-bytes", "1024")
        async with node(tmp_path, fault.port, *slowly, waits=False):
            await until(lambda: "loading" in str(fault.follower.lost))
            await fault.refuses_writes("still loading", AT_ONCE_S)
            await fault.recommends()
            assert await fault.is_stale()
            await until_true(fault.is_caught_up, 30)
            await fault.takes_writes_again()


@pytest.mark.slow
@pytest.mark.alone
async def test_slow_writes_end_within_the_response_timeout_then_at_once(bundle: Path, tmp_path: Path) -> None:
    async with served(bundle, tmp_path) as fault:
        await fault.redis.execute_command("CLIENT", "PAUSE", "9000", "ALL")
        started = time.perf_counter()
        answer = await fault.client.post("/items", json={"item_id": "new", "title": "New"})
        assert is_problem(answer, 503, "store-unavailable")
        assert time.perf_counter() - started < RESPONSE_TIMEOUT_S + AT_ONCE_S
        await until_true(fault.is_stale)
        await fault.refuses_writes("does not answer", AT_ONCE_S)
        await fault.recommends()
        await until_true(fault.is_caught_up, 30)
        await fault.takes_writes_again()


@pytest.mark.alone
async def test_a_pause_shorter_than_the_timeout_is_only_waited_for(bundle: Path, tmp_path: Path) -> None:
    async with served(bundle, tmp_path) as fault:
        asleep = asyncio.create_task(fault.redis.execute_command("DEBUG", "SLEEP", "1"))
        await asyncio.sleep(0)
        answer = await fault.client.post("/items", json={"item_id": "new", "title": "New"})
        assert answer.json()["items"][0]["status"] == "created"
        await asleep
        assert await fault.is_caught_up()


@pytest.mark.slow
@pytest.mark.parametrize("loses_a_change", [False, True])
async def test_failed_over_replicas_go_on_with_what_the_new_primary_has(
    bundle: Path, tmp_path: Path, loses_a_change: bool
) -> None:
    """The address now leads to the replica, which may have lagged behind, as replication is asynchronous."""
    ports = free_port(21_000), free_port(22_000)
    async with (
        node(tmp_path / "old", ports[0]) as old,
        node(tmp_path / "new", ports[1], "--replicaof", "127.0.0.1", str(ports[0])) as new,
    ):
        with Proxy(ports[0]) as proxy:
            async with starting(bundle, proxy.url) as (app, client):
                await until_ready(app)
                follower = app.state.service.readiness.model.follower
                fault = Fault(client, old, ports[0], follower)
                assert (await client.post("/items", json=KEPT)).status_code == 200
                assert await old.execute_command("WAIT", "1", "5000") == 1
                await new.execute_command("REPLICAOF", "NO", "ONE")
                if loses_a_change:
                    assert (await client.post("/items", json={"item_id": "lost", "title": "Lost"})).is_success
                proxy.cut()
                await until_true(fault.is_stale)
                await fault.recommends()
                proxy.target = ports[1]
                proxy.mend()
                await fault.takes_writes_again()
                await fault.recommends()
                assert follower.num_loads == (2 if loses_a_change else 1)
                assert (await client.get("/items/lost/similar")).status_code == 404
                report = await check(new, catalog="glyphrec", tokenizer_id=TOKENIZER, spec=SPEC)
                assert report.is_clean, report.findings
                assert report.num_items == follower.catalog.num_items
