"""The lock of a catalog: batches of searches hold it, and short edits come between two of them."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Literal


class TurnLock(asyncio.Lock):
    """A lock whose holder gives way to short edits before it gives the lock on.

    To edit, a task could take the lock like everybody else. Then the device would wait for two turns of a
    busy event loop, one for the task that edits and one for the next batch. That is longer than the edit.
    """

    def __init__(self) -> None:
        super().__init__()
        self._edits: deque[tuple[Callable[[], None], asyncio.Future[None]]] = deque()
        self._num_waiting = 0

    @property
    def is_wanted(self) -> bool:
        """Whether somebody waits for the lock, or for an edit, so that its holder should release it soon."""
        return self._num_waiting > 0 or bool(self._edits)

    async def acquire(self) -> Literal[True]:
        """Take the lock, when those who came before have had it."""
        self._num_waiting += 1
        try:
            return await super().acquire()
        finally:
            self._num_waiting -= 1

    async def edit(self, apply: Callable[[], None]) -> None:
        """Run `apply` in the event loop while nobody holds the lock: now, or when its holder releases it.

        It must be short, and edits are applied in their order. Raises what `apply` raises. If the caller is
        cancelled before its turn, nothing is applied.
        """
        if not self.locked():
            apply()
            return
        entry = (apply, asyncio.get_running_loop().create_future())
        self._edits.append(entry)
        try:
            await entry[1]
        except asyncio.CancelledError:
            if entry in self._edits:
                self._edits.remove(entry)
            raise

    def release(self) -> None:
        """Apply the edits that have come meanwhile, then release. Raises RuntimeError if nobody holds it."""
        while self.locked() and self._edits:
            apply, ended = self._edits.popleft()
            try:
                apply()
            except Exception as error:  # its caller gets it, and not the holder of the lock
                if not ended.done():
                    ended.set_exception(error)
            else:
                if not ended.done():
                    ended.set_result(None)
        super().release()
