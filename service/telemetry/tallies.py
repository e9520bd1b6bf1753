"""Counters and histograms of one thread: additions, where prometheus_client takes locks.

POST /recommend observes eight values for each answer, and under overload refusals are counted ten thousand
times a second. So their cost is a part of the cost of a request. What Prometheus reads is the same.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


class Tally:
    """One series. Only the thread of the event loop may call it."""

    __slots__ = ("_bounds", "counts", "total")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self.counts = [0] * (len(bounds) + 1)  # of each bucket alone; the last is above all bounds
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count a value: in the first bucket whose bound is not below it."""
        self.counts[bisect_left(self._bounds, value)] += 1
        self.total += value

    def observe_times(self, value: float, times: int) -> None:
        """Count a value so many times: what all requests of a batch share."""
        self.counts[bisect_left(self._bounds, value)] += times
        self.total += value * times


class Count:
    """One series of a counter. Only the thread of the event loop may call it."""

    __slots__ = ("total",)

    def __init__(self) -> None:
        self.total = 0

    def inc(self, times: int = 1) -> None:
        """Count so many times."""
        self.total += times


class CountFamily(Collector):
    """The series of one counter, by the values of its labels."""

    def __init__(self, name: str, text: str, labels: Sequence[str], *, registry: CollectorRegistry) -> None:
        self._name, self._text, self._labels = name, text, tuple(labels)
        self._counts: dict[tuple[str, ...], Count] = {}
        registry.register(self)

    def labels(self, *values: str) -> Count:
        """The series of these values, which begins at 0 with the first call. Raises ValueError."""
        count = self._counts.get(values)
        if count is None:
            if len(values) != len(self._labels):
                raise ValueError(f"{self._name} has the labels {self._labels}, not {len(values)} of them")
            count = self._counts[values] = Count()
        return count

    def collect(self) -> Iterator[CounterMetricFamily]:
        """What a scrape reads."""
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for values, count in list(self._counts.items()):
            family.add_metric(values, count.total)
        yield family


class TallyFamily(Collector):
    """The series of one metric, by the values of its labels."""

    def __init__(
        self,
        name: str,
        text: str,
        labels: Sequence[str],
        *,
        buckets: Sequence[float],
        registry: CollectorRegistry,
    ) -> None:
        """`buckets`: their upper bounds, ascending."""
        self._name, self._text, self._labels, self._bounds = name, text, tuple(labels), tuple(buckets)
        self._tallies: dict[tuple[str, ...], Tally] = {}
        registry.register(self)

    def labels(self, *values: str) -> Tally:
        """The series of these values, which begins at 0 with the first call. Raises ValueError."""
        tally = self._tallies.get(values)
        if tally is None:
            if len(values) != len(self._labels):
                raise ValueError(f"{self._name} has the labels {self._labels}, not {len(values)} of them")
            tally = self._tallies[values] = Tally(self._bounds)
        return tally

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """What a scrape reads."""
        family = HistogramMetricFamily(self._name, self._text, labels=self._labels)
        names = [*map(floatToGoString, self._bounds), "+Inf"]
        for values, tally in list(self._tallies.items()):
            buckets = list(zip(names, map(float, accumulate(tally.counts)), strict=True))
            family.add_metric(values, buckets, tally.total)
        yield family
