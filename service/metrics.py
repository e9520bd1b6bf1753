"""Every Prometheus metric, with its unit and what it tells. Each app has a registry of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from time import perf_counter
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, ProcessCollector
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from service.batching import BatchStats, MicroBatcher
from service.catalog import Catalog, CatalogFollower
from service.contract import Manifest
from service.views import FilterViews

_FAST = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
_SLOW = (*_FAST, 30.0, 60.0, 300.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class Stages:
    """Seconds spent in each stage of one request: what Server-Timing and the stage histograms say."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def add(self, stage: str, seconds: float) -> None:
        """Stages that run several times in one request add up."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        started_at = perf_counter()
        try:
            yield
        finally:
            self.add(stage, perf_counter() - started_at)

    def header(self, total_s: float) -> str:
        """The value of a Server-Timing header; its durations are milliseconds."""
        everything = {**self.seconds, "total": total_s}
        return ", ".join(f"{stage};dur={1000 * seconds:.2f}" for stage, seconds in everything.items())


class _ViewCounts(Collector):
    """What the views count themselves, so that they need not know of metrics."""

    views: FilterViews | None = None

    def collect(self) -> Iterator[Metric]:
        for name, text, count in (
            ("hits", "Filters that were ready for the search.", self.views and self.views.num_hits),
            ("misses", "Filters whose items were gathered first.", self.views and self.views.num_misses),
            ("evictions", "Filters given up for others.", self.views and self.views.num_evictions),
        ):
            yield CounterMetricFamily(f"glyphrec_filter_view_{name}", text, value=count or 0)


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # memory, CPU seconds, open files of this process
        registry = self.registry

        self.http_requests = Counter(
            "glyphrec_http_requests",
            "Answered requests, by route template.",
            ("route", "method", "status"),
            registry=registry,
        )
        self.http_seconds = Histogram(
            "glyphrec_http_request_seconds",
            "Time from the request's first byte read to its answer's last byte sent.",
            ("route", "method"),
            buckets=_SLOW,
            registry=registry,
        )
        self.http_in_flight = Gauge(
            "glyphrec_http_requests_in_flight", "Requests being answered now.", registry=registry
        )
        self.stage_seconds = Histogram(
            "glyphrec_stage_seconds",
            "Time of one stage of a flow: recommend (queue, decode, resolve), "
            "index (held, render, queue, tokenise, store, follow).",
            ("flow", "stage"),
            buckets=_SLOW,
            registry=registry,
        )

        self.queue_units = Gauge(
            "glyphrec_queue_units", "Work waiting: beams or strips.", ("queue",), registry=registry
        )
        self.running_units = Gauge(
            "glyphrec_running_units",
            "Work in the batch that runs now: beams or strips.",
            ("queue",),
            registry=registry,
        )
        self.batch_jobs = Histogram(
            "glyphrec_batch_jobs",
            "Requests or items in one batch.",
            ("queue",),
            buckets=_SIZES,
            registry=registry,
        )
        self.batch_units = Histogram(
            "glyphrec_batch_units",
            "Beams or strips in one batch.",
            ("queue",),
            buckets=_SIZES,
            registry=registry,
        )
        self.batch_seconds = Histogram(
            "glyphrec_batch_seconds",
            "Time of one batch: runs of the graph, and for recommendations the look-ups around them.",
            ("queue",),
            buckets=_FAST,
            registry=registry,
        )

        self.recommendations = Counter(
            "glyphrec_recommendations",
            "Answered recommendations by source (model, popular), whether they are proven exact, and whether "
            "they were filtered.",
            ("source", "exact", "filtered"),
            registry=registry,
        )
        self.widenings = Counter(
            "glyphrec_widenings", "Searches repeated with twice the beams.", registry=registry
        )
        self.unknown_items = Counter(
            "glyphrec_unknown_history_items", "Ids in histories that are no living item.", registry=registry
        )
        self.indexed_items = Counter(
            "glyphrec_indexed_items",
            "Posted items by outcome (created, moved, updated, unchanged, failed).",
            ("status",),
            registry=registry,
        )

        self.catalog_items = Gauge(
            "glyphrec_catalog_items", "Living items on this replica.", registry=registry
        )
        self.catalog_version = Gauge(
            "glyphrec_catalog_version",
            "Last change of the log that this replica has taken in.",
            registry=registry,
        )
        self.catalog_stale_seconds = Gauge(
            "glyphrec_catalog_stale_seconds",
            "Time since Redis was lost; 0 while in touch.",
            registry=registry,
        )
        self.redis_loss_window_seconds = Gauge(
            "glyphrec_redis_loss_window_seconds",
            "Newest acknowledged changes that a failure of Redis' machine may lose, as of the start or last "
            "/info; +Inf without an append-only file, NaN where Redis does not tell.",
            registry=registry,
        )
        self.unreadable_values = Gauge(
            "glyphrec_unreadable_values",
            "Values of Redis that were skipped since the start, as they are not ours.",
            registry=registry,
        )
        self.filter_views = Gauge(
            "glyphrec_filter_views", "Filters whose items are kept ready for a search.", registry=registry
        )
        self.filter_view_bytes = Gauge(
            "glyphrec_filter_view_bytes", "Memory of the tables of these filters.", registry=registry
        )
        self._view_counts = _ViewCounts()
        registry.register(self._view_counts)
        self.ready = Gauge(
            "glyphrec_ready", "1 when requests are answered, 0 while starting.", registry=registry
        )
        self.behind = Gauge(
            "glyphrec_behind",
            "1 when this replica serves another tokenizer than the active one.",
            registry=registry,
        )
        self.rollout_items = Gauge(
            "glyphrec_rollout_items", "Items that the tokenizer to come must read.", registry=registry
        )
        self.rollout_read_items = Gauge(
            "glyphrec_rollout_read_items", "Items that it has read.", registry=registry
        )
        self.model_info = Gauge(
            "glyphrec_model_info",
            "Always 1; its labels name what is served.",
            ("tokenizer_id", "recommender_id", "generator", "config", "data"),
            registry=registry,
        )

        # A child is looked for under a lock each time, and there are few of these.
        self._requests = cache(self.http_requests.labels)
        self._request_seconds = cache(self.http_seconds.labels)
        self._stage_seconds = cache(self.stage_seconds.labels)
        self._recommendations = cache(self.recommendations.labels)

    def watch_queue(self, queue: str, batcher: MicroBatcher[Any, Any]) -> None:
        self.queue_units.labels(queue).set_function(lambda: batcher.queued_units)
        self.running_units.labels(queue).set_function(lambda: batcher.running_units)

    def watch_catalog(self, catalog: Catalog, follower: CatalogFollower) -> None:
        self.catalog_items.set_function(lambda: catalog.num_items)
        self.catalog_version.set_function(lambda: catalog.version)
        self.catalog_stale_seconds.set_function(lambda: follower.stale_for_s)
        self.unreadable_values.set_function(lambda: follower.num_unreadable)
        self.filter_views.set_function(lambda: catalog.views.num_views)
        self.filter_view_bytes.set_function(lambda: catalog.views.num_bytes)
        self._view_counts.views = catalog.views

    def observe_http(self, route: str, method: str, status: int, seconds: float) -> None:
        method = method if method in _METHODS else "other"  # anything may come in, a label must not
        self._requests(route, method, str(status)).inc()
        self._request_seconds(route, method).observe(seconds)

    def observe_recommendation(self, source: str, *, exact: bool, filtered: bool) -> None:
        self._recommendations(source, str(exact).lower(), str(filtered).lower()).inc()

    def observe_stages(self, flow: str, stages: Stages) -> None:
        for stage, seconds in stages.seconds.items():
            self._stage_seconds(flow, stage).observe(seconds)

    def observe_batch(self, queue: str, stats: BatchStats) -> None:
        self.batch_jobs.labels(queue).observe(stats.num_jobs)
        self.batch_units.labels(queue).observe(stats.num_units)
        self.batch_seconds.labels(queue).observe(stats.run_s)

    def describe_model(self, manifest: Manifest) -> None:
        self.model_info.clear()
        self.model_info.labels(
            manifest.tokenizer_id,
            manifest.recommender_id,
            manifest.generator,
            manifest.config,
            manifest.data_name,
        ).set(1)
