"""Keeps the catalog of this replica up to date with the log of changes in Redis."""

import asyncio
import logging
import math
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import NamedTuple

from service.catalog.catalog import Catalog, Loading
from service.errors import StoreFault, StoreUnavailable
from service.store.client import is_cancelled
from service.store.items import Change, ItemStore, Position

log = logging.getLogger(__name__)

BLOCK_MS = 1_000  # how long one read waits for a change; also how soon a flushed Redis is noticed
# How old the follower's knowledge of the log's end may get. It reads on sooner, unless something holds it up.
LOOK_S = 1.5
FIRST_BACKOFF_S = 0.05
MAX_BACKOFF_S = 2.0
# Changes that are taken in without letting a search in between: 0.6 ms of them; with a hundred cached filters
# 2 ms where they pass the same ones as before, 20 ms where all move (benchmarks/filters.py).
CHANGES_PER_TURN = 20
CHANGES_PER_READ = 1_000


class Lag(NamedTuple):
    """How far a catalogue is behind its log, as far as its follower knows."""

    num_changes: int
    seconds: float  # since it had all of them; 0 while it has


class _LogBroken(Exception):
    """The log does not go on where this replica stands, so the catalogue must be loaded anew."""


class CatalogFollower:
    """Keeps a catalogue level with Redis. Without Redis the catalogue stays as it is, and this says so."""

    def __init__(
        self,
        catalog: Catalog,
        store: ItemStore,
        *,
        block_ms: int = BLOCK_MS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.catalog = catalog
        self.num_loads = 0  # over one: the log was trimmed before it was read, or Redis lost data
        self._store = store
        self._block_ms = block_ms
        self._clock = clock
        self._mark = ""  # of the change that made the catalogue's version
        self._needs_load = True
        self._is_level = False
        self._level_at: float | None = None
        self._log_version = 0  # of the last change that is known to be in the log
        self._looked_at = -math.inf  # when that was all there was
        self._caught_up_at = clock()  # when the catalogue had that
        self.lost: StoreUnavailable | None = None  # why Redis is out of reach; None while it answers
        self._moved = asyncio.Condition()

    @property
    def is_loaded(self) -> bool:
        return self.num_loads > 0

    @property
    def is_stale(self) -> bool:
        """Whether changes may go unseen: nothing is loaded yet, or Redis does not answer, or it lost data."""
        return not self._is_level

    @property
    def stale_for_s(self) -> float:
        """Seconds since the catalogue last had every change; 0 while it follows, infinite before a load."""
        if self._is_level:
            return 0.0
        return math.inf if self._level_at is None else self._clock() - self._level_at

    @property
    def lag(self) -> Lag:
        num_changes = max(0, self._log_version - self.catalog.version)
        is_caught_up = self._is_level and not num_changes
        return Lag(num_changes, 0.0 if is_caught_up else self._clock() - self._caught_up_at)

    @property
    def num_unreadable(self) -> int:
        """How many values of Redis were skipped since the start, as somebody else has written them."""
        return self._store.num_unreadable

    async def load(self) -> None:
        """Read the whole catalogue into fresh tables and swap them in. Raises StoreUnavailable."""
        start = self._clock()
        while True:
            try:
                fresh, mark = await self._read_all()
                break
            except _LogBroken as error:
                log.warning("the log broke off while the catalogue was read (%s); reading again", error)
        async with self.catalog.turns:
            self.catalog.adopt(fresh)
        self._mark, self._needs_load = mark, False
        self.num_loads += 1
        self._saw_end(fresh.version)
        await self._now_level()
        log.info(
            "loaded %d items in %.2f s, version %d", fresh.num_items, self._clock() - start, fresh.version
        )

    async def run(self) -> None:
        """Follow the log until cancelled; loads first where `load` was not called."""
        watching = asyncio.create_task(self._watch_end(), name="end of the log")
        try:
            await self._run()
        finally:
            watching.cancel()
            await asyncio.wait([watching])

    async def _run(self) -> None:
        backoff_s = FIRST_BACKOFF_S
        while not is_cancelled():
            try:
                if self._needs_load:
                    await self.load()
                await self._check_position()
                backoff_s = FIRST_BACKOFF_S
                while not is_cancelled():
                    await self._follow()
            except _LogBroken as error:
                log.warning("cannot go on from version %d (%s); loading again", self.catalog.version, error)
                self._needs_load, self._is_level = True, False
            except (StoreUnavailable, StoreFault) as error:
                self.lost = error if isinstance(error, StoreUnavailable) else None
                if self._is_level:
                    log.warning("lost Redis at version %d, serving on: %s", self.catalog.version, error)
                self._is_level = False
                await asyncio.sleep(backoff_s * random.uniform(0.5, 1))  # replicas must not return as one
                backoff_s = min(2 * backoff_s, MAX_BACKOFF_S)
        raise asyncio.CancelledError

    async def wait_for(self, version: int, timeout_s: float) -> bool:
        """Wait until the catalogue has this version. False where that took longer."""
        if self.catalog.version >= version:
            return True
        try:
            async with asyncio.timeout(timeout_s), self._moved:
                await self._moved.wait_for(lambda: self.catalog.version >= version)
        except TimeoutError:
            return False
        return True

    async def _read_all(self) -> tuple[Catalog, str]:
        """A fresh catalogue and its mark."""
        version, mark = await self._position()  # before the first page: what changes later is replayed
        loading = Loading(self.catalog.spec)
        async for page in self._store.snapshot():
            await asyncio.to_thread(loading.add, page)
        fresh = await asyncio.to_thread(loading.end)
        fresh.version = version
        while changes := await self._store.changes(fresh.version):
            mark = _replay(fresh, mark, changes)
        return fresh, mark

    async def _follow(self) -> None:
        changes = await self._store.changes(self.catalog.version, self._block_ms, CHANGES_PER_READ)
        self.lost = None
        if changes and len(changes) < CHANGES_PER_READ:
            self._saw_end(changes[-1].version)
        elif changes:
            await self._position()  # there may be many more
        for start in range(0, len(changes), CHANGES_PER_TURN):
            async with self.catalog.turns:
                part = changes[start : start + CHANGES_PER_TURN]
                self._mark = _replay(self.catalog, self._mark, part)
            await self._now_level()
            self._note_catching_up()
        if not changes:
            await self._check_position()

    async def _check_position(self) -> None:
        """A flushed or restored Redis gives no changes to read; its position shows that it is another one."""
        version, mark = await self._position()
        if version < self.catalog.version:
            raise _LogBroken(f"the log is at version {version}")
        if version == self.catalog.version and mark != self._mark:
            raise _LogBroken("the log has another change of this version")
        if version == self.catalog.version:
            await self._now_level()

    async def _position(self) -> Position:
        position = await self._store.position()
        self.lost = None
        self._saw_end(position.version)
        return position

    async def _watch_end(self) -> None:
        """Know the log's end also while changes wait to be taken in, as for a long search."""
        while not is_cancelled():
            await asyncio.sleep(LOOK_S / 3)
            if self._is_level and self._clock() - self._looked_at > LOOK_S:
                with suppress(StoreUnavailable, StoreFault):  # which the follower notices too
                    self._saw_end(await self._store.last_version())

    def _saw_end(self, version: int) -> None:
        self._log_version, self._looked_at = version, self._clock()
        self._note_catching_up()

    def _note_catching_up(self) -> None:
        if self.catalog.version >= self._log_version:
            self._caught_up_at = self._clock()

    async def _now_level(self) -> None:
        self._is_level, self._level_at = True, self._clock()
        async with self._moved:
            self._moved.notify_all()


def _replay(catalog: Catalog, mark: str, changes: Sequence[Change]) -> str:
    """Apply changes that must follow on the one with `mark`; gives the mark of the last."""
    for change in changes:
        if change.op == "unreadable":
            raise _LogBroken(f"change {change.version} cannot be read")
        if change.version != catalog.version + 1:
            raise _LogBroken(f"the next change in the log is {change.version}")
        if change.after != mark:
            raise _LogBroken(f"change {change.version} follows another history")
        if change.op == "put":
            catalog.put(change.item_id, change.sid, change.attributes)
        else:
            catalog.drop(change.item_id)
        catalog.version, mark = change.version, change.mark
    return mark
