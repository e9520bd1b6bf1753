"""One exposition for all workers of a service: what each metric means when several processes have it.

Counters and histograms are sums, and those of a worker that has ended stay in the sum, so no scrape sees them
fall. For a gauge there is no such rule: GAUGES decides for each. prometheus_client's own mode for several
processes has no gauges that are computed at the scrape, no labels that vanish and no collectors, and we have
all three. docs/decisions has more.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from enum import Enum
from math import isnan, nan
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Metric, generate_latest
from prometheus_client.registry import Collector

# name, type, help, samples: name, labels, value. As JSON has it.
Snapshot = list[list[Any]]

WORKER = "worker"  # the label; workers count from 1
_CREATED = "_created"


class How(Enum):
    """What a gauge of all workers is."""

    SUM = "sum"  # each worker has a part
    MOST = "most"  # all have the same, or the worst counts; of the workers that are ready, if any is
    LEAST = "least"  # likewise
    ALL = "all"  # 1 if it is 1 on every worker that there should be
    EACH = "each"  # a series for each worker, with a label


GAUGES: Mapping[str, How] = {
    # memory and work add up
    "process_virtual_memory_bytes": How.SUM,
    "process_resident_memory_bytes": How.SUM,
    "glyphrec_http_requests_in_flight": How.SUM,
    "glyphrec_queue_units": How.SUM,
    "glyphrec_running_units": How.SUM,
    "glyphrec_reserved_units": How.SUM,
    "glyphrec_queue_limit_units": How.SUM,
    "glyphrec_filter_views": How.SUM,
    "glyphrec_filter_view_bytes": How.SUM,
    "glyphrec_vector_bytes": How.SUM,
    "glyphrec_co_count_bytes": How.SUM,
    "glyphrec_feedback_remembered_pages": How.SUM,
    # a limit of each process, and a set of which a sum would count items twice
    "process_open_fds": How.EACH,
    "process_max_fds": How.EACH,
    "glyphrec_recommended_distinct_items": How.EACH,
    # the newest start, so that a worker that starts again and again is seen
    "process_start_time_seconds": How.MOST,
    # every worker has the whole catalog: the worker that knows least of it
    "glyphrec_catalog_items": How.LEAST,
    "glyphrec_catalog_version": How.LEAST,
    "glyphrec_vector_items": How.LEAST,
    "glyphrec_vector_recall_ratio": How.LEAST,
    "glyphrec_co_count_items": How.LEAST,
    # ... and the one that is furthest behind
    "glyphrec_catalog_stale_seconds": How.MOST,
    "glyphrec_catalog_lag_entries": How.MOST,
    "glyphrec_catalog_lag_seconds": How.MOST,
    "glyphrec_co_count_lag_entries": How.MOST,
    "glyphrec_co_count_lag_seconds": How.MOST,
    "glyphrec_vector_missing_items": How.MOST,
    "glyphrec_vector_pending_rows": How.MOST,
    "glyphrec_behind": How.MOST,
    # the same on all that have caught up
    "glyphrec_catalog_info": How.MOST,
    "glyphrec_catalog_colliding_items": How.MOST,
    "glyphrec_catalog_slots_in_use": How.MOST,
    "glyphrec_codebook_used_ratio": How.MOST,
    "glyphrec_unreadable_values": How.MOST,
    "glyphrec_model_info": How.MOST,
    "glyphrec_ranker_info": How.MOST,
    "glyphrec_offline_quality": How.MOST,
    # the last worker to change the model; a worker that starts again must not look like a change
    "glyphrec_bundle_loaded_timestamp_seconds": How.LEAST,
    # only the leader of a change has them
    "glyphrec_rollout_items": How.MOST,
    "glyphrec_rollout_read_items": How.MOST,
    # of Redis, which all share
    "glyphrec_kept_pictures": How.MOST,
    "glyphrec_kept_picture_bytes": How.MOST,
    "glyphrec_redis_loss_window_seconds": How.MOST,
    "glyphrec_redis_may_evict": How.MOST,
    "glyphrec_redis_used_memory_bytes": How.MOST,
    "glyphrec_redis_max_memory_bytes": How.MOST,
    "glyphrec_redis_append_file_bytes": How.MOST,
    "glyphrec_redis_failing": How.MOST,
    "glyphrec_catalog_damaged": How.MOST,
    # of the GPU, which all share
    "glyphrec_gpu_memory_used_bytes": How.MOST,
    "glyphrec_gpu_memory_total_bytes": How.MOST,
    "glyphrec_gpu_utilization_ratio": How.MOST,
    "glyphrec_ready": How.ALL,
}


class WorkerMetrics:
    """What the supervisor itself knows of its workers."""

    def __init__(self, num_workers: int) -> None:
        self.registry = CollectorRegistry()
        self.workers = Gauge(
            "glyphrec_workers", "Workers that the service should have.", registry=self.registry
        )
        self.workers.set(num_workers)
        self.worker_up = Gauge(
            "glyphrec_worker_up", "1 if the worker answered this scrape.", (WORKER,), registry=self.registry
        )
        self.worker_restarts = Counter(
            "glyphrec_worker_restarts",
            "Times that a worker ended by itself and another took its place.",
            (WORKER,),
            registry=self.registry,
        )
        for number in range(1, num_workers + 1):
            self.worker_up.labels(number).set(0)
            self.worker_restarts.labels(number)


def snapshot(registry: Collector) -> Snapshot:
    """All metrics of this process now, as values that JSON can hold."""
    return [
        [
            family.name,
            family.type,
            family.documentation,
            [[s.name, s.labels, s.value] for s in family.samples],
        ]
        for family in registry.collect()
    ]


def totals(*snapshots: Snapshot) -> Snapshot:
    """The sum of the counters and histograms of some snapshots, without gauges."""
    return [
        [
            family.name,
            family.type,
            family.documentation,
            [[s.name, s.labels, s.value] for s in family.samples],
        ]
        for family in _families(dict(enumerate(snapshots)))
        if family.type != "gauge"
    ]


def exposition(
    snapshots: Mapping[int, Snapshot], past: Iterable[Snapshot], own: WorkerMetrics, num_workers: int
) -> str:
    """The text that Prometheus gets. `snapshots`: of the workers that answered, by their numbers.

    `past`: last known counters of workers that ended or are silent; their gauges are left out.
    """
    everything = {**snapshots, **{-number: totals(each) for number, each in enumerate(past, start=1)}}
    merged = _Given([*_families(everything, num_workers), *own.registry.collect()])
    registry = CollectorRegistry()
    registry.register(merged)
    return generate_latest(registry).decode()


class _Given(Collector):
    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        yield from self._families

    def describe(self) -> Iterator[Metric]:
        """Nothing, so that `register` does not look for names that come twice."""
        yield from ()


def _families(snapshots: Mapping[int, Snapshot], num_workers: int = 0) -> list[Metric]:
    ready = {worker for worker, each in snapshots.items() if _is_ready(each)}
    families: dict[str, Metric] = {}
    found: dict[str, dict[tuple[str, tuple[tuple[str, str], ...]], dict[int, float]]] = {}
    for worker, families_of in snapshots.items():
        for name, kind, text, samples in families_of:
            families.setdefault(name, Metric(name, text, kind))
            values = found.setdefault(name, {})
            for sample, labels, value in samples:
                values.setdefault((sample, tuple(labels.items())), {})[worker] = value
    for name, metric in families.items():
        how = GAUGES[name] if metric.type == "gauge" else How.SUM
        for (sample, labels), by_worker in found[name].items():
            if sample.endswith(_CREATED):
                metric.add_sample(sample, dict(labels), min(by_worker.values()))
            elif how is How.EACH:
                for worker, value in by_worker.items():
                    metric.add_sample(sample, {**dict(labels), WORKER: str(worker)}, value)
            else:
                metric.add_sample(sample, dict(labels), _merged(how, by_worker, ready, num_workers))
    return list(families.values())


def _merged(how: How, by_worker: Mapping[int, float], ready: set[int], num_workers: int) -> float:
    if how is How.SUM:
        return sum(by_worker.values())
    if how is How.ALL:
        return float(sum(by_worker.values()) == num_workers)
    # A worker that starts knows nothing of the catalog yet, which is not the state of the service.
    values = [value for worker, value in by_worker.items() if worker in ready] or list(by_worker.values())
    choose: Callable[[Iterable[float]], float] = max if how is How.MOST else min
    return choose([value for value in values if not isnan(value)] or [nan])


def _is_ready(families: Snapshot) -> bool:
    return any(name == "glyphrec_ready" and samples[0][2] == 1 for name, _, _, samples in families)
