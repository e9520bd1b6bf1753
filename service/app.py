"""create_app(): the only place where things are wired together.

What lies on this machine (bundle, graphs) is checked before the app exists: a wrong one raises at once. Redis
is elsewhere and may be late, so it is found in the background; until then only /health/live says 200.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from redis.asyncio import Redis, RedisCluster

from service.api import admin, events, health, items, recommend
from service.api.dependencies import Serving
from service.api.direct import direct_routes
from service.api.health import service_version
from service.flows.feedback import Feedback, ServedPages
from service.http.envelope import Envelope
from service.http.problems import OF_ANY_ROUTE, add_problem_handlers
from service.http.security import Guard
from service.lifecycle.bundles import LoadedBundle, load
from service.lifecycle.model import Model, Readiness, end, persist
from service.lifecycle.opening import Opening
from service.lifecycle.rollout import Rollout, new_replica_id
from service.settings import Settings
from service.store.client import connect_to_any
from service.store.events import EventStore
from service.store.rollout import RolloutStore
from service.store.server import redis_url_or_server
from service.telemetry.gpu import find_nvml
from service.telemetry.metrics import Metrics
from service.telemetry.tracing import Tracer, tracer_from_environment

log = logging.getLogger("glyphrec")

TICK_S = 0.25


def create_app(settings: Settings, tracer: Tracer | None = None) -> FastAPI:
    """The service as an ASGI app. Raises GlyphrecError where the bundle or its graphs cannot be served.

    A `tracer` goes before the one of the settings.
    """
    if tracer is None and settings.tracing:
        tracer = tracer_from_environment()
    service = Service(settings, tracer)
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
    for module in (recommend, items, events, health, admin):
        app.include_router(module.router)
    add_problem_handlers(app)
    app.add_middleware(
        Envelope,
        direct=direct_routes(app, recommend.router),
        guard=Guard(read_keys=settings.read_keys, api_keys=settings.api_keys, admin_keys=settings.admin_keys),
        is_stopping=lambda: service.serving.readiness.is_stopping,
        metrics=service.serving.metrics,
        max_body_bytes=settings.max_body_bytes,
        body_timeout_s=settings.body_timeout_s,
        log_requests=settings.access_log,
        tracer=tracer,
    )
    return app


class Service:
    """One process and its device: a model that answers, and what replaces it when that is asked for."""

    def __init__(self, settings: Settings, tracer: Tracer | None) -> None:
        self._settings = settings
        self._tracer = tracer
        self._configured = load(settings.bundle, settings)
        pages = ServedPages(settings.remembered_pages, settings.attribution_s)
        self.serving = Serving(settings, Metrics(), Readiness(), pages)
        self.serving.metrics.feedback_remembered_pages.set_function(lambda: pages.num_pages)
        if (nvml := find_nvml()) is not None:
            self.serving.metrics.watch_gpus(nvml)

    @asynccontextmanager
    async def lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        settings = self._settings
        with redis_url_or_server(settings.redis_url, settings.data_dir) as url:
            async with AsyncExitStack() as ends:
                keeper = asyncio.create_task(self._keep(url, ends), name="keeper")
                lag = asyncio.create_task(watch_event_loop(self.serving.metrics), name="event loop lag")
                try:
                    yield
                finally:
                    await end(lag)
                    await end(keeper)
                    if self._tracer is not None:
                        await asyncio.to_thread(self._tracer.close)

    async def _keep(self, url: str, ends: AsyncExitStack) -> None:
        """Find Redis, load the catalogue, answer requests, go over to other models; until cancelled.

        `ends` learns what must be closed after that.
        """
        settings, serving, readiness = self._settings, self.serving, self.serving.readiness
        try:
            observe = serving.metrics.observe_redis
            redis = await persist(lambda: connect_to_any(url, observe), readiness.say)
            ends.push_async_callback(redis.aclose)
            self._attribute(redis, ends)
            changes = RolloutStore(redis, catalog=settings.catalog, replica_id=new_replica_id())

            def make(loaded: LoadedBundle) -> Model:
                return Model(loaded, redis, settings, serving.metrics)

            opening = Opening(self._configured, changes, make, settings, serving.metrics, readiness)
            ends.push_async_callback(opening.stop)
            rollout = Rollout(changes, make, settings, serving.metrics, readiness)
            ends.push_async_callback(rollout.stop)
            model = await opening.open()
            await rollout.begin(model)
            readiness.phase, serving.rollout = "ready", rollout
            serving.metrics.ready.set(1)
            log.info("ready: %d items, version %d", model.catalog.num_items, model.catalog.version)
            rollout.also(opening.finish(model))
            await rollout.run()
        except Exception:  # outermost loop: a replica that no longer follows must not call itself ready
            log.exception("the catalogue is no longer kept; this replica stops answering")
            readiness.phase = "failed; the service's log says why"
        finally:
            readiness.parts, serving.rollout, serving.feedback = None, None, None
            serving.metrics.ready.set(0)

    def _attribute(self, redis: Redis | RedisCluster, ends: AsyncExitStack) -> None:
        settings, serving = self._settings, self.serving
        # A repeat that is not known again comes so late that the page is forgotten: it counts for nothing.
        store = EventStore(redis, catalog=settings.catalog, keep_s=2 * settings.attribution_s)
        serving.feedback = Feedback(store, serving.pages, serving.metrics)
        if settings.remembered_pages:
            following = asyncio.create_task(serving.feedback.run(), name="feedback")
            ends.push_async_callback(end, following)


async def watch_event_loop(metrics: Metrics) -> None:
    """Measure how late a timer fires, until cancelled."""
    loop = asyncio.get_running_loop()
    while True:
        due_at = loop.time() + TICK_S
        await asyncio.sleep(TICK_S)
        metrics.event_loop_lag_seconds.observe(max(0.0, loop.time() - due_at))
