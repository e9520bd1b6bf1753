"""Ten times more requests than can be answered: how those fare that are taken, and what the others are told.

A second process sends POST /recommend when it is due, whether or not answers come, so a slow service is not
asked less; latencies count from that time. First the capacity is measured, by callers that wait for each
answer; then a tenth of it is offered, and then ten times as much.

  python benchmarks/overload.py                     the newest bundle of the demo
  python benchmarks/overload.py --bundle folder

The accepted are to stay within `limit_p99_ms`: twice the unloaded p99 and a batch. The last line is JSON.
"""

import argparse
import asyncio
import gzip
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
from first import newest_demo_bundle, resident_mb

from model_export.local_service import LocalService, local_service
from service.contract import ITEMS, load_bundle

HISTORY = 20
CLOSED_CALLERS = 16
PAUSE_S = 0.05  # of a caller that was refused, while the capacity is measured
ACCEPTED, REFUSED = 200, (429, 503)


@dataclass(frozen=True)
class Answers:
    status: np.ndarray  # [request]; 0 where the connection failed
    latency_ms: np.ndarray  # [request]
    has_retry_after: np.ndarray  # [request]
    took_s: float


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=10, help="of each of the three loads")
    parser.add_argument("--times", type=float, default=10, help="how many times the capacity is offered")
    parser.add_argument("--limit", type=int, default=10, help="items of a page")
    parser.add_argument("--generate", help=argparse.SUPPRESS)  # the second process
    args = parser.parse_args()
    if args.generate:
        return generate(json.loads(args.generate))
    bundle = load_bundle(args.bundle or newest_demo_bundle())
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with local_service(bundle.path, data_dir=folder / "redis", log=folder / "log") as service:
            figures = measure(service, bundle.file(ITEMS), folder, args)
    for key, value in figures.items():
        print(f"{key:22} {value:12,.3f}")
    print(json.dumps({key: round(value, 4) for key, value in figures.items()}))
    return 0


def measure(service: LocalService, items: Path, folder: Path, args: argparse.Namespace) -> dict[str, float]:
    with gzip.open(items, "rt", encoding="utf-8") as lines:
        ids = [json.loads(line)["item_id"] for line in lines]
    rng = np.random.default_rng(0)
    bodies = [
        json.dumps(
            {"history": rng.choice(ids, min(HISTORY, len(ids)), replace=False).tolist(), "limit": args.limit}
        )
        for _ in range(500)
    ]
    (folder / "bodies").write_text("\n".join(bodies), encoding="utf-8")

    def load(rate: float) -> Answers:
        """Of `rate` requests a second; 0: as many as callers that wait for their answers send."""
        given = {"url": service.url, "folder": str(folder), "rate": rate, "seconds": args.seconds}
        command = [sys.executable, __file__, "--generate", json.dumps(given)]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
        return Answers(**np.load(folder / "answers.npz"))

    load(0)  # warms everything up
    closed = load(0)
    capacity = np.sum(closed.status == ACCEPTED) / closed.took_s
    unloaded = load(capacity / 10)
    before_mb, batches = resident_mb(service.process.pid), batch_seconds(service)
    overloaded = load(capacity * args.times)
    after_mb, ended = resident_mb(service.process.pid), batch_seconds(service)
    accepted = overloaded.latency_ms[overloaded.status == ACCEPTED]
    refused = overloaded.latency_ms[np.isin(overloaded.status, REFUSED)]
    unloaded_p99 = float(np.percentile(unloaded.latency_ms[unloaded.status == ACCEPTED], 99))
    batch_ms = 1_000 * (ended[0] - batches[0]) / (ended[1] - batches[1])
    return {
        "capacity_rps": capacity,
        "offered_rps": len(overloaded.status) / overloaded.took_s,
        "accepted_rps": len(accepted) / overloaded.took_s,
        "unloaded_p50_ms": float(np.percentile(unloaded.latency_ms, 50)),
        "unloaded_p99_ms": unloaded_p99,
        "overloaded_p50_ms": float(np.percentile(accepted, 50)),
        "overloaded_p99_ms": float(np.percentile(accepted, 99)),
        "batch_ms": batch_ms,
        "limit_p99_ms": 2 * unloaded_p99 + batch_ms,
        "rejected_share": len(refused) / len(overloaded.status),
        "reject_p50_ms": float(np.percentile(refused, 50)) if len(refused) else 0.0,
        "reject_p99_ms": float(np.percentile(refused, 99)) if len(refused) else 0.0,
        "without_retry_after": float(
            np.sum(np.isin(overloaded.status, REFUSED) & ~overloaded.has_retry_after)
        ),
        "failed": float(len(overloaded.status) - len(accepted) - len(refused)),
        "memory_growth": after_mb / before_mb - 1,
    }


def batch_seconds(service: LocalService) -> tuple[float, float]:
    """Of all batches of the recommender so far: their seconds, and how many there were."""
    text = service.client.get("/metrics").text
    return tuple(
        float(re.search(rf'glyphrec_batch_seconds_{what}{{queue="recommender"}} (\S+)', text)[1])
        for what in ("sum", "count")
    )


# --- the second process ---


def generate(given: dict) -> int:
    import uvloop

    uvloop.run(Generator(given).run())
    return 0


class Generator:
    """HTTP over plain sockets: a client that does more for its user would be slower than the service."""

    def __init__(self, given: dict) -> None:
        self._host, port = given["url"].removeprefix("http://").split(":")
        self._port = int(port)
        self._folder = Path(given["folder"])
        self._rate, self._seconds = given["rate"], given["seconds"]
        self._requests = [
            b"POST /recommend HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
            for body in (self._folder / "bodies").read_bytes().split(b"\n")
        ]
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._results: list[tuple[int, float, bool]] = []

    async def run(self) -> None:
        started_at = perf_counter()
        if self._rate:
            await self._open_loop()
        else:
            await asyncio.gather(*(self._closed_loop(started_at, n) for n in range(CLOSED_CALLERS)))
        took_s = perf_counter() - started_at
        status, latency_ms, has_retry_after = zip(*self._results, strict=True)
        np.savez(
            self._folder / "answers.npz",
            status=np.array(status),
            latency_ms=np.array(latency_ms),
            has_retry_after=np.array(has_retry_after),
            took_s=took_s,
        )

    async def _closed_loop(self, started_at: float, number: int) -> None:
        while perf_counter() - started_at < self._seconds:
            answer = await self._ask(number, perf_counter())
            self._results.append(answer)
            number += CLOSED_CALLERS
            if answer[0] != ACCEPTED:
                await asyncio.sleep(PAUSE_S)

    async def _open_loop(self) -> None:
        tasks: set[asyncio.Task[None]] = set()
        due_at = await self._connect_some()
        end_at = due_at + self._seconds
        rng, number = np.random.default_rng(1), 0
        while due_at < end_at:
            if (wait_s := due_at - perf_counter()) > 0:
                await asyncio.sleep(wait_s)
            task = asyncio.create_task(self._note(number, due_at))
            tasks.add(task)
            task.add_done_callback(tasks.discard)
            number += 1
            due_at += rng.exponential(1 / self._rate)  # as independent users come
            if number % 20 == 0:
                await asyncio.sleep(0)
        await asyncio.gather(*tasks)

    async def _connect_some(self) -> float:
        for _ in range(100):
            self._idle.append(await asyncio.open_connection(self._host, self._port))
        return perf_counter()

    async def _note(self, number: int, due_at: float) -> None:
        self._results.append(await self._ask(number, due_at))

    async def _ask(self, number: int, due_at: float) -> tuple[int, float, bool]:
        try:
            reader, writer = (
                self._idle.pop() if self._idle else await asyncio.open_connection(self._host, self._port)
            )
            writer.write(self._requests[number % len(self._requests)])
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
            self._idle.append((reader, writer))
        except (OSError, asyncio.IncompleteReadError):
            return 0, 1_000 * (perf_counter() - due_at), False
        return int(head[9:12]), 1_000 * (perf_counter() - due_at), b"\r\nretry-after:" in head


if __name__ == "__main__":
    sys.exit(main())
