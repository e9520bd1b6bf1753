"""Starts the workers of a service, starts those again that end, and stops all of them together.

Each worker is a process of its own that listens on the same port (SO_REUSEPORT), so the kernel deals new
connections out. The first worker starts alone: what cannot work is said once, and a new catalog is filled
by one. A worker that ends takes its socket with it, so the kernel gives new connections to the others at
once. The one in its place opens its socket when it is ready.
"""

import asyncio
import logging
import signal
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.workers.channel import Channel
from service.workers.hub import Hub, Worker

log = logging.getLogger("glyphrec")

REFUSED = 2  # the status of a worker that says why it cannot start
INTERRUPTED = 130
FIRST_WAIT_S, MAX_WAIT_S = 1.0, 30.0  # before a worker starts again; doubled each time
MAX_FAILURES = 6  # of one worker, one after the other: a minute of tries
STEADY_S = 60.0  # a worker that served for so long has not failed to start


@dataclass(frozen=True)
class Start:
    """How one process of a worker begins."""

    number: int  # of the worker, from 1
    channel_fd: int  # its end of the line to the supervisor
    opens_when_ready: bool  # others serve until then
    bundle: Path | None  # in place of the one of the settings; the model was changed meanwhile


@dataclass(frozen=True)
class Times:
    """In seconds."""

    stop_s: float  # that a worker may take to end, after which it is killed
    first_wait_s: float = FIRST_WAIT_S
    steady_s: float = STEADY_S


class Supervisor:
    """Runs until a signal, or until a worker cannot be kept running."""

    def __init__(
        self,
        num_workers: int,
        command: Callable[[Start], Sequence[str]],
        *,
        pass_fds: Sequence[int] = (),
        times: Times,
    ) -> None:
        """`command`: the command line of a process. It inherits `pass_fds`."""
        self.hub = Hub(num_workers)
        self._command = command
        self._pass_fds = tuple(pass_fds)
        self._times = times
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._is_first_ready = asyncio.Event()
        self._is_stopping = asyncio.Event()
        self._status = 0
        self._signal = signal.SIGTERM  # that stops the workers

    async def run(self) -> int:
        """Keep all workers running until SIGTERM or SIGINT -> the exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        keeping = [asyncio.create_task(self._keep(each)) for each in self.hub.workers]
        killing = asyncio.create_task(self._kill_the_late())
        try:
            await asyncio.gather(*keeping)
        finally:
            killing.cancel()
            for process in self._processes.values():  # only after an error of our own
                process.kill()
        return self._status

    def _on_signal(self, number: signal.Signals) -> None:
        if number == signal.SIGINT:
            self._status = INTERRUPTED
        is_first = not self._is_stopping.is_set()
        self._stop(signal.SIGTERM if is_first and number == signal.SIGTERM else signal.SIGINT)

    def _stop(self, number: signal.Signals) -> None:
        """End all workers: SIGTERM after their last answers, SIGINT without the delay for load balancers."""
        self._signal = number
        self._is_stopping.set()
        self._is_first_ready.set()
        for worker in self.hub.workers:
            self._stop_one(worker)

    def _stop_one(self, worker: Worker) -> None:
        if worker.channel is not None:
            worker.channel.tell("stop", "gracefully" if self._signal == signal.SIGTERM else "now")
        elif (process := self._processes.get(worker.number)) is not None:  # it does not listen to us yet
            with suppress(ProcessLookupError):
                process.send_signal(self._signal)

    async def _kill_the_late(self) -> None:
        await self._is_stopping.wait()
        await asyncio.sleep(self._times.stop_s)
        for number, process in self._processes.items():
            log.error(
                "worker %d, pid %d, did not end in %g s; killed", number, process.pid, self._times.stop_s
            )
            with suppress(ProcessLookupError):
                process.kill()

    async def _keep(self, worker: Worker) -> None:
        """Run one process after the other in this place."""
        if worker.number > 1:
            worker.phase = "waits until worker 1 is ready"
            await self._is_first_ready.wait()
        num_failures = 0
        while not self._is_stopping.is_set():
            status, served_s = await self._run_once(worker)
            if self._is_stopping.is_set():
                break
            if served_s >= self._times.steady_s:
                num_failures = 0
            num_failures += 1
            said = f"worker {worker.number} ended {_shown(status)}"
            if status == REFUSED and not self._is_first_ready.is_set():
                self._give_up(f"{said}, so the service does not start. It has said why above.")
            elif num_failures >= MAX_FAILURES:
                self._give_up(
                    f"{said}, for the {num_failures}th time in a row. Its log above says why. All workers "
                    "end now, so that whatever runs this service learns of it."
                )
            else:
                wait_s = min(self._times.first_wait_s * 2 ** (num_failures - 1), MAX_WAIT_S)
                self.hub.metrics.worker_restarts.labels(worker.number).inc()
                worker.phase = f"{said}; starts again in {wait_s:g} s"
                log.error("%s", worker.phase)
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._is_stopping.wait(), wait_s)

    def _give_up(self, why: str) -> None:
        log.error("%s", why)
        self._status = REFUSED
        self._stop(signal.SIGTERM)

    async def _run_once(self, worker: Worker) -> tuple[int, float]:
        """-> the status of a process, and the seconds for which it was ready."""
        loop = asyncio.get_running_loop()
        ours, its = socket.socketpair()
        ready_at: float | None = None

        async def handle(kind: str, value: Any) -> Any:
            nonlocal ready_at
            if kind == "started":
                worker.channel = channel
                if self._is_stopping.is_set():
                    self._stop_one(worker)
            elif kind == "ready":
                ready_at = loop.time()
                worker.is_ready = True
                self._is_first_ready.set()
            else:
                return await self.hub.handle(worker, kind, value)
            return None

        with its:
            channel = await Channel.over(ours, handle)
            start = Start(
                number=worker.number,
                channel_fd=its.fileno(),
                opens_when_ready=any(each.is_ready for each in self.hub.workers),
                bundle=self.hub.bundle,
            )
            worker.phase = "starts"
            process = await asyncio.create_subprocess_exec(
                *self._command(start),
                pass_fds=(*self._pass_fds, its.fileno()),
                process_group=0,  # the terminal's Ctrl-C is for us, and we tell the workers
            )
        self._processes[worker.number], worker.pid = process, process.pid
        if self._is_stopping.is_set():
            self._stop_one(worker)
        listening = asyncio.create_task(channel.run())
        try:
            status = await process.wait()
            await listening  # to the last that it said
        finally:
            channel.close()
            del self._processes[worker.number]
            self.hub.forget(worker)
        return status, 0.0 if ready_at is None else loop.time() - ready_at


def _shown(status: int) -> str:
    if status >= 0:
        return f"with status {status}"
    name = signal.Signals(-status).name
    return f"by {name}" + (", as when memory is short" if -status == signal.SIGKILL else "")
