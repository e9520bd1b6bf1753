"""create_app(): the only place where the parts of the service are built and connected.

The bundle and its graphs lie on this machine, so they are checked before the app exists: a wrong one raises
at once. Redis is elsewhere and may be late, so the app looks for it in the background. Until then only
/health/live answers 200. This file alone knows all settings; every part gets the ones that it needs.
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline
from redis.asyncio import Redis, RedisCluster

from service.api.dependencies import ServiceState
from service.api.description import describe
from service.api.direct import direct_routes
from service.api.options import ApiOptions
from service.api.recommend_shortcut import shortcuts
from service.api.routes import ROUTERS, add_routes, client_routes
from service.catalog.catalog import Catalog
from service.catalog.co_count_follower import CoCountFollower
from service.catalog.follower import CatalogFollower
from service.core.bundle import RECOMMENDER
from service.core.cpus import usable_cpus
from service.core.redis_url import check_certificates
from service.core.version import service_version
from service.errors import ServiceError, WrongRedisUrl
from service.flows.beam_trace import BeamTracer, trace_in_batches
from service.flows.contents import ContentReader
from service.flows.drawing import ItemDrawer, tokenize_in_batches, work_of
from service.flows.feedback import Feedback
from service.flows.indexing import Indexer
from service.flows.item_ranking import ItemRanker, rank_in_batches
from service.flows.item_ranking import work_of as work_of_ranking
from service.flows.item_search import ItemSearcher, find_in_batches, work_of_findings
from service.flows.learning import Learner
from service.flows.pictures import PictureReader
from service.flows.query_encoder import QueryEncoder, encode_in_batches
from service.flows.recommend import Recommender
from service.flows.search import SearchesInBatches, observed_by
from service.flows.served_pages import ServedPages
from service.http.envelope import Envelope
from service.http.problems import OF_ANY_ROUTE, add_problem_handlers
from service.http.security import Guard
from service.inference.batching import MicroBatcher
from service.inference.beam_levels import LevelSession
from service.lifecycle.bundles import BundleFolder, GraphOptions, LoadedBundle, load
from service.lifecycle.leader import Leader
from service.lifecycle.model import Model, Readiness, counts_of, learned_by, ranker_of
from service.lifecycle.opening import Opening
from service.lifecycle.ownership import owner_of
from service.lifecycle.retokenizing import Retokenizer
from service.lifecycle.rollout import Rollout, new_replica_id
from service.lifecycle.stores import item_store, vector_dim
from service.lifecycle.tasks import cancel
from service.lifecycle.watching import CatalogWatch
from service.settings import Settings
from service.store.client import connect_to_any
from service.store.co_counts import CoCountStore
from service.store.events import EventStore
from service.store.retry import retry
from service.store.rollout import RolloutStore
from service.store.server import redis_url_or_server
from service.store.standing import Owner, StandingStore
from service.telemetry.event_loop import watch_event_loop
from service.telemetry.gpu import find_nvml
from service.telemetry.merging import snapshot
from service.telemetry.metrics import Metrics
from service.telemetry.tracing import Tracer, tracer_from_environment
from service.workers.siblings import Answer, Siblings, refusal_of

log = logging.getLogger("glyphrec")

OPENING_TICK_S = 0.05
MAX_BATCH_FINDINGS = 16  # searches that hold the lock of the catalog together
MAX_QUEUED_TRACES = 4  # people who look at a beam at the same time
SPARE_THREADS = 4  # which wait for files and not for a processor; as in Python's own default
DAY_S = 86_400.0


def create_app(settings: Settings, tracer: Tracer | None = None, siblings: Siblings | None = None) -> FastAPI:
    """The service as an ASGI app. Raises GlyphrecError if the bundle or its graphs cannot be served.

    A given `tracer` takes precedence over the one that the settings ask for. `siblings`: if this process is
    one worker of several.
    """
    if tracer is None and settings.tracing:
        tracer = tracer_from_environment()
    service = Service(settings, tracer, siblings)
    app = FastAPIOffline(  # its documentation page loads nothing from other hosts
        title="glyphrec",
        version=service_version(),
        summary="Reads items as pictures, gives them Semantic IDs, recommends by generating the next one.",
        lifespan=service.lifespan,
        redirect_slashes=False,
        docs_url=None,  # description.py has the page
        redoc_url=None,
        static_url="/docs/assets",
        responses=OF_ANY_ROUTE,
    )
    app.state.service = service.state
    policies = service.state.policies = add_routes(app, has_explorer=settings.explorer)
    service.state.metrics.expect_requests(client_routes())
    keys = {"read_keys": settings.read_keys, "api_keys": settings.api_keys, "admin_keys": settings.admin_keys}
    guard = Guard(policies.scope_of, **keys)
    describe(app, policies, has_keys=any(keys.values()))
    add_problem_handlers(app, policies.methods_of)
    if tracer is None and not settings.access_log:  # which tell of each request by itself
        service.state.shortcuts = shortcuts(service.state, guard, settings.max_body_bytes)
    app.add_middleware(
        Envelope,
        direct=direct_routes(app, ROUTERS),
        guard=guard,
        is_stopping=lambda: service.state.readiness.is_stopping,
        metrics=service.state.metrics,
        max_body_bytes=settings.max_body_bytes,
        body_timeout_s=settings.body_timeout_s,
        prefix=settings.path_prefix,
        log_requests=settings.access_log,
        tracer=tracer,
        route_of=policies.route_of,
        is_probe=policies.is_probe,
    )
    return app


class Service:
    """One process and its device: the model that answers requests, and the work beside it."""

    def __init__(self, settings: Settings, tracer: Tracer | None, siblings: Siblings | None) -> None:
        self._settings = settings
        self._tracer = tracer
        self._configured = load(settings.bundle, graph_options(settings))
        try:
            check_certificates(settings.redis_url or "")
        except ValueError as error:
            raise WrongRedisUrl(str(error)) from error
        pages = ServedPages(settings.remembered_pages, settings.attribution_s)
        options = ApiOptions(
            catalog=settings.catalog,
            filter_fields=settings.filter_fields,
            num_beams=settings.num_beams,
            max_items_per_request=settings.max_items_per_request,
            max_item_chars=settings.max_item_chars,
            max_body_bytes=settings.max_body_bytes,
            max_picture_bytes=settings.max_picture_bytes,
            max_picture_pixels=settings.max_picture_pixels,
        )
        self.state = ServiceState(options, Metrics(), Readiness(), pages, siblings=siblings)
        self._pictures = picture_reader(settings, self.state.metrics)
        self.state.metrics.catalog_info.labels(settings.catalog).set(1)
        self.state.metrics.feedback_remembered_pages.set_function(lambda: pages.num_pages)
        if (nvml := find_nvml()) is not None:
            self.state.metrics.watch_gpus(nvml)

    @asynccontextmanager
    async def lifespan(self, _app: FastAPI) -> AsyncIterator[None]:
        """Surrounds the time in which the app answers: starts the background work, and ends it."""
        settings = self._settings
        # The default has a thread more for each processor of the machine. Many of them at once, as they draw
        # items, would keep the event loop from the interpreter.
        drawing = ThreadPoolExecutor(usable_cpus().num_threads + SPARE_THREADS, thread_name_prefix="worker")
        asyncio.get_running_loop().set_default_executor(drawing)
        with redis_url_or_server(settings.redis_url, settings.data_dir) as url:
            async with AsyncExitStack() as ends:
                keeper = asyncio.create_task(self._keep(url, ends), name="keeper")
                lag = asyncio.create_task(watch_event_loop(self.state.metrics), name="event loop lag")
                try:
                    async with self._among_siblings():
                        yield
                finally:
                    await cancel(lag)
                    await cancel(keeper)
                    self._pictures.stop()
                    if self._tracer is not None:
                        await asyncio.to_thread(self._tracer.close)

    @asynccontextmanager
    async def _among_siblings(self) -> AsyncIterator[None]:
        """Answers the other workers, if there are any. May wait until this one can serve before it opens."""
        siblings, readiness, metrics = self.state.siblings, self.state.readiness, self.state.metrics
        if siblings is None:
            yield
            return

        async def change(name: str) -> str:
            if self.state.rollout is None:
                return readiness.phase
            return await refusal_of(self.state.rollout.change(name))

        answers: dict[str, Answer] = {
            "own metrics": lambda _: resolved(snapshot(metrics.registry)),
            "own readiness": lambda _: resolved(readiness.state()._asdict()),
            "own change": change,
        }
        line = asyncio.create_task(
            siblings.run(answers, lambda: readiness.is_stopping), name="line to the supervisor"
        )
        try:
            if siblings.opens_when_ready:
                await _until_decided(readiness)
            yield
        finally:
            await siblings.tell_last(snapshot(metrics.registry))
            await cancel(line)

    async def _keep(self, url: str, ends: AsyncExitStack) -> None:
        """Find Redis, load the catalog, answer requests and follow changes of the model; until cancelled.

        `ends` learns what must be closed afterwards.
        """
        state, readiness = self.state, self.state.readiness
        try:
            observe = state.metrics.observe_redis
            redis = await retry(lambda: connect_to_any(url, observe), on=(ServiceError,), say=readiness.say)
            ends.push_async_callback(redis.aclose)
            self._attribute(redis, ends)
            opening, rollout = self._lifecycle(redis)
            ends.push_async_callback(opening.stop)
            ends.push_async_callback(rollout.stop)
            model = await opening.open()
            await rollout.begin(model)
            readiness.phase, state.rollout = "ready", rollout
            state.metrics.ready.set(1)
            if state.siblings is not None:
                state.siblings.tell_ready()
            log.info("ready: %d items, version %d", model.catalog.num_items, model.catalog.version)
            rollout.finish_start(opening.finish(model))
            watch = CatalogWatch(
                lambda model: self._standing_of(redis, owner_of(model.loaded)), state.metrics, readiness
            )
            watching = asyncio.create_task(watch.run(), name="watch of the catalog in Redis")
            ends.push_async_callback(cancel, watching)
            await rollout.run()
        except WrongRedisUrl as error:
            log.error("%s", error)
            readiness.failure, readiness.phase = error, str(error)
        except Exception:  # outermost loop: a replica that no longer follows must not call itself ready
            log.exception("the catalog is no longer kept; this replica stops answering")
            readiness.phase = "failed; the service's log says why"
        finally:
            readiness.model, state.rollout, state.feedback = None, None, None
            state.metrics.ready.set(0)

    def _lifecycle(self, redis: Redis | RedisCluster) -> tuple[Opening, Rollout]:
        settings, metrics, readiness = self._settings, self.state.metrics, self.state.readiness

        def make(loaded: LoadedBundle) -> Model:
            return build_model(loaded, redis, settings, metrics, self._pictures)

        changes = RolloutStore(redis, catalog=settings.catalog, replica_id=new_replica_id())
        folder = BundleFolder(settings.bundles_dir, graph_options(settings))
        retokenizer = Retokenizer(changes, readiness, share=settings.reread_share)
        opening = Opening(
            self._configured,
            changes,
            make,
            folder,
            retokenizer,
            catalog=settings.catalog,
            standing_of=lambda mine: self._standing_of(redis, mine),
            store_of=lambda loaded: item_store(redis, settings, loaded.manifest),
            take_over=settings.take_over,
            seed_catalog=settings.seed_catalog,
            keep_old_codes_s=settings.keep_old_codes_s,
            metrics=metrics,
            readiness=readiness,
        )
        leader = Leader(
            changes,
            retokenizer,
            join_timeout_s=settings.join_timeout_s,
            keep_old_codes_s=settings.keep_old_codes_s,
            metrics=metrics,
        )
        return opening, Rollout(changes, make, folder, retokenizer, leader, metrics, readiness)

    def _standing_of(self, redis: Redis | RedisCluster, mine: Owner) -> StandingStore:
        return StandingStore(redis, catalog=self._settings.catalog, mine=mine)

    def _attribute(self, redis: Redis | RedisCluster, ends: AsyncExitStack) -> None:
        """Take events, and follow those about pages of this replica."""
        settings, state = self._settings, self.state
        # An event that is no longer known again comes after its page was forgotten, so it counts for nothing.
        store = EventStore(redis, catalog=settings.catalog, keep_s=2 * settings.attribution_s)
        learner = None
        if settings.learn:
            learner = Learner(
                co_count_store(redis, settings), lambda: learned_by(state.readiness), state.metrics
            )
        state.feedback = Feedback(
            store, state.pages, state.metrics, learner, lambda: counts_of(state.readiness)
        )
        if settings.remembered_pages:
            following = asyncio.create_task(state.feedback.run(), name="feedback")
            ends.push_async_callback(cancel, following)


def graph_options(settings: Settings) -> GraphOptions:
    """The settings that loading a bundle needs."""
    return GraphOptions(
        threads=settings.threads, num_beams=settings.num_beams, max_batch_beams=settings.max_batch_beams
    )


def picture_reader(settings: Settings, metrics: Metrics) -> PictureReader:
    """The only decoder of pictures in this process."""
    return PictureReader(
        threads=settings.picture_threads,
        max_bytes=settings.max_picture_bytes,
        max_pixels=settings.max_picture_pixels,
        timeout_s=settings.picture_timeout_s,
        metrics=metrics,
    )


def build_model(
    loaded: LoadedBundle,
    redis: Redis | RedisCluster,
    settings: Settings,
    metrics: Metrics,
    pictures: PictureReader,
) -> Model:
    """Build the parts of a model for one bundle and connect them. `Model.start` comes next."""
    manifest = loaded.manifest
    store = item_store(redis, settings, manifest)
    catalog = Catalog(
        manifest.sid,
        loaded.popularity,
        max_view_bytes=settings.max_view_bytes,
        vector_dim=vector_dim(settings, manifest),
    )
    follower = CatalogFollower(catalog, store)
    counts = co_count_store(redis, settings)
    co_counts = CoCountFollower(catalog, counts, manifest.co_counts) if manifest.co_counts else None
    ranker = ranker_of(loaded)
    strips = MicroBatcher(
        tokenize_in_batches(loaded.tokenizer),
        name="tokenizer",
        max_batch_units=settings.max_batch_strips,
        max_queued_units=settings.max_queued_strips,
        gives_way=True,  # a client waits less impatiently for an ingest than for a page
        units=work_of,
        observe=lambda stats: metrics.observe_batch("tokenizer", stats),
    )
    observe = observed_by(metrics, loaded.popularity)
    in_batches = SearchesInBatches(
        loaded.session, catalog, history_length=manifest.history_length, ranker=ranker, observe=observe
    )
    searches = MicroBatcher(
        in_batches.run,
        prepare=in_batches.prepare,
        name="recommender",
        max_batch_units=loaded.max_batch_beams,
        max_queued_units=settings.max_queued_beams,
        max_wait_s=settings.max_wait_ms / 1_000,
        units=lambda search: search.num_beams,
        observe=lambda stats: metrics.observe_batch("recommender", stats),
        lock=catalog.lock,
    )
    rankings = MicroBatcher(
        rank_in_batches(
            loaded.session,
            catalog,
            history_length=manifest.history_length,
            beam_limit=manifest.beam_limit,
            ranker=ranker,
        ),
        name="rankings",
        max_batch_units=loaded.max_batch_beams,
        max_queued_units=settings.max_queued_beams,
        max_wait_s=settings.max_wait_ms / 1_000,
        units=work_of_ranking,
        observe=lambda stats: metrics.observe_batch("rankings", stats),
        lock=catalog.lock,
    )
    queries = MicroBatcher(
        encode_in_batches(loaded.tokenizer),
        name="query",
        max_batch_units=settings.max_batch_strips,
        max_queued_units=settings.max_queued_strips,
        max_wait_s=settings.max_wait_ms / 1_000,
        units=work_of,
        observe=lambda stats: metrics.observe_batch("query", stats),
    )
    findings = MicroBatcher(
        find_in_batches(catalog),
        name="vectors",
        max_batch_units=MAX_BATCH_FINDINGS,
        max_queued_units=settings.max_queued_strips,
        max_wait_s=settings.max_wait_ms / 1_000,
        units=work_of_findings(catalog),
        observe=lambda stats: metrics.observe_batch("vectors", stats),
        lock=catalog.lock,
    )
    traces = MicroBatcher(
        trace_in_batches(catalog, history_length=manifest.history_length),
        name="beam",
        max_batch_units=1,  # a look at the beam is several searches, so others get their turn after each
        max_queued_units=MAX_QUEUED_TRACES,
        observe=lambda stats: metrics.observe_batch("beam", stats),
        lock=catalog.lock,
    )
    indexer = Indexer(
        store,
        follower,
        strips,
        manifest=manifest,
        contents=ContentReader(
            manifest,
            pictures,
            filter_fields=settings.filter_fields,
            max_item_chars=settings.max_item_chars,
            vocabulary=None if manifest.draws_fields else loaded.vocabulary,
        ),
        drawer=ItemDrawer(manifest, store.pictures, pictures, loaded.vocabulary),
        timeout_s=settings.index_timeout_s,
        metrics=metrics,
    )
    recommender = Recommender(
        searches,
        fields=settings.filter_fields,
        num_beams=settings.num_beams,
        beam_limit=manifest.beam_limit,
        timeout_s=settings.recommend_timeout_s,
        metrics=metrics,
        has_ranker=ranker is not None,
    )
    item_ranker = ItemRanker(
        rankings,
        fields=settings.filter_fields,
        timeout_s=settings.recommend_timeout_s,
        metrics=metrics,
    )
    searcher = ItemSearcher(
        QueryEncoder(manifest, pictures, queries, settings.remembered_queries, loaded.vocabulary),
        catalog,
        findings,
        fields=settings.filter_fields,
        timeout_s=settings.recommend_timeout_s,
        metrics=metrics,
    )
    tracer = BeamTracer(
        lambda: LevelSession(
            loaded.bundle.file(RECOMMENDER), manifest.recommender, manifest.sid, threads=settings.threads
        ),
        traces,
        fields=settings.filter_fields,
        timeout_s=settings.recommend_timeout_s,
    )
    return Model(
        loaded,
        store=store,
        catalog=catalog,
        follower=follower,
        counts=counts,
        co_counts=co_counts,
        strips=strips,
        searches=searches,
        rankings=rankings,
        traces=traces,
        indexer=indexer,
        queries=queries,
        findings=findings,
        recommender=recommender,
        item_ranker=item_ranker,
        searcher=searcher,
        tracer=tracer,
        metrics=metrics,
    )


def co_count_store(redis: Redis | RedisCluster, settings: Settings) -> CoCountStore:
    """The counts of the catalog, which all models share."""
    return CoCountStore(
        redis,
        catalog=settings.catalog,
        half_life_s=DAY_S * settings.count_half_life_days,
        keep_s=2 * settings.attribution_s,  # as long as the events' own ids
        log_length=settings.log_length,
    )


async def _until_decided(readiness: Readiness) -> None:
    """Until this process can answer, or ends."""
    # A signal sets `is_stopping`, and it cannot set an event of the loop.
    while not (readiness.model or readiness.failure or readiness.is_stopping):  # noqa: ASYNC110
        await asyncio.sleep(OPENING_TICK_S)


async def resolved(value: Any) -> Any:
    """A value that is at hand, for a caller that awaits it."""
    return value
