"""Every expression of every dashboard, rule and alert, asked of a Prometheus that watched a real load."""

import json
import math
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import yaml
from prometheus_client import generate_latest

from deploy.grafana.pictures import filled
from service.core.co_counts import CoCountSpec
from service.telemetry.merging import WorkerMetrics
from tests.e2e.watched import RATE_INTERVAL, ROOT, Watched, prometheus_binary, watched
from tests.known_bundle import KNOWN_ITEMS, PICTURES, write_known_bundle

LOAD_S = 25
DASHBOARDS = sorted((ROOT / "deploy/grafana/dashboards").glob("*.json"))
RULES = sorted((ROOT / "deploy/prometheus/rules").glob("*.yml"))
NO_WORKERS = "a replica of one process counts no workers; tests/e2e/test_workers.py reads what several export"
NO_GPU = "this machine has no GPU, or glyphrec[gpu] is not installed"

# What stays empty under this load, and why. The test fails too where one of these does return data.
EMPTY_PANELS = {
    ("resources", "GPU: memory in use"): NO_GPU,
    ("resources", "GPU: memory"): NO_GPU,
    ("resources", "GPU: use"): NO_GPU,
    ("resources", "Workers that answer"): NO_WORKERS,
    ("resources", "Workers that were started again"): NO_WORKERS,
    ("catalog", "Recall of the graph"): "a catalog of a few thousand items is searched without a graph",
}


class Expression(NamedTuple):
    where: str
    what: str
    expr: str

    @property
    def name(self) -> str:
        return f"{self.where}: {self.what}"


def panels() -> list[Expression]:
    return [
        Expression(path.stem, panel["title"], target["expr"])
        for path in DASHBOARDS
        for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]
        for target in panel.get("targets", [])
    ]


def annotations() -> list[Expression]:
    return [
        Expression(path.stem, each["name"], each["expr"])
        for path in DASHBOARDS
        for each in json.loads(path.read_text(encoding="utf-8"))["annotations"]["list"]
    ]


def rules(kind: str) -> list[Expression]:
    """`record` or `alert`."""
    return [
        Expression(path.stem, " ".join([rule[kind], *rule.get("labels", {}).values()]), rule["expr"])
        for path in RULES
        for group in yaml.safe_load(path.read_text(encoding="utf-8"))["groups"]
        for rule in group["rules"]
        if kind in rule
    ]


def selectors(expr: str) -> Iterator[tuple[str, str]]:
    """(metric, selector) of each series that an expression asks for."""
    for found in re.finditer(r"\b((?:glyphrec|process)_\w+|glyphrec:[\w:]+|up|ALERTS)\b(\{[^}]*\})?", expr):
        yield found[1], found[0]


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    binary = prometheus_binary()
    if binary is None:
        pytest.skip("no prometheus. deploy/fetch_prometheus.sh fetches it from Debian")
    folder = tmp_path_factory.mktemp("watched")
    bundle = write_known_bundle(folder / "bundle", KNOWN_ITEMS, co_counts=CoCountSpec(), pictures=PICTURES)
    with watched(binary, bundle, folder, LOAD_S) as seen:
        yield seen


def exported(seen: Watched) -> set[str]:
    return set(seen.prometheus.get("label/__name__/values"))


def has_data(seen: Watched, expr: str) -> bool:
    """Some finite value at some time of the load. Fails where Prometheus cannot parse the expression."""
    found = seen.prometheus.get(
        "query_range",
        query=filled(expr, RATE_INTERVAL),
        start=seen.prometheus.started_at,
        end=seen.until,
        step=0.5,
    )
    return any(math.isfinite(float(value)) for series in found["result"] for _, value in series["values"])


@pytest.mark.parametrize("each", [*panels(), *annotations(), *rules("record")], ids=lambda each: each.name)
def test_an_expression_returns_data_unless_it_is_listed_with_its_reason(
    seen: Watched, each: Expression
) -> None:
    reason = EMPTY_PANELS.get((each.where, each.what))
    if reason == NO_GPU and "glyphrec_gpu_memory_used_bytes" in exported(seen):
        reason = None
    assert has_data(seen, each.expr) == (reason is None), reason


@pytest.mark.parametrize("each", rules("alert"), ids=lambda each: each.name)
def test_all_that_an_alert_looks_at_is_there(seen: Watched, each: Expression) -> None:
    """A misspelled label would leave an alert silent for ever. What did not happen has series that are 0."""
    asked = [selector for _, selector in selectors(each.expr)]
    assert asked
    has_data(seen, each.expr)
    assert [selector for selector in asked if not has_data(seen, selector)] == []


@pytest.mark.parametrize("each", rules("record"), ids=lambda each: each.name)
def test_all_that_a_rule_looks_at_is_there(seen: Watched, each: Expression) -> None:
    assert [selector for _, selector in selectors(each.expr) if not has_data(seen, selector)] == []


def test_expressions_name_only_what_the_replicas_export_or_a_rule_records(seen: Watched) -> None:
    of_workers = re.findall(r"^(\w+)[ {]", generate_latest(WorkerMetrics(2).registry).decode(), re.MULTILINE)
    known = exported(seen) | set(of_workers)
    gpu = {name for name, _ in selectors(str(panels())) if name.startswith("glyphrec_gpu_")}
    for each in [*panels(), *annotations(), *rules("record"), *rules("alert")]:
        assert {name for name, _ in selectors(each.expr)} - gpu <= known, each


def test_prometheus_evaluates_every_rule_of_the_files(seen: Watched) -> None:
    groups: list[dict[str, Any]] = seen.prometheus.get("rules")["groups"]
    loaded = [rule for group in groups for rule in group["rules"]]
    assert len(loaded) == len(rules("record")) + len(rules("alert"))
    assert [(rule["name"], rule.get("lastError")) for rule in loaded if rule["health"] != "ok"] == []


def test_a_bundle_that_was_refused_fires_its_alert_on_each_replica(seen: Watched) -> None:
    firing = [each["labels"] for each in seen.prometheus.get("alerts")["alerts"] if each["state"] == "firing"]
    failed = {each["instance"] for each in firing if each["alertname"] == "GlyphrecModelChangeFailed"}
    assert failed == {"replica-a", "replica-b"}
