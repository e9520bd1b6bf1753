"""The start of a replica: which bundle it serves, and what must be done before its first request."""

import asyncio
import logging
from collections.abc import Callable

from service.errors import GlyphrecError
from service.lifecycle.bundles import BundleFolder, LoadedBundle
from service.lifecycle.model import Model, Readiness, persist
from service.lifecycle.seeding import read_the_unread, seed
from service.settings import Settings
from service.store.rollout import RolloutStore, Seen
from service.telemetry.metrics import Metrics

log = logging.getLogger(__name__)


class Opening:
    def __init__(
        self,
        configured: LoadedBundle,
        changes: RolloutStore,
        make: Callable[[LoadedBundle], Model],
        settings: Settings,
        metrics: Metrics,
        readiness: Readiness,
    ) -> None:
        self._configured = configured
        self._changes = changes
        self._make = make
        self._settings = settings
        self._metrics = metrics
        self._readiness = readiness
        self._model: Model | None = None

    async def open(self) -> Model:
        """A model that is ready for requests, as soon as Redis lets it."""
        await persist(self._attempt, self._readiness.say)
        assert self._model is not None
        return self._model

    async def stop(self) -> None:
        if self._model is not None:
            await self._model.stop()

    async def _attempt(self) -> None:
        self._readiness.say("looking for Redis")
        seen = await self._changes.look()
        if self._model is None:
            self._model = self._make(await self._choose(seen))
            self._model.start()
        await self._fill(self._model, seen)

    async def finish(self, model: Model) -> None:
        """What may be done while requests are answered: read what is unread, then be the tokenizer in use."""

        async def attempt() -> None:
            await read_the_unread(
                model.store, model.indexer, model.loaded.items, model.loaded.manifest.render
            )
            if self._may_activate(model, await self._changes.look()):
                await model.store.activate()

        await persist(attempt, lambda _trouble: None)

    async def _choose(self, seen: Seen) -> LoadedBundle:
        """The configured bundle, unless another tokenizer is active and a bundle with it is here."""
        configured, active = self._configured, seen.active
        if active in (None, configured.manifest.tokenizer_id) or self._settings.take_over:
            return configured
        folder = BundleFolder(self._settings)
        name = await asyncio.to_thread(
            folder.with_tokenizer, active, seen.announced.bundle if seen.announced else ""
        )
        if name is None:
            return configured
        try:
            loaded = await asyncio.to_thread(folder.load, name)
        except GlyphrecError as error:
            log.warning("the active bundle cannot be served, so the configured one is: %s", error)
            return configured
        log.info("serving bundle %s, whose tokenizer %s is the active one", name, active)
        return loaded

    async def _fill(self, model: Model, seen: Seen) -> None:
        """May be repeated."""
        await model.store.check_server()
        persistence = await model.store.persistence()
        self._metrics.redis_loss_window_seconds.set(persistence.loss_window.seconds)
        for warning in persistence.warnings():
            log.warning(warning)
        items, render = model.loaded.items, model.manifest.render
        if seen.active is None and self._settings.seed_catalog:
            self._readiness.say("putting the bundle's items into the new catalogue")
            await seed(model.store, items, render)
        elif seen.active != model.tokenizer_id:
            self._readiness.say("giving the bundle's codes to the items of the catalogue")
            await read_the_unread(model.store, None, items, render)
        self._readiness.say("loading the catalogue")
        await model.join()

    def _may_activate(self, model: Model, seen: Seen) -> bool:
        """A start does not undo, nor forestall, what POST /admin/bundles has begun; unless told to."""
        if seen.active in (None, model.tokenizer_id) or self._settings.take_over:
            return True
        announced = seen.announced
        if announced is None:
            return True
        is_its_work = announced.phase == "switched" and announced.tokenizer_id == seen.active
        return not (is_its_work or announced.is_under_way)
