"""Keeps this replica's table of counts up to date with the log of changed rows in Redis.

The log only names rows, and a row is read when its name arrives. So a row may be newer than the change that
named it, and reading it twice does no harm.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from service.catalog.catalog import Catalog
from service.catalog.follower import Lag
from service.catalog.log_follower import BLOCK_MS, LogBroken, LogFollower, check_follows
from service.core.co_counts import CoCounts, CoCountSpec
from service.store.client import chunks
from service.store.co_counts import CoCountStore, RowsChanged, StoredRow
from service.store.records import Position

log = logging.getLogger(__name__)

CHANGES_PER_READ = 100  # each names some rows of up to some kilobytes
ROWS_PER_TURN = 20  # are set in one turn, during which no search runs; a millisecond


class CoCountFollower(LogFollower):
    """Gives a catalog its table of counts, and applies changes. Without Redis the table stays as it is."""

    follows = "the table of counts"

    def __init__(
        self,
        catalog: Catalog,
        store: CoCountStore,
        spec: CoCountSpec,
        *,
        block_ms: int = BLOCK_MS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        super().__init__()
        self.num_loads = 0  # more than one: the log was trimmed before it was read, or Redis lost data
        self._version = 0
        self._catalog = catalog
        self._store = store
        self._spec = spec
        self._block_ms = block_ms
        self._clock = clock
        self._log_version = 0  # of the last change known to be in the log
        self._caught_up_at = clock()

    @property
    def version(self) -> int:
        """Of the log: the table has all changes up to this one."""
        return self._version

    @property
    def num_rows(self) -> int:
        """Items of which this replica knows counts."""
        return 0 if self._catalog.co_counts is None else self._catalog.co_counts.num_rows

    @property
    def num_bytes(self) -> int:
        """Memory of the table's arrays."""
        return 0 if self._catalog.co_counts is None else self._catalog.co_counts.num_bytes

    @property
    def num_unreadable(self) -> int:
        """How many values of Redis were skipped since the start because another program wrote them."""
        return self._store.num_unreadable

    @property
    def lag(self) -> Lag:
        """Measured against the log's end when this replica last saw it. Redis is not asked."""
        num_changes = max(0, self._log_version - self.version)
        is_caught_up = self._is_caught_up and not num_changes
        return Lag(num_changes, 0.0 if is_caught_up else self._clock() - self._caught_up_at)

    async def load(self) -> None:
        """Read all rows into a new table and swap it in. Raises StoreUnavailable."""
        start = self._clock()
        position = await self._store.position()  # before the first page: later changes are read again
        table = CoCounts(self._spec, self._catalog.prefix_of)
        async for page in self._store.snapshot():
            await asyncio.to_thread(self._set, table, page)
        async with self._catalog.lock:
            # Items may have moved since the table asked where they are.
            await asyncio.to_thread(table.place_all)
            self._catalog.co_counts = table
        self._version, self._mark = position
        self._needs_load = False
        self.num_loads += 1
        await self._set_caught_up()
        log.info("loaded the counts of %d items in %.2f s", table.num_rows, self._clock() - start)

    async def run(self) -> None:
        """Follow the log until cancelled. Loads first if `load` was not called."""
        await self._run()

    async def _follow(self) -> None:
        changes = await self._store.changes(self.version, self._block_ms, CHANGES_PER_READ)
        if not changes:
            await self._check_position()
            return
        self._log_version = max(self._log_version, changes[-1].version)
        item_ids, mark = _named(changes, self.version, self._mark)
        found = await self._store.rows(item_ids)
        for part in chunks(item_ids, ROWS_PER_TURN):
            await self._catalog.lock.edit(partial(self._apply, part, found))
        self._version, self._mark = changes[-1].version, mark
        if len(changes) < CHANGES_PER_READ:
            await self._set_caught_up()
        else:
            await self._check_position()  # there may be many more

    def _apply(self, item_ids: Sequence[str], found: Mapping[str, StoredRow]) -> None:
        table = self._catalog.co_counts
        assert table is not None, "loaded before it is followed"
        self._set(table, [found[item_id] for item_id in item_ids if item_id in found])
        for item_id in item_ids:
            if item_id not in found:
                table.drop_row(item_id)

    def _set(self, table: CoCounts, rows: Sequence[StoredRow]) -> None:
        for each in rows:
            table.set_row(*each.row, log2_unit=self._store.log2_unit(each.at_s))

    async def _position(self) -> Position:
        position = await self._store.position()
        self._log_version = position.version
        return position

    async def _set_caught_up(self) -> None:
        self._log_version = max(self._log_version, self._version)
        self._is_caught_up, self._caught_up_at = True, self._clock()


def _named(changes: Sequence[RowsChanged], version: int, mark: str) -> tuple[list[str], str]:
    """The items named in changes that must follow this version and mark, and the last mark."""
    found: dict[str, None] = {}
    for change in changes:
        if change.item_ids is None:
            raise LogBroken(f"change {change.version} cannot be read")
        check_follows(change, version, mark)
        found |= dict.fromkeys(change.item_ids)
        version, mark = change.version, change.mark
    return list(found), mark
