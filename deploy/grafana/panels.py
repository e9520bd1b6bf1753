"""The vocabulary of the dashboards: queries, panels, and the frame around every dashboard."""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, table, timeseries
from grafana_foundation_sdk.models import common as kinds
from grafana_foundation_sdk.models import dashboard as models
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

SOURCE = models.DataSourceRef(type_val="prometheus", uid="${datasource}")
TAG = "glyphrec"
WIDTH = 24  # of Grafana's grid

Panel = stat.Panel | timeseries.Panel | table.Panel
P = TypeVar("P", stat.Panel, timeseries.Panel, table.Panel)
Steps = Sequence[tuple[float, str]]  # (from this value on, color); green below all of them


class Query(NamedTuple):
    """A PromQL expression and the legend of its series. Grafana fills {{label}} in the legend."""

    expr: str
    legend: str = ""


# PromQL


def where(**matchers: str) -> str:
    """Matchers of the chosen replicas and of `matchers`: route="/recommend", status="~5..", say."""
    parts = ['job=~"$job"', 'instance=~"$instance"']
    for label, value in matchers.items():
        operator = "!~" if value.startswith("!~") else "=~" if value.startswith("~") else "="
        parts.append(f'{label}{operator}"{value.removeprefix("!").removeprefix("~")}"')
    return "{" + ",".join(parts) + "}"


def total(metric: str, *by: str, func: str = "sum", **matchers: str) -> str:
    """A gauge of the chosen replicas, aggregated with `func` over all labels but `by`."""
    return f"{func}{_by(by)}({metric}{where(**matchers)})"


def rate(counter: str, *by: str, **matchers: str) -> str:
    """Per second, summed over all labels but `by`."""
    return f"sum{_by(by)}(rate({counter}{where(**matchers)}[$__rate_interval]))"


def mean(histogram: str, *by: str, **matchers: str) -> str:
    """The mean observation of a histogram. No data while there are no observations."""
    return (
        f"{rate(histogram + '_sum', *by, **matchers)} / ({rate(histogram + '_count', *by, **matchers)} > 0)"
    )


def quantile(q: float, histogram: str, *by: str, **matchers: str) -> str:
    """An estimate of quantile `q`, 0 to 1, from the histogram's buckets. No data without observations."""
    return f"histogram_quantile({q}, {rate(histogram + '_bucket', 'le', *by, **matchers)}) >= 0"


def share(part: str, whole: str) -> str:
    """0 if there is a whole but no part of it yet; no data if there is no whole."""
    return f"({part} or 0 * {whole}) / ({whole} > 0)"


def or_zero(shares: str, whole: str) -> str:
    """`shares`, but 0 instead of no data while there is no whole."""
    return f"{shares} or 0 * {whole}"


def of_model(rates: str) -> str:
    """A rate by instance and job -> by the model that the instance serves, for the chosen models."""
    info = f"glyphrec_model_info{where(recommender_id='~$model')}"
    return f"sum by (recommender_id)({rates} * on (instance, job) group_left (recommender_id) {info})"


def _by(labels: Sequence[str]) -> str:
    return f" by ({', '.join(labels)})" if labels else ""


# Panels


def number(
    title: str,
    description: str,
    unit: str,
    expr: str | Query,
    steps: Steps = (),
    *,
    width: int = 3,
    height: int = 4,
    without: str = "no data",
) -> stat.Panel:
    """The present value, colored by its thresholds, with its history behind it. `without`: for no value."""
    query = Query(expr) if isinstance(expr, str) else expr
    panel = (
        stat.Panel()
        .color_mode(kinds.BigValueColorMode.VALUE)
        .graph_mode(kinds.BigValueGraphMode.AREA)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .no_value(without)
        .with_target(_target(query, 0))
    )
    return _dressed(panel, title, description, unit, steps, width, height)


def lines(
    title: str,
    description: str,
    unit: str,
    *queries: Query,
    steps: Steps = (),
    width: int = 8,
    stacked: bool = False,
    most: float | None = None,
) -> timeseries.Panel:
    """Series over time. Thresholds are dashed lines."""
    panel = (
        timeseries.Panel()
        .line_width(1)
        .fill_opacity(30 if stacked else 5)
        .show_points(kinds.VisibilityMode.NEVER)
        .min(0)
        .legend(
            common.VizLegendOptions()
            .display_mode(kinds.LegendDisplayMode.TABLE)
            .placement(kinds.LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs(["mean", "lastNotNull"])
        )
        .tooltip(
            common.VizTooltipOptions().mode(kinds.TooltipDisplayMode.MULTI).sort(kinds.SortOrder.DESCENDING)
        )
        .thresholds_style(
            common.GraphThresholdsStyleConfig().mode(
                kinds.GraphThresholdsStyleMode.DASHED if steps else kinds.GraphThresholdsStyleMode.OFF
            )
        )
    )
    if most is not None:
        panel.max(most)
    if stacked:
        panel.stacking(common.StackingConfig().mode(kinds.StackingMode.NORMAL))
    for place, query in enumerate(queries):
        panel.with_target(_target(query, place))
    return _dressed(panel, title, description, unit, steps, width, 8)


def rows(
    title: str,
    description: str,
    unit: str,
    expr: str,
    columns: dict[str, str],
    *,
    width: int,
    steps: Steps = (),
) -> table.Panel:
    """The present series of one query, one per row. `columns` maps labels, or Value, to headings."""
    query = (
        prometheus.Dataquery()
        .expr(expr)
        .instant()
        .format(PromQueryFormat.TABLE)
        .ref_id("A")
        .datasource(SOURCE)
    )
    shown = {
        "includeByName": dict.fromkeys(columns, True),
        "renameByName": columns,
        "indexByName": {label: place for place, label in enumerate(columns)},
    }
    panel = (
        table.Panel()
        .with_target(query)
        .with_transformation(models.DataTransformerConfig(id_val="organize", options=shown))
    )
    return _dressed(panel, title, description, unit, steps, width, 8)


def _target(query: Query, place: int) -> prometheus.Dataquery:
    target = prometheus.Dataquery().expr(query.expr).range().ref_id("ABCDEFGH"[place]).datasource(SOURCE)
    return target.legend_format(query.legend) if query.legend else target


def _dressed(panel: P, title: str, description: str, unit: str, steps: Steps, width: int, height: int) -> P:
    colors = [models.Threshold(value=None, color="green")]
    colors += [models.Threshold(value=value, color=color) for value, color in steps]
    if steps and steps[0][0] == 0:  # all of it has a color of its own
        colors = [models.Threshold(value=None, color=steps[0][1]), *colors[2:]]
    return (
        panel.title(title)
        .description(description)
        .unit(unit)
        .thresholds(dashboard.ThresholdsConfig().mode(models.ThresholdsMode.ABSOLUTE).steps(colors))
        .datasource(SOURCE)
        .span(width)
        .height(height)
    )


# Dashboards


class Row(NamedTuple):
    """Panels under one heading."""

    title: str
    panels: Sequence[Panel]


def framed(uid: str, title: str, description: str, content: Sequence[Row]) -> models.Dashboard:
    """A dashboard with the variables, annotations and links that all of them have."""
    frame = (
        dashboard.Dashboard(f"glyphrec: {title}")
        .uid(uid)
        .description(description)
        .tags([TAG])
        .readonly()
        .time("now-1h", "now")
        .refresh("10s")
        .tooltip(models.DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(_chosen("job", "Job", "label_values(glyphrec_ready, job)"))
        .with_variable(
            _chosen(
                "catalog", "Catalog", 'label_values(glyphrec_catalog_info{job=~"$job"}, catalog)'
            ).description("GLYPHREC_CATALOG. It chooses the replicas that serve it.")
        )
        .with_variable(
            _chosen(
                "instance",
                "Replica",
                'label_values(glyphrec_catalog_info{job=~"$job",catalog=~"$catalog"}, instance)',
            ).description("One process, one port, one replica.")
        )
        .with_variable(
            _chosen("model", "Model version", "label_values(glyphrec_model_info, recommender_id)")
            .description("recommender_id in GET /info, model_version in every recommendation.")
            .all_value(".*")
        )
        .annotation(_ModelChange())
        .link(
            dashboard.DashboardLink("Other glyphrec dashboards")
            .type(models.DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .include_vars(True)
            .keep_time(True)
        )
    )
    number_of_panel = 0
    for row in content:
        number_of_panel += 1
        frame.with_row(dashboard.Row(row.title).id(number_of_panel))
        for panel in row.panels:
            number_of_panel += 1
            frame.with_panel(panel.id(number_of_panel))
    return frame.build()


def _chosen(name: str, label: str, query: str) -> dashboard.QueryVariable:
    """All of them stands for each that the query finds: `.*` would also match the processes of other jobs."""
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .query({"query": query, "refId": name})
        .datasource(SOURCE)
        .refresh(models.VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(models.VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
    )


class _ModelChange(dashboard.AnnotationQuery):
    """A mark where a replica took another bundle, while it ran or at a start, with the model's id.

    A start with the bundle that the replica had before makes no mark.
    """

    def build(self) -> models.AnnotationQuery:
        info = f"glyphrec_model_info{where()}"
        before = f"last_over_time({info}[1h] offset 1m)"
        labels = "job, instance, recommender_id"
        switched = f"increase(glyphrec_bundle_swaps_total{where(result='switched')}[1m]) > 0"
        return _Worded(
            name="Model changes",
            datasource=SOURCE,
            icon_color="purple",
            expr=(
                f"max by ({labels}) (({switched}) * on (job, instance) group_left (recommender_id) {info}) "
                f"or max by ({labels}) ({info} unless on ({labels}) {before} and on (job, instance) {before})"
            ),
        )


class _Worded(models.AnnotationQuery):
    """Adds the texts of the mark. Grafana has these fields, the SDK does not."""

    def to_json(self) -> dict[str, object]:
        return super().to_json() | {
            "titleFormat": "{{instance}} took another bundle",
            "textFormat": "It serves {{recommender_id}} now.",
            "tagKeys": "instance",
        }
