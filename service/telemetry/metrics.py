"""Gives every metric its value. families.py has their names and meanings.

POST /recommend comes here a thousand times a second, so an observation must cost about a microsecond.
Children are looked up once, a batch is observed once, and gauges are computed at the scrape.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from math import nan
from threading import Lock
from time import time
from typing import Any

from prometheus_client import Metric
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from service.catalog.catalog import Catalog
from service.catalog.co_count_follower import CoCountFollower
from service.catalog.follower import CatalogFollower
from service.core.bundle import Manifest
from service.errors import REFUSALS, ServiceError
from service.inference.batching import BatchStats, MicroBatcher
from service.telemetry.coverage import Coverage
from service.telemetry.families import HIT_CUTOFFS, MetricFamilies
from service.telemetry.gpu import GpuCollector
from service.telemetry.stages import Stages
from service.telemetry.tallies import Count, Tally

_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
UNREAD = "unread"  # the route of a connection that was refused before its request was read
# What alerts count, and what they compare it with. Any other status gets its series when it comes.
_USUAL_STATUSES = (200, 422, 429, 500, 503, 507)
_REFUSED_STATUSES = frozenset({408, 429, 503})


class _Total(Collector):
    """A counter over counts that other objects keep. When a new object replaces one, the counter goes on."""

    def __init__(self, name: str, text: str, label: str = "") -> None:
        self._name, self._text, self._label = name, text, label
        self._before: dict[str, int] = {}
        self._count: dict[str, Callable[[], int]] = {}

    def watch(self, count: Callable[[], int], value: str = "") -> None:
        """Read this count from now on, under this value of the label."""
        if value in self._count:
            self._before[value] = self._before.get(value, 0) + self._count[value]()
        self._count[value] = count

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(self._name, self._text, labels=[self._label] if self._label else [])
        for value, count in self._count.items():
            family.add_metric([value] if self._label else [], self._before.get(value, 0) + count())
        yield family


class _CodebookUse:
    """Reads the trie once for each version of the catalog."""

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
    """What the parts of the service call to be measured."""

    def __init__(self) -> None:
        super().__init__()
        self.admissions = _Total(
            "glyphrec_admissions", "Requests or items that a queue has accepted.", "queue"
        )
        self.filter_view_hits = _Total(
            "glyphrec_filter_view_hits", "Searches whose filter had a cached table."
        )
        self.filter_view_misses = _Total(
            "glyphrec_filter_view_misses", "Searches whose filter had no cached table, so that one was built."
        )
        self.filter_view_evictions = _Total(
            "glyphrec_filter_view_evictions",
            "Cached tables of filters that were dropped to make room for others.",
        )
        for total in (
            self.admissions,
            self.filter_view_hits,
            self.filter_view_misses,
            self.filter_view_evictions,
        ):
            self.registry.register(total)
        self.coverage = Coverage()
        self.recommended_distinct_items.set_function(self.coverage.num_items)

        self._beams_lock = Lock()  # while models change, two queues run at once
        self.valid_beams.labels()  # 0 before the first search
        # Each look-up of a child takes a lock, and there are few children.
        self._recommendations_of = cache(self.recommendations.labels)
        self._item_searches_of = cache(self.item_searches.labels)
        self._rankings_of = cache(self.rankings.labels)
        self._recommended_of = cache(self.recommended_items.labels)
        self._redis_calls_of = cache(self.redis_calls.labels)
        self._redis_seconds_of = cache(self.redis_call_seconds.labels)

    def expect_requests(self, routes: Iterable[tuple[str, str]]) -> None:
        """Begin the counters of these routes at 0. `routes`: templates and methods that clients call."""
        for route, method in routes:
            for status in _USUAL_STATUSES:
                self.http_requests.labels(route, method, str(status))
            for outcome in ("answered", "refused"):
                self.http_seconds.labels(route, method, outcome)
        self.http_requests.labels(UNREAD, "other", "503")

    # --- objects that are read at each scrape ---

    def watch_queue(self, queue: str, batcher: MicroBatcher[Any, Any]) -> None:
        """Read a queue's values from this batcher, in place of an earlier one."""
        for family in (self.batch_jobs, self.batch_units, self.batch_seconds):
            family.labels(queue)  # 0 before the first batch: the queue is idle
        self.queue_units.labels(queue).set_function(lambda: batcher.queued_units)
        self.running_units.labels(queue).set_function(lambda: batcher.running_units)
        self.reserved_units.labels(queue).set_function(lambda: batcher.reserved_units)
        self.queue_limit_units.labels(queue).set(batcher.max_queued_units)
        self.admissions.watch(lambda: batcher.num_admitted, queue)

    def watch_catalog(
        self, catalog: Catalog, follower: CatalogFollower, co_counts: CoCountFollower | None = None
    ) -> None:
        """Read the catalog's values from these, in place of earlier ones. `co_counts`: if there are any."""
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
        self.unreadable_values.set_function(
            lambda: follower.num_unreadable + (co_counts.num_unreadable if co_counts else 0)
        )
        self.co_count_items.set_function(lambda: co_counts.num_rows if co_counts else 0)
        self.co_count_bytes.set_function(lambda: co_counts.num_bytes if co_counts else 0)
        self.co_count_lag_entries.set_function(lambda: co_counts.lag.num_changes if co_counts else 0)
        self.co_count_lag_seconds.set_function(lambda: co_counts.lag.seconds if co_counts else 0)
        views = catalog.views
        self.filter_views.set_function(lambda: views.num_views)
        self.filter_view_bytes.set_function(lambda: views.num_bytes)
        self.filter_view_hits.watch(lambda: views.num_hits)
        self.filter_view_misses.watch(lambda: views.num_misses)
        self.filter_view_evictions.watch(lambda: views.num_evictions)
        self._watch_vectors(catalog)

    def _watch_vectors(self, catalog: Catalog) -> None:
        vectors = catalog.vectors
        self.vector_items.set_function(lambda: vectors.num_vectors if vectors else 0)
        self.vector_missing_items.set_function(
            lambda: catalog.num_items - vectors.num_vectors if vectors else 0
        )
        self.vector_bytes.set_function(lambda: vectors.num_bytes if vectors else 0)
        self.vector_pending.set_function(lambda: vectors.num_pending if vectors else 0)
        self.vector_recall.set_function(
            lambda: nan if vectors is None or vectors.recall is None else vectors.recall
        )

    def watch_gpus(self, nvml: Any) -> None:
        """Add the metrics of the GPUs. `nvml`: what `find_nvml` gave."""
        self.registry.register(GpuCollector(nvml, self))

    def describe_model(self, manifest: Manifest) -> None:
        """Show the bundle that is served from now on."""
        self.model_info.clear()
        self.model_info.labels(
            manifest.tokenizer_id,
            manifest.recommender_id,
            manifest.generator,
            manifest.config,
            manifest.data_name,
        ).set(1)
        self.ranker_info.clear()
        if manifest.ranker is not None:
            ranker = manifest.ranker
            self.ranker_info.labels(ranker.ranker_id, ranker.parameterization, ranker.aggregation).set(1)
        for k in HIT_CUTOFFS:
            self.feedback_hits.labels(manifest.recommender_id, k)
        for counter in (self.feedback_attributed, self.feedback_reciprocal_rank):
            counter.labels(manifest.recommender_id)
        self.offline_quality.clear()
        for metric, value in manifest.metrics.items():
            self.offline_quality.labels(metric).set(value)
        self.bundle_loaded_timestamp_seconds.set(time())

    # --- events ---

    def observe_http(
        self, route: str, method: str, status: int, seconds: float, refusal: ServiceError | None = None
    ) -> None:
        """Count an answer. `refusal`: the error that it reports, if any."""
        method = (
            method if method in _METHODS else "other"
        )  # a client may send any method, but labels have few values
        self.http_requests.labels(route, method, str(status)).inc()
        self.http_seconds.labels(route, method, _outcome_of(status)).observe(seconds)
        if refusal is not None and refusal.slug in REFUSALS:
            self.rejections.labels(refusal.slug).inc()

    def series_of_refusals(
        self, method: str, route: str, status: int, slug: str
    ) -> tuple[Count, Tally, Count]:
        """What `observe_http` counts of such a refusal: requests, their seconds, and rejections."""
        return (
            self.http_requests.labels(route, method, str(status)),
            self.http_seconds.labels(route, method, _outcome_of(status)),
            self.rejections.labels(slug),
        )

    def observe_answers(self, route: str, method: str, seconds: Sequence[float]) -> None:
        """Count answers with status 200, by the time that each took."""
        self.http_requests.labels(route, method, "200").inc(len(seconds))
        tally = self.http_seconds.labels(route, method, "answered")
        for each in seconds:
            tally.observe(each)

    def observe_stages(self, stages: Stages) -> None:
        """Observe the stages of a flow that has ended."""
        if stages.flow:
            for stage, seconds in stages.seconds.items():
                self.stage_seconds.labels(stages.flow, stage).observe(seconds)

    def observe_recommendation(self, source: str, *, exact: bool, filtered: bool, times: int = 1) -> None:
        """Count so many answered recommendations."""
        self._recommendations_of(source, str(exact).lower(), str(filtered).lower()).inc(times)

    def observe_item_search(self, by: str, *, exact: bool, filtered: bool) -> None:
        """Count an answered search by vectors."""
        self._item_searches_of(by, str(exact).lower(), str(filtered).lower()).inc()

    def observe_ranking(self, by: str, *, filtered: bool, num_candidates: int, num_unknown: int) -> None:
        """Count an answered ranking: the items that it put in order, and the ids that belong to no item."""
        self._rankings_of(by, str(filtered).lower()).inc()
        self.ranked_items.observe(num_candidates)
        self.unknown_ranked_items.inc(num_unknown)

    def observe_searches(self, valid_beams: Sequence[int]) -> None:
        """Observe a batch. `valid_beams`: of each search, those that end at living items. From any thread."""
        tally = self.valid_beams.labels()
        with self._beams_lock:
            for num_beams in valid_beams:
                tally.observe(num_beams)

    def observe_recommended(self, item_ids: Sequence[str], num_trained: int) -> None:
        """Observe the items on a batch's pages. `num_trained`: those with interactions in the training data.

        Any thread may call it.
        """
        self.coverage.note(item_ids)
        self._recommended_of("trained").inc(num_trained)
        self._recommended_of("new").inc(len(item_ids) - num_trained)

    def observe_batch(self, queue: str, stats: BatchStats) -> None:
        """Observe one run of a queue's batcher."""
        self.batch_jobs.labels(queue).observe(stats.num_jobs)
        self.batch_units.labels(queue).observe(stats.num_units)
        self.batch_seconds.labels(queue).observe(stats.run_s)

    def observe_redis(self, command: str, num_ok: int, num_errors: int, seconds: float | None) -> None:
        """Count one round trip. `seconds` is None if it waited for a change."""
        # Increments of 0 matter too: a counter that first appears above 0 has no increase, so the first error
        # would be lost.
        self._redis_calls_of(command, "ok").inc(num_ok)
        self._redis_calls_of(command, "error").inc(num_errors)
        if seconds is not None:
            self._redis_seconds_of(command).observe(seconds)

    def observe_events(self, num_new: int, num_duplicates: int) -> None:
        """Count the events of one POST /events."""
        self.feedback_events.labels("taken").inc(num_new)
        self.feedback_events.labels("duplicate").inc(num_duplicates)

    def observe_attribution(self, recommender_id: str, rank: int | None) -> None:
        """Count an attributed event. `rank`: of its item on the page, from 1; None if it was not on it."""
        self.feedback_attributed.labels(recommender_id).inc()
        for k in HIT_CUTOFFS:
            self.feedback_hits.labels(recommender_id, k).inc(rank is not None and rank <= k)
        self.feedback_reciprocal_rank.labels(recommender_id).inc(0 if rank is None else 1 / rank)

    def observe_pair(self, rank: int | None, *, is_seen: bool) -> None:
        """Count an attributed event after a history. `is_seen`: whether the counts had the pair before."""
        is_hit = rank is not None and rank <= HIT_CUTOFFS[-1]
        self.feedback_pairs.labels("seen" if is_seen else "unseen", "hit" if is_hit else "miss").inc()


def _outcome_of(status: int) -> str:
    """Whether an answer's time tells how fast the service is. A refusal is fast exactly when it is not."""
    if status < 400:
        return "answered"
    if status in _REFUSED_STATUSES:
        return "refused"
    return "failed" if status >= 500 else "invalid"
