"""The metrics of several workers as one."""

import json
from math import isnan, nan

import pytest
from prometheus_client.parser import text_string_to_metric_families

from service.telemetry.merging import GAUGES, How, WorkerMetrics, exposition, snapshot, totals
from service.telemetry.metrics import Metrics
from tests.service.scraping import read

# What the parts of a worker make of every gauge: three workers of which the third is not ready.
VALUES = {1: 3.0, 2: 5.0, 3: 100.0}
EXPECTED = {How.SUM: 108.0, How.MOST: 5.0, How.LEAST: 3.0}


def families_of(metrics):
    """Every family of a worker, those of the GPU too, each with a sample."""
    for gauge in (
        metrics.gpu_memory_used_bytes,
        metrics.gpu_memory_total_bytes,
        metrics.gpu_utilization_ratio,
    ):
        metrics.registry.register(gauge)
    metrics.observe_http("/recommend", "POST", 200, 0.1)
    return snapshot(metrics.registry)


def test_the_table_decides_for_every_gauge_and_for_nothing_else():
    kinds = {name: kind for name, kind, _, _ in families_of(Metrics())}
    assert {name for name, kind in kinds.items() if kind == "gauge"} == GAUGES.keys()
    assert set(kinds.values()) == {"gauge", "counter", "histogram"}


def test_every_metric_of_three_workers_is_what_the_table_says():
    """Each sample gets a value that tells the workers apart."""
    given = {}
    for worker, value in VALUES.items():
        given[worker] = families_of(Metrics())
        for name, kind, _, samples in given[worker]:
            if kind == "gauge" and not samples:
                samples.append([name, {"kind": "a"}, 0.0])
            for sample in samples:
                sample[2] = value
                if name == "glyphrec_ready":
                    sample[2] = float(worker != 3)
    as_sent = {worker: json.loads(json.dumps(each)) for worker, each in given.items()}
    found = read(exposition(as_sent, [], WorkerMetrics(3), 3))
    for name, kind, _, samples in given[1]:
        for sample, labels, _ in samples:
            key = tuple(sorted(labels.items()))
            if sample.endswith("_created"):
                continue
            how = GAUGES[name] if kind == "gauge" else How.SUM
            if how is How.EACH:
                for worker, value in VALUES.items():
                    each = tuple(sorted({**labels, "worker": str(worker)}.items()))
                    assert found[sample, each] == value, sample
            elif how is How.ALL:
                assert found[sample, key] == 0
            else:
                assert found[sample, key] == EXPECTED[how], sample


def test_all_workers_ready_is_ready_and_a_missing_one_is_not():
    def ready(workers, num_workers):
        one = [["glyphrec_ready", "gauge", "Ready.", [["glyphrec_ready", {}, 1.0]]]]
        text = exposition(dict.fromkeys(workers, one), [], WorkerMetrics(num_workers), num_workers)
        return read(text)["glyphrec_ready", ()]

    assert ready([1, 2], 2) == 1
    assert ready([1], 2) == 0


@pytest.mark.parametrize(("values", "expected"), [([nan, 2.0], 2.0), ([nan, nan], nan)])
def test_a_worker_that_does_not_know_a_value_does_not_hide_it(values, expected):
    name = "glyphrec_vector_recall_ratio"
    given = {n: [[name, "gauge", "Recall.", [[name, {}, value]]]] for n, value in enumerate(values, start=1)}
    found = read(exposition(given, [], WorkerMetrics(2), 2))[name, ()]
    assert found == expected or (isnan(found) and isnan(expected))


def test_counters_of_the_past_stay_in_the_sum_and_its_gauges_do_not():
    def of_worker(num_requests):
        metrics = Metrics()
        for _ in range(num_requests):
            metrics.observe_http("/recommend", "POST", 200, 0.003)
        metrics.num_in_flight = num_requests
        return snapshot(metrics.registry)

    past = totals(totals([], of_worker(5)), of_worker(7))
    found = read(exposition({1: of_worker(2)}, [past, of_worker(1)], WorkerMetrics(2), 2))
    labels = tuple(sorted({"route": "/recommend", "method": "POST", "status": "200"}.items()))
    assert found["glyphrec_http_requests_total", labels] == 15
    seconds = tuple(sorted({"route": "/recommend", "method": "POST", "outcome": "answered"}.items()))
    assert found["glyphrec_http_request_seconds_count", seconds] == 15
    assert found["glyphrec_http_requests_in_flight", ()] == 2


def test_buckets_of_a_sum_are_those_of_one_process_that_saw_everything():
    apart, together = [Metrics(), Metrics()], Metrics()
    for n in range(50):
        for metrics in (apart[n % 2], together):
            metrics.observe_http("/recommend", "POST", 200, 0.001 * n)
    text = exposition(
        {n: snapshot(each.registry) for n, each in enumerate(apart, start=1)}, [], WorkerMetrics(2), 2
    )
    name = "glyphrec_http_request_seconds_bucket"
    alone = {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in together.registry.collect()
        for sample in family.samples
        if sample.name == name
    }
    found = {key: value for key, value in read(text).items() if key[0] == name}
    assert found == alone
    order = [
        float(sample.labels["le"])
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name
        and sample.labels["outcome"] == "answered"
        and "recommend" in sample.labels["route"]
    ]
    assert order == sorted(order)
