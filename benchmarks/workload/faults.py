"""Replicas behind proxies of their own to Redis, and faults that befall them on a schedule.

A fault is something from outside: a process is killed, ended or paused, a connection is cut or freezes, Redis
loses a key, or another shop starts on the same catalog.
"""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import httpx
from redis import Redis

from model_export.local_service import free_port, glyphrec_command
from service.core.bundle import load_bundle
from service.store.server import RedisServer, start_server
from tests.e2e.clients import Reached
from tests.e2e.judge import FILTER_FIELDS
from tests.e2e.traffic import fsck
from tests.known_bundle import KNOWN_ITEMS, write_known_bundle
from tests.proxy import Proxy

ROOT = Path(__file__).parents[2]
CATALOG = "glyphrec"
OF_A_REPLICA = ("kill", "end", "pause", "cut", "freeze")
OF_REDIS = ("kill redis", "pause redis", "evict")
OF_A_WORKER = "kill a worker"  # of the first replica, where it has several
OF_ANOTHER_SHOP = "another shop"  # starts on the same catalog
KINDS = (*OF_A_REPLICA, *OF_REDIS, OF_ANOTHER_SHOP)
# Below and above the 2 s that a reply of Redis may take, and the 5 s that an answer waits for the log.
SECONDS = (0.2, 0.6, 1.5, 3.0, 6.5)
DOWN_SECONDS = (0.0, 0.3, 1.0)  # of what is killed, besides the time of its start
READY_TIMEOUT_S = 90
LEVEL_TIMEOUT_S = 60
SETTLE_S = 0.1  # after a fault; what it did to an answer that is under way may still come
OTHER_READER = 5  # the tokenizer of another shop
OTHER_ITEMS = [each._replace(item=each.item | {"title": f"Tool {n}"}) for n, each in enumerate(KNOWN_ITEMS)]
SETTINGS = {
    "GLYPHREC_THREADS": "1",
    "GLYPHREC_FILTER_FIELDS": FILTER_FIELDS,
    "GLYPHREC_LOG_LENGTH": "500",  # so that a replica which is away for seconds must load anew
    "GLYPHREC_SEED_CATALOG": "false",
    "GLYPHREC_STOP_DELAY_S": "0.2",
}


REDIS, ANOTHER_SHOP = -1, -2


class Fault(NamedTuple):
    after: int  # acknowledged changes
    kind: str
    target: int  # a replica, REDIS or ANOTHER_SHOP
    seconds: float


def schedule(seed: int, *, faults: int, operations: int, replicas: int, workers: int = 1) -> list[Fault]:
    """Every kind in turn, in random order, spread over the operations."""
    rng = random.Random(seed)
    possible = (*KINDS, OF_A_WORKER) if workers > 1 else KINDS
    kinds = [possible[n % len(possible)] for n in range(faults)]
    rng.shuffle(kinds)
    step = operations / (faults + 1)
    found = []
    for n, kind in enumerate(kinds):
        after = round(step * (n + rng.uniform(0.5, 1)))
        target = REDIS if kind in OF_REDIS else rng.randrange(replicas)
        target = {OF_ANOTHER_SHOP: ANOTHER_SHOP, OF_A_WORKER: 0}.get(kind, target)
        seconds = rng.choice(DOWN_SECONDS if kind.startswith(("kill", "end")) else SECONDS)
        found.append(Fault(after, kind, target, seconds))
    return found


class Replica(Reached):
    """A service process behind a proxy of its own to Redis."""

    def __init__(
        self, bundle: Path, proxy: Proxy, log: Path, *, num_workers: int = 1, **settings: str
    ) -> None:
        super().__init__(f"http://127.0.0.1:{free_port()}", num_workers=num_workers)
        self.proxy, self.log = proxy, log
        self._settings = SETTINGS | settings | {"GLYPHREC_WORKERS": str(num_workers)}
        self._command = glyphrec_command("serve", "--bundle", bundle)
        self._command += ["--port", self.url.rpartition(":")[2], "--redis-url", proxy.url]
        self._client = httpx.Client(base_url=self.url, timeout=5)
        self.process = self.start()

    def start(self) -> subprocess.Popen[bytes]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("GLYPHREC_")}
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        with self.log.open("ab") as log:
            return subprocess.Popen(
                self._command, stdout=log, stderr=log, env={**kept, **self._settings, "PYTHONPATH": path}
            )

    def stop(self) -> None:
        self._client.close()
        self.process.kill()
        self.process.wait()

    def asked(self, path: str) -> Any:
        """The answer as it is now; None where there is none."""
        try:
            answer = self._client.get(path)
        except httpx.TransportError:
            return None
        return answer.json() if answer.status_code == httpx.codes.OK else None

    @property
    def phase(self) -> str:
        """What /health/ready says, whether it is ready or not; empty where nobody answers."""
        try:
            return str(self._client.get("/health/ready").json()["phase"])
        except httpx.TransportError:
            return ""

    @property
    def is_ready(self) -> bool:
        return self.asked("/health/ready") is not None

    @property
    def workers(self) -> list[int]:
        """Process ids of its workers that run, where it has several."""
        try:
            found = self._client.get("/health/ready").json().get("workers", [])
        except httpx.TransportError:
            return []
        return [each["pid"] for each in found if each["pid"] is not None]

    @property
    def catalog(self) -> dict[str, Any] | None:
        shown = self.asked("/info")
        return shown and {name: shown["catalog"][name] for name in ("items", "version", "digest")}


class Scene:
    """Redis and the replicas. For the main thread: a Redis ends with the thread that started it."""

    def __init__(self, folder: Path, bundle: Path, stack: ExitStack, *, keeps: bool) -> None:
        self.folder, self.bundle = folder, bundle
        self._keeps = keeps  # whether Redis outlives a kill with all that it has acknowledged
        self._stack = stack
        self.replicas: list[Replica] = []
        self._shops: list[Replica] = []
        self.server = self._start_server()
        stack.callback(lambda: self.server.kill())

    def add_replica(self, *, workers: int = 1) -> Replica:
        proxy = self._stack.enter_context(Proxy(self._socket))
        log = self.folder / f"replica-{len(self.replicas)}.log"
        replica = Replica(self.bundle, proxy, log, num_workers=workers)
        self._stack.callback(replica.stop)
        self.replicas.append(replica)
        return replica

    def open_another_shop(self) -> Replica:
        """A service with an unrelated bundle on the same catalog, which no client asks."""
        bundle = self.folder / "another shop"
        if not bundle.exists():
            write_known_bundle(bundle, OTHER_ITEMS, reader=OTHER_READER, data_name="another shop")
        proxy = self._stack.enter_context(Proxy(self._socket))
        log = self.folder / f"shop-{len(self._shops)}.log"
        shop = Replica(bundle, proxy, log, GLYPHREC_SEED_CATALOG="true")
        self._stack.callback(shop.stop)
        self._shops.append(shop)
        return shop

    @property
    def logs(self) -> list[Path]:
        """Of all services."""
        return [each.log for each in [*self.replicas, *self._shops]]

    def start_redis_again(self) -> None:
        self.server = self._start_server()
        for each in [*self.replicas, *self._shops]:
            each.proxy.target = self._socket

    def _start_server(self) -> RedisServer:
        return start_server(self.folder / "redis", fsync="always") if self._keeps else start_server()

    @property
    def _socket(self) -> str:
        return unquote(self.server.url.removeprefix("unix://"))


class Faults:
    """Begins each fault when it is due and its target is whole, and ends it."""

    def __init__(self, scene: Scene, faults: Sequence[Fault], complain: Callable[[str], None]) -> None:
        self._scene, self._complain = scene, complain
        self._to_come = list(faults)
        self._under_way: dict[int, Iterator[None]] = {}  # target -> its fault, which ends when it is over
        self.num_over = 0

    @property
    def are_over(self) -> bool:
        return not self._to_come and not self._under_way

    def go_on(self, num_acknowledged: int) -> None:
        for target, under_way in list(self._under_way.items()):
            if next(under_way, "over") == "over":
                del self._under_way[target]
                self.num_over += 1
        due = [each for each in self._to_come if each.after <= num_acknowledged]
        for fault in due:
            if fault.target not in self._under_way:
                self._to_come.remove(fault)
                whom = "" if fault.target == REDIS else f" replica {fault.target}"
                print(f"{num_acknowledged:>7}  {fault.kind}{whom}, {fault.seconds:g} s", flush=True)
                self._under_way[fault.target] = self._run(fault)
                next(self._under_way[fault.target])

    def _run(self, fault: Fault) -> Iterator[None]:
        scene, seconds = self._scene, fault.seconds
        touched = [scene.replicas[fault.target]] if fault.target >= 0 else []
        touched = scene.replicas if fault.target == REDIS else touched
        with ExitStack() as stack:
            is_down = fault.kind in ("kill", "end", OF_A_WORKER)
            for each in touched:
                stack.enter_context(each.disturbed(is_down=is_down))
            if fault.kind == "kill redis":
                scene.server.kill()
                yield from _for(seconds)
                scene.start_redis_again()
            elif fault.kind in ("pause redis", "pause"):
                pid = scene.server.pid if fault.target == REDIS else touched[0].process.pid
                os.kill(pid, signal.SIGSTOP)
                yield from _for(seconds)
                os.kill(pid, signal.SIGCONT)
            elif fault.kind == "evict":
                yield from self._evict_and_repair(fault)
            elif fault.kind == OF_ANOTHER_SHOP:
                yield from self._open_and_end_a_shop(fault)
            elif fault.kind == OF_A_WORKER:
                yield from self._kill_a_worker(touched[0], fault)
            elif fault.kind in ("cut", "freeze"):
                proxy = touched[0].proxy
                proxy.cut() if fault.kind == "cut" else proxy.freeze()
                yield from _for(seconds)
                proxy.mend()
            else:
                yield from self._end_and_start(touched[0], fault)
            yield from _for(SETTLE_S)

    def _evict_and_repair(self, fault: Fault) -> Iterator[None]:
        """Redis loses the codes or the trie. All replicas must say so, until fsck has built what is lost."""
        scene, kind = self._scene, ("codes", "trie")[fault.after % 2]
        tokenizer_id = load_bundle(scene.bundle).manifest.tokenizer_id
        with Redis.from_url(scene.server.url) as redis:
            redis.unlink(f"{{{CATALOG}}}:{kind}:{tokenizer_id}")
        yield from _for(fault.seconds)
        yield from _until(lambda: not self._undisturbed(), LEVEL_TIMEOUT_S)
        for replica in self._undisturbed():
            self._complain(f"{replica.url} is ready although the {kind} are gone")
        fsck(scene.server.url, scene.bundle, "--repair")
        yield from _until(lambda: all(each.is_ready for each in self._whole()), READY_TIMEOUT_S)
        for replica in self._whole():
            if not replica.is_ready:
                self._complain(f"{replica.url} does not get ready after the repair: {replica.phase}")

    def _whole(self) -> list[Replica]:
        """Replicas without a fault of their own."""
        return [each for n, each in enumerate(self._scene.replicas) if n not in self._under_way]

    def _undisturbed(self) -> list[Replica]:
        return [each for each in self._whole() if each.is_ready]

    def _open_and_end_a_shop(self, fault: Fault) -> Iterator[None]:
        """It must never get ready, and must say whose catalog it is."""
        shop = self._scene.open_another_shop()
        yield from _until(lambda: shop.is_ready or "GLYPHREC_TAKE_OVER" in shop.phase)
        if "GLYPHREC_TAKE_OVER" not in shop.phase:
            self._complain(f"another shop does not say whose catalog it is: {shop.phase}")
        yield from _until(lambda: shop.is_ready, fault.seconds)
        if shop.is_ready:
            self._complain("another shop is ready on the catalog of this one")
        shop.process.send_signal(signal.SIGTERM)
        yield from _until(lambda: shop.process.poll() is not None)
        if shop.process.poll() != 0:
            self._complain(f"asked to end, another shop did so with {shop.process.poll()}")

    def _kill_a_worker(self, replica: Replica, fault: Fault) -> Iterator[None]:
        """Its supervisor starts another one, and the others answer meanwhile."""
        before = replica.workers
        if not before:
            self._complain(f"{replica.url} does not name its workers")
            return
        killed = before[fault.after % len(before)]
        os.kill(killed, signal.SIGKILL)

        def is_replaced() -> bool:
            now = replica.workers
            return killed not in now and len(now) == len(before) and replica.is_ready

        yield from _until(is_replaced)
        if not is_replaced():
            self._complain(f"{replica.url} has no other worker for {killed}: {replica.phase}")

    def _end_and_start(self, replica: Replica, fault: Fault) -> Iterator[None]:
        process = replica.process
        process.send_signal(signal.SIGKILL if fault.kind == "kill" else signal.SIGTERM)
        yield from _until(lambda: process.poll() is not None)
        if fault.kind == "end" and process.poll() != 0:
            self._complain(f"asked to end, {replica.url} did so with {process.poll()}")
        yield from _for(fault.seconds)
        replica.process = replica.start()
        yield from _until(lambda: replica.is_ready)
        if not replica.is_ready:
            self._complain(f"{replica.url} does not get ready again")


def _for(seconds: float) -> Iterator[None]:
    yield from _until(lambda: False, seconds)


def _until(claim: Callable[[], bool], timeout_s: float = READY_TIMEOUT_S) -> Iterator[None]:
    give_up_at = time.monotonic() + timeout_s
    while True:
        yield
        if claim() or time.monotonic() >= give_up_at:
            return
