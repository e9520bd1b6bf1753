"""What the first row of the dashboard shows of a service that has started and answered nothing yet."""

import json

from prometheus_client.parser import text_string_to_metric_families

from deploy.grafana.pictures import filled
from tests.house import ROOT
from tests.service.running import running
from tests.test_rules import promtool, tool

SHOWN = {
    "Replicas that answer": 1,
    "Alerts": 0,
    "Requests": 0,
    "Errors": 0,
    "Refused": 0,
    "POST /recommend, p99": "no requests",
    "Catalog behind": 0,
    "Hit@10, live": "no events",
}


def series_of(text: str) -> list[dict[str, str]]:
    """Each sample of a scrape, as a series that stays as it is for two minutes."""
    found = []
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = {"job": "shop", "instance": "replica", **sample.labels}
            pairs = ",".join(f"{name}={json.dumps(value)}" for name, value in labels.items())
            found.append(
                {"series": f"{sample.name}{{{pairs}}}", "values": " ".join([str(sample.value)] * 25)}
            )
    return found


@promtool
async def test_a_fresh_service_shows_zero_where_zero_is_true(bundle, redis_url, tmp_path):
    async with running(bundle, redis_url) as client:
        text = (await client.get("/metrics")).text
    document = json.loads((ROOT / "deploy/grafana/dashboards/service.json").read_text(encoding="utf-8"))
    stats = {panel["title"]: panel for panel in document["panels"] if panel["type"] == "stat"}
    asked = []
    for title, shown in SHOWN.items():
        (target,) = stats[title]["targets"]
        samples = [] if isinstance(shown, str) else [{"labels": "{}", "value": shown}]
        asked.append({"expr": filled(target["expr"], "20s"), "eval_time": "1m", "exp_samples": samples})
        if not samples:
            assert stats[title]["fieldConfig"]["defaults"]["noValue"] == shown
    case = {"interval": "5s", "input_series": series_of(text), "promql_expr_test": asked}
    path = tmp_path / "tests.yml"
    path.write_text(json.dumps({"evaluation_interval": "5s", "tests": [case]}))  # JSON is YAML
    assert tool("test", "rules", path) == ""
