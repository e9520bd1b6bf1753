"""Every Prometheus metric, with its unit and its meaning. metrics.py gives each its value.

Each process is one replica and has a registry of its own, so each is scraped by itself, and several on one
host share nothing. Labels take their values from the code and the bundle, never from a request.

A counter whose first sample is above 0 shows no increase to Prometheus, so what an alert counts begins at 0:
the children that alerts need are made at the start.
"""

from itertools import product

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from service.errors import REFUSALS
from service.telemetry.tallies import CountFamily, TallyFamily

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
    """The metrics of one process, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # memory, CPU seconds, open files of this process
        self._requests()
        self._queues()
        self._recommendations()
        self._searches()
        self._rankings()
        self._pictures()
        self._catalog()
        self._model()
        self._feedback()
        self._machine()

    def _requests(self) -> None:
        self.http_requests = self._counts(
            "http_requests",
            "Answered requests, by route template. unread: a connection too many, which was refused before "
            "its request was read. unmatched: a path without a route.",
            "route",
            "method",
            "status",
        )
        self.http_seconds = self._tallies(
            "http_request_seconds",
            "Time from the first byte of the request to the last byte of its answer, by outcome: answered, "
            "refused (408, 429, 503), failed (any other 5xx), invalid (any other 4xx).",
            _REQUEST_S,
            "route",
            "method",
            "outcome",
        )
        self.num_in_flight = 0  # a plain number, as each request changes it twice
        self._gauge("http_requests_in_flight", "Requests being answered now.").set_function(
            lambda: self.num_in_flight
        )
        self.rejections = self._counts(
            "rejections",
            "Requests that were refused for now (408, 429, 503), by the last part of the problem's type.",
            "reason",
        )
        for reason in REFUSALS:
            self.rejections.labels(reason)
        self.stage_seconds = self._tallies(
            "stage_seconds",
            "Time of one stage of a flow. Stages of recommend: parse (JSON and validation), queue, history "
            "(look-up of its codes), decode (the graph, which also encodes the history), resolve (codes to "
            "items), rerank (the ranker, where a request asks for it) and write (the answer); history, "
            "decode, resolve and rerank take the time of the whole batch. Stages of rank: the same without "
            "rerank; decode is the graph that gives the scores. "
            "Stages of search: parse, picture (decoding), render, queue, encode (the tokenizer's graph), "
            "wait (for the vectors), find and write. "
            "Stages of index, each the sum over its chunks: parse, picture (decoding), held (look-up of "
            "known items), render, queue, tokenise, store, follow (until this replica knows the items) and "
            "write.",
            _STAGE_S,
            "flow",
            "stage",
        )

    def _queues(self) -> None:
        """`recommender` is counted in beams, `rankings` in items to rank, `tokenizer` and `query` in strips,
        `vectors` and `beam` in searches.
        """
        units = "beams, items to rank, strips or searches"
        self.queue_units = self._gauge("queue_units", f"Work that waits: {units}.", "queue")
        self.running_units = self._gauge(
            "running_units", f"Work in the batch that runs now: {units}.", "queue"
        )
        self.reserved_units = self._gauge(
            "reserved_units", f"Room reserved for requests that are still being read: {units}.", "queue"
        )
        self.queue_limit_units = self._gauge(
            "queue_limit_units", f"Work that may wait before more is refused: {units}.", "queue"
        )
        self.batch_jobs = self._tallies("batch_jobs", "Requests or items in one batch.", _SIZES, "queue")
        self.batch_units = self._tallies(
            "batch_units", "Beams, items to rank, strips or searches in one batch.", _SIZES, "queue"
        )
        self.batch_seconds = self._tallies(
            "batch_seconds",
            "Time of one batch: the graph, and for recommendations and rankings also the look-ups before and "
            "after it.",
            _BATCH_S,
            "queue",
        )

    def _recommendations(self) -> None:
        self.recommendations = self._counter(
            "recommendations",
            "Answered recommendations, by their source (model, popular, similar), by whether they are proven "
            "to be exact, and by whether they were filtered.",
            "source",
            "exact",
            "filtered",
        )
        for exact, filtered in product(("true", "false"), repeat=2):
            self.recommendations.labels("model", exact, filtered)
        self.batch_queries = self._counter(
            "batch_queries",
            "Queries of POST /recommend/batch, by outcome: answered, refused (429, 503) or invalid.",
            "outcome",
        )
        for outcome in ("answered", "refused", "invalid"):
            self.batch_queries.labels(outcome)
        self.valid_beams = self._tallies(
            "valid_beams", "Beams of one search that end at living items.", _BEAMS
        )
        self.widenings = self._counter("widenings", "Searches that were repeated with twice the beams.")
        self.reranked_pages = self._counter(
            "reranked_pages", "Pages of POST /recommend that the ranker ordered, as their requests asked for."
        )
        self.recommended_items = self._counter(
            "recommended_items",
            "Items on pages of POST /recommend. new: without interactions in the bundle's training data.",
            "novelty",
        )
        for novelty in ("trained", "new"):
            self.recommended_items.labels(novelty)
        self.recommended_distinct_items = self._gauge(
            "recommended_distinct_items",
            "Different items on pages of POST /recommend in the last 5 to 10 minutes, on this replica.",
        )
        self.unknown_items = self._counter(
            "unknown_history_items", "Ids in histories that belong to no living item."
        )
        self.indexed_items = self._counter(
            "indexed_items",
            "Posted items, by outcome (created, moved, updated, unchanged, failed).",
            "status",
        )
        for status in ("created", "moved", "updated", "unchanged", "failed"):
            self.indexed_items.labels(status)
        self.unused_values = self._counter(
            "unused_values",
            "Values of posted items that filters cannot use or that a tokenizer of fields does not know, or "
            "an `image` that is no picture, by field. The answer to the post says why.",
            "field",
        )
        self.filter_views = self._gauge("filter_views", "Filters whose tables are cached.")
        self.filter_view_bytes = self._gauge("filter_view_bytes", "Memory of the cached tables of filters.")

    def _searches(self) -> None:
        self.item_searches = self._counter(
            "item_searches",
            "Answered searches by vectors, by what was searched for (text, picture, both; item: similar "
            "items), by whether all items were compared, and by whether they were filtered.",
            "by",
            "exact",
            "filtered",
        )
        for exact, filtered in product(("true", "false"), repeat=2):
            self.item_searches.labels("text", exact, filtered)
        self.remembered_queries = self._counter(
            "remembered_queries",
            "Searches for a text whose vector was remembered, so that the text was not read again.",
        )
        self.vector_items = self._gauge("vector_items", "Items with a vector on this replica.")
        self.vector_missing_items = self._gauge(
            "vector_missing_items",
            "Items without a vector, which no search finds. They get one from a replica after its start.",
        )
        self.vector_bytes = self._gauge(
            "vector_bytes", "Memory of the vectors and of the graph of neighbors, estimated."
        )
        self.vector_pending = self._gauge(
            "vector_pending_rows",
            "Rows that the graph of neighbors does not have yet. Each search compares them one by one.",
        )
        self.vector_recall = self._gauge(
            "vector_recall_ratio",
            "Share of the ten nearest items that the graph finds, by samples; NaN without a graph.",
        )

    def _rankings(self) -> None:
        self.rankings = self._counter(
            "rankings",
            "Answered POST /rank, by what ordered the items (ranker, generator; popularity: without a ranker "
            "and a known history), and by whether they were filtered.",
            "by",
            "filtered",
        )
        for by, filtered in product(("ranker", "generator", "popularity"), ("true", "false")):
            self.rankings.labels(by, filtered)
        self.ranked_items = self._histogram("ranked_items", "Items that one POST /rank put in order.", _SIZES)
        self.unknown_ranked_items = self._counter(
            "unknown_ranked_items", "Ids given to POST /rank that belong to no living item."
        )

    def _pictures(self) -> None:
        self.pictures = self._counter(
            "pictures",
            "Pictures by outcome. Of those that were sent: kept (decoded), refused (broken, too large or of "
            "another type) or too_slow (given up). missing: an item that names a picture was read by its "
            "text alone by a new tokenizer, as no picture is kept for it.",
            "outcome",
        )
        for outcome in ("kept", "refused", "too_slow", "missing"):
            self.pictures.labels(outcome)
        self.picture_seconds = self._histogram(
            "picture_seconds",
            "Time of one picture in a stage: decode (check, decode, shrink and encode what is kept) or "
            "pixels (from what is kept to what the tokenizer reads).",
            _STAGE_S,
            "stage",
        )
        self.kept_pictures = self._gauge("kept_pictures", "Pictures that Redis keeps for the catalog.")
        self.kept_picture_bytes = self._gauge(
            "kept_picture_bytes",
            "Memory of Redis for these pictures, which it estimates from a sample; NaN if it does not tell.",
        )

    def _catalog(self) -> None:
        self.catalog_info = self._gauge(
            "catalog_info", "Always 1. Its label names the catalog that the replica serves.", "catalog"
        )
        self.catalog_items = self._gauge("catalog_items", "Living items on this replica.")
        self.catalog_version = self._gauge(
            "catalog_version", "Last change of the log that this replica has applied."
        )
        self.catalog_stale_seconds = self._gauge(
            "catalog_stale_seconds", "Time since Redis was lost; 0 while it answers."
        )
        self.catalog_lag_entries = self._gauge(
            "catalog_lag_entries",
            "Changes that this replica knows to be in the log but has not applied. It looks at least every "
            "2 seconds.",
        )
        self.catalog_lag_seconds = self._gauge(
            "catalog_lag_seconds",
            "Time since this replica had applied every change that it knew of; 0 while it has.",
        )
        self.catalog_colliding_items = self._gauge(
            "catalog_colliding_items", "Items that share their codes with another item."
        )
        self.catalog_slots_in_use = self._gauge(
            "catalog_slots_in_use",
            "The largest slot of any item, plus 1: the most items that had the same codes.",
        )
        self.codebook_used_ratio = self._gauge(
            "codebook_used_ratio",
            "Share of a level's codes that lead to a living item. Level 1 is the outermost.",
            "level",
        )
        self.redis_loss_window_seconds = self._gauge(
            "redis_loss_window_seconds",
            "Seconds of acknowledged changes that a failure of Redis' machine may lose. +Inf without an "
            "append-only file, NaN if Redis does not report it.",
        )
        self.redis_may_evict = self._gauge(
            "redis_may_evict",
            "1 if Redis may drop keys when its memory is full. catalog: items, codes, trie and log. events: "
            "the ids by which an event counts once.",
            "keys",
        )
        for keys in ("catalog", "events"):
            self.redis_may_evict.labels(keys)
        self.redis_used_memory_bytes = self._gauge(
            "redis_used_memory_bytes", "Memory that Redis uses, for all programs that use it."
        )
        self.redis_max_memory_bytes = self._gauge(
            "redis_max_memory_bytes", "Memory that Redis may use: its maxmemory; 0 without a limit."
        )
        self.redis_append_file_bytes = self._gauge(
            "redis_append_file_bytes", "Size of Redis' append-only file on its disk; 0 while it is off."
        )
        self.redis_failing = self._gauge(
            "redis_failing",
            "1 if Redis' last writing to its disk has failed. append: the append-only file. rewrite: its "
            "rewrite, without which it grows. snapshot: the last snapshot.",
            "what",
        )
        for what in ("append", "rewrite", "snapshot"):
            self.redis_failing.labels(what)
        self.catalog_damaged = self._gauge(
            "catalog_damaged",
            "1 if a part of the catalog is missing in Redis, as after an eviction. The replica is not ready.",
        )
        self.unreadable_values = self._gauge(
            "unreadable_values",
            "Values in Redis that were skipped since the start, as the service did not write them.",
        )
        self.redis_calls = self._counter(
            "redis_calls",
            "Commands sent to Redis, by command or name of the script, and by result (ok, error).",
            "command",
            "result",
        )
        self.redis_call_seconds = self._histogram(
            "redis_call_seconds",
            "Time of one round trip to Redis, which may hold many scripts. Reads that wait for a change are "
            "not counted.",
            _ROUND_TRIP_S,
            "command",
        )

    def _model(self) -> None:
        self.ready = self._gauge(
            "ready", "1 if /health/ready answers 200; 0 during the start, or if the catalog is damaged."
        )
        self.behind = self._gauge(
            "behind", "1 if this replica serves a tokenizer that is not the active one."
        )
        self.model_info = self._gauge(
            "model_info",
            "Always 1. Its labels describe the bundle that is served.",
            "tokenizer_id",
            "recommender_id",
            "generator",
            "config",
            "data",
        )
        self.ranker_info = self._gauge(
            "ranker_info",
            "1, with labels that describe the ranker of the served bundle; no sample if it has none.",
            "ranker_id",
            "parameterization",
            "aggregation",
        )
        self.offline_quality = self._gauge(
            "offline_quality",
            "Quality of the served bundle as the export measured it, by the metric's name in the manifest.",
            "metric",
        )
        self.bundle_swaps = self._counter(
            "bundle_swaps",
            "Changes of the model on this replica: switched, or failed (bundle refused or change given up).",
            "result",
        )
        for result in ("switched", "failed"):
            self.bundle_swaps.labels(result)
        self.bundle_loaded_timestamp_seconds = self._gauge(
            "bundle_loaded_timestamp_seconds", "Unix time at which the served bundle began to answer."
        )
        self.rollout_items = self._gauge("rollout_items", "Items that the new tokenizer must read.")
        self.rollout_read_items = self._gauge("rollout_read_items", "Items that the new tokenizer has read.")

    def _feedback(self) -> None:
        self.feedback_events = self._counter(
            "feedback_events",
            "Events posted to this replica: taken, or duplicate if the event id was posted before.",
            "outcome",
        )
        for outcome in ("taken", "duplicate"):
            self.feedback_events.labels(outcome)
        self.feedback_attributed = self._counter(
            "feedback_attributed",
            "Events about a page that this replica served and remembers, posted to any replica, by the model "
            "that made the page. Each event counts on one replica.",
            "recommender_id",
        )
        self.feedback_hits = self._counter(
            "feedback_hits",
            "Attributed events whose item was among the first k of the page.",
            "recommender_id",
            "k",
        )
        self.feedback_reciprocal_rank = self._counter(
            "feedback_reciprocal_rank",
            "Sum of 1 / rank of the item on the page, over attributed events; 0 for an absent item.",
            "recommender_id",
        )
        self.feedback_pairs = self._counter(
            "feedback_pairs",
            "Attributed events after a history, by the pair of its newest item and the item that was taken "
            "(seen: the counts have it; unseen), and by whether the item was among the first 10 (hit, miss).",
            "pair",
            "result",
        )
        for pair, result in product(("seen", "unseen"), ("hit", "miss")):
            self.feedback_pairs.labels(pair, result)
        self.feedback_remembered_pages = self._gauge(
            "feedback_remembered_pages", "Pages that events can be attributed to."
        )
        self.learned_events = self._counter(
            "learned_events",
            "Events about a page of this replica that were added to the counts of items taken together.",
        )
        self.co_count_items = self._gauge(
            "co_count_items", "Items of which this replica knows what was taken together with them."
        )
        self.co_count_bytes = self._gauge(
            "co_count_bytes", "Memory of the table of counts, without the ids of its items."
        )
        self.co_count_lag_entries = self._gauge(
            "co_count_lag_entries",
            "Changes of counts that are in Redis' log but not yet in this replica's table.",
        )
        self.co_count_lag_seconds = self._gauge(
            "co_count_lag_seconds",
            "Seconds since this replica's table last had all counts; 0 while it follows.",
        )

    def _machine(self) -> None:
        self.event_loop_lag_seconds = self._histogram(
            "event_loop_lag_seconds",
            "Delay of a timer of 0.25 s, which is how long ready work waits for the event loop.",
            _LAG_S,
        )
        # Only if there is a GPU; service/telemetry/gpu.py collects them.
        self.gpu_memory_used_bytes = Gauge(
            "glyphrec_gpu_memory_used_bytes",
            "Memory of the GPU in use by all processes.",
            ("gpu",),
            registry=None,
        )
        self.gpu_memory_total_bytes = Gauge(
            "glyphrec_gpu_memory_total_bytes", "Memory of the GPU.", ("gpu",), registry=None
        )
        self.gpu_utilization_ratio = Gauge(
            "glyphrec_gpu_utilization_ratio",
            "Share of the last second or less in which the GPU worked.",
            ("gpu",),
            registry=None,
        )

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"glyphrec_{name}", text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"glyphrec_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(f"glyphrec_{name}", text, labels, buckets=buckets, registry=self.registry)

    def _counts(self, name: str, text: str, *labels: str) -> CountFamily:
        """A counter that only the event loop's thread counts."""
        return CountFamily(f"glyphrec_{name}", text, labels, registry=self.registry)

    def _tallies(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> TallyFamily:
        """A histogram whose observers exclude each other, as those do that run in the event loop."""
        return TallyFamily(f"glyphrec_{name}", text, labels, buckets=buckets, registry=self.registry)
