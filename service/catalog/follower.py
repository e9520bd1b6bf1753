"""Keeps the catalog of this replica up to date with the log of changes in Redis."""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import NamedTuple

from service.catalog.catalog import Catalog, Loading
from service.catalog.log_follower import BLOCK_MS, LogBroken, LogFollower, check_follows
from service.errors import StoreFault, StoreUnavailable
from service.store.items import Change, ItemStore, Position
from service.store.retry import is_cancelled

log = logging.getLogger(__name__)

# How old the follower's knowledge of the log's end may get. It reads sooner, unless something delays it.
LOOK_S = 1.5
# Changes that are applied in one turn, during which no search runs. They take 0.6 ms. With a hundred cached
# filters, 2 ms if the items pass the same filters as before, 20 ms if all move (benchmarks/filters.py).
CHANGES_PER_TURN = 20
CHANGES_PER_READ = 1_000


class Lag(NamedTuple):
    """How far a catalog is behind its log, to the follower's knowledge."""

    num_changes: int
    seconds: float  # since it had all changes; 0 while it has them


class CatalogFollower(LogFollower):
    """Applies the changes in Redis' log to a catalog. Without Redis the catalog stays as it is."""

    follows = "the catalog"

    def __init__(
        self,
        catalog: Catalog,
        store: ItemStore,
        *,
        block_ms: int = BLOCK_MS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self.catalog = catalog
        self.num_loads = 0  # more than one: the log was trimmed before it was read, or Redis lost data
        self._store = store
        self._block_ms = block_ms
        self._clock = clock
        self._followed_at: float | None = None
        self._log_version = 0  # of the last change known to be in the log
        self._looked_at = -math.inf  # when this was the end of the log
        self._caught_up_at = clock()  # when the catalog had all changes
        self.lost: StoreUnavailable | None = None  # why Redis cannot be reached; None while it answers
        self._moved = asyncio.Condition()
        self._reason_to_load = ""

    @property
    def version(self) -> int:
        """Of the log: the catalog has all changes up to this one."""
        return self.catalog.version

    @property
    def is_loaded(self) -> bool:
        """Whether the whole catalog was read at least once. Until then it must not be served."""
        return self.num_loads > 0

    @property
    def is_stale(self) -> bool:
        """Whether changes may be unseen: nothing is loaded yet, Redis does not answer, or it lost data."""
        return not self._is_caught_up

    @property
    def stale_for_s(self) -> float:
        """Seconds since the catalog last had all changes; 0 while it follows, infinite before a load."""
        if self._is_caught_up:
            return 0.0
        return math.inf if self._followed_at is None else self._clock() - self._followed_at

    @property
    def lag(self) -> Lag:
        """Measured against the log's end when this replica last saw it. Redis is not asked."""
        num_changes = max(0, self._log_version - self.catalog.version)
        is_caught_up = self._is_caught_up and not num_changes
        return Lag(num_changes, 0.0 if is_caught_up else self._clock() - self._caught_up_at)

    @property
    def num_unreadable(self) -> int:
        """How many values of Redis were skipped since the start because another program wrote them."""
        return self._store.num_unreadable

    async def load(self) -> None:
        """Read the whole catalog into new tables and swap them in.

        Raises StoreUnavailable, and DamagedCatalog if Redis has lost the trie or the codes.
        """
        start = self._clock()
        while True:
            try:
                fresh, mark = await self._read_all()
                break
            except LogBroken as error:
                log.warning("the log broke while the catalog was read (%s); reading again", error)
        async with self.catalog.lock:
            counts, places = self.catalog.co_counts, None
            if counts is not None:
                places = await asyncio.to_thread(counts.places_by, fresh.prefix_of)
            self.catalog.adopt(fresh, places)
        self._mark, self._needs_load = mark, False
        self.num_loads += 1
        self._saw_end(fresh.version)
        await self._set_caught_up()
        log.info(
            "loaded %d items in %.2f s, version %d", fresh.num_items, self._clock() - start, fresh.version
        )

    def load_again(self, reason: str) -> None:
        """Load the whole catalog soon, while `run` follows it, although the log does not ask for it."""
        self._reason_to_load = reason

    async def run(self) -> None:
        """Follow the log until cancelled. Loads first if `load` was not called."""
        watching = asyncio.create_task(self._watch_end(), name="end of the log")
        try:
            await self._run()
        finally:
            watching.cancel()
            await asyncio.wait([watching])

    def _note_lost(self, error: StoreUnavailable | StoreFault) -> None:
        self.lost = error if isinstance(error, StoreUnavailable) else None
        if self._is_caught_up:
            log.warning("lost Redis at version %d, serving on: %s", self.catalog.version, error)

    async def wait_for(self, version: int, timeout_s: float) -> bool:
        """Wait until the catalog has this version. False after the timeout."""
        if self.catalog.version >= version:
            return True
        try:
            async with asyncio.timeout(timeout_s), self._moved:
                await self._moved.wait_for(lambda: self.catalog.version >= version)
        except TimeoutError:
            return False
        return True

    async def _read_all(self) -> tuple[Catalog, str]:
        """A new catalog and its mark."""
        version, mark = await self._position()  # before the first page: later changes are replayed
        vectors = self.catalog.vectors
        loading = Loading(self.catalog.spec, None if vectors is None else vectors.dim)
        await self._store.check_loadable()
        async for page in self._store.snapshot():
            await asyncio.to_thread(loading.add, page)
        await self._store.check_loadable()  # Redis may have evicted the trie meanwhile
        fresh = await asyncio.to_thread(loading.end)
        fresh.version = version
        while changes := await self._store.changes(fresh.version):
            mark = _replay(fresh, mark, changes)
        return fresh, mark

    async def _follow(self) -> None:
        if reason := self._reason_to_load:
            self._reason_to_load = ""
            raise LogBroken(reason)
        changes = await self._store.changes(self.catalog.version, self._block_ms, CHANGES_PER_READ)
        self.lost = None
        if changes and len(changes) < CHANGES_PER_READ:
            self._saw_end(changes[-1].version)
        elif changes:
            await self._position()  # there may be many more
        for start in range(0, len(changes), CHANGES_PER_TURN):
            part = changes[start : start + CHANGES_PER_TURN]
            await self.catalog.lock.edit(partial(self._apply, part))
            await self._set_caught_up()
            self._note_catching_up()
        if not changes:
            await self._check_position()

    def _apply(self, changes: Sequence[Change]) -> None:
        self._mark = _replay(self.catalog, self._mark, changes)

    async def _position(self) -> Position:
        position = await self._store.position()
        self.lost = None
        self._saw_end(position.version)
        return position

    async def _watch_end(self) -> None:
        """Know the log's end also while changes wait to be applied, for example during a long search."""
        while not is_cancelled():
            await asyncio.sleep(LOOK_S / 3)
            if self._is_caught_up and self._clock() - self._looked_at > LOOK_S:
                with suppress(StoreUnavailable, StoreFault):  # the follower notices these too
                    self._saw_end(await self._store.last_version())

    def _saw_end(self, version: int) -> None:
        self._log_version, self._looked_at = version, self._clock()
        self._note_catching_up()

    def _note_catching_up(self) -> None:
        if self.catalog.version >= self._log_version:
            self._caught_up_at = self._clock()

    async def _set_caught_up(self) -> None:
        self._is_caught_up, self._followed_at = True, self._clock()
        async with self._moved:
            self._moved.notify_all()


def _replay(catalog: Catalog, mark: str, changes: Sequence[Change]) -> str:
    """Apply changes that must follow the one with `mark`. Returns the last one's mark."""
    for change in changes:
        if change.op == "unreadable":
            raise LogBroken(f"change {change.version} cannot be read")
        check_follows(change, catalog.version, mark)
        if change.op == "put":
            catalog.put(change.item_id, change.sid, change.attributes, change.vector)
        else:
            catalog.drop(change.item_id)
        catalog.version, mark = change.version, change.mark
    return mark
