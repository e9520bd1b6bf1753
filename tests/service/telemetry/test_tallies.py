"""Our counters and histograms against those of prometheus_client."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram

from service.telemetry.tallies import CountFamily, TallyFamily

BOUNDS = (0.001, 0.5, 2.0)
LABELS = ("route", "outcome")

values = st.one_of(st.sampled_from([0.0, *BOUNDS]), st.floats(0, 3))
observed = st.lists(st.tuples(st.sampled_from("ab"), values, st.integers(1, 3)), max_size=30)


def samples(registry):
    return {
        (each.name, tuple(sorted(each.labels.items()))): pytest.approx(each.value)
        for family in registry.collect()
        for each in family.samples
        if not each.name.endswith("_created")  # ours does not say when a series began
    }


@given(observed)
def test_a_scrape_reads_what_it_would_read_of_the_library(given_values):
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    tallies = TallyFamily("seconds", "Time.", LABELS, buckets=BOUNDS, registry=ours)
    counts = CountFamily("requests", "Requests.", LABELS, registry=ours)
    histogram = Histogram("seconds", "Time.", LABELS, buckets=BOUNDS, registry=theirs)
    counter = Counter("requests", "Requests.", LABELS, registry=theirs)
    for route, value, times in given_values:
        tallies.labels(route, "answered").observe_times(value, times - 1)
        tallies.labels(route, "answered").observe(value)
        counts.labels(route, "answered").inc(times)
        counter.labels(route, "answered").inc(times)
        for _ in range(times):
            histogram.labels(route, "answered").observe(value)
    assert samples(ours) == samples(theirs)


@pytest.mark.parametrize("labels", [(), ("a",), ("a", "b", "c")])
def test_a_series_needs_a_value_for_each_label(labels):
    registry = CollectorRegistry()
    for family in (
        TallyFamily("seconds", "Time.", LABELS, buckets=BOUNDS, registry=registry),
        CountFamily("requests", "Requests.", LABELS, registry=registry),
    ):
        with pytest.raises(ValueError, match="has the labels"):
            family.labels(*labels)
