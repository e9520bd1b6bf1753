"""The deployment files against what they deploy: names of metrics, settings, mounts, ports."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.metrics import MetricWrapperBase

from service.metrics import Metrics
from service.settings import PREFIX, Settings

ROOT = Path(__file__).parents[1]
DASHBOARDS = sorted((ROOT / "deploy/grafana/dashboards").glob("*.json"))
PROVISIONING = ROOT / "deploy/grafana/provisioning"
PROMETHEUS = ROOT / "deploy/prometheus/prometheus.yml"
EXTRA_SAMPLES = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum"), "gauge": ("",)}
GENERATED_BY_PROMETHEUS = {"up", "instance", "job", "le"}

promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


def load_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def walk(node: Any) -> Iterator[dict[str, Any]]:
    """Every object inside a JSON document, at any depth."""
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from walk(child)


def expressions() -> list[str]:
    documents = [json.loads(path.read_text(encoding="utf-8")) for path in DASHBOARDS]
    return [node["expr"] for document in documents for node in walk(document) if "expr" in node]


def sample_names(metrics: Metrics) -> set[str]:
    return {
        family.name + suffix
        for family in metrics.registry.collect()
        for suffix in EXTRA_SAMPLES.get(family.type, ("",))
    }


def label_names(metrics: Metrics) -> set[str]:
    declared = [metric for metric in vars(metrics).values() if isinstance(metric, MetricWrapperBase)]
    # prometheus_client has no public way to ask for them before a first sample.
    return {name for metric in declared for name in metric._labelnames}


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return load_yaml(ROOT / "docker-compose.yml")


def test_there_is_a_dashboard_and_it_asks_something() -> None:
    assert DASHBOARDS
    assert expressions()


@pytest.mark.parametrize("expression", expressions())
def test_a_dashboard_names_only_metrics_and_labels_that_the_service_declares(expression: str) -> None:
    metrics = Metrics()
    named = set(re.findall(r"\b(?:glyphrec|process)_\w+", expression))
    assert named
    assert named <= sample_names(metrics)
    matched = re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", expression)
    grouped = [
        name for names in re.findall(r"\bby\s*\(([^)]*)\)", expression) for name in re.split(r"[,\s]+", names)
    ]
    assert {*matched, *grouped} <= label_names(metrics) | GENERATED_BY_PROMETHEUS


def test_dashboards_and_provisioning_agree_on_the_data_source() -> None:
    sources = [
        source for path in PROVISIONING.glob("datasources/*") for source in load_yaml(path)["datasources"]
    ]
    provisioned = {source["uid"] for source in sources}
    asked = {
        node["datasource"]["uid"]
        for path in DASHBOARDS
        for node in walk(json.loads(path.read_text(encoding="utf-8")))
        if "datasource" in node
    }
    assert asked == provisioned


def test_panels_of_a_dashboard_do_not_overlap() -> None:
    for path in DASHBOARDS:
        taken: dict[tuple[int, int], str] = {}
        for panel in json.loads(path.read_text(encoding="utf-8"))["panels"]:
            place = panel["gridPos"]
            for x in range(place["x"], place["x"] + place["w"]):
                for y in range(place["y"], place["y"] + place["h"]):
                    assert x < 24
                    assert taken.setdefault((x, y), panel["title"]) == panel["title"]


def test_every_file_that_compose_mounts_exists(compose: dict[str, Any]) -> None:
    mounts = [mount for service in compose["services"].values() for mount in service.get("volumes", [])]
    sources = [mount.split(":")[0] for mount in mounts if mount.startswith("./")]
    assert sources
    assert [source for source in sources if not (ROOT / source).exists()] == []
    named = {mount.split(":")[0] for mount in mounts if re.match(r"[a-z]", mount)}
    assert named == set(compose["volumes"])


def test_grafana_looks_for_dashboards_where_compose_mounts_them(compose: dict[str, Any]) -> None:
    grafana = compose["services"]["grafana"]
    mounted = {mount.split(":")[1]: mount.split(":")[0] for mount in grafana["volumes"]}
    for path in PROVISIONING.glob("dashboards/*"):
        for provider in load_yaml(path)["providers"]:
            assert mounted[provider["options"]["path"]] == "./deploy/grafana/dashboards"
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (ROOT / mounted[str(home.parent)] / home.name).is_file()


def test_images_are_of_a_stated_version(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        assert re.search(r":.*\d|^glyphrec:", service["image"])
        assert not service["image"].endswith(":latest")


def test_compose_publishes_nothing_beyond_this_machine(compose: dict[str, Any]) -> None:
    ports = [port for service in compose["services"].values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_compose_says_what_to_set_where_a_required_variable_is_missing(compose: dict[str, Any]) -> None:
    service = compose["services"]["glyphrec"]
    for variable in ("GLYPHREC_API_KEYS", "BUNDLE"):
        assert re.search(r"\$\{" + variable + r":\?[^}]{20,}\}", json.dumps(service))


def test_settings_named_in_the_deployment_files_exist() -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    for name in ("Dockerfile", "docker-compose.yml", "deploy/compose.gpu.yml"):
        named = re.findall(PREFIX + r"[A-Z_]*[A-Z]", (ROOT / name).read_text(encoding="utf-8"))
        assert set(named) <= known, name


def test_everything_speaks_of_the_port_that_the_image_serves(compose: dict[str, Any]) -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    port = re.search(r"GLYPHREC_PORT=(\d+)", dockerfile)
    assert port
    assert f"EXPOSE {port[1]}\n" in dockerfile
    assert compose["services"]["glyphrec"]["ports"] == [f"127.0.0.1:{port[1]}:{port[1]}"]
    scraped = load_yaml(PROMETHEUS)["scrape_configs"][0]["dns_sd_configs"][0]
    assert (scraped["names"], scraped["port"]) == (["glyphrec"], int(port[1]))


def test_the_image_gets_every_file_that_it_copies() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        source
        for arguments in re.findall(r"^COPY (?!--)(.*)$", dockerfile, flags=re.MULTILINE)
        for source in arguments.split()[:-1]
    }
    assert copied == sent


def test_the_image_does_not_run_as_root() -> None:
    last_stage = (ROOT / "Dockerfile").read_text(encoding="utf-8").split("\nFROM ")[-1]
    assert re.search(r"^USER [1-9]\d*$", last_stage, flags=re.MULTILINE)


def test_compose_gives_the_service_no_way_to_write_or_to_gain_rights(compose: dict[str, Any]) -> None:
    service = compose["services"]["glyphrec"]
    assert service["read_only"] is True
    assert service["tmpfs"] == ["/tmp"]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"cap_add", "privileged", "user"} & service.keys()
    assert all(mount.endswith(":ro") for mount in service["volumes"])


@promtool
def test_prometheus_accepts_its_configuration() -> None:
    subprocess.run(["promtool", "check", "config", PROMETHEUS], check=True, capture_output=True)


@promtool
def test_prometheus_can_parse_every_expression_of_the_dashboards(tmp_path: Path) -> None:
    rules = [
        {"record": f"expression_{i}", "expr": expression.replace("$__rate_interval", "1m")}
        for i, expression in enumerate(expressions())
    ]
    path = tmp_path / "rules.yml"
    path.write_text(json.dumps({"groups": [{"name": "dashboards", "rules": rules}]}))  # JSON is YAML
    checked = subprocess.run(["promtool", "check", "rules", path], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
