"""The stopwatches of the benchmarks. Medians, as other work on the machine makes some calls slow."""

import time
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.float64]  # [call], milliseconds


def elapsed_ms(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return 1_000 * (time.perf_counter() - started)


def each_ms(call: Callable[[int], object], count: int, *, warm_up: int = 0) -> Times:
    """Milliseconds of `call(n)` for n up to `count`; the first `warm_up` of them are left out."""
    took = [elapsed_ms(partial(call, n)) for n in range(count)]
    return np.array(took[min(warm_up, count - 1) :])


def cpu_ms(call: Callable[[int], object], count: int) -> Times:
    """Milliseconds of CPU that `call(n)` takes for n up to `count`, in all threads of this process.

    Other work on the machine stretches a long call by the clock, and hardly changes this.
    """
    took = []
    for n in range(count):
        started = time.process_time_ns()
        call(n)
        took.append((time.process_time_ns() - started) / 1e6)
    return np.array(took)


def median_ms(call: Callable[[], object], repeats: int, *, warm_up: int = 3) -> float:
    """Median milliseconds of a call, after at most `warm_up` that are not counted."""
    warm_up = min(warm_up, repeats)
    return float(np.median(each_ms(lambda _: call(), repeats + warm_up, warm_up=warm_up)))


def fastest_s(call: Callable[[], object], tries: int = 3) -> float:
    """Seconds of the fastest of some tries."""
    return min(elapsed_ms(call) for _ in range(tries)) / 1_000


def in_turns(
    calls: Mapping[str, Callable[[int], object]], rounds: int, *, warm_up: int = 0
) -> dict[str, Times]:
    """Milliseconds of each round of each call: the calls take turns, so a busy moment hits all of them."""
    took: dict[str, list[float]] = {name: [] for name in calls}
    for n in range(rounds + warm_up):
        for name, call in calls.items():
            took[name].append(elapsed_ms(partial(call, n)))
    return {name: np.array(values[warm_up:]) for name, values in took.items()}
