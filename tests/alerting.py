"""The recording rules and alerts of deploy/prometheus/rules, read from their files."""

from pathlib import Path
from typing import Any

import yaml

from tests.house import ROOT

PROMETHEUS = ROOT / "deploy/prometheus"


def load_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def rules() -> list[dict[str, Any]]:
    return [
        rule
        for path in sorted(PROMETHEUS.glob("rules/*.yml"))
        for group in load_yaml(path)["groups"]
        for rule in group["rules"]
    ]


ALERTS = {rule["alert"]: rule for rule in rules() if "alert" in rule}
RECORDED = {rule["record"] for rule in rules() if "record" in rule}
RECORDED_LABELS = {name for rule in rules() for name in rule.get("labels", {})}
