"""The deployment files against what they deploy: settings, mounts, ports. Not dashboards and rules."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.commands import health
from service.settings import PREFIX, Settings
from tests.house import PROJECT, ROOT

PROVISIONING = ROOT / "deploy/grafana/provisioning"
PROMETHEUS = ROOT / "deploy/prometheus/prometheus.yml"


def load_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return load_yaml(ROOT / "docker-compose.yml")


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


def test_prometheus_looks_for_rules_where_compose_mounts_them(compose: dict[str, Any]) -> None:
    mounted = {
        mount.split(":")[1]: mount.split(":")[0] for mount in compose["services"]["prometheus"]["volumes"]
    }
    for pattern in load_yaml(PROMETHEUS)["rule_files"]:
        folder = Path("/etc/prometheus") / pattern
        assert mounted[str(folder.parent)] == "./deploy/prometheus/rules"
        assert list(PROMETHEUS.parent.glob(pattern))


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


def test_settings_named_in_deployment_files_and_by_the_guides_of_operators_exist() -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    guides = ("docs/operations.md", "docs/runbook.md")
    for name in ("Dockerfile", "docker-compose.yml", "deploy/compose.gpu.yml", *guides):
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


def test_the_image_checks_its_health_where_its_environment_lets_it_listen() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    (check,) = re.findall(r"^HEALTHCHECK .*$", dockerfile, flags=re.MULTILINE)
    assert check.endswith(' CMD ["glyphrec", "health"]')  # test_serve.py runs it
    (timeout_s,) = re.findall(r"--timeout=(\d+)s", check)
    assert int(timeout_s) > health.TIMEOUT_S


def test_a_signal_ends_the_container_before_python_can_have_a_handler(compose: dict[str, Any]) -> None:
    assert compose["services"]["glyphrec"]["init"] is True


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


def test_the_image_is_told_its_version_because_it_is_built_without_git() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    (build,) = [stage for stage in dockerfile.split("\nFROM ") if stage.startswith("base AS build\n")]
    assert re.search(r"^ARG VERSION=\d", build, flags=re.MULTILINE)
    variable = f"SETUPTOOLS_SCM_PRETEND_VERSION_FOR_{PROJECT['name'].upper()}"
    assert f'{variable}="${{VERSION}}" \\\n    /opt/glyphrec/bin/pip install' in build
