"""Retries with exponential backoff and jitter, for the time while Redis is away.

The library `tenacity` has both, but we would still write the rest: the check for a lost cancellation (see
`is_cancelled`), and a backoff that starts again after each success.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from service.errors import GlyphrecError

log = logging.getLogger(__name__)

FIRST_S = 0.2
MAX_S = 5.0

T = TypeVar("T")


class Backoff:
    """The wait before the next try, which doubles up to a limit. `reset` it after a success."""

    def __init__(self, first_s: float = FIRST_S, max_s: float = MAX_S) -> None:
        self._first_s, self._max_s = first_s, max_s
        self.reset()

    def reset(self) -> None:
        """Start again with the shortest wait."""
        self._longest_s = self._first_s

    def next_s(self) -> float:
        """Seconds. A random part of it, up to half, is left out, so that replicas do not return together."""
        wait_s = self._longest_s * random.uniform(0.5, 1)
        self._longest_s = min(2 * self._longest_s, self._max_s)
        return wait_s

    async def wait(self) -> None:
        """Sleep for `next_s()` seconds, so each call waits longer than the one before, up to the limit."""
        await asyncio.sleep(self.next_s())


async def retry(
    attempt: Callable[[], Awaitable[T]],
    *,
    on: tuple[type[GlyphrecError], ...],
    say: Callable[[str], None] = lambda _trouble: None,
    first_s: float = FIRST_S,
    max_s: float = MAX_S,
    max_tries: int | None = None,
) -> T:
    """Call `attempt` until it succeeds. Only errors in `on` are retried; `say` gets their text.

    Raises any other error at once, and the last error after `max_tries`.
    """
    backoff, num_tries = Backoff(first_s, max_s), 0
    while True:
        num_tries += 1
        try:
            return await attempt()
        except on as error:
            if num_tries == max_tries:
                raise
            wait_s = backoff.next_s()
            log.warning("%s Trying again in %.1f s.", error, wait_s)
            say(str(error))
        if is_cancelled():
            raise asyncio.CancelledError
        await asyncio.sleep(wait_s)


def is_cancelled() -> bool:
    """Whether this task was cancelled, even if the CancelledError was lost.

    redis-py sends under asyncio.wait_for, which may swallow it before Python 3.12.
    """
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
