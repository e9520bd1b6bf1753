"""create_app(): the only place where things are wired together.

What lies on this machine (bundle, graphs) is checked before the app exists: a wrong one raises at once. Redis
is elsewhere and may be late, so it is found in the background; until then only /health/live says 200.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import numpy as np
from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from redis.asyncio import Redis

from service.api import health, items, recommend
from service.api.dependencies import Parts, Readiness, Serving
from service.api.envelope import Envelope
from service.api.health import service_version
from service.api.problems import OF_ANY_ROUTE, add_problem_handlers
from service.api.security import Guard
from service.batching import MicroBatcher
from service.catalog import Catalog, CatalogFollower
from service.contract import ITEMS, RECOMMENDER, TOKENIZER, Codes, beam_widths, load_bundle
from service.errors import ContractMismatch, GlyphrecError
from service.indexing import Indexer, Strips, tokenise_in_batches
from service.metrics import Metrics
from service.recommend import Page, Recommender, Search, recommend_in_batches
from service.redis_server import redis_url_or_server
from service.render import render_text
from service.runtime import RecommenderSession, Tokenizer, tried
from service.seeding import BundledItem, read_items, read_the_unread, seed
from service.settings import Settings
from service.store import ItemStore, connect

log = logging.getLogger("glyphrec")

FIRST_RETRY_S = 0.2
MAX_RETRY_S = 5.0


def create_app(settings: Settings) -> FastAPI:
    """The service as an ASGI app. Raises GlyphrecError where the bundle or its graphs cannot be served."""
    service = Service(settings)
    app = FastAPIOffline(  # its documentation page loads nothing from elsewhere
        title="glyphrec",
        version=service_version(),
        summary="Reads items as pictures, gives them Semantic IDs, recommends by generating the next one.",
        lifespan=service.lifespan,
        redirect_slashes=False,
        redoc_url=None,
        static_url="/docs/assets",
        responses=OF_ANY_ROUTE,
    )
    app.state.serving = service.serving
    for module in (recommend, items, health):
        app.include_router(module.router)
    add_problem_handlers(app)
    app.add_middleware(
        Envelope,
        guard=Guard(read_keys=settings.read_keys, api_keys=settings.api_keys, admin_keys=settings.admin_keys),
        metrics=service.serving.metrics,
        max_body_bytes=settings.max_body_bytes,
        body_timeout_s=settings.body_timeout_s,
        log_requests=settings.access_log,
    )
    return app


class Service:
    """One process and its device: two graphs, each with a batcher; a catalogue that follows Redis."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._bundle = bundle = load_bundle(settings.bundle)
        manifest = bundle.manifest
        strips = render_text("warm-up", manifest.render).strips  # refuses another font than the export's
        self._items: list[BundledItem] = read_items(bundle.file(ITEMS), manifest.sid, manifest.num_items)
        self._popularity = {each.item_id: each.popularity for each in self._items}
        self._catalog = Catalog(manifest.sid, self._popularity, max_view_bytes=settings.max_view_bytes)
        tokenizer = Tokenizer(bundle.file(TOKENIZER), manifest.tokenizer, threads=settings.threads)
        tokens = tried(bundle.file(TOKENIZER), lambda: tokenizer.run([strips]))
        try:
            manifest.sid.check(tuple(tokens.codes[0].tolist()))
        except ValueError as error:
            raise ContractMismatch(f"{bundle.file(TOKENIZER)}: {error}. Export again.") from error
        self._session = RecommenderSession(
            bundle.file(RECOMMENDER), manifest.recommender, threads=settings.threads
        )
        tried(bundle.file(RECOMMENDER), self._search_once)
        if settings.num_beams > manifest.beam_limit:
            log.warning(
                "GLYPHREC_NUM_BEAMS is %d, but the bundle was exported for at most %d beams, so searches "
                "have %d. Export with a larger beam_limit, or set GLYPHREC_NUM_BEAMS to %d.",
                *(settings.num_beams, manifest.beam_limit, manifest.beam_limit, manifest.beam_limit),
            )
        metrics = Metrics()
        metrics.describe_model(manifest)
        self._strips: MicroBatcher[Strips, Codes] = MicroBatcher(
            tokenise_in_batches(tokenizer),
            name="tokenizer",
            max_batch_units=settings.max_batch_strips,
            max_queued_units=settings.max_queued_strips,
            units=len,
            observe=lambda stats: metrics.observe_batch("tokenizer", stats),
        )
        self._searches: MicroBatcher[Search, Page] = MicroBatcher(
            recommend_in_batches(self._session, self._catalog, history_length=manifest.history_length),
            name="recommender",
            max_batch_units=settings.max_batch_beams,
            max_queued_units=settings.max_queued_beams,
            units=lambda search: search.num_beams,
            observe=lambda stats: metrics.observe_batch("recommender", stats),
            turns=self._catalog.turns,
        )
        for batcher, name in ((self._strips, "tokenizer"), (self._searches, "recommender")):
            metrics.watch_queue(name, batcher)
        self.serving = Serving(settings, manifest, metrics, Readiness())

    @asynccontextmanager
    async def lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        with redis_url_or_server(self._settings.redis_url, self._settings.data_dir) as url:
            self._strips.start()
            self._searches.start()
            keeper = asyncio.create_task(self._keep(url), name="catalogue")
            try:
                yield
            finally:
                while (
                    not keeper.done()
                ):  # before Python 3.12 asyncio.wait_for, in redis-py, may swallow a cancellation
                    keeper.cancel()
                    await asyncio.wait([keeper], timeout=1)
                await self._strips.stop()
                await self._searches.stop()

    async def _keep(self, url: str) -> None:
        """Find Redis, load the catalogue, answer requests, follow the log; until cancelled."""
        readiness, metrics = self.serving.readiness, self.serving.metrics
        redis = connect(url)
        try:
            parts = self._wire(redis)
            await self._persist(lambda: self._open(parts))
            metrics.watch_catalog(parts.catalog, parts.follower)
            readiness.parts, readiness.phase = parts, "ready"
            metrics.ready.set(1)
            log.info("ready: %d items, version %d", parts.catalog.num_items, parts.catalog.version)
            async with asyncio.TaskGroup() as group:
                group.create_task(parts.follower.run())
                group.create_task(self._persist(lambda: self._finish(parts)))
        except Exception:  # outermost loop: a replica that no longer follows must not call itself ready
            log.exception("the catalogue is no longer kept; this replica stops answering")
            readiness.phase = "failed; the service's log says why"
        finally:
            readiness.parts = None
            metrics.ready.set(0)
            await redis.aclose()

    def _wire(self, redis: Redis) -> Parts:
        settings, manifest, metrics = self._settings, self._bundle.manifest, self.serving.metrics
        store = ItemStore(
            redis,
            catalog=settings.catalog,
            tokenizer_id=manifest.tokenizer_id,
            spec=manifest.sid,
            fields=settings.filter_fields,
        )
        follower = CatalogFollower(self._catalog, store)
        indexer = Indexer(
            store,
            follower,
            self._strips,
            render=manifest.render,
            max_item_chars=settings.max_item_chars,
            timeout_s=settings.index_timeout_s,
            metrics=metrics,
        )
        recommender = Recommender(
            self._searches,
            fields=settings.filter_fields,
            num_beams=settings.num_beams,
            beam_limit=manifest.beam_limit,
            timeout_s=settings.recommend_timeout_s,
            metrics=metrics,
        )
        return Parts(store, follower, indexer, recommender, self._popularity)

    async def _open(self, parts: Parts) -> None:
        """Everything that must be done before the first request. May be repeated."""
        readiness, manifest = self.serving.readiness, self._bundle.manifest
        readiness.phase = "looking for Redis"
        await parts.store.check_server()
        active = await parts.store.active()
        if active is None and self._settings.seed_catalog:
            readiness.phase = "putting the bundle's items into the new catalogue"
            await seed(parts.store, self._items, manifest.render)
        elif active != manifest.tokenizer_id:
            readiness.phase = "giving the bundle's codes to the items of the catalogue"
            await read_the_unread(parts.store, None, self._items, manifest.render)
        readiness.phase = "loading the catalogue"
        await parts.follower.load()
        readiness.phase = "warming up"
        async with self._catalog.turns:
            await asyncio.to_thread(self._search_once)
        await self._strips.submit(render_text("warm-up", manifest.render).strips)

    def _search_once(self) -> None:
        manifest = self._bundle.manifest
        history = np.zeros((1, 1, manifest.sid.num_levels), dtype=np.int64)
        widths = beam_widths(manifest.sid, min(self._settings.num_beams, manifest.beam_limit))
        self._session.run(history, self._catalog.trie.tables, widths)

    async def _finish(self, parts: Parts) -> None:
        """What may be done while requests are answered: read what is unread, then be the tokenizer in use."""
        await read_the_unread(parts.store, parts.indexer, self._items, self._bundle.manifest.render)
        await parts.store.activate()

    async def _persist(self, attempt: Callable[[], Awaitable[None]]) -> None:
        """Try until it works. The log says what stands in the way, and readiness too during the start."""
        retry_s = FIRST_RETRY_S
        while True:
            try:
                await attempt()
                return
            except GlyphrecError as error:
                log.warning("%s Trying again in %.1f s.", error, retry_s)
                if self.serving.readiness.parts is None:
                    self.serving.readiness.phase = str(error)
            await asyncio.sleep(retry_s)
            retry_s = min(2 * retry_s, MAX_RETRY_S)
