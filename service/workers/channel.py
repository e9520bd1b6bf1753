"""The line between a worker and its supervisor: JSON, one message a line, over a pair of sockets.

Both ends may ask, and both answer. A message is one of:

    {"tell": KIND, "value": VALUE}               needs no answer
    {"ask": KIND, "id": NUMBER, "value": VALUE}
    {"id": NUMBER, "value": VALUE}               the answer
    {"id": NUMBER, "failed": true}               the other end could not answer; its log says why

The line carries numbers that are not finite, which Python's JSON knows.
"""

import asyncio
import json
import logging
import socket
from collections.abc import Awaitable, Callable
from itertools import count
from typing import Any, Self

log = logging.getLogger(__name__)

ANSWER_TIMEOUT_S = 1.0  # a probe of Kubernetes waits as long by default, and a worker answers within a batch
CHANGE_TIMEOUT_S = 600.0  # a worker opens a bundle
MAX_LINE_BYTES = 64 * 2**20  # the metrics of a worker take some hundred kilobytes

Handler = Callable[[str, Any], Awaitable[Any]]


class NoAnswer(Exception):
    """The other end has gone, took too long, or failed."""


class Channel:
    """One end of the line. `run` reads it; without it nothing is answered."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, handle: Handler) -> None:
        self._reader = reader
        self._writer = writer
        self._handle = handle
        self._numbers = count(1)
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._handling: set[asyncio.Task[None]] = set()

    @classmethod
    async def over(cls, end: socket.socket, handle: Handler) -> Self:
        """One end of a pair of sockets. `handle` gets the kind and the value of each message."""
        end.setblocking(False)
        reader, writer = await asyncio.open_unix_connection(sock=end, limit=MAX_LINE_BYTES)
        return cls(reader, writer, handle)

    def tell(self, kind: str, value: Any = None) -> None:
        """Send what needs no answer. Has no effect if the other end has gone."""
        self._send({"tell": kind, "value": value})

    async def ask(self, kind: str, value: Any = None, *, timeout_s: float) -> Any:
        """The other end's answer. Raises NoAnswer."""
        number = next(self._numbers)
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        self._send({"ask": kind, "id": number, "value": value})
        try:
            return await asyncio.wait_for(answer, timeout_s)
        except TimeoutError:
            raise NoAnswer(f"no answer within {timeout_s:g} s") from None
        finally:
            del self._asked[number]

    async def run(self) -> None:
        """Take messages until the other end has gone. Whoever still waits for an answer gets NoAnswer."""
        try:
            while line := await self._reader.readline():
                self._take(json.loads(line))
        except (OSError, ValueError) as error:  # ValueError: half a line, as the other end was killed
            log.debug("the line to the other process broke: %s", error)
        finally:
            for each in self._asked.values():
                if not each.done():
                    each.set_exception(NoAnswer("the other process has gone"))
            self.close()

    def close(self) -> None:
        """Hang up. Answers that are being made are dropped."""
        for task in self._handling:
            task.cancel()
        self._writer.close()

    def _take(self, message: dict[str, Any]) -> None:
        if "tell" in message or "ask" in message:
            task = asyncio.create_task(self._answer(message))
            self._handling.add(task)
            task.add_done_callback(self._handling.discard)
        elif (answer := self._asked.get(message["id"])) is not None and not answer.done():
            if message.get("failed"):
                answer.set_exception(NoAnswer("the other process failed; its log says why"))
            else:
                answer.set_result(message["value"])

    async def _answer(self, message: dict[str, Any]) -> None:
        kind = message.get("tell") or message["ask"]
        try:
            reply = {"value": await self._handle(kind, message["value"])}
        except Exception:  # outermost loop: the other end must not wait for its time
            log.exception("could not answer %r of the other process", kind)
            reply = {"failed": True}
        if "ask" in message:
            self._send({"id": message["id"], **reply})

    def _send(self, message: dict[str, Any]) -> None:
        if not self._writer.is_closing():
            self._writer.write(json.dumps(message).encode() + b"\n")
