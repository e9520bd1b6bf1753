"""The plots of study.md, as SVG files. Their bytes depend only on the figures.

The colors are those of Okabe and Ito, which color-blind readers can tell apart.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from model_export.evaluation.statistics import Interval

COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GRAY = "#707070"
MARKERS = ("o", "s", "^", "D", "v", "P")
STYLE: Any = {
    "svg.hashsalt": "glyphrec",  # without it, element ids are random
    "svg.fonttype": "none",  # text stays text, so files are small and can be searched
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "axes.axisbelow": True,
}
ROW_INCHES = 0.3


class Dot(NamedTuple):
    """One row of `dots`."""

    label: str
    interval: Interval
    is_ours: bool


class Resolution(NamedTuple):
    """One point of `resolution`."""

    is_ours: bool  # the point gets a ring
    pixels: float  # per item
    ndcg: Interval
    reading_accuracy: float | None  # share of characters
    encode_ms: float | None  # per item


class Step(NamedTuple):
    """One row of the ablation."""

    label: str
    ndcg: Interval
    train_seconds: float | None
    ms_per_request: float | None


def dots(path: Path, panels: Mapping[str, Sequence[Dot]], label: str) -> None:
    """Draw the mean and the interval of each cell: a panel for each dataset, a row for each cell."""
    with rc_context(STYLE):
        figure, axes = _panels(len(panels), max(map(len, panels.values())))
        for axis, (dataset, rows) in zip(axes, panels.items(), strict=True):
            for place, dot in enumerate(rows):
                _dot(axis, dot.interval, place, 0 if dot.is_ours else None)
            _rows(axis, [dot.label for dot in rows])
            axis.set(title=dataset, xlabel=label)
        _save(figure, path)


def pairs(path: Path, panels: Mapping[str, Mapping[str, Sequence[Interval]]], names: Sequence[str]) -> None:
    """Draw rows like `dots`, but with one dot for each of `names`. `panels`: dataset -> row -> intervals."""
    with rc_context(STYLE):
        figure, axes = _panels(len(panels), max(map(len, panels.values())) + 2)
        for axis, (dataset, rows) in zip(axes, panels.items(), strict=True):
            for place, intervals in enumerate(rows.values()):
                for series, interval in enumerate(intervals):
                    name = names[series] if place == 0 else None
                    _dot(axis, interval, place + 0.2 * series - 0.1, series, name)
            _rows(axis, list(rows))
            axis.set(title=dataset, xlabel="Hit@10")
        _legend(figure, axes[0], len(names))
        _save(figure, path)


def resolution(path: Path, datasets: Mapping[str, Sequence[Resolution]]) -> None:
    """Draw quality, reading accuracy and time to encode against pixels per item, a line for each dataset.

    The default has a ring.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(10, 3.2))
        quality, reading, time = figure.subplots(1, 3)
        for series, (dataset, points) in enumerate(datasets.items()):
            look = {"color": COLORS[series % 6], "marker": MARKERS[series % 6], "markersize": 4}
            look |= {"linestyle": ":", "linewidth": 1}
            points = sorted(points, key=lambda point: point.pixels)
            pixels = [point.pixels for point in points]
            means = [point.ndcg.mean for point in points]
            error = [_distances(point.ndcg) for point in points]
            below, above = [low for low, _ in error], [high for _, high in error]
            quality.errorbar(pixels, means, yerr=[below, above], capsize=2, label=dataset, **look)
            _ring(quality, [(point.pixels, point.ndcg.mean) for point in points if point.is_ours])
            for axis, name in ((reading, "reading_accuracy"), (time, "encode_ms")):
                known = [point for point in points if getattr(point, name) is not None]
                axis.plot([point.pixels for point in known], [getattr(p, name) for p in known], **look)
                _ring(axis, [(point.pixels, getattr(point, name)) for point in known if point.is_ours])
        quality.set(ylabel="NDCG@10")
        reading.set(ylabel="share of characters read correctly", ylim=(0, 1.03))
        time.set(ylabel="ms to encode an item", ylim=(0, None))
        for axis in (quality, reading, time):
            axis.set(xlabel="pixels per item", xscale="log")
        quality.legend(frameon=False)
        _save(figure, path)


def ablation(path: Path, datasets: Mapping[str, Sequence[Step]]) -> None:
    """Draw a row of panels for each dataset: NDCG@10, and beside it the costs of each step."""
    with rc_context(STYLE):
        num_rows = max(map(len, datasets.values()))
        figure = Figure(figsize=(10, len(datasets) * (1.1 + ROW_INCHES * num_rows)))
        grid = figure.subplots(
            len(datasets), 3, squeeze=False, sharey="row", gridspec_kw={"width_ratios": (2, 1, 1)}
        )
        for (quality, training, request), (dataset, steps) in zip(grid, datasets.items(), strict=True):
            places = range(len(steps))
            quality.barh(places, [step.ndcg.mean for step in steps], color=COLORS[0], height=0.6)
            for place, step in enumerate(steps):
                quality.plot([step.ndcg.low, step.ndcg.high], [place, place], color="black", linewidth=1)
            for axis, costs in (
                (training, [step.train_seconds for step in steps]),
                (request, [step.ms_per_request for step in steps]),
            ):
                axis.barh(places, [cost or 0 for cost in costs], color=GRAY, height=0.6)
            _rows(quality, [step.label for step in steps])
            quality.set(title=dataset, xlabel="NDCG@10")
            training.set(xlabel="training, s")
            request.set(xlabel="ms per request")
        _save(figure, path)


def robustness(
    path: Path,
    datasets: Mapping[str, Mapping[str, Sequence[tuple[float, float]]]],
    changes: Sequence[str],
) -> None:
    """Draw the shares of items that keep all codes, and the first code, after each of `changes`.

    `datasets`: dataset -> cell -> one pair of shares per change. A share is nan if it is not known.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(10, 0.4 + len(datasets) * (1.0 + 0.45 * len(changes))))
        grid = figure.subplots(len(datasets), 2, squeeze=False, sharey="row")
        for row, (dataset, cells) in zip(grid, datasets.items(), strict=True):
            height = 0.8 / len(cells)
            for series, (name, shares) in enumerate(cells.items()):
                places = [place + (series + 0.5) * height - 0.4 for place in range(len(changes))]
                for axis, kept in zip(row, zip(*shares, strict=True), strict=True):
                    axis.barh(places, kept, height=0.9 * height, color=COLORS[series % 6], label=name)
            _rows(row[0], changes)
            for axis, what in zip(row, ("all codes", "the first code"), strict=True):
                axis.set(title=dataset, xlabel=f"share of items that keep {what}", xlim=(0, 1))
        _legend(figure, grid[0][0], max(map(len, datasets.values())))
        _save(figure, path)


def _panels(num_panels: int, num_rows: int) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(5 * max(1, num_panels) + 1, 1.1 + ROW_INCHES * num_rows))
    return figure, figure.subplots(1, num_panels, squeeze=False)[0]


def _dot(axis: Axes, interval: Interval, place: float, series: int | None, name: str | None = None) -> None:
    color, marker = (GRAY, "o") if series is None else (COLORS[series], MARKERS[series])
    below, above = _distances(interval)
    axis.errorbar(
        [interval.mean],
        [place],
        xerr=[[below], [above]],
        color=color,
        marker=marker,
        markersize=5,
        capsize=2,
        label=name,
    )


def _ring(axis: Axes, places: Sequence[tuple[float, float]]) -> None:
    for x, y in places:
        axis.plot([x], [y], marker="o", markersize=11, markerfacecolor="none", color="black")


def _distances(interval: Interval) -> tuple[float, float]:
    """The distances from the mean down and up. Rounding could make one negative, so each is at least 0."""
    return max(0.0, interval.mean - interval.low), max(0.0, interval.high - interval.mean)


def _rows(axis: Axes, labels: Sequence[str]) -> None:
    """Label the rows from the top down, in the order of the table."""
    axis.set_yticks(range(len(labels)), labels)
    axis.set_ylim(len(labels) - 0.4, -0.6)


def _legend(figure: Figure, axis: Axes, columns: int) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, frameon=False)


def _save(figure: Figure, path: Path) -> None:
    figure.set_layout_engine("constrained")
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    # Matplotlib writes blanks at the ends of lines of numbers.
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(line.rstrip() for line in lines) + "\n", encoding="utf-8")
