"""Replicas end the same, whatever was done to one of them while another took writes."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import httpx
import pytest

from model_export.local_service import LocalService, local_service
from service.store.server import RedisServer, start_server
from tests.e2e.traffic import Traffic, fsck, until
from tests.proxy import Proxy

SHORT_LOG = 200  # changes, of which a request makes two or so
MORE_THAN_THE_LOG = 300  # requests
SEEN_WITHIN_S = 0.5  # of its readiness, by the test that waits for it


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RedisServer]:
    with start_server(tmp_path / "redis") as server:
        yield server


@dataclass
class Scene:
    """One replica that nothing happens to and takes most writes, and another one."""

    bundle: Path
    server: RedisServer
    proxy: Proxy  # between the other one and Redis
    folder: Path
    stack: ExitStack = field(default_factory=ExitStack)
    num_started: int = 0

    def start(self, *, through_proxy: bool = False) -> LocalService:
        self.num_started += 1
        url = self.proxy.url if through_proxy else self.server.url
        log = self.folder / f"{self.num_started}.log"
        return self.stack.enter_context(local_service(self.bundle, redis_url=url, log=log))

    def log_of(self, number: int) -> str:
        return (self.folder / f"{number}.log").read_text()


@pytest.fixture
def scene(
    bundle: Path, server: RedisServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Scene]:
    monkeypatch.setenv("GLYPHREC_FILTER_FIELDS", "price:number")
    with Proxy(unquote(server.url.removeprefix("unix://"))) as proxy:
        scene = Scene(bundle, server, proxy, tmp_path)
        with scene.stack:
            yield scene


def catalog_of(service: LocalService) -> dict[str, Any]:
    answer = service.client.get("/info").raise_for_status().json()["catalog"]
    return {name: answer[name] for name in ("items", "version", "digest")}


def is_caught_up(service: LocalService) -> bool:
    return not service.client.get("/health/ready").json()["stale"]


# Each gives the replica that something happened to. Traffic goes on all the while.
Disturbance = Callable[[Scene, Traffic], LocalService]


def started_late(scene: Scene, traffic: Traffic) -> LocalService:
    traffic.go_on(100)
    return scene.start()


def killed_and_started_again(scene: Scene, traffic: Traffic) -> LocalService:
    for _ in range(2):
        victim = scene.start()
        traffic.go_on(30)
        victim.process.kill()
        victim.process.wait()
        traffic.go_on(30)
    return scene.start()


def paused(scene: Scene, traffic: Traffic) -> LocalService:
    victim = scene.start()
    for _ in range(3):
        traffic.go_on(20)
        os.kill(victim.process.pid, signal.SIGSTOP)
        traffic.go_on(60)
        os.kill(victim.process.pid, signal.SIGCONT)
    return victim


def cut_off(scene: Scene, traffic: Traffic) -> LocalService:
    victim = scene.start(through_proxy=True)
    for _ in range(3):
        traffic.go_on(20)
        scene.proxy.cut()
        until(lambda: not is_caught_up(victim))
        traffic.go_on(60)
        scene.proxy.mend()
        until(lambda: is_caught_up(victim))
    return victim


def frozen_out(scene: Scene, traffic: Traffic) -> LocalService:
    victim = scene.start(through_proxy=True)
    traffic.go_on(20)
    scene.proxy.freeze()
    until(lambda: not is_caught_up(victim))
    traffic.go_on(60)
    scene.proxy.mend()
    return victim


@pytest.mark.parametrize("disturb", [started_late, killed_and_started_again, paused, cut_off, frozen_out])
def test_a_disturbed_replica_ends_as_one_that_never_was(scene: Scene, disturb: Disturbance) -> None:
    calm = scene.start()
    with Traffic([calm.url]) as traffic:
        victim = disturb(scene, traffic)
    assert_all_the_same(scene, calm, victim)


@pytest.mark.parametrize("how", ["paused", "cut off"])
def test_a_replica_behind_a_trimmed_log_ends_as_one_that_never_was(
    scene: Scene, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GLYPHREC_LOG_LENGTH", str(SHORT_LOG))
    calm, victim = scene.start(), scene.start(through_proxy=True)
    with Traffic([calm.url]) as traffic:
        traffic.go_on(20)
        if how == "paused":
            os.kill(victim.process.pid, signal.SIGSTOP)
        else:
            scene.proxy.cut()
            until(lambda: not is_caught_up(victim))
        traffic.go_on(MORE_THAN_THE_LOG)
        if how == "paused":
            os.kill(victim.process.pid, signal.SIGCONT)
        scene.proxy.mend()
    assert_all_the_same(scene, calm, victim)
    assert "loading again" in scene.log_of(2)  # or nothing was shown
    assert "loading again" not in scene.log_of(1)


def test_replicas_that_all_take_writes_end_the_same(scene: Scene) -> None:
    replicas = [scene.start() for _ in range(3)]
    with Traffic([each.url for each in replicas], num_writers=6) as traffic:
        traffic.go_on(200)
    assert_all_the_same(scene, *replicas)


def assert_all_the_same(scene: Scene, *replicas: LocalService) -> None:
    """Also as one that is started now, and as Redis is."""
    report = fsck(scene.server.url, scene.bundle)
    assert report["is_clean"], report["findings"]
    everyone = [*replicas, scene.start()]
    for each in everyone:
        until(lambda each=each: catalog_of(each)["version"] == report["version"], timeout_s=20)
        assert is_caught_up(each)
    catalogs = [catalog_of(each) for each in everyone]
    assert catalogs[0]["items"] == report["num_items"]
    assert all(each == catalogs[0] for each in catalogs), catalogs
    assert report["num_vectors"] == report["num_items"]
    query = {"query": "Thing 7", "limit": 100}
    found = [each.client.post("/search", json=query).raise_for_status().json()["items"] for each in everyone]
    assert found[0]
    assert all(each == found[0] for each in found)


def test_a_late_replica_never_serves_what_was_deleted_before_it_was_ready(scene: Scene) -> None:
    """Each id lives once, and deletes go on while a replica starts."""
    calm = scene.start()
    for start in range(3):
        ids = [f"once-{start}-{n}" for n in range(500)]
        posted = [{"item_id": each, "title": f"Thing {each}"} for each in ids]
        calm.client.post("/items", json={"items": posted}).raise_for_status()
        deleted_at: dict[str, float] = {}
        is_ready = threading.Event()
        deleting = threading.Thread(target=delete_until, args=(is_ready, calm.url, ids, deleted_at))
        deleting.start()
        late = scene.start()
        ready_at = time.monotonic()
        is_ready.set()
        gone = [each for each, at in deleted_at.copy().items() if at < ready_at - SEEN_WITHIN_S]
        asked = {"history": [], "limit": 100, "filter": {"item_ids": gone}}
        assert late.client.post("/recommend", json=asked).json()["items"] == []
        for each in gone:
            assert late.client.get(f"/items/{each}/similar").status_code == 404
        deleting.join()
        assert gone  # or nothing was shown
        until(lambda late=late: catalog_of(late) == catalog_of(calm))


def delete_until(is_ready: threading.Event, url: str, ids: list[str], deleted_at: dict[str, float]) -> None:
    with httpx.Client(base_url=url, timeout=20) as client:
        for each in ids:
            if is_ready.is_set():
                return
            client.delete(f"/items/{each}").raise_for_status()
            deleted_at[each] = time.monotonic()
