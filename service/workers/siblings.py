"""A worker's end of the line to its supervisor, and through it to the other workers."""

import logging
import signal
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

from service.errors import ServiceError
from service.workers.channel import ANSWER_TIMEOUT_S, CHANGE_TIMEOUT_S, Channel, NoAnswer

log = logging.getLogger(__name__)

# The supervisor waits ANSWER_TIMEOUT_S for each worker, all at once, before it answers.
WAIT_S = 2 * ANSWER_TIMEOUT_S

Answer = Callable[[Any], Awaitable[Any]]


class WorkersDisagree(ServiceError):
    """Some workers of this replica have changed to a bundle, and others have not."""

    status = HTTPStatus.CONFLICT
    slug = "workers-disagree"
    retry_after_s = 5

    def __init__(self, name: str, refusals: Sequence[str]) -> None:
        super().__init__(
            f"Some workers serve the bundle {name!r} by now, and others do not: {'; '.join(refusals)}. Send "
            "the request again; it changes those that are left."
        )


class NoSupervisor(Exception):
    """The supervisor does not answer."""


class Siblings:
    """What this worker asks of the others, and what they ask of it. `run` must run beside it."""

    def __init__(self, end: socket.socket, number: int, *, opens_when_ready: bool) -> None:
        """`end`: of the pair of sockets. `opens_when_ready`: others serve until this worker can."""
        self.number = number
        self.opens_when_ready = opens_when_ready
        self.are_stopping = False  # the whole service ends, not this worker alone
        self._end = end
        self._channel: Channel | None = None

    async def run(self, answers: Mapping[str, Answer], is_stopping: Callable[[], bool]) -> None:
        """Say that this worker is here, and answer until the supervisor has gone. Then end this process.

        `is_stopping`: whether this worker ends already. Who stops a service may send SIGTERM to all its
        processes, and a second signal would end this one at once.
        """

        async def handle(kind: str, value: Any) -> Any:
            if kind != "stop":
                return await answers[kind](value)
            self.are_stopping = True
            if value == "now":
                signal.raise_signal(signal.SIGINT)
            elif not is_stopping():
                signal.raise_signal(signal.SIGTERM)
            return None

        self._channel = await Channel.over(self._end, handle)
        self._channel.tell("started")
        await self._channel.run()
        if not self.are_stopping:
            log.error("the supervisor has gone, so this worker ends")
            self.are_stopping = True
            signal.raise_signal(signal.SIGTERM)

    @property
    def has_called(self) -> bool:
        """Whether the supervisor knows that this worker is here."""
        return self._channel is not None

    def tell_ready(self) -> None:
        """This worker answers requests now."""
        if self._channel is not None:
            self._channel.tell("ready")

    async def tell_last(self, metrics: Any) -> None:
        """What this worker has counted until its end. Waits until the supervisor has it."""
        try:
            await self._ask("last metrics", metrics, WAIT_S)
        except NoSupervisor as error:
            log.warning("the last counts of this worker are lost: %s", error)

    async def metrics(self) -> str:
        """The metrics of all workers, for Prometheus. Raises NoSupervisor."""
        return str(await self._ask("metrics", None, WAIT_S))

    async def readiness(self) -> list[dict[str, Any]]:
        """Of each worker: `worker`, `pid`, `status` and `phase`. Raises NoSupervisor."""
        told: list[dict[str, Any]] = await self._ask("readiness", None, WAIT_S)
        return told

    async def change(self, name: str, path: Path) -> list[str]:
        """Let the other workers change to a bundle -> what those say that did not. Raises NoSupervisor."""
        told: list[str] = await self._ask("change", {"name": name, "path": str(path)}, 2 * CHANGE_TIMEOUT_S)
        return told

    async def _ask(self, kind: str, value: Any, timeout_s: float) -> Any:
        if self._channel is None:
            raise NoSupervisor("this worker has not called its supervisor yet")
        try:
            return await self._channel.ask(kind, value, timeout_s=timeout_s)
        except NoAnswer as error:
            raise NoSupervisor(f"the supervisor of the workers: {error}") from error


async def refusal_of(doing: Awaitable[Any]) -> str:
    """Why it was refused; '' if it was done."""
    try:
        await doing
    except ServiceError as error:
        return str(error)
    return ""
