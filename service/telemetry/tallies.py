"""Counters and histograms of one thread: additions, where prometheus_client takes locks.

POST /recommend observes eight values for each answer, and under overload refusals are counted ten thousand
times a second. So their cost is a part of the cost of a request. What Prometheus reads is the same.
"""

from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

Series = TypeVar("Series")


class Count:
    """One series of a counter. Only the thread of the event loop may call it."""

    __slots__ = ("total",)

    def __init__(self) -> None:
        self.total = 0

    def inc(self, times: int = 1) -> None:
        """Count so many times."""
        self.total += times


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


class _Family(Collector, Generic[Series]):
    """The series of one metric, by the values of its labels."""

    def __init__(
        self,
        name: str,
        text: str,
        labels: Sequence[str],
        make: Callable[[], Series],
        registry: CollectorRegistry,
    ) -> None:
        self._name, self._text, self._make = name, text, make
        self.label_names = tuple(labels)
        self._series: dict[tuple[str, ...], Series] = {}
        registry.register(self)

    def labels(self, *values: str) -> Series:
        """The series of these values, which begins at 0 with the first call. Raises ValueError."""
        series = self._series.get(values)
        if series is None:
            if len(values) != len(self.label_names):
                raise ValueError(f"{self._name} has the labels {self.label_names}, not {len(values)} of them")
            series = self._series[values] = self._make()
        return series


class CountFamily(_Family[Count]):
    """A counter."""

    def __init__(self, name: str, text: str, labels: Sequence[str], *, registry: CollectorRegistry) -> None:
        super().__init__(name, text, labels, Count, registry)

    def collect(self) -> Iterator[CounterMetricFamily]:
        """What a scrape reads."""
        family = CounterMetricFamily(self._name, self._text, labels=self.label_names)
        for values, count in list(self._series.items()):
            family.add_metric(values, count.total)
        yield family


class TallyFamily(_Family[Tally]):
    """A histogram."""

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
        self._bounds = tuple(buckets)
        super().__init__(name, text, labels, lambda: Tally(self._bounds), registry)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """What a scrape reads."""
        family = HistogramMetricFamily(self._name, self._text, labels=self.label_names)
        names = [*map(floatToGoString, self._bounds), "+Inf"]
        for values, tally in list(self._series.items()):
            buckets = list(zip(names, map(float, accumulate(tally.counts)), strict=True))
            family.add_metric(values, buckets, tally.total)
        yield family
