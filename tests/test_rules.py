"""Recording rules and alerts: what they name exists, each alert is tested and has its runbook entry."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from deploy.grafana.pictures import filled
from tests.alerting import ALERTS, PROMETHEUS, RECORDED, RECORDED_LABELS, load_yaml, rules
from tests.exported import label_names, labels_named, metrics_named, sample_names
from tests.house import ROOT

RUNBOOK = ROOT / "docs/runbook.md"
# As deploy/fetch_prometheus.sh leaves it.
PROMTOOL = shutil.which("promtool", path=f"{os.environ['PATH']}:{ROOT}/.glyphrec/prometheus/usr/bin")

promtool = pytest.mark.skipif(
    PROMTOOL is None,
    reason="no promtool. deploy/fetch_prometheus.sh fetches it from Debian",
)


def tool(*arguments: str | Path) -> str:
    """What promtool says where it finds fault."""
    assert PROMTOOL
    done = subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stdout + done.stderr


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_names_only_metrics_and_labels_that_exist(rule: dict[str, Any]) -> None:
    assert metrics_named(rule["expr"]) <= sample_names() | RECORDED
    assert labels_named(rule["expr"]) <= label_names() | RECORDED_LABELS


@pytest.mark.parametrize("name", ALERTS)
def test_an_alert_says_what_is_wrong_how_urgent_it_is_and_what_to_do(name: str) -> None:
    alert = ALERTS[name]
    assert alert["labels"]["severity"] in {"page", "ticket"}
    assert alert["annotations"].keys() == {"summary", "description", "runbook_url"}
    address = '{{ or $externalLabels.runbook "docs/runbook.md" }}'
    assert alert["annotations"]["runbook_url"] == f"{address}#{name.lower()}"


def test_every_alert_has_its_entry_in_the_runbook_and_every_entry_its_alert() -> None:
    entries = re.findall(r"^### (Glyphrec\w+)$", RUNBOOK.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(entries) == sorted(ALERTS)


def test_every_alert_is_tested_to_fire() -> None:
    expected = {
        test["alertname"]
        for path in PROMETHEUS.glob("tests/*.yml")
        for case in load_yaml(path)["tests"]
        for test in case["alert_rule_test"]
        if test["exp_alerts"]
    }
    assert expected == ALERTS.keys()


@promtool
def test_alerts_fire_on_the_bad_series_and_not_on_the_good_ones() -> None:
    assert tool("test", "rules", *sorted(PROMETHEUS.glob("tests/*.yml"))) == ""


def test_the_example_of_an_alertmanager_sends_each_severity_somewhere() -> None:
    example = load_yaml(PROMETHEUS / "alertmanager.yml")
    receivers = {each["name"] for each in example["receivers"]}
    routes = [example["route"], *example["route"]["routes"]]
    assert {each["receiver"] for each in routes} == receivers
    matched = [matcher for each in example["route"]["routes"] for matcher in each["matchers"]]
    assert matched == ['severity="page"'], "all else goes to the first receiver"
    named = re.findall(r"Glyphrec\w+", (PROMETHEUS / "alertmanager.yml").read_text(encoding="utf-8"))
    assert set(named) <= ALERTS.keys()


@promtool
def test_prometheus_accepts_its_configuration() -> None:
    assert tool("check", "config", PROMETHEUS / "prometheus.yml") == ""


@promtool
def test_prometheus_can_parse_every_expression_of_the_dashboards(tmp_path: Path) -> None:
    documents = [
        json.loads(path.read_text(encoding="utf-8")) for path in ROOT.glob("deploy/grafana/dashboards/*")
    ]
    targets = [
        target for each in documents for panel in each["panels"] for target in panel.get("targets", [])
    ]
    asked = [
        {"record": f"expression_{place}", "expr": target["expr"].replace("$__rate_interval", "1m")}
        for place, target in enumerate(targets)
    ]
    path = tmp_path / "rules.yml"
    path.write_text(json.dumps({"groups": [{"name": "dashboards", "rules": asked}]}))  # JSON is YAML
    assert tool("check", "rules", path) == ""


@promtool
def test_a_change_of_the_model_is_marked_and_a_restart_with_the_same_bundle_is_not(tmp_path: Path) -> None:
    document = json.loads((ROOT / "deploy/grafana/dashboards/service.json").read_text(encoding="utf-8"))
    (mark,) = (each["expr"] for each in document["annotations"]["list"])
    swaps, info = (
        'glyphrec_bundle_swaps_total{job="g",instance="%s",result="switched"}',
        "glyphrec_model_info",
    )
    of = info + '{job="g",instance="%s",recommender_id="%s"}'
    series = [
        (swaps % "restarted", "0x20"),
        (of % ("restarted", "old"), "1x8 stale 1x11"),
        (swaps % "switched", "0x9 1x11"),
        (of % ("switched", "old"), "1x9 stale"),
        (of % ("switched", "new"), "_x10 1x10"),
        (swaps % "upgraded", "0x20"),
        (of % ("upgraded", "old"), "1x8 stale"),
        (of % ("upgraded", "new"), "_x10 1x10"),
    ]

    def marked(time: str, *instances: str) -> dict[str, Any]:
        labels = [f'{{job="g",instance="{each}",recommender_id="new"}}' for each in instances]
        samples = [{"labels": each, "value": 1} for each in labels]
        expr = f"count by (job, instance, recommender_id) ({filled(mark, '1m')})"
        return {"expr": expr, "eval_time": time, "exp_samples": samples}

    case = {
        "interval": "30s",
        "input_series": [{"series": name, "values": values} for name, values in series],
        "promql_expr_test": [marked("4m"), marked("5m", "switched", "upgraded"), marked("8m")],
    }
    path = tmp_path / "tests.yml"
    path.write_text(json.dumps({"evaluation_interval": "30s", "tests": [case]}))
    assert tool("test", "rules", path) == ""
