"""What was acknowledged is kept whole, whatever is killed in the middle of a stream of puts and deletes."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from model_export.local_service import LocalService, free_port, local_service
from service.store.server import RedisServer, start_server
from tests.e2e.traffic import Traffic, fsck, until
from tests.known_bundle import KNOWN_ITEMS

NUM_KILLS = 4


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with start_server(tmp_path / "redis", fsync="always") as server:
        yield server


def assert_kept(traffic: Traffic, service: LocalService, redis_url: str, bundle: Path) -> None:
    """Each acknowledged put is there whole, as it was answered; each acknowledged delete is gone."""
    report = fsck(redis_url, bundle)
    assert report["is_clean"], report["findings"]
    living = {item_id: sid for item_id, sid in traffic.acknowledged.items() if sid}
    assert report["num_items"] == len(living) + len(KNOWN_ITEMS)
    assert len(living) > 20
    assert len(living) < len(traffic.acknowledged)
    for item_id, sid in traffic.acknowledged.items():
        answer = service.client.get(f"/items/{item_id}")
        if sid is None:
            assert answer.status_code == 404, item_id
        else:
            assert answer.json() == {
                "item": traffic.items[item_id],
                "semantic_id": sid,
                "codes": [int(code) for code in sid.split("-")[:-1]],
            }
    allowed = {"filter": {"item_ids": list(traffic.acknowledged)}, "limit": 100, "history": []}
    found = {row["item_id"] for row in service.client.post("/recommend", json=allowed).json()["items"]}
    assert found == set(living) if len(living) <= 100 else found < set(living)
    catalog = service.client.get("/info").json()["catalog"]
    assert (catalog["items"], catalog["version"]) == (report["num_items"], report["version"])


def test_a_service_that_is_killed_amid_writes_loses_nothing_that_it_acknowledged(
    bundle: Path, server: RedisServer, tmp_path: Path
) -> None:
    port = free_port()
    traffic = Traffic([f"http://127.0.0.1:{port}"])
    for kill in range(NUM_KILLS + 1):
        with local_service(bundle, port=port, redis_url=server.url, log=tmp_path / f"{kill}.log") as service:
            if kill == 0:
                traffic.start()
            traffic.go_on(60)
            if kill < NUM_KILLS:
                service.process.kill()
                service.process.wait()
                report = fsck(server.url, bundle)  # at once: nothing may be left half done
                assert report["is_clean"], report["findings"]
            else:
                traffic.finish()
                assert_kept(traffic, service, server.url, bundle)


def test_a_redis_that_is_killed_amid_writes_loses_nothing_that_was_acknowledged(
    bundle: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "redis"
    server = start_server(folder, fsync="always")
    with local_service(bundle, redis_url=server.url, log=tmp_path / "service.log") as service:
        shown = service.client.get("/info").json()["redis"]
        assert (shown["append_fsync"], shown["loss_window_s"]) == ("always", 0)
        with Traffic([service.url]) as traffic:
            for _ in range(NUM_KILLS):
                traffic.go_on(60)
                server.kill()
                refused = traffic.num_refused
                until(lambda before=refused: traffic.num_refused > before)
                server = start_server(folder, fsync="always")
            traffic.go_on(60)
        assert_kept(traffic, service, server.url, bundle)
        digest = service.client.get("/info").json()["catalog"]["digest"]
        with local_service(bundle, redis_url=server.url, log=tmp_path / "fresh.log") as fresh:
            assert fresh.client.get("/info").json()["catalog"]["digest"] == digest
    server.stop()
