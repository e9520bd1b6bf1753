"""Writers and readers on several replicas while processes are killed, paused and cut off: is anything lost?

    python -m benchmarks.chaos --seed 1 [--operations 10000] [--faults 50] [--replicas 3] [--bundle BUNDLE]

The seed gives every fault (which, of what, after how many acknowledged changes, for how long) and what
each client sends, in order; how they fall together is the machine's. Prints each fault as it begins. The
last line is JSON:

    acknowledged  items whose put or delete was acknowledged
    faults        that began and ended
    lost          items that do not end as acknowledged last, by GET or by POST /recommend of any replica
    bad_sids      items with no SID, two, or another's, in what Redis holds; and all that fsck finds
    diverged      replicas that do not end with the tables of one that was started afterwards
    wrong         answers that contradict what was acknowledged, are undocumented, broken or never come

`--append-only no` lets Redis keep nothing: then a kill of it must show as lost.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import httpx
from redis import Redis

from benchmarks import report
from model_export.local_service import free_port, glyphrec_command
from service.core.bundle import load_bundle
from service.store.server import RedisServer, start_server
from tests.e2e.clients import Clients, Reached, some_item
from tests.e2e.judge import FIELDS_READ, FILTER_FIELDS, Judge, Known, text_of
from tests.e2e.photos import as_stored, kept_of
from tests.e2e.traffic import fsck, until
from tests.known_bundle import KNOWN_ITEMS, PICTURES, known_codes, tokenizer_id_of, write_known_bundle
from tests.proxy import Proxy

ROOT = Path(__file__).parents[1]
CATALOG = "glyphrec"
HASH_LENGTH = 32  # what follows the SID in Redis' hash of codes
OF_A_REPLICA = ("kill", "end", "pause", "cut", "freeze")
OF_REDIS = ("kill redis", "pause redis", "evict")
OF_ANOTHER_SHOP = "another shop"  # starts on the same catalog
KINDS = (*OF_A_REPLICA, *OF_REDIS, OF_ANOTHER_SHOP)
# Below and above the 2 s that a reply of Redis may take, and the 5 s that an answer waits for the log.
SECONDS = (0.2, 0.6, 1.5, 3.0, 6.5)
DOWN_SECONDS = (0.0, 0.3, 1.0)  # of what is killed, besides the time of its start
READY_TIMEOUT_S = 90
LEVEL_TIMEOUT_S = 60
SETTLE_S = 0.1  # after a fault; what it did to an answer that is under way may still come
SHOWN = 20  # findings of each kind
OTHER_READER = 5  # the tokenizer of another shop
OTHER_ITEMS = [each._replace(item=each.item | {"title": f"Tool {n}"}) for n, each in enumerate(KNOWN_ITEMS)]
NUM_BASE = 30  # items that nobody changes
MOST_ITEMS = 100  # the most that a recommendation may have
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


def schedule(seed: int, *, faults: int, operations: int, replicas: int) -> list[Fault]:
    """Every kind in turn, in random order, spread over the operations."""
    rng = random.Random(seed)
    kinds = [KINDS[n % len(KINDS)] for n in range(faults)]
    rng.shuffle(kinds)
    step = operations / (faults + 1)
    found = []
    for n, kind in enumerate(kinds):
        after = round(step * (n + rng.uniform(0.5, 1)))
        target = REDIS if kind in OF_REDIS else rng.randrange(replicas)
        target = ANOTHER_SHOP if kind == OF_ANOTHER_SHOP else target
        seconds = rng.choice(DOWN_SECONDS if kind.startswith(("kill", "end")) else SECONDS)
        found.append(Fault(after, kind, target, seconds))
    return found


class Replica(Reached):
    """A service process behind a proxy of its own to Redis."""

    def __init__(self, bundle: Path, proxy: Proxy, log: Path, **settings: str) -> None:
        super().__init__(f"http://127.0.0.1:{free_port()}")
        self.proxy, self.log = proxy, log
        self._settings = SETTINGS | settings
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

    def add_replica(self) -> Replica:
        proxy = self._stack.enter_context(Proxy(self._socket))
        replica = Replica(self.bundle, proxy, self.folder / f"replica-{len(self.replicas)}.log")
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
            is_down = fault.kind in ("kill", "end")
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


class Found(NamedTuple):
    acknowledged: int
    faults: int
    lost: list[str]
    bad_sids: list[str]
    diverged: list[str]
    wrong: list[str]
    answers: int
    refused: int

    @property
    def is_clean(self) -> bool:
        return not (self.lost or self.bad_sids or self.diverged or self.wrong)


def chaos(
    folder: Path,
    bundle: Path | None,
    *,
    seed: int,
    operations: int,
    faults: Sequence[Fault],
    replicas: int = 3,
    writers: int = 6,
    readers: int = 3,
    keeps: bool = True,
) -> Found:
    """Run until so many changes are acknowledged and all faults are over; then look what became of it all."""
    judge = Judge() if bundle else Judge(lambda item: known_codes(text_of(item), kept=kept_of(item)))
    if bundle is None:
        bundle = write_known_bundle(folder / "bundle", KNOWN_ITEMS, fields=FIELDS_READ, pictures=PICTURES)
    with ExitStack() as stack:
        scene = Scene(folder, bundle, stack, keeps=keeps)
        for _ in range(replicas):
            scene.add_replica()
        until(lambda: all(each.is_ready for each in scene.replicas), READY_TIMEOUT_S)
        put_base_items(scene.replicas[0], judge, random.Random(seed))
        clients = Clients(scene.replicas, judge, seed=seed, num_writers=writers, num_readers=readers)
        doing = Faults(scene, faults, clients.complain)
        clients.start()
        while clients.num_acknowledged < operations or not doing.are_over:
            doing.go_on(clients.num_acknowledged)
            time.sleep(0.01)
        clients.finish()
        lost, bad_sids, diverged = end_of(scene, judge)
        traces = [log for log in scene.logs if "Traceback" in log.read_text()]
        wrong = clients.wrong + [f"{log.name}: a trace of a failure" for log in traces]
        return Found(
            clients.num_acknowledged,
            doing.num_over,
            lost,
            bad_sids,
            diverged,
            wrong,
            clients.num_answers,
            clients.num_refused,
        )


def put_base_items(replica: Replica, judge: Judge, rng: random.Random) -> None:
    items = [some_item(f"base-{n}", rng) for n in range(NUM_BASE)]
    answer = httpx.post(f"{replica.url}/items", json={"items": items}, timeout=60).raise_for_status().json()
    for item, row in zip(items, answer["items"], strict=True):
        judge.settle(
            item["item_id"], Known(as_stored(item, None), row["semantic_id"], answer["catalog_version"])
        )


def end_of(scene: Scene, judge: Judge) -> tuple[list[str], list[str], list[str]]:
    """What is lost, which SIDs are bad, which replicas differ."""
    fresh = scene.add_replica()
    checked = fsck(scene.server.url, scene.bundle)
    bad_sids = [*(f"fsck: {each}" for each in checked["findings"]), *bad_sids_in(scene)]
    diverged = []
    for each in (fresh, *scene.replicas[:-1]):
        try:
            until(partial(is_at, each, checked["version"]), LEVEL_TIMEOUT_S)
        except AssertionError:
            diverged.append(f"{each.url} is not at version {checked['version']}: {each.catalog}")
    catalogs = {each.url: each.catalog for each in scene.replicas}
    diverged += [
        f"{url} has {catalog}, one started later {catalogs[fresh.url]}"
        for url, catalog in catalogs.items()
        if catalog != catalogs[fresh.url]
    ]
    lost = [each for replica in scene.replicas for each in lost_at(replica, judge)]
    return lost, bad_sids, diverged


def is_at(replica: Replica, version: int) -> bool:
    catalog = replica.catalog
    return catalog is not None and catalog["version"] == version


def lost_at(replica: Replica, judge: Judge) -> Iterator[str]:
    """What is not as it was acknowledged last: each item as this replica gives and recommends it."""
    known = judge.now()
    ids = sorted(known)
    for item_id in ids:
        answer = replica.asked(f"/items/{item_id}")
        yield from (f"{replica.url}: {each}" for each in judge.of_item(item_id, answer, known))
    with httpx.Client(base_url=replica.url, timeout=60) as client:
        for start in range(0, len(ids), MOST_ITEMS):
            part = ids[start : start + MOST_ITEMS]
            asked = {"history": [], "limit": MOST_ITEMS, "filter": {"item_ids": part}}
            page = client.post("/recommend", json=asked).raise_for_status().json()
            found = {row["item_id"]: row["semantic_id"] for row in page["items"]}
            expected = {each: known[each].sid for each in part if known[each].item is not None}
            for item_id in sorted(each for each in part if found.get(each) != expected.get(each)):
                sids = f"{found.get(item_id)}, not {expected.get(item_id)}"
                yield f"{replica.url} recommends {item_id} as {sids}"
        for item_id, item in ((each, known[each].item or {}) for each in ids):
            path = f"/items/{item_id}/image?part=kept"
            if "image" in item and client.get(path).content != kept_of(item):
                yield f"{replica.url} has another photo of {item_id} than was acknowledged"


def bad_sids_in(scene: Scene) -> Iterator[str]:
    """Read from Redis without any code of the service."""
    tokenizer_id = load_bundle(scene.bundle).manifest.tokenizer_id
    with Redis.from_url(scene.server.url) as redis:
        items, codes, trie = (
            f"{{{CATALOG}}}:{kind}" for kind in ("items", f"codes:{tokenizer_id}", f"trie:{tokenizer_id}")
        )
        sids = {key: value[:-HASH_LENGTH] for key, value in redis.hgetall(codes).items()}
        members = Counter(redis.zrange(trie, 0, -1))
        ids = set(redis.hkeys(items))
        foreign = redis.keys(f"{{{CATALOG}}}:*:{tokenizer_id_of(OTHER_READER)}")
    yield from (f"{key!r}: in items or in codes, not in both" for key in ids ^ sids.keys())
    places = {sid + key: key for key, sid in sids.items()}
    yield from (
        f"{member!r}: in the trie or in codes, not in both" for member in members.keys() ^ places.keys()
    )
    yield from (f"{key!r}: of another shop" for key in foreign)
    yield from (f"{sid!r}: {count} items" for sid, count in Counter(sids.values()).items() if count > 1)


def main(argv: Sequence[str]) -> int:
    parser = report.arguments(__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--operations", type=int, default=10_000, help="acknowledged changes, at least")
    parser.add_argument("--faults", type=int, default=50)
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--writers", type=int, default=6)
    parser.add_argument("--readers", type=int, default=3)
    parser.add_argument("--bundle", type=Path, help="a folder; by default a tiny bundle that starts fast")
    parser.add_argument("--append-only", choices=["always", "no"], default="always")
    parser.add_argument("--keep", type=Path, help="a new folder for Redis' data and the replicas' logs")
    args = parser.parse_args(argv)
    if args.tiny:
        args.operations, args.faults, args.replicas, args.writers, args.readers = 60, 1, 1, 2, 1
    faults = schedule(args.seed, faults=args.faults, operations=args.operations, replicas=args.replicas)
    print("acknowledged  fault", flush=True)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as scratch:
        if args.keep is not None:
            args.keep.mkdir(parents=True)
        found = chaos(
            args.keep or Path(scratch),
            args.bundle,
            seed=args.seed,
            operations=args.operations,
            faults=faults,
            replicas=args.replicas,
            writers=args.writers,
            readers=args.readers,
            keeps=args.append_only == "always",
        )
    figures: dict[str, float] = {}
    for name, value in found._asdict().items():
        for each in value[:SHOWN] if isinstance(value, list) else []:
            print(f"{name}: {each}", file=sys.stderr)
        figures[name] = len(value) if isinstance(value, list) else value
    figures |= {"seed": args.seed, "seconds": round(time.monotonic() - started)}
    report.finish("chaos", argv, figures, {})
    return 0 if found.is_clean else 1


if __name__ == "__main__":
    report.run(main)
