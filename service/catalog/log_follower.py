"""What both followers of a log in Redis share: when to load, when to go on, and when the log is broken.

The log's versions have no gaps, and each change names the mark of the one before it (store/lua/log.lua). So a
follower notices a trimmed log, and a Redis that was flushed or restored.
"""

import asyncio
import logging
from abc import ABC, abstractmethod
from typing import Protocol

from service.errors import DamagedCatalog, StoreFault, StoreUnavailable
from service.store.records import Position
from service.store.retry import Backoff, is_cancelled

log = logging.getLogger(__name__)

BLOCK_MS = 1_000  # how long one read waits for a change; also how soon a flushed Redis is noticed
FIRST_BACKOFF_S = 0.05
MAX_BACKOFF_S = 2.0


class LogBroken(Exception):
    """The log does not continue at this replica's version, so everything must be loaded again."""


class Numbered(Protocol):
    """A change in a log."""

    @property
    def version(self) -> int:
        """One more than that of the change before it."""

    @property
    def after(self) -> str:
        """The mark of the change before it."""


def check_follows(change: Numbered, version: int, mark: str) -> None:
    """Raise LogBroken unless the change is the next one after this version with this mark."""
    if change.version != version + 1:
        raise LogBroken(f"the next change in the log is {change.version}")
    if change.after != mark:
        raise LogBroken(f"change {change.version} follows another history")


class LogFollower(ABC):
    """Loads what Redis holds, then follows its log until cancelled. Without Redis, all stays as it is."""

    follows: str  # what it keeps up to date, for messages

    def __init__(self) -> None:
        self._mark = ""  # of the change that made this version
        self._needs_load = True
        self._is_caught_up = False

    @property
    @abstractmethod
    def version(self) -> int:
        """Of the log: all changes up to this one are applied."""

    @abstractmethod
    async def load(self) -> None:
        """Read everything anew. Raises StoreUnavailable or LogBroken."""

    @abstractmethod
    async def _follow(self) -> None:
        """Wait for changes and apply them."""

    @abstractmethod
    async def _position(self) -> Position:
        """The end of the log now."""

    @abstractmethod
    async def _set_caught_up(self) -> None:
        """Note that all changes in the log are applied."""

    def _note_lost(self, error: StoreUnavailable | StoreFault) -> None:  # noqa: B027  not every follower tells
        """Redis gave an error, and will be tried again."""

    async def _run(self) -> None:
        backoff = Backoff(FIRST_BACKOFF_S, MAX_BACKOFF_S)
        while not is_cancelled():
            try:
                if self._needs_load:
                    await self.load()
                await self._check_position()
                backoff.reset()
                while not is_cancelled():
                    await self._follow()
            except LogBroken as error:
                log.warning(
                    "%s cannot go on from version %d (%s); loading again", self.follows, self.version, error
                )
                self._needs_load, self._is_caught_up = True, False
            except DamagedCatalog:  # lifecycle/watching.py tells; what is in memory is still right
                self._is_caught_up = False
                await backoff.wait()
            except (StoreUnavailable, StoreFault) as error:
                self._note_lost(error)
                self._is_caught_up = False
                await backoff.wait()
        raise asyncio.CancelledError

    async def _check_position(self) -> None:
        """A flushed or restored Redis has no changes to read; only its position shows what happened."""
        version, mark = await self._position()
        if version < self.version:
            raise LogBroken(f"the log is at version {version}")
        if version == self.version and mark != self._mark:
            raise LogBroken("the log has another change of this version")
        if version == self.version:
            await self._set_caught_up()
