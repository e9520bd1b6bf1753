"""How every metric gets its value. families.py has their names and what they tell.

POST /recommend passes here a thousand times a second, so an observation costs about a microsecond: children
are looked up once, what a batch can tell is told once for all of it, and gauges are computed when scraped.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from time import time
from typing import Any

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from service.catalog.catalog import Catalog
from service.catalog.follower import CatalogFollower
from service.core.bundle import Manifest
from service.errors import REFUSALS, ServiceError
from service.inference.batching import BatchStats, MicroBatcher
from service.telemetry.coverage import Coverage
from service.telemetry.families import HIT_CUTOFFS, MetricFamilies
from service.telemetry.gpu import GpuCollector
from service.telemetry.stages import Stages

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


class _Total(Collector):
    """A counter of what others count themselves. Where one follows on another, it goes on from there."""

    def __init__(self, name: str, text: str, label: str = "") -> None:
        self._name, self._text, self._label = name, text, label
        self._before: dict[str, int] = {}
        self._count: dict[str, Callable[[], int]] = {}

    def watch(self, count: Callable[[], int], value: str = "") -> None:
        if value in self._count:
            self._before[value] = self._before.get(value, 0) + self._count[value]()
        self._count[value] = count

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(self._name, self._text, labels=[self._label] if self._label else [])
        for value, count in self._count.items():
            family.add_metric([value] if self._label else [], self._before.get(value, 0) + count())
        yield family


class _CodebookUse:
    """Reads the trie once for each version of the catalogue."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._read_at = -1
        self._ratios: list[float] = []

    def ratio(self, level: int) -> float:
        catalog = self._catalog
        if self._read_at != catalog.version or not self._ratios:
            used = zip(catalog.trie.num_used_codes(), catalog.spec.levels, strict=True)
            self._ratios = [num_used / num_codes for num_used, num_codes in used]
            self._read_at = catalog.version
        return self._ratios[level]


class Metrics(MetricFamilies):
    def __init__(self) -> None:
        super().__init__()
        self.admissions = _Total(
            "glyphrec_admissions", "Requests or items that a queue has taken in.", "queue"
        )
        self.filter_view_hits = _Total("glyphrec_filter_view_hits", "Filters that were ready for the search.")
        self.filter_view_misses = _Total(
            "glyphrec_filter_view_misses", "Filters whose items were gathered first."
        )
        self.filter_view_evictions = _Total("glyphrec_filter_view_evictions", "Filters given up for others.")
        for total in (
            self.admissions,
            self.filter_view_hits,
            self.filter_view_misses,
            self.filter_view_evictions,
        ):
            self.registry.register(total)
        self.coverage = Coverage()
        self.recommended_distinct_items.set_function(self.coverage.num_items)

        # A child is looked for under a lock each time, and there are few of these.
        self._requests_of = cache(self.http_requests.labels)
        self._request_seconds_of = cache(self.http_seconds.labels)
        self._stage_seconds_of = cache(self.stage_seconds.labels)
        self._recommendations_of = cache(self.recommendations.labels)
        self._batch_jobs_of = cache(self.batch_jobs.labels)
        self._batch_units_of = cache(self.batch_units.labels)
        self._batch_seconds_of = cache(self.batch_seconds.labels)
        self._recommended_of = cache(self.recommended_items.labels)
        self._redis_calls_of = cache(self.redis_calls.labels)
        self._redis_seconds_of = cache(self.redis_call_seconds.labels)

    # --- what is watched, and read when it is scraped ---

    def watch_queue(self, queue: str, batcher: MicroBatcher[Any, Any]) -> None:
        self.queue_units.labels(queue).set_function(lambda: batcher.queued_units)
        self.running_units.labels(queue).set_function(lambda: batcher.running_units)
        self.reserved_units.labels(queue).set_function(lambda: batcher.reserved_units)
        self.queue_limit_units.labels(queue).set(batcher.max_queued_units)
        self.admissions.watch(lambda: batcher.num_admitted, queue)

    def watch_catalog(self, catalog: Catalog, follower: CatalogFollower) -> None:
        self.catalog_items.set_function(lambda: catalog.num_items)
        self.catalog_version.set_function(lambda: catalog.version)
        self.catalog_stale_seconds.set_function(lambda: follower.stale_for_s)
        self.catalog_lag_entries.set_function(lambda: follower.lag.num_changes)
        self.catalog_lag_seconds.set_function(lambda: follower.lag.seconds)
        self.catalog_colliding_items.set_function(lambda: catalog.num_colliding)
        self.catalog_slots_in_use.set_function(lambda: catalog.num_slots_in_use)
        self.codebook_used_ratio.clear()  # another tokenizer may have fewer levels
        codebooks = _CodebookUse(catalog)
        for level in range(catalog.spec.num_levels):
            used_ratio = self.codebook_used_ratio.labels(level + 1)
            used_ratio.set_function(lambda level=level: codebooks.ratio(level))  # type: ignore[misc]
        self.unreadable_values.set_function(lambda: follower.num_unreadable)
        views = catalog.views
        self.filter_views.set_function(lambda: views.num_views)
        self.filter_view_bytes.set_function(lambda: views.num_bytes)
        self.filter_view_hits.watch(lambda: views.num_hits)
        self.filter_view_misses.watch(lambda: views.num_misses)
        self.filter_view_evictions.watch(lambda: views.num_evictions)

    def watch_gpus(self, nvml: Any) -> None:
        self.registry.register(GpuCollector(nvml, self))

    def describe_model(self, manifest: Manifest) -> None:
        self.model_info.clear()
        self.model_info.labels(
            manifest.tokenizer_id,
            manifest.recommender_id,
            manifest.generator,
            manifest.config,
            manifest.data_name,
        ).set(1)
        self.offline_quality.clear()
        for metric, value in manifest.metrics.items():
            self.offline_quality.labels(metric).set(value)
        self.bundle_loaded_timestamp_seconds.set(time())

    # --- what happens ---

    def observe_http(
        self, route: str, method: str, status: int, seconds: float, refusal: ServiceError | None = None
    ) -> None:
        """An answer; `refusal` is what it says, where it is an error of ours."""
        method = method if method in _METHODS else "other"  # anything may come in, a label must not
        self._requests_of(route, method, str(status)).inc()
        self._request_seconds_of(route, method).observe(seconds)
        if refusal is not None and refusal.slug in REFUSALS:
            self.rejections.labels(refusal.slug).inc()

    def observe_stages(self, stages: Stages) -> None:
        """Of a flow that has come to its end."""
        if stages.flow:
            for stage, seconds in stages.seconds.items():
                self._stage_seconds_of(stages.flow, stage).observe(seconds)

    def observe_recommendation(self, source: str, *, exact: bool, filtered: bool) -> None:
        self._recommendations_of(source, str(exact).lower(), str(filtered).lower()).inc()

    def observe_searches(self, valid_beams: Sequence[int]) -> None:
        """Of a batch: how many living beams each of its searches had. From any thread."""
        for num_beams in valid_beams:
            self.valid_beams.observe(num_beams)

    def observe_recommended(self, item_ids: Sequence[str], num_trained: int) -> None:
        """Of a batch: what stands on its pages, and how much of that training has seen. From any thread."""
        self.coverage.note(item_ids)
        self._recommended_of("trained").inc(num_trained)
        self._recommended_of("new").inc(len(item_ids) - num_trained)

    def observe_batch(self, queue: str, stats: BatchStats) -> None:
        self._batch_jobs_of(queue).observe(stats.num_jobs)
        self._batch_units_of(queue).observe(stats.num_units)
        self._batch_seconds_of(queue).observe(stats.run_s)

    def observe_redis(self, command: str, num_ok: int, num_errors: int, seconds: float | None) -> None:
        """One round trip; seconds None: it waited for something to happen."""
        # Also by 0: a counter that begins above it has not increased, so the first error would be lost.
        self._redis_calls_of(command, "ok").inc(num_ok)
        self._redis_calls_of(command, "error").inc(num_errors)
        if seconds is not None:
            self._redis_seconds_of(command).observe(seconds)

    def observe_events(self, num_new: int, num_duplicates: int) -> None:
        self.feedback_events.labels("taken").inc(num_new)
        self.feedback_events.labels("duplicate").inc(num_duplicates)

    def observe_attribution(self, recommender_id: str, rank: int | None) -> None:
        """Of an event: where on the page its item stood, from 1; None: it was not there."""
        self.feedback_attributed.labels(recommender_id).inc()
        for k in HIT_CUTOFFS:
            self.feedback_hits.labels(recommender_id, k).inc(rank is not None and rank <= k)
        self.feedback_reciprocal_rank.labels(recommender_id).inc(0 if rank is None else 1 / rank)
