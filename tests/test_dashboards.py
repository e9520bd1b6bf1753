"""The dashboards against the code that writes them, the metrics they name, and the data source they find."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.grafana.build import FOLDER, dashboards
from tests.alerting import RECORDED, RECORDED_LABELS
from tests.exported import label_names, labels_named, metrics_named, sample_names
from tests.house import ROOT

PROVISIONING = ROOT / "deploy/grafana/provisioning"
DASHBOARDS = {
    path.stem: json.loads(path.read_text(encoding="utf-8")) for path in sorted(FOLDER.glob("*.json"))
}
PANELS = [
    pytest.param(panel, id=f"{name}: {panel['title']}")
    for name, document in DASHBOARDS.items()
    for panel in document["panels"]
    if panel["type"] != "row"
]
# A link to a dashboard names its uid, so a uid keeps its spelling.
UIDS = {"catalog": "glyphrec-catalogue"}


def walk(node: Any) -> Iterator[dict[str, Any]]:
    """Every object inside a JSON document, at any depth."""
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from walk(child)


def test_the_files_are_what_the_code_writes_byte_for_byte() -> None:
    """make dashboards writes them."""
    written = {path.name: path.read_bytes() for path in FOLDER.iterdir()}
    assert written == {name: text.encode() for name, text in dashboards()}


def test_there_is_a_dashboard_for_each_question() -> None:
    assert set(DASHBOARDS) == {"service", "latency", "catalog", "model", "resources"}


@pytest.mark.parametrize("name", DASHBOARDS)
def test_a_dashboard_is_one_by_the_schema_of_the_sdk(name: str) -> None:
    """What the schema does not know is lost on the way: nothing is, but for the words of the annotation."""
    document = DASHBOARDS[name]
    read = json.loads(json.dumps(Dashboard.from_json(document), default=lambda each: each.to_json()))
    for each in document["annotations"]["list"]:
        del each["titleFormat"], each["textFormat"], each["tagKeys"]
    assert read == document


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_names_only_metrics_and_labels_that_exist(panel: dict[str, Any]) -> None:
    assert panel["targets"]
    for target in panel["targets"]:
        named = metrics_named(target["expr"])
        assert named
        assert named <= sample_names() | RECORDED
        assert labels_named(target["expr"]) <= label_names() | RECORDED_LABELS


@pytest.mark.parametrize("panel", PANELS)
def test_a_panel_says_its_unit_what_it_tells_and_what_is_bad(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    steps = panel["fieldConfig"]["defaults"]["thresholds"]["steps"]
    assert steps[0]["value"] is None
    values = [step["value"] for step in steps[1:]]
    assert values == sorted(values)


@pytest.mark.parametrize("name", DASHBOARDS)
def test_every_dashboard_has_the_same_frame(name: str) -> None:
    document = DASHBOARDS[name]
    assert document["uid"] == UIDS.get(name, f"glyphrec-{name}")
    variables = {each["name"]: each["type"] for each in document["templating"]["list"]}
    assert variables == {"datasource": "datasource"} | dict.fromkeys(
        ("job", "catalog", "instance", "model"), "query"
    )
    assert [each["name"] for each in document["annotations"]["list"]] == ["Model changes"]
    assert [link["type"] for link in document["links"]] == ["dashboards"]
    assert document["links"][0]["tags"] == document["tags"]


def test_grafana_knows_how_often_prometheus_scrapes() -> None:
    """Its default of 15 s would make the window of every rate three times too long."""
    scraped = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8"))
    (source,) = yaml.safe_load((PROVISIONING / "datasources/prometheus.yml").read_text())["datasources"]
    assert source["jsonData"]["timeInterval"] == scraped["global"]["scrape_interval"]


def test_the_shares_of_the_dashboard_are_those_of_the_objectives() -> None:
    """The same routes above and below the line, so that no share exceeds 1."""
    rules = (ROOT / "deploy/prometheus/rules/recording.yml").read_text(encoding="utf-8")
    (errors,) = (each for each in DASHBOARDS["service"]["panels"] if each["title"] == "Errors and refusals")
    for target in errors["targets"]:
        asked = set(re.findall(r"glyphrec_http_requests_total\{([^}]*)\}", target["expr"]))
        asked = {each.removeprefix('job=~"$job",instance=~"$instance",') for each in asked}
        assert len({re.search(r'route=~"[^"]*"', each)[0] for each in asked}) == 1  # type: ignore[index]
        assert [each for each in asked if f"glyphrec_http_requests_total{{{each}}}" not in rules] == []


def test_no_expression_names_a_job() -> None:
    """The job has the name that the operator gives it."""
    assert [each for each in PANELS if 'job="' in json.dumps(each.values[0]["targets"])] == []


def test_dashboards_ask_the_data_source_that_is_provisioned() -> None:
    """Through a variable, which takes the default one of its type."""
    sources = [
        source
        for path in PROVISIONING.glob("datasources/*")
        for source in yaml.safe_load(path.read_text(encoding="utf-8"))["datasources"]
    ]
    assert [(source["type"], source["isDefault"]) for source in sources] == [("prometheus", True)]
    for document in DASHBOARDS.values():
        asked = {node["datasource"]["uid"] for node in walk(document) if "datasource" in node}
        assert asked == {"${datasource}"}
        assert document["templating"]["list"][0]["query"] == "prometheus"


@pytest.mark.parametrize("name", DASHBOARDS)
def test_panels_of_a_dashboard_do_not_overlap(name: str) -> None:
    taken: dict[tuple[int, int], int] = {}
    for panel in DASHBOARDS[name]["panels"]:
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert x < 24
                assert taken.setdefault((x, y), panel["id"]) == panel["id"]


@pytest.mark.parametrize("name", DASHBOARDS)
def test_no_panel_has_the_title_of_another_on_its_dashboard(name: str) -> None:
    titles = [panel["title"] for panel in DASHBOARDS[name]["panels"]]
    assert len(titles) == len(set(titles))


def test_every_dashboard_has_its_picture_in_the_documentation() -> None:
    """make pictures draws them."""
    pictures = {path.stem for path in ROOT.glob("docs/dashboards/*.png")}
    assert pictures == set(DASHBOARDS)
    shown = (ROOT / "docs/operations.md").read_text(encoding="utf-8")
    assert [name for name in DASHBOARDS if f"(dashboards/{name}.png)" not in shown] == []
