"""How every benchmark takes its arguments, prints its table, and ends with one line of JSON.

The line has the benchmark's name, the command, the date, the machine, the figures, the baseline from the same
run, and the unit of each. `python -m benchmarks.figures record` keeps such a line for the documents.
"""

import argparse
import json
import os
import platform
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

from service.errors import GlyphrecError

Main = Callable[[Sequence[str]], int]

# Parts of a figure's name that say its unit; the longest match counts.
UNITS = {
    "per_s": "1/s",
    "per_second": "1/s",
    "rps": "requests/s",
    "ms": "ms",
    "us": "µs",
    "s": "s",
    "minutes": "min",
    "mb": "MB",
    "bytes": "B",
}
DIMENSIONLESS = ("_ratio", "_growth", "_drift")
SIGNIFICANT_DIGITS = 6


class NotAvailable(GlyphrecError):
    """This machine lacks something that a benchmark needs. The message says how to get it."""


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with `--tiny`; `description` is the module's docstring."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="seconds, to see that it works")
    return parser


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print rows of cells: the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    for row in (header, *rows):
        first, *others = (cell for cell in row)
        line = [first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(others, widths[1:], strict=True))]
        print("  ".join(line).rstrip())


def finish(
    benchmark: str,
    argv: Sequence[str],
    figures: Mapping[str, float],
    baseline: Mapping[str, float],
    *,
    shown: bool = True,
) -> None:
    """Print the figures, unless the benchmark has `shown` them in a table of its own, and the line of JSON.

    `baseline` has what the same run measured for comparison; no name is in both.
    """
    if both := figures.keys() & baseline.keys():
        raise ValueError(f"{sorted(both)} are figures and baseline at once")
    if not shown:
        rows = [(name, f"{value:,.6g}", unit_of(name)) for name, value in figures.items()]
        rows += [(name, f"{value:,.6g}", f"{unit_of(name)} (baseline)") for name, value in baseline.items()]
        table(("figure", "value", "unit"), rows)
    line = {
        "benchmark": benchmark,
        "command": command_of(benchmark, argv),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine(),
        "figures": {name: _rounded(value) for name, value in figures.items()},
        "baseline": {name: _rounded(value) for name, value in baseline.items()},
        "units": {name: unit_of(name) for name in (*figures, *baseline)},
    }
    print(json.dumps(line, ensure_ascii=False), flush=True)


def run(main: Main) -> NoReturn:
    """Call a benchmark's `main` from the command line. An error of ours is one line for a person."""
    try:
        sys.exit(main(sys.argv[1:]))
    except GlyphrecError as error:
        sys.exit(f"{Path(sys.argv[0]).stem}: {error}")


def unit_of(name: str) -> str:
    """The unit that a figure's name ends with or contains; "1" for shares, ratios and counts.

    >>> unit_of("p99_ms"), unit_of("bulk_items_per_s"), unit_of("edit_us_with_10_views"), unit_of("lost")
    ('ms', '1/s', 'µs', '1')
    """
    parts = f"_{name}_"
    found = [part for part in UNITS if f"_{part}_" in parts]
    is_ratio = name.endswith(DIMENSIONLESS) or "_share" in name or "speedup" in name
    return UNITS[max(found, key=len)] if found and not is_ratio else "1"


def machine() -> dict[str, Any]:
    """How many cores it has, and the model of its CPU."""
    return {"cores": os.cpu_count() or 1, "cpu": _cpu_model()}


def command_of(benchmark: str, argv: Sequence[str]) -> str:
    """What to type. A folder of this machine is shortened to its name."""
    shown = [Path(each).name if Path(each).is_absolute() else each for each in argv]
    return shlex.join(["python", "-m", f"benchmarks.{benchmark}", *shown])


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _rounded(value: float) -> float:
    return value if isinstance(value, int) else float(f"{value:.{SIGNIFICANT_DIGITS}g}")
