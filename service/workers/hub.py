"""What the supervisor knows of its workers, and the questions that concern all of them.

Whichever worker a client asks for /metrics or /health/ready, it asks here, and here every worker is asked.
"""

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from service.telemetry.merging import Snapshot, WorkerMetrics, exposition, totals
from service.workers.channel import ANSWER_TIMEOUT_S, CHANGE_TIMEOUT_S, Channel, NoAnswer

log = logging.getLogger(__name__)

Told = dict[str, Any]


@dataclass
class Worker:
    """A place for a worker, whichever process has it now."""

    number: int  # from 1
    phase: str = "not started yet"  # while there is no process, or it does not answer yet
    pid: int | None = None
    channel: Channel | None = None  # while a process is there that has called
    is_ready: bool = False  # it has been, since its process started
    last: Snapshot = field(default_factory=list)  # its metrics when it told them last


class Hub:
    """Asks all workers, and puts their answers together."""

    def __init__(self, num_workers: int) -> None:
        self.workers = [Worker(number) for number in range(1, num_workers + 1)]
        self.metrics = WorkerMetrics(num_workers)
        self.bundle: Path | None = None  # that POST /admin/bundles has changed all workers to
        self._past: Snapshot = []  # counters of processes that have ended

    async def handle(self, worker: Worker, kind: str, value: Any) -> Any:
        """Answer a message of a worker."""
        if kind == "metrics":
            return await self.exposition()
        if kind == "readiness":
            return await self.readiness()
        if kind == "change":
            return await self.change(worker, value)
        if kind == "last metrics":
            worker.last = value
            return None
        raise ValueError(f"a worker sent {kind!r}, which means nothing here")

    def forget(self, worker: Worker) -> None:
        """Its process has ended. What it counted stays counted."""
        self._past = totals(self._past, worker.last)
        worker.pid, worker.channel, worker.is_ready, worker.last = None, None, False, []

    async def exposition(self) -> str:
        """The metrics of all workers as one, in Prometheus' text format."""
        told = await self._ask_all("own metrics")
        answered: dict[int, Snapshot] = {}
        silent: list[Snapshot] = []
        for worker, families in zip(self.workers, told, strict=True):
            self.metrics.worker_up.labels(worker.number).set(families is not None)
            if families is None:
                silent.append(worker.last)
            else:
                answered[worker.number] = worker.last = families
        return exposition(answered, [self._past, *silent], self.metrics, len(self.workers))

    async def readiness(self) -> list[Told]:
        """Of each worker: its number, pid, status and phase."""
        told = await self._ask_all("own readiness")
        return [
            {"worker": worker.number, "pid": worker.pid, **(answer or _absent(worker))}
            for worker, answer in zip(self.workers, told, strict=True)
        ]

    async def change(self, asking: Worker, told: Told) -> list[str]:
        """Let the other workers change to the bundle that one has changed to -> what those say that did not.

        A worker whose process starts later starts with that bundle.
        """
        self.bundle = Path(told["path"])
        others = [each for each in self.workers if each is not asking and each.channel is not None]
        answers = await asyncio.gather(
            *(_asked(each, "own change", told["name"], CHANGE_TIMEOUT_S) for each in others)
        )
        return [
            f"worker {worker.number}: {'it does not answer' if answer is None else answer}"
            for worker, answer in zip(others, answers, strict=True)
            if answer != ""
        ]

    async def _ask_all(self, kind: str) -> Sequence[Any]:
        """The answer of each worker; None for one that does not answer."""
        asking: list[Awaitable[Any]] = [_asked(each, kind, None, ANSWER_TIMEOUT_S) for each in self.workers]
        return await asyncio.gather(*asking)


async def _asked(worker: Worker, kind: str, value: Any, timeout_s: float) -> Any | None:
    if worker.channel is None:
        return None
    try:
        return await worker.channel.ask(kind, value, timeout_s=timeout_s)
    except NoAnswer as error:
        log.warning("worker %d, pid %s: %s", worker.number, worker.pid, error)
        return None


def _absent(worker: Worker) -> Told:
    if worker.channel is None:
        return {"status": "starting", "phase": worker.phase}
    return {"status": "silent", "phase": "it does not answer; its event loop may be held up"}
