"""The cost of a million items: import, Redis' memory and restart, a fresh replica, a check, one request.

    python -m benchmarks.scale                                  1,000,000 items, and a tenth for the growth
    python -m benchmarks.scale --items 10000000 --tables-only   Redis and a replica's tables, nothing else

workload/skewed.py says what the items are like. Import, check and services are the real commands, on one
machine with the server, which keeps an append-only file (everysec). With --tables-only the file is cut into
as many parts as there are cores, which are imported at once. The baseline is the tenth.
The last line is JSON.
"""

import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from argparse import SUPPRESS
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
from redis import Redis

from benchmarks import report
from benchmarks.timing import each_ms
from benchmarks.workload.processes import peak_mb, resident_mb
from benchmarks.workload.skewed import item_id, write_bundle, write_items
from model_export.local_service import LocalService, glyphrec_command, local_service
from service.catalog.catalog import Catalog
from service.catalog.follower import CatalogFollower
from service.core.bundle import load_bundle
from service.store.client import connect
from service.store.items import ItemStore
from service.store.server import RedisServer, start_server
from tests.known_bundle import write_known_bundle

CATALOG = "glyphrec"
HISTORY = 20
REQUESTS = 300
PUTS = 100
TINY_REQUESTS = TINY_PUTS = 20
TINY_ITEMS = 1_000
READY_TIMEOUT_S = 600.0  # a start that loads so much is what is measured


def main(argv: Sequence[str]) -> int:
    parser = report.arguments(__doc__)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--tables-only", action="store_true", help="no service and no check")
    parser.add_argument("--folder", type=Path, help="where temporary files go")
    parser.add_argument("--load", nargs=2, help=SUPPRESS)  # the process that has only tables
    args = parser.parse_args(argv)
    if args.load:
        print(json.dumps(asyncio.run(load_tables(*args.load))))
        return 0
    num_items = TINY_ITEMS if args.tiny else args.items
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        bundle = (
            write_known_bundle(Path(name) / "bundle", [])
            if args.tiny
            else write_bundle(Path(name) / "bundle")
        )
        figures, tenth = (
            measure(each, bundle, Path(name) / str(each), args.tables_only)
            for each in (num_items, num_items // 10)
        )
    growth = {key: value / tenth[key] for key, value in figures.items() if tenth[key]}
    rows = [
        (key, f"{tenth[key]:,.2f}", f"{value:,.2f}", f"{growth[key]:.1f}" if key in growth else "")
        for key, value in figures.items()
    ]
    report.table(("", f"{tenth['items']:,.0f}", f"{figures['items']:,.0f}", "times"), rows)
    figures |= {f"{key}_growth": value for key, value in growth.items()}
    report.finish("scale", argv, figures, {f"tenth_{key}": value for key, value in tenth.items()})
    return 0


def measure(num_items: int, bundle: Path, folder: Path, tables_only: bool) -> dict[str, float]:
    folder.mkdir()
    num_parts = (os.cpu_count() or 1) if tables_only else 1
    parts = write_items(folder, num_items, num_parts, load_bundle(bundle).manifest.sid)
    say(f"{num_items:,} items written, {sum(part.stat().st_size for part in parts) / 1e6:.0f} MB")
    figures: dict[str, float] = {"items": num_items}
    server = start_server(folder / "redis")
    try:
        empty_bytes = used_memory(server)
        empty_mb = 0.0
        if not tables_only:
            with served(bundle, server, folder) as service:
                empty_mb = resident_mb(service.process.pid)
            with Redis.from_url(server.url) as redis:
                redis.flushall()
        figures["import_s"] = commands([["import", part, "--tokenized"] for part in parts], bundle, server)
        figures["import_items_per_s"] = num_items / figures["import_s"]
        for part in parts:
            part.unlink()
        figures["redis_mb"] = (used_memory(server) - empty_bytes) / 1e6
        figures["redis_bytes_per_item"] = 1e6 * figures["redis_mb"] / num_items
        say(f"imported in {figures['import_s']:.0f} s")
        if tables_only:
            figures |= tables(bundle, server)
        else:
            with served(bundle, server, folder) as service:
                figures["replica_ready_s"] = service.ready_s
                figures["replica_mb"] = resident_mb(service.process.pid) - empty_mb
                figures["replica_bytes_per_item"] = 1e6 * figures["replica_mb"] / num_items
                is_tiny = num_items <= TINY_ITEMS
                figures |= latencies(
                    service, num_items, *((TINY_REQUESTS, TINY_PUTS) if is_tiny else (REQUESTS, PUTS))
                )
            say("served")
            figures["fsck_s"] = commands([["fsck"]], bundle, server)
        figures["append_only_mb"] = size_mb(folder / "redis")
        say(f"{ {key: round(value, 1) for key, value in figures.items()} }")
    finally:
        server.stop()
    started = time.perf_counter()
    with start_server(folder / "redis") as server:
        figures["redis_restart_s"] = time.perf_counter() - started
        figures["redis_items"] = len_of(server)
    assert figures.pop("redis_items") >= num_items, "the restart has lost items"
    return figures


# --- what is measured ---


def commands(at_once: Sequence[Sequence[object]], bundle: Path, server: RedisServer) -> float:
    """Seconds of whole `glyphrec` commands, from their start to the end of the last."""
    started = time.perf_counter()
    processes = [
        subprocess.Popen(
            glyphrec_command(*args, "--bundle", bundle, "--redis-url", server.url),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for args in at_once
    ]
    statuses = [process.wait() for process in processes]
    assert set(statuses) == {0}, f"a command ended with status {max(statuses)}"
    return time.perf_counter() - started


def served(bundle: Path, server: RedisServer, folder: Path) -> AbstractContextManager[LocalService]:
    return local_service(bundle, redis_url=server.url, log=folder / "log", ready_timeout_s=READY_TIMEOUT_S)


def latencies(service: LocalService, num_items: int, num_requests: int, num_puts: int) -> dict[str, float]:
    rng = np.random.default_rng(1)
    histories = [[item_id(n) for n in rng.integers(num_items, size=HISTORY)] for _ in range(num_requests)]
    recommended = each_ms(
        lambda n: service.client.post(
            "/recommend", json={"history": histories[n], "limit": 10}
        ).raise_for_status(),
        num_requests,
    )
    put = each_ms(
        lambda n: service.client.post(
            "/items", json={"item_id": f"new{n}", "title": f"new thing {n}"}
        ).raise_for_status(),
        num_puts,
    )
    return {
        "recommend_p50_ms": float(np.percentile(recommended, 50)),
        "recommend_p99_ms": float(np.percentile(recommended, 99)),
        "put_p50_ms": float(np.percentile(put, 50)),
        "put_p99_ms": float(np.percentile(put, 99)),
    }


def tables(bundle: Path, server: RedisServer) -> dict[str, float]:
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.scale", "--load", server.url, str(bundle)],
        stdout=subprocess.PIPE,
        check=True,
    )
    found: dict[str, float] = json.loads(process.stdout)
    return found


async def load_tables(url: str, bundle: str) -> dict[str, float]:
    """A replica's tables, loaded in a process that has nothing else."""
    manifest = load_bundle(Path(bundle)).manifest
    redis = connect(url)
    store = ItemStore(redis, catalog=CATALOG, tokenizer_id=manifest.tokenizer_id, spec=manifest.sid)
    catalog = Catalog(manifest.sid)
    before_mb = resident_mb(os.getpid())
    started = time.perf_counter()
    await CatalogFollower(catalog, store).load()
    load_s = time.perf_counter() - started
    added_mb = resident_mb(os.getpid()) - before_mb
    await redis.aclose()
    return {
        "tables_load_s": load_s,
        "tables_mb": added_mb,
        "tables_peak_mb": peak_mb(os.getpid()) - before_mb,
        "tables_bytes_per_item": 1e6 * added_mb / catalog.num_items,
    }


def used_memory(server: RedisServer) -> int:
    with Redis.from_url(server.url) as redis:
        return int(redis.info("memory")["used_memory"])


def len_of(server: RedisServer) -> int:
    with Redis.from_url(server.url) as redis:
        return int(redis.hlen(f"{{{CATALOG}}}:items"))


def size_mb(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    report.run(main)
