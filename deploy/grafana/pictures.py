"""Draw the dashboards without Grafana, one picture each. The queries are sent to a Prometheus.

python -m deploy.grafana.pictures --prometheus http://localhost:9090 --minutes 60 --out FOLDER
"""

import argparse
import json
import math
import re
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import httpx
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator
from PIL import Image

DASHBOARDS = Path(__file__).with_name("dashboards")
NUM_POINTS = 240
COLUMN_IN, ROW_IN = 0.66, 0.25  # of Grafana's grid, on paper
DPI = 90
NUM_COLORS = 64  # of the picture, so that it is small
COLORS = {"green": "#3c9a3c", "yellow": "#c99a00", "orange": "#e07b00", "red": "#d03030"}
MAX_LEGENDS = 6
MAX_ROWS = 8


class Series(NamedTuple):
    """One line of a panel: its legend, labels and points."""

    name: str
    labels: dict[str, str]
    points: list[tuple[float, float]]  # minutes since the start, value


class Asked(NamedTuple):
    """A Prometheus and the period to ask it about. `start` and `end` are seconds since 1970."""

    client: httpx.Client
    start: float
    end: float
    rate_interval: str

    def series(self, target: dict[str, Any]) -> list[Series]:
        """Run a panel's query over the whole period, in about NUM_POINTS steps of at least one second.

        Raises httpx.HTTPError if Prometheus does not answer or rejects the query.
        """
        step = max(1.0, (self.end - self.start) / NUM_POINTS)
        params = {
            "query": filled(target["expr"], self.rate_interval),
            "start": self.start,
            "end": self.end,
            "step": step,
        }
        answer = self.client.get("/api/v1/query_range", params=params).raise_for_status().json()
        return [
            Series(
                _legend(target.get("legendFormat", ""), found["metric"]),
                found["metric"],
                [((at - self.start) / 60, float(value)) for at, value in found["values"]],
            )
            for found in answer["data"]["result"]
        ]


def filled(expr: str, rate_interval: str) -> str:
    """An expression as Grafana sends it with everything chosen."""
    values = {"$__rate_interval": rate_interval, "$job": ".*", "$instance": ".*", "$model": ".*"}
    for variable, value in values.items():
        expr = expr.replace(variable, value)
    return expr


def draw_dashboards(url: str, start: float, end: float, out: Path, *, rate_interval: str = "1m") -> None:
    """One PNG per dashboard; `start` and `end` are seconds since 1970."""
    out.mkdir(parents=True, exist_ok=True)
    with httpx.Client(base_url=url, timeout=60) as client:
        for path in sorted(DASHBOARDS.glob("*.json")):
            figure = draw(
                json.loads(path.read_text(encoding="utf-8")), Asked(client, start, end, rate_interval)
            )
            picture = out / f"{path.stem}.png"
            figure.savefig(picture, dpi=DPI)
            with Image.open(picture) as drawn:
                small = drawn.convert("RGB").quantize(NUM_COLORS, dither=Image.Dither.NONE)
            small.save(picture, optimize=True)


def draw(dashboard: dict[str, Any], asked: Asked) -> Figure:
    """One dashboard, laid out on the same grid as in Grafana. Raises httpx.HTTPError if a query fails."""
    panels = dashboard["panels"]
    height = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in panels) + 2
    figure = Figure(figsize=(24 * COLUMN_IN, height * ROW_IN), facecolor="white")
    figure.text(0.008, 1 - 0.9 / height, dashboard["title"], fontsize=15, weight="bold", va="center")
    ends_at = datetime.fromtimestamp(asked.end, UTC)
    words = f"{(asked.end - asked.start) / 60:.0f} minutes until {ends_at:%Y-%m-%d %H:%M} UTC; x: minutes"
    figure.text(0.992, 1 - 0.9 / height, words, fontsize=9, color="gray", va="center", ha="right")
    changes = _changes(dashboard, asked)
    for panel in panels:
        place = panel["gridPos"]
        left, top = place["x"] / 24, 1 - (place["y"] + 2) / height
        if panel["type"] == "row":
            figure.text(
                left + 0.008, top - 0.5 / height, panel["title"], fontsize=11, va="center", color="#444"
            )
            continue
        axes = figure.add_axes(_box(panel["type"], left, top, place["w"] / 24, place["h"] / height, height))
        axes.set_title(panel["title"], fontsize=9, loc="left", y=1.0, pad=4)
        {"stat": _draw_number, "timeseries": _draw_lines, "table": _draw_rows}[panel["type"]](
            axes, panel, asked
        )
        if panel["type"] == "timeseries":
            for at in changes:
                axes.axvline(at, color="purple", linewidth=0.8, alpha=0.6)
    return figure


def _box(
    kind: str, left: float, top: float, width: float, height: float, rows: float
) -> tuple[float, float, float, float]:
    """The axes within a panel: room for the title above, and for ticks and legend where there are any."""
    above = 1.1 / rows
    below, beside = (2.6 / rows, 0.042) if kind == "timeseries" else (0.2 / rows, 0.008)
    return left + beside, top - height + below, width - beside - 0.008, height - above - below


def _changes(dashboard: dict[str, Any], asked: Asked) -> list[float]:
    """When a replica took another bundle, in minutes."""
    found = []
    for annotation in dashboard["annotations"]["list"]:
        found.extend(series.points[0][0] for series in asked.series({"expr": annotation["expr"]}))
    return found


def _draw_number(axes: Axes, panel: dict[str, Any], asked: Asked) -> None:
    axes.set_axis_off()
    points = [
        point
        for series in asked.series(panel["targets"][0])
        for point in series.points
        if _is_number(point[1])
    ]
    defaults = panel["fieldConfig"]["defaults"]
    if not points:
        axes.text(0.5, 0.5, "no data", ha="center", va="center", color="gray", transform=axes.transAxes)
        return
    value = points[-1][1]
    color = _color(value, defaults["thresholds"]["steps"])
    axes.plot(*zip(*points, strict=True), color=color, linewidth=0.8, alpha=0.5)
    low, high = min(y for _, y in points), max(y for _, y in points)
    room = max(high - low, 1e-9)
    axes.set_ylim(low - 0.1 * room, high + 4 * room)
    axes.text(
        0.5,
        0.62,
        worded(value, defaults["unit"]),
        ha="center",
        va="center",
        fontsize=17,
        weight="bold",
        color=color,
        transform=axes.transAxes,
    )


def _draw_lines(axes: Axes, panel: dict[str, Any], asked: Asked) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    found = [series for target in panel["targets"] for series in asked.series(target)]
    found = [series for series in found if any(_is_number(y) for _, y in series.points)]
    found.sort(key=lambda series: series.name)
    is_stacked = defaults["custom"].get("stacking", {}).get("mode") == "normal"
    if is_stacked and found:
        times = sorted({x for series in found for x, _ in series.points})
        values = [[y if _is_number(y) else 0.0 for y in _at(times, series)] for series in found]
        axes.stackplot(times, values, labels=[series.name for series in found], alpha=0.75)
    else:
        for series in found:
            axes.plot(*zip(*series.points, strict=True), label=series.name, linewidth=1)
    axes.set_xlim(0, (asked.end - asked.start) / 60)
    top = min(axes.get_ylim()[1], defaults.get("max", math.inf) * 1.04)
    is_flat = not any(y > 0 for series in found for _, y in series.points)
    axes.set_ylim(0, 1 if is_flat else top)
    for step in defaults["thresholds"]["steps"]:
        if step["value"] and step["value"] <= axes.get_ylim()[1]:
            axes.axhline(step["value"], color=COLORS[step["color"]], linewidth=0.9, linestyle="--")
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: worded(value, defaults["unit"])))
    axes.tick_params(labelsize=7, length=2)
    axes.grid(alpha=0.25, linewidth=0.5)
    axes.spines[["top", "right"]].set_visible(False)
    if not found:
        axes.text(0.5, 0.5, "no data", ha="center", va="center", color="gray", transform=axes.transAxes)
        return
    handles, names = axes.get_legend_handles_labels()
    if len(names) > MAX_LEGENDS:  # the highest, as Grafana's table can be sorted
        most = sorted(found, key=lambda s: -sum(y for _, y in s.points if _is_number(y)))[:MAX_LEGENDS]
        kept = {series.name for series in most}
        handles, names = zip(
            *((handle, name) for handle, name in zip(handles, names, strict=True) if name in kept),
            strict=True,
        )
    axes.legend(
        handles,
        names,
        fontsize=6.5,
        ncols=3 if max(map(len, names)) < 22 else 2,
        loc="upper left",
        bbox_to_anchor=(-0.05, -0.13),
        frameon=False,
        borderaxespad=0.2,
        handlelength=1.2,
        columnspacing=1.0,
        labelspacing=0.25,
    )


def _draw_rows(axes: Axes, panel: dict[str, Any], asked: Asked) -> None:
    axes.set_axis_off()
    shown = panel["transformations"][0]["options"]
    columns = {
        label: shown["renameByName"][label]
        for label in sorted(shown["indexByName"], key=shown["indexByName"].get)
    }
    unit = panel["fieldConfig"]["defaults"]["unit"]
    rows = [
        [
            worded(series.points[-1][1], unit) if label == "Value" else series.labels.get(label, "")
            for label in columns
        ]
        for series in asked.series(panel["targets"][0])
        if series.points[-1][0] >= (asked.end - asked.start) / 60 - 0.2  # not of a model that has gone
    ]
    if not rows:
        axes.text(0.5, 0.5, "no data", ha="center", va="center", color="gray")
        return
    rows.sort()
    if len(rows) > MAX_ROWS:  # Grafana's table can be scrolled
        rows = [*rows[: MAX_ROWS - 1], [f"and {len(rows) - MAX_ROWS + 1} more", *[""] * (len(columns) - 1)]]
    table = axes.table(
        rows,
        colLabels=list(columns.values()),
        loc="upper left",
        cellLoc="left",
        colLoc="left",
        edges="horizontal",
    )
    table.auto_set_font_size(False)
    table.set_fontsize(8)
    table.auto_set_column_width(range(len(columns)))
    for cell in table.get_celld().values():
        cell.set_linewidth(0.3)


def _legend(form: str, labels: dict[str, str]) -> str:
    if not form:
        return ", ".join(value for name, value in labels.items() if name != "__name__") or "value"
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda found: labels.get(found[1], ""), form)


def _at(times: Sequence[float], series: Series) -> list[float]:
    values = dict(series.points)
    return [values.get(at, 0.0) for at in times]


def _is_number(value: float) -> bool:
    return math.isfinite(value)


def _color(value: float, steps: list[dict[str, Any]]) -> str:
    reached = [step["color"] for step in steps if step["value"] is None or value >= step["value"]]
    return COLORS[reached[-1]]


def worded(value: float, unit: str) -> str:
    """A value as Grafana would write it in this unit."""
    match unit:
        case "percentunit":
            return f"{100 * value:.3g} %"
        case "s":
            return _seconds(value)
        case "dateTimeFromNow":
            return f"{_seconds(max(0.0, time.time() - value / 1000))} ago"
        case "bytes":
            return _scaled(value, 1024, ("B", "KiB", "MiB", "GiB", "TiB"))
        case "reqps" | "cps" | "ops":
            return f"{_scaled(value, 1000, ('', 'k', 'M')).strip()} /s"
        case "x":
            return f"{value:.3g} x"
        case "locale":
            return f"{value:,.0f}"
    return _scaled(value, 1000, ("", "k", "M", "G")).strip()


def _seconds(value: float) -> str:
    for unit, size in (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1), ("ms", 1e-3)):
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}"
    return f"{1e6 * value:.3g} µs" if value else "0"


def _scaled(value: float, base: int, units: Sequence[str]) -> str:
    place = 0
    while abs(value) >= base and place < len(units) - 1:
        value, place = value / base, place + 1
    return f"{value:.3g} {units[place]}"


def main() -> None:
    """Draw all dashboards for the last `--minutes`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prometheus", default="http://localhost:9090")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    end = time.time()
    draw_dashboards(args.prometheus, end - 60 * args.minutes, end, args.out)


if __name__ == "__main__":
    main()
