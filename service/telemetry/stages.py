"""How long each stage of one request took."""

from collections.abc import Iterator
from contextlib import contextmanager
from time import perf_counter
from typing import NamedTuple


class Span(NamedTuple):
    stage: str
    started_at: float  # of time.perf_counter()
    seconds: float


class Stages:
    """Seconds spent in each stage of one request: what Server-Timing and the stage histograms say."""

    def __init__(self) -> None:
        self.flow = ""  # which the stages are of; set where the flow has come to its end
        self.seconds: dict[str, float] = {}
        self.spans: list[Span] = []  # in the order in which they ended
        self._started_at: dict[str, float] = {}

    def add(self, stage: str, started_at: float, seconds: float) -> None:
        """Stages that run several times in one request add up."""
        self.seconds[stage] = self.seconds.get(stage, 0.0) + seconds
        self.spans.append(Span(stage, started_at, seconds))

    def add_row(self, **seconds: float) -> None:
        """Stages that came one after the other, the last of which ends now."""
        started_at = perf_counter() - sum(seconds.values())
        for stage, each in seconds.items():
            self.add(stage, started_at, each)
            started_at += each

    def start(self, stage: str) -> None:
        """Of a stage that begins in one place and ends in another."""
        self._started_at[stage] = perf_counter()

    def stop(self, stage: str) -> None:
        """Without effect where it has not begun."""
        started_at = self._started_at.pop(stage, None)
        if started_at is not None:
            self.add(stage, started_at, perf_counter() - started_at)

    @contextmanager
    def time(self, stage: str) -> Iterator[None]:
        started_at = perf_counter()
        try:
            yield
        finally:
            self.add(stage, started_at, perf_counter() - started_at)

    def header(self, total_s: float) -> str:
        """The value of a Server-Timing header; its durations are milliseconds."""
        everything = {**self.seconds, "total": total_s}
        return ", ".join(f"{stage};dur={1000 * seconds:.2f}" for stage, seconds in everything.items())
