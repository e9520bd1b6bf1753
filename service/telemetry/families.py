"""Every Prometheus metric, with its unit and what it tells. metrics.py has how each gets its value.

One process is one replica with a registry of its own, so each is scraped by itself, and several on one host
share nothing. Labels take their values from the code and the bundle, never from a request.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from service.errors import REFUSALS

# Chosen from measured latencies, docs/log.md: recommendations take 1 to 50 ms, items 10 ms to minutes.
_SECONDS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)
_MILLISECONDS = (0.001, 0.0015, 0.002, 0.003, 0.005, 0.007, 0.01, 0.015, 0.02, 0.03, 0.05, 0.07)
_MICROSECONDS = (0.00002, 0.00005, 0.0001, 0.0002, 0.0005)
_REQUEST_S = (*_MILLISECONDS, *_SECONDS)
_STAGE_S = (*_MICROSECONDS, *_MILLISECONDS, *_SECONDS)
_BATCH_S = (*_MICROSECONDS[3:], *_MILLISECONDS, *_SECONDS[:7])
_ROUND_TRIP_S = (*_MICROSECONDS[2:], 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
_LAG_S = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
_BEAMS = (0, 5, 10, 20, 30, 40, 49, 50, 75, 100, 150, 200, 400, 800, 1600)

HIT_CUTOFFS = (1, 5, 10)


class MetricFamilies:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # memory, CPU seconds, open files of this process
        self._requests()
        self._queues()
        self._recommendations()
        self._catalog()
        self._model()
        self._feedback()
        self._machine()

    def _requests(self) -> None:
        self.http_requests = self._counter(
            "http_requests", "Answered requests, by route template.", "route", "method", "status"
        )
        self.http_seconds = self._histogram(
            "http_request_seconds",
            "Time from the request's first byte read to its answer's last byte sent.",
            _REQUEST_S,
            "route",
            "method",
        )
        self.http_in_flight = self._gauge("http_requests_in_flight", "Requests being answered now.")
        self.rejections = self._counter(
            "rejections",
            "Requests that were turned away for now (408, 429, 503), by the last part of the problem's type.",
            "reason",
        )
        for reason in REFUSALS:
            self.rejections.labels(reason)
        self.stage_seconds = self._histogram(
            "stage_seconds",
            "Time of one stage of a flow. recommend: parse (JSON and validation), queue; for the whole batch "
            "history (look-up of its codes), decode (the graph, which encodes the history too) and resolve "
            "(codes to items); write (the answer). index: parse, held (what is known already), render, "
            "queue, tokenise, store, follow (until this replica knows the items), write; of chunks the sum.",
            _STAGE_S,
            "flow",
            "stage",
        )

    def _queues(self) -> None:
        """Queues are `recommender`, counted in beams, and `tokenizer`, counted in strips."""
        self.queue_units = self._gauge("queue_units", "Work waiting: beams or strips.", "queue")
        self.running_units = self._gauge(
            "running_units", "Work in the batch that runs now: beams or strips.", "queue"
        )
        self.reserved_units = self._gauge(
            "reserved_units", "Room kept for requests that are still being read: beams or strips.", "queue"
        )
        self.queue_limit_units = self._gauge(
            "queue_limit_units", "Work that may wait before more is refused: beams or strips.", "queue"
        )
        self.batch_jobs = self._histogram("batch_jobs", "Requests or items in one batch.", _SIZES, "queue")
        self.batch_units = self._histogram("batch_units", "Beams or strips in one batch.", _SIZES, "queue")
        self.batch_seconds = self._histogram(
            "batch_seconds",
            "Time of one batch: runs of the graph, and for recommendations the look-ups around them.",
            _BATCH_S,
            "queue",
        )

    def _recommendations(self) -> None:
        self.recommendations = self._counter(
            "recommendations",
            "Answered recommendations by source (model, popular, similar), whether they are proven exact, "
            "and whether they were filtered.",
            "source",
            "exact",
            "filtered",
        )
        self.valid_beams = self._histogram(
            "valid_beams", "Beams of one search that stand for living items.", _BEAMS
        )
        self.widenings = self._counter("widenings", "Searches repeated with twice the beams.")
        self.recommended_items = self._counter(
            "recommended_items",
            "Items on pages of POST /recommend; new: without any interaction in the bundle's training data.",
            "novelty",
        )
        for novelty in ("trained", "new"):
            self.recommended_items.labels(novelty)
        self.recommended_distinct_items = self._gauge(
            "recommended_distinct_items",
            "Different items on pages of POST /recommend of the last 5 to 10 minutes, on this replica.",
        )
        self.unknown_items = self._counter(
            "unknown_history_items", "Ids in histories that are no living item."
        )
        self.indexed_items = self._counter(
            "indexed_items",
            "Posted items by outcome (created, moved, updated, unchanged, failed).",
            "status",
        )
        self.filter_views = self._gauge("filter_views", "Filters whose items are kept ready for a search.")
        self.filter_view_bytes = self._gauge("filter_view_bytes", "Memory of the tables of these filters.")

    def _catalog(self) -> None:
        self.catalog_items = self._gauge("catalog_items", "Living items on this replica.")
        self.catalog_version = self._gauge(
            "catalog_version", "Last change of the log that this replica has taken in."
        )
        self.catalog_stale_seconds = self._gauge(
            "catalog_stale_seconds", "Time since Redis was lost; 0 while in touch."
        )
        self.catalog_lag_entries = self._gauge(
            "catalog_lag_entries",
            "Changes that this replica knows to be in the log and has not taken in; it looks every "
            "2 seconds or more often.",
        )
        self.catalog_lag_seconds = self._gauge(
            "catalog_lag_seconds",
            "Time since this replica had every change that it knew to be in the log; 0 while it has.",
        )
        self.catalog_colliding_items = self._gauge(
            "catalog_colliding_items", "Items that share their codes with another one."
        )
        self.catalog_slots_in_use = self._gauge(
            "catalog_slots_in_use",
            "The largest slot of any item, plus 1: how deep items with equal codes lie.",
        )
        self.codebook_used_ratio = self._gauge(
            "codebook_used_ratio",
            "Codes of a level, outermost first from 1, that lead to a living item, of all its codes.",
            "level",
        )
        self.redis_loss_window_seconds = self._gauge(
            "redis_loss_window_seconds",
            "Newest acknowledged changes that a failure of Redis' machine may lose, as of the start or last "
            "/info; +Inf without an append-only file, NaN where Redis does not tell.",
        )
        self.unreadable_values = self._gauge(
            "unreadable_values", "Values of Redis that were skipped since the start, as they are not ours."
        )
        self.redis_calls = self._counter(
            "redis_calls",
            "Commands sent to Redis, and scripts by their name, by whether it took them (ok, error).",
            "command",
            "result",
        )
        self.redis_call_seconds = self._histogram(
            "redis_call_seconds",
            "Time of one round trip to Redis, which may hold many scripts; reads that wait for a change are "
            "left out.",
            _ROUND_TRIP_S,
            "command",
        )

    def _model(self) -> None:
        self.ready = self._gauge("ready", "1 when requests are answered, 0 while starting.")
        self.behind = self._gauge(
            "behind", "1 when this replica serves another tokenizer than the active one."
        )
        self.model_info = self._gauge(
            "model_info",
            "Always 1; its labels name what is served.",
            "tokenizer_id",
            "recommender_id",
            "generator",
            "config",
            "data",
        )
        self.offline_quality = self._gauge(
            "offline_quality",
            "What the export measured of the bundle that is served, as its manifest names it.",
            "metric",
        )
        self.bundle_swaps = self._counter(
            "bundle_swaps",
            "Changes of the model on this replica: switched, or failed (bundle refused, change given up).",
            "result",
        )
        for result in ("switched", "failed"):
            self.bundle_swaps.labels(result)
        self.bundle_loaded_timestamp_seconds = self._gauge(
            "bundle_loaded_timestamp_seconds", "When the bundle that is served began to be, in Unix time."
        )
        self.rollout_items = self._gauge("rollout_items", "Items that the tokenizer to come must read.")
        self.rollout_read_items = self._gauge("rollout_read_items", "Items that it has read.")

    def _feedback(self) -> None:
        self.feedback_events = self._counter(
            "feedback_events",
            "Events posted to this replica: taken, or duplicate, where the event id had been posted before.",
            "outcome",
        )
        for outcome in ("taken", "duplicate"):
            self.feedback_events.labels(outcome)
        self.feedback_attributed = self._counter(
            "feedback_attributed",
            "Events about a page that this replica served and remembers, posted to any replica, by the model "
            "that was served then.",
            "recommender_id",
        )
        self.feedback_hits = self._counter(
            "feedback_hits",
            "Those of them whose item was among the first k of the page.",
            "recommender_id",
            "k",
        )
        self.feedback_reciprocal_rank = self._counter(
            "feedback_reciprocal_rank",
            "Sum of 1 / rank of their items on the page, 0 where it was not there.",
            "recommender_id",
        )
        self.feedback_remembered_pages = self._gauge(
            "feedback_remembered_pages", "Pages that events can be attributed to."
        )

    def _machine(self) -> None:
        self.event_loop_lag_seconds = self._histogram(
            "event_loop_lag_seconds",
            "How late a timer of 0.25 s fires: how long whatever is ready waits for the event loop.",
            _LAG_S,
        )
        # Only where there is a GPU: service/telemetry/gpu.py
        self.gpu_memory_used_bytes = Gauge(
            "glyphrec_gpu_memory_used_bytes", "Memory in use, of all processes.", ("gpu",), registry=None
        )
        self.gpu_memory_total_bytes = Gauge(
            "glyphrec_gpu_memory_total_bytes", "Memory of the GPU.", ("gpu",), registry=None
        )
        self.gpu_utilization_ratio = Gauge(
            "glyphrec_gpu_utilization_ratio",
            "Share of the last moments, up to a second, in which the GPU was at work.",
            ("gpu",),
            registry=None,
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"glyphrec_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"glyphrec_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"glyphrec_{name}", text, labels, buckets=buckets, registry=self.registry)
