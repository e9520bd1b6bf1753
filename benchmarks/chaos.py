"""Writers and readers on several replicas while processes are killed, paused and cut off: is anything lost?

    python -m benchmarks.chaos --seed 1 [--operations 10000] [--faults 50] [--replicas 3] [--workers 2]

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

import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import httpx
from redis import Redis

from benchmarks import report
from benchmarks.workload.faults import (
    CATALOG,
    LEVEL_TIMEOUT_S,
    OTHER_READER,
    READY_TIMEOUT_S,
    Fault,
    Faults,
    Replica,
    Scene,
    schedule,
)
from service.core.bundle import load_bundle
from tests.e2e.clients import Clients, some_item
from tests.e2e.judge import FIELDS_READ, Judge, Known, text_of
from tests.e2e.photos import as_stored, kept_of
from tests.e2e.traffic import fsck, until
from tests.known_bundle import KNOWN_ITEMS, PICTURES, known_codes, tokenizer_id_of, write_known_bundle

HASH_LENGTH = 32  # what follows the SID in Redis' hash of codes
SHOWN = 20  # findings of each kind
NUM_BASE = 30  # items that nobody changes
MOST_ITEMS = 100  # the most that a recommendation may have


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
    workers: int = 1,
    writers: int = 6,
    readers: int = 3,
    keeps: bool = True,
) -> Found:
    """Run until so many changes are acknowledged and all faults are over; then look what became of it all.

    The first replica has so many `workers`.
    """
    judge = Judge() if bundle else Judge(lambda item: known_codes(text_of(item), kept=kept_of(item)))
    if bundle is None:
        bundle = write_known_bundle(folder / "bundle", KNOWN_ITEMS, fields=FIELDS_READ, pictures=PICTURES)
    with ExitStack() as stack:
        scene = Scene(folder, bundle, stack, keeps=keeps)
        for n in range(replicas):
            scene.add_replica(workers=workers if n == 0 else 1)
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
    parser.add_argument("--workers", type=int, default=1, help="of the first replica")
    parser.add_argument("--writers", type=int, default=6)
    parser.add_argument("--readers", type=int, default=3)
    parser.add_argument("--bundle", type=Path, help="a folder; by default a tiny bundle that starts fast")
    parser.add_argument("--append-only", choices=["always", "no"], default="always")
    parser.add_argument("--keep", type=Path, help="a new folder for Redis' data and the replicas' logs")
    args = parser.parse_args(argv)
    if args.tiny:
        args.operations, args.faults, args.replicas, args.writers, args.readers = 60, 1, 1, 2, 1
    faults = schedule(
        args.seed,
        faults=args.faults,
        operations=args.operations,
        replicas=args.replicas,
        workers=args.workers,
    )
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
            workers=args.workers,
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
