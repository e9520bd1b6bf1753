"""What the service exports, as dashboards, rules and alerts may name it."""

import re

from prometheus_client.metrics import MetricWrapperBase

from service.telemetry.merging import WorkerMetrics
from service.telemetry.metrics import Metrics
from service.telemetry.tallies import CountFamily, TallyFamily

EXTRA_SAMPLES = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "gauge": ("",)}
GENERATED_BY_PROMETHEUS = {"up", "instance", "job", "le", "ALERTS", "alertname", "alertstate"}


def metrics_named(expr: str) -> set[str]:
    return set(re.findall(r"\b(?:(?:glyphrec|process)_\w+|glyphrec:[\w:]+|up|ALERTS)\b", expr))


def labels_named(expr: str) -> set[str]:
    matched = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", expr)
    lists = re.findall(r"\b(?:by|on|group_left)\s*\(([^)]*)\)", expr)
    return {*matched, *(name for names in lists for name in re.split(r"[,\s]+", names) if name)}


def sample_names() -> set[str]:
    metrics = Metrics()
    families = [*metrics.registry.collect(), *(one for each in _declared(metrics) for one in each.describe())]
    return {
        family.name + suffix for family in families for suffix in EXTRA_SAMPLES.get(family.type, ("",))
    } | GENERATED_BY_PROMETHEUS


def label_names() -> set[str]:
    # prometheus_client has no public way to ask for them before a first sample.
    metrics = Metrics()
    found = {name for each in _declared(metrics) for name in each._labelnames}
    ours = [each for each in vars(metrics).values() if isinstance(each, CountFamily | TallyFamily)]
    return found | {name for each in ours for name in each.label_names} | GENERATED_BY_PROMETHEUS


def _declared(metrics: Metrics) -> list[MetricWrapperBase]:
    found = (*vars(metrics).values(), *vars(WorkerMetrics(1)).values())
    return [each for each in found if isinstance(each, MetricWrapperBase)]
