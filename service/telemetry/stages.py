"""Measures how long each stage of one request takes."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import NamedTuple


class Span(NamedTuple):
    """One run of a stage."""

    stage: str
    started_at: float  # of time.perf_counter()
    seconds: float


class Stages:
    """Seconds that one request spent in each stage, for Server-Timing, the histograms and traces."""

    def __init__(self) -> None:
        self.flow = ""  # that the stages belong to; set at the end of the flow
        self.seconds: dict[str, float] = {}
        self.spans: list[Span] = []  # in the order in which they ended
        self._started_at: dict[str, float] = {}

    def add(self, stage: str, started_at: float, seconds: float) -> None:
        """Add one run of a stage. `started_at`: of time.perf_counter(). Several runs of a stage add up."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
        self.spans.append(Span(stage, started_at, seconds))

    def add_row(self, **seconds: float) -> None:
        """Add stages that ran one after the other. The last one ends now."""
        started_at = perf_counter() - sum(seconds.values())
        for stage, each in seconds.items():
            self.add(stage, started_at, each)
            started_at += each

    def start(self, stage: str) -> None:
        """Begin a stage that ends elsewhere in the code, with `stop`."""
        self._started_at[stage] = perf_counter()

    def stop(self, stage: str) -> None:
        """End a stage. Has no effect if it was not started."""
        started_at = self._started_at.pop(stage, None)
        if started_at is not None:
            self.add(stage, started_at, perf_counter() - started_at)

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        """Surrounds a stage."""
        started_at = perf_counter()
        try:
            yield
        finally:
            self.add(stage, started_at, perf_counter() - started_at)

    def header(self, total_s: float) -> str:
        """The value of a Server-Timing header. Its durations are milliseconds."""
        everything = {**self.seconds, "total": total_s}
        return ", ".join(f"{stage};dur={1000 * seconds:.2f}" for stage, seconds in everything.items())
