"""The start of a replica: chooses the bundle that it serves, and prepares it for the first request."""

import asyncio
import logging
from collections.abc import Callable

from service.errors import GlyphrecError
from service.lifecycle.bundles import BundleFolder, LoadedBundle
from service.lifecycle.decide import may_activate
from service.lifecycle.model import Model, Readiness
from service.lifecycle.seeding import read_the_unread, seed
from service.store.retry import retry
from service.store.rollout import RolloutStore, Seen
from service.telemetry.metrics import Metrics

log = logging.getLogger(__name__)


class Opening:
    """Opens the first model of this process."""

    def __init__(
        self,
        configured: LoadedBundle,
        changes: RolloutStore,
        make: Callable[[LoadedBundle], Model],
        folder: BundleFolder,
        *,
        take_over: bool,
        seed_catalog: bool,
        metrics: Metrics,
        readiness: Readiness,
    ) -> None:
        """`configured`: the bundle that the operator named. `take_over`, `seed_catalog`: see `Settings`."""
        self._configured = configured
        self._changes = changes
        self._make = make
        self._folder = folder
        self._take_over = take_over
        self._seed_catalog = seed_catalog
        self._metrics = metrics
        self._readiness = readiness
        self._model: Model | None = None

    async def open(self) -> Model:
        """A model that is ready for requests. Tries until Redis allows it."""
        await retry(self._attempt, on=(GlyphrecError,), say=self._readiness.say)
        assert self._model is not None
        return self._model

    async def stop(self) -> None:
        """End the model, whether or not it became ready."""
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
        """Read what is unread, then make the tokenizer the active one. Requests are answered meanwhile."""

        async def attempt() -> None:
            await read_the_unread(
                model.store, model.indexer, model.loaded.items, model.loaded.manifest.render
            )
            seen = await self._changes.look()
            if self._take_over or may_activate(seen, model.tokenizer_id):
                await model.store.activate()

        await retry(attempt, on=(GlyphrecError,))

    async def _choose(self, seen: Seen) -> LoadedBundle:
        """The configured bundle, unless another tokenizer is active and a bundle with it is here."""
        configured, active = self._configured, seen.active
        if active in (None, configured.manifest.tokenizer_id) or self._take_over:
            return configured
        preferred = seen.announced.bundle if seen.announced else ""
        name = await asyncio.to_thread(self._folder.with_tokenizer, active, preferred)
        if name is None:
            return configured
        try:
            loaded = await asyncio.to_thread(self._folder.load, name)
        except GlyphrecError as error:
            log.warning("the active bundle cannot be served, so the configured one is: %s", error)
            return configured
        log.info("serving bundle %s, whose tokenizer %s is the active one", name, active)
        return loaded

    async def _fill(self, model: Model, seen: Seen) -> None:
        """Bring the bundle's items or codes into Redis, then load the catalog. May be repeated."""
        await model.store.check_server()
        persistence = await model.store.persistence()
        self._metrics.redis_loss_window_seconds.set(persistence.loss_window.seconds)
        for warning in persistence.warnings():
            log.warning(warning)
        items, render = model.loaded.items, model.manifest.render
        if seen.active is None and self._seed_catalog:
            self._readiness.say("putting the bundle's items into the new catalog")
            await seed(model.store, items, render)
        elif seen.active != model.tokenizer_id:
            self._readiness.say("giving the bundle's codes to the items of the catalog")
            await read_the_unread(model.store, None, items, render)
        self._readiness.say("loading the catalog")
        await model.join()
