"""The start of a replica: finds out whose catalog it is, chooses the bundle to serve, and prepares it.

Nothing in Redis is changed before it is known that the bundle may use the catalog (ownership.py), and the
replica gets ready only when every item is read.
"""

import asyncio
import logging
from collections.abc import Callable

from service.errors import DamagedCatalog, GlyphrecError, SidSpaceFull, StoreUnavailable
from service.lifecycle.bundles import BundleFolder, LoadedBundle
from service.lifecycle.model import Model, Readiness
from service.lifecycle.ownership import (
    Plan,
    foreign,
    owner_of,
    plan_to_switch,
    plan_without_reading,
    shared_items,
)
from service.lifecycle.reading_progress import ReadingProgress
from service.lifecycle.retokenizing import Retokenizer
from service.lifecycle.seeding import read_the_unread, seed
from service.lifecycle.watching import note_persistence
from service.store.items import ItemStore
from service.store.retry import retry
from service.store.rollout import RolloutStore, Seen
from service.store.standing import Owner, Standing, StandingStore
from service.telemetry.metrics import Metrics

log = logging.getLogger(__name__)


class _Changed(GlyphrecError):
    """Another replica has put the catalog into use, or switched it, since this one looked."""

    def __init__(self) -> None:
        super().__init__("Another replica has put the catalog into use meanwhile.")


class Opening:
    """Opens the first model of this process."""

    def __init__(
        self,
        configured: LoadedBundle,
        changes: RolloutStore,
        make: Callable[[LoadedBundle], Model],
        folder: BundleFolder,
        retokenizer: Retokenizer,
        *,
        catalog: str,
        standing_of: Callable[[Owner], StandingStore],
        store_of: Callable[[LoadedBundle], ItemStore],
        take_over: bool,
        seed_catalog: bool,
        keep_old_codes_s: int,
        metrics: Metrics,
        readiness: Readiness,
    ) -> None:
        """`configured`: the bundle that the operator named. The settings are those of `Settings`."""
        self._configured = configured
        self._changes = changes
        self._make = make
        self._folder = folder
        self._retokenizer = retokenizer
        self._catalog = catalog
        self._standing_of = standing_of
        self._store_of = store_of
        self._take_over = take_over
        self._seed_catalog = seed_catalog
        self._keep_old_codes_s = keep_old_codes_s
        self._metrics = metrics
        self._readiness = readiness
        self._model: Model | None = None
        self._plan = Plan.SERVE
        self._of_folder: dict[str, LoadedBundle] = {}  # so that a second try need not open it again

    async def open(self) -> Model:
        """A model that is ready for requests. Tries until Redis allows it."""
        self._readiness.say("looking for Redis")
        await retry(self._attempt, on=(GlyphrecError,), say=self._readiness.say)
        assert self._model is not None
        return self._model

    async def stop(self) -> None:
        """End the model, whether or not it became ready."""
        if self._model is not None:
            await self._model.stop()

    async def _attempt(self) -> None:
        await self._store_of(self._configured).check_server()
        standings = self._standing_of(owner_of(self._configured))
        await standings.check_schema()
        seen = await self._changes.look()
        standing = await standings.look()
        loaded, self._plan = await self._choose(standing, seen)
        await standings.mark_schema()
        if self._model is not None and self._model.manifest != loaded.manifest:
            await self._model.stop()
            self._model = None
        if self._model is None:
            self._model = self._make(loaded)
            self._model.start()
        persistence = await self._model.store.persistence()
        note_persistence(persistence, self._metrics, self._readiness)
        for warning in self._readiness.warnings:
            log.warning(warning)
        await self._fill(self._model, standing)

    async def finish(self, model: Model) -> None:
        """Read what was left unread, and note whose catalog it is. Requests are answered meanwhile."""
        if self._plan is Plan.SERVE:
            await retry(lambda: self._finish(model), on=(GlyphrecError,))
        if model.catalog.lacks_vectors:
            await retry(lambda: self._retokenizer.give_vectors(model), on=(GlyphrecError,))

    async def _finish(self, model: Model) -> None:
        await read_the_unread(model.store, model.indexer, model.loaded.items, model.loaded.manifest)
        standings = self._standing_of(owner_of(model.loaded))
        standing = await standings.look()
        if standing.active in (None, model.tokenizer_id):
            await standings.settle(standing)

    # --- what to do ---

    async def _choose(self, standing: Standing, seen: Seen) -> tuple[LoadedBundle, Plan]:
        """The configured bundle, unless another tokenizer is active and a bundle with it is here.

        Raises ForeignCatalog if an unrelated bundle uses the catalog, and DamagedCatalog.
        """
        configured = self._configured
        mine = owner_of(configured)
        if plan := plan_without_reading(standing, mine.tokenizer_id):
            if plan is Plan.SERVE and standing.mine.damage:
                raise DamagedCatalog(standing.mine.damage)
            return configured, plan
        whose = standing.whose(mine.tokenizer_id)
        assert whose is not None
        if damage := (await self._standing_of(mine).sizes(whose)).damage:
            raise DamagedCatalog(damage)
        if not self._take_over:
            preferred = seen.announced.bundle if seen.announced else ""
            if (active := await self._of_the_folder(whose, preferred)) is not None:
                return active, Plan.SERVE
            has_read_it = standing.mine.codes > 0 and not standing.mine.damage
            if not has_read_it:
                shared = await shared_items(self._store_of(configured), configured)
                if not shared.is_related:
                    raise foreign(self._catalog, standing, mine, shared)
        return configured, plan_to_switch(standing, seen, mine, take_over=self._take_over)

    async def _of_the_folder(self, tokenizer_id: str, preferred: str) -> LoadedBundle | None:
        """A bundle with this tokenizer in GLYPHREC_BUNDLES_DIR."""
        name = await asyncio.to_thread(self._folder.with_tokenizer, tokenizer_id, preferred)
        if name is None:
            return None
        if name not in self._of_folder:
            try:
                self._of_folder[name] = await asyncio.to_thread(self._folder.load, name)
            except GlyphrecError as error:
                log.warning("the active bundle cannot be served: %s", error)
                return None
            log.info("serving bundle %s, whose tokenizer %s is the active one", name, tokenizer_id)
        return self._of_folder[name]

    # --- doing it ---

    async def _fill(self, model: Model, standing: Standing) -> None:
        """Bring the bundle's items or codes into Redis, then load the catalog. May be repeated."""
        standings = self._standing_of(owner_of(model.loaded))
        match self._plan:
            case Plan.SEED:
                await self._seed(model, standings, standing)
            case Plan.SERVE:
                await self._read_the_rest(model, standings)
            case Plan.SWITCH:
                await self._switch(model, standings, standing)
            case Plan.STAY_BEHIND:
                await self._read_all(model)
        self._readiness.say("loading the catalog")
        await model.join()

    async def _seed(self, model: Model, standings: StandingStore, standing: Standing) -> None:
        if not await standings.claim():
            raise _Changed
        if self._seed_catalog:
            self._readiness.say("putting the bundle's items into the new catalog")
            await seed(model.store, model.loaded.items, model.manifest.render)
            log.warning(
                "Redis had no catalog %r, so the bundle's %d items went into a new one. That is right for "
                "a first start. If there was a catalog, it is lost: stop the service and restore a backup. "
                "With GLYPHREC_SEED_CATALOG=false, no start does this.",
                self._catalog,
                len(model.loaded.items),
            )
        else:
            log.warning("Redis had no catalog %r, so a new one begins without items", self._catalog)
        # Before the first request: from then on items may be changed, so no other replica may seed any more.
        if not await standings.settle(standing):
            raise _Changed

    async def _read_the_rest(self, model: Model, standings: StandingStore) -> None:
        """Read items that this tokenizer has not read, if there are any."""
        sizes = await standings.sizes(model.tokenizer_id)
        if sizes.items <= sizes.codes:
            return
        try:
            await self._read_all(model)
        except (StoreUnavailable, SidSpaceFull) as error:
            if not sizes.codes:
                raise
            # A few items must not keep all the others from being recommended. `finish` tries again.
            log.warning("%d items are not read yet: %s", sizes.items - sizes.codes, error)

    async def _switch(self, model: Model, standings: StandingStore, standing: Standing) -> None:
        """Read everything, then make this tokenizer the active one, as after POST /admin/bundles."""
        previous = standing.raw_active.decode(errors="replace")
        read_to = await self._changes.log_version(previous) if previous else 0
        await self._read_all(model)
        if previous:
            # What was written meanwhile; `Leader.trail` follows what late replicas write from then on.
            await self._retokenizer.take_over_log(model, previous, read_to)
        self._readiness.say("loading the catalog")
        await model.join()
        is_settled = await standings.settle(
            standing, force=self._take_over, read_to=read_to, keep_old_s=self._keep_old_codes_s
        )
        if not is_settled:
            raise _Changed
        log.info("bundle %s takes the place of tokenizer %s", model.loaded.name, previous or "none")

    async def _read_all(self, model: Model) -> None:
        progress = ReadingProgress(self._changes, model.tokenizer_id, self._readiness, self._metrics)
        await progress.begin()
        loaded = model.loaded
        await read_the_unread(model.store, model.indexer, loaded.items, loaded.manifest, progress.after_chunk)
        await model.store.forget_dropped()
        await progress.end()
