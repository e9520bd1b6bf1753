"""The deployment files against what they deploy: settings, mounts, ports. Not dashboards and rules."""

import json
import os
import re
import stat
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from redis import Redis
from redis.exceptions import AuthenticationError
from redis.exceptions import ConnectionError as RedisConnectionError

from model_export.local_service import free_port
from service.commands import health
from service.core.keys import hashed
from service.core.secret_files import FILE_VARIABLES
from service.settings import PREFIX, Settings, load_settings
from service.store.server import find_server_binary, start_server
from tests.e2e.traffic import until
from tests.house import PROJECT, ROOT

PROVISIONING = ROOT / "deploy/grafana/provisioning"
PROMETHEUS = ROOT / "deploy/prometheus/prometheus.yml"
DOCKERFILES = ("Dockerfile", "deploy/demo.Dockerfile")
COMPOSE_FILES = ("docker-compose.yml", "deploy/compose.gpu.yml", "deploy/compose.replicas.yml")
ONE_SHOT = {"keys", "demo"}


def load_yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    return load_yaml(ROOT / "docker-compose.yml")


def mounts_of(service: dict[str, Any]) -> list[dict[str, Any]]:
    """The mounts of a service, each in the long form."""
    found = []
    for mount in service.get("volumes", []):
        if isinstance(mount, str):
            source, target, *mode = mount.split(":")
            mount = {"source": source, "target": target, "read_only": mode == ["ro"]}
        found.append(mount)
    return found


def test_every_file_that_compose_mounts_exists(compose: dict[str, Any]) -> None:
    mounts = [mount["source"] for service in compose["services"].values() for mount in mounts_of(service)]
    sources = [source for source in mounts if source.startswith("./")]
    assert sources
    assert [source for source in sources if not (ROOT / source).exists()] == []
    named = {source for source in mounts if re.match(r"[a-z]", source)}
    assert named == set(compose["volumes"])


def test_a_mistyped_folder_of_bundles_is_an_error_and_not_a_new_empty_folder(compose: dict[str, Any]) -> None:
    """Only the demo, which fills it, may make it."""
    may_create = {
        name: mount["bind"]["create_host_path"]
        for name, service in compose["services"].items()
        for mount in mounts_of(service)
        if "BUNDLES" in mount["source"]
    }
    assert may_create == {"glyphrec": False, "demo": True}


def test_grafana_looks_for_dashboards_where_compose_mounts_them(compose: dict[str, Any]) -> None:
    grafana = compose["services"]["grafana"]
    mounted = {mount["target"]: mount["source"] for mount in mounts_of(grafana)}
    for path in PROVISIONING.glob("dashboards/*"):
        for provider in load_yaml(path)["providers"]:
            assert mounted[provider["options"]["path"]] == "./deploy/grafana/dashboards"
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert (ROOT / mounted[str(home.parent)] / home.name).is_file()


def test_prometheus_looks_for_rules_where_compose_mounts_them(compose: dict[str, Any]) -> None:
    mounted = {mount["target"]: mount["source"] for mount in mounts_of(compose["services"]["prometheus"])}
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
    replicas = load_yaml(ROOT / "deploy/compose.replicas.yml")["services"]
    assert replicas["balancer"]["ports"] == ["127.0.0.1:8000:8000"]


def test_compose_needs_no_variable_to_be_set(compose: dict[str, Any]) -> None:
    """A newcomer starts it as it is."""
    asked = re.findall(r"(?<!\$)\$\{([^}]*)\}", json.dumps(compose))
    assert asked
    assert [each for each in asked if not re.fullmatch(r"[A-Z_]+:-.*", each)] == []


def test_settings_named_in_deployment_files_and_by_the_guides_of_operators_exist() -> None:
    known = {PREFIX + name.upper() for name in Settings.model_fields} | FILE_VARIABLES
    guides = ("docs/deployment.md", "docs/kubernetes.md", "docs/operations.md", "docs/runbook.md")
    manifests = [str(path.relative_to(ROOT)) for path in (ROOT / "deploy/kubernetes").glob("*.yaml")]
    assert manifests
    for name in (*DOCKERFILES, *COMPOSE_FILES, *guides, *manifests):
        named = re.findall(PREFIX + r"[A-Z_]*[A-Z]", (ROOT / name).read_text(encoding="utf-8"))
        assert set(named) <= known, name


def test_everything_speaks_of_the_port_that_the_image_serves(compose: dict[str, Any]) -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    port = re.search(r"GLYPHREC_PORT=(\d+)", dockerfile)
    assert port
    assert f"EXPOSE {port[1]}\n" in dockerfile
    assert compose["services"]["glyphrec"]["ports"] == [f"127.0.0.1:${{PORTS:-{port[1]}}}:{port[1]}"]
    balancer = (ROOT / "deploy/nginx.conf").read_text(encoding="utf-8")
    assert f"server glyphrec:{port[1]} resolve" in balancer
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


def test_the_builder_gets_the_files_that_are_copied_and_no_others() -> None:
    dockerfiles = "".join((ROOT / name).read_text(encoding="utf-8") for name in DOCKERFILES)
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        source
        for arguments in re.findall(r"^COPY (?!--)(.*)$", dockerfiles, flags=re.MULTILINE)
        for source in arguments.split()[:-1]
    }
    assert copied == sent


def test_the_image_does_not_run_as_root() -> None:
    last_stage = (ROOT / "Dockerfile").read_text(encoding="utf-8").split("\nFROM ")[-1]
    assert re.search(r"^USER [1-9]\d*$", last_stage, flags=re.MULTILINE)


def test_no_container_can_write_outside_its_volumes_or_gain_rights(compose: dict[str, Any]) -> None:
    for name, service in compose["services"].items():
        if name == "demo":  # it serves nothing, and writes the bundle as root
            continue
        assert service["read_only"] is True, name
        assert service["tmpfs"] == ["/tmp"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not {"cap_add", "privileged"} & service.keys(), name
    service = compose["services"]["glyphrec"]
    assert "user" not in service, "that of the image"
    assert all(mount["read_only"] for mount in mounts_of(service))


def test_every_container_that_stays_has_limits_and_a_log_that_does_not_grow(compose: dict[str, Any]) -> None:
    for name in compose["services"].keys() - ONE_SHOT:
        service = compose["services"][name]
        assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory", "pids"}, name
        assert service["logging"]["options"].keys() == {"max-size", "max-file"}, name
        assert service["restart"] == "unless-stopped", name


def test_only_the_service_reaches_redis(compose: dict[str, Any]) -> None:
    networks = {name: each.get("networks") for name, each in compose["services"].items()}
    assert {name for name, each in networks.items() if each is None} == ONE_SHOT
    assert {name for name, each in networks.items() if each and "store" in each} == {"glyphrec", "redis"}
    assert networks["redis"] == ["store"]
    assert compose["networks"]["store"]["internal"] is True
    for name in ONE_SHOT:
        assert compose["services"][name]["network_mode"] == "none"


def test_up_waits_until_the_service_is_ready(compose: dict[str, Any]) -> None:
    assert compose["services"]["glyphrec"]["healthcheck"]["test"] == ["CMD", "glyphrec", "health", "--ready"]


def test_the_time_to_stop_is_longer_than_the_service_takes(compose: dict[str, Any]) -> None:
    grace_s = int(compose["services"]["glyphrec"]["stop_grace_period"].removesuffix("s"))
    fields = Settings.model_fields
    assert grace_s > fields["stop_delay_s"].default + fields["shutdown_timeout_s"].default


def made_keys(folder: Path) -> dict[str, str]:
    """What deploy/make_keys.sh leaves, by the path below the folder."""
    for name in ("keys", "redis-auth"):
        (folder / name).mkdir(exist_ok=True)
    script = ROOT / "deploy/make_keys.sh"
    subprocess.run(["sh", script, folder / "keys", folder / "redis-auth"], check=True, capture_output=True)
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.glob("*/*")}


def test_the_first_start_makes_keys_that_the_service_takes_and_later_ones_keep_them(
    compose: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = made_keys(tmp_path)
    assert made_keys(tmp_path) == made
    (tmp_path / "keys/api_keys").write_text("a-key-of-the-operator")
    (tmp_path / "keys/admin_keys").write_text("")  # as a full disk leaves it
    again = made_keys(tmp_path)
    assert again["keys/api_keys"] == "a-key-of-the-operator"
    assert again["keys/admin_keys"] not in ("", made["keys/admin_keys"])
    assert len({made["keys/api_keys"], made["keys/admin_keys"], made["redis-auth/password"]}) == 3
    assert all(len(each.strip()) >= 48 for each in made.values())
    assert made["redis-auth/url"] == f"redis://:{made['redis-auth/password']}@redis:6379/0\n"
    for path in tmp_path.glob("*/*"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o644, "the service is not root, and reads them"
    environment = compose["services"]["glyphrec"]["environment"]
    for name, value in environment.items():
        folder = re.match(r"/(keys|redis-auth)/", value)
        monkeypatch.setenv(name, f"{tmp_path}{value}" if folder else value.replace("${BUNDLE:-demo}", "demo"))
    settings = load_settings()
    assert settings.redis_url == made["redis-auth/url"].strip()
    assert len(settings.api_keys) == len(settings.admin_keys) == 1


def run_make_keys(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["sh", ROOT / "deploy/make_keys.sh", folder / "keys", folder / "redis-auth", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("ending", ["", "\n", "\n\n"])
def test_a_key_is_added_beside_the_old_ones_which_go_when_it_is_said(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rotation of docs/deployment.md."""
    made_keys(tmp_path)
    file = tmp_path / "keys/api_keys"
    file.write_text("the-first-key-of-clients" + ending)
    new = run_make_keys(tmp_path, "add", "api_keys").stdout.strip()
    assert file.read_text() == f"the-first-key-of-clients\n{new}\n"
    monkeypatch.setenv("GLYPHREC_BUNDLE", "bundle")
    monkeypatch.setenv("GLYPHREC_API_KEYS_FILE", str(file))
    assert load_settings().api_keys == (hashed("the-first-key-of-clients"), hashed(new))
    run_make_keys(tmp_path, "only-newest", "api_keys")
    assert load_settings().api_keys == (hashed(new),)


def test_a_new_password_of_redis_is_in_the_url_too_and_wrong_words_change_nothing(tmp_path: Path) -> None:
    before = made_keys(tmp_path)
    for wrong in (["add"], ["add", "../x"], ["only-newest", "password"], ["rotate"]):
        assert run_make_keys(tmp_path, *wrong).returncode == 2
    assert made_keys(tmp_path) == before
    run_make_keys(tmp_path, "new-password")
    after = made_keys(tmp_path)
    assert {name for name in after if after[name] != before[name]} == {
        "redis-auth/password",
        "redis-auth/url",
    }
    assert after["redis-auth/password"] in after["redis-auth/url"]


def test_a_backup_of_a_redis_that_is_written_to_restores_what_was_there_when_it_began(tmp_path: Path) -> None:
    cli = find_server_binary().with_name(find_server_binary().name.replace("server", "cli"))
    if not cli.exists():
        pytest.skip(f"no {cli.name}")
    first, second = tmp_path / "first", tmp_path / "second"
    with start_server(first) as server, Redis.from_url(server.url) as redis:
        for part in range(20):
            redis.mset({f"{part}-{n}": "x" * 1_000 for n in range(100)})
            if part == 10:
                redis.bgrewriteaof()
        writer = threading.Thread(target=lambda: [redis.set(f"later-{n}", n) for n in range(3_000)])
        writer.start()
        command = ["sh", ROOT / "deploy/backup_redis.sh"]
        options = {"DATA": str(first), "PASSWORD_FILE": "", "CLI": f"{cli} -s {first}/redis.sock"}
        backup = subprocess.run(command, env=os.environ | options, check=True, capture_output=True).stdout
        writer.join()
        assert redis.config_get("auto-aof-rewrite-percentage") == {"auto-aof-rewrite-percentage": "100"}
        assert not (first / "backup").exists()
    second.mkdir()
    subprocess.run(["tar", "-C", second, "-xf", "-"], input=backup, check=True)
    with start_server(second) as server, Redis.from_url(server.url) as redis:
        assert redis.exists(*(f"{part}-{n}" for part in range(20) for n in range(100))) == 2_000


def test_redis_of_the_composition_asks_for_the_password_and_shows_it_to_nobody(
    compose: dict[str, Any], tmp_path: Path
) -> None:
    password = made_keys(tmp_path)["redis-auth/password"]
    shell, option, script = compose["services"]["redis"]["command"]
    assert (shell, option) == ("sh", "-c")
    script = re.sub(r"\$\{[A-Z_]+:-([^}]*)\}", r"\1", script).replace("$$", "$")
    port, socket = free_port(), tmp_path / "socket"
    script = script.replace("/redis-auth/", f"{tmp_path}/redis-auth/").replace(
        "redis-server - ", f"{find_server_binary()} - --port {port} --unixsocket {socket} --dir {tmp_path} "
    )
    process = subprocess.Popen(["sh", "-c", script], stdout=subprocess.DEVNULL)
    try:
        with Redis.from_url(f"redis://:{password}@127.0.0.1:{port}/0") as redis:
            until(lambda: answers(redis))
            assert redis.config_get("appendonly") == {"appendonly": "yes"}
            assert redis.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
            assert int(redis.config_get("maxmemory")["maxmemory"]) == 2**30
            assert redis.config_get("save") == {"save": ""}
        with Redis.from_url(f"redis://127.0.0.1:{port}/0") as stranger, pytest.raises(AuthenticationError):
            stranger.ping()
        shown = Path(f"/proc/{process.pid}/cmdline").read_bytes()
        assert find_server_binary().name.encode() in shown, (
            "the shell has become the server, so that it gets its signals"
        )
        assert password.encode() not in shown
    finally:
        process.terminate()
        process.wait(30)


def answers(redis: Redis) -> bool:
    try:
        return bool(redis.ping())
    except RedisConnectionError:
        return False


def test_the_demo_is_copied_once_and_never_over_a_bundle(tmp_path: Path) -> None:
    bundle, folder = tmp_path / "demo", tmp_path / "bundles"
    bundle.mkdir()
    folder.mkdir()
    (bundle / "manifest.json").write_text("first")
    copy = ["sh", ROOT / "deploy/copy_demo.sh", bundle, folder]
    subprocess.run(copy, check=True, capture_output=True)
    (bundle / "manifest.json").write_text("second")
    said = subprocess.run(copy, check=True, capture_output=True, text=True).stdout
    assert (folder / "demo/manifest.json").read_text() == "first"
    assert "already" in said
    assert [path.name for path in folder.iterdir()] == ["demo"]


def test_images_come_from_a_base_that_an_argument_names_and_no_stage_has_a_name_that_is_made_up() -> None:
    """buildah 1.28 and podman of Debian 12 do not take a name with an argument for a stage."""
    for name in DOCKERFILES:
        text = (ROOT / name).read_text(encoding="utf-8")
        stages = set(re.findall(r"^FROM .* AS (\S+)$", text, flags=re.MULTILINE))
        for source in re.findall(r"^FROM (\S+)", text, flags=re.MULTILINE):
            assert source == "${BASE}" or source in stages
        assert re.search(r"^ARG BASE=\S+:\S*\d", text, flags=re.MULTILINE)


def test_the_image_is_told_its_version_because_it_is_built_without_git() -> None:
    dockerfile = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    (build,) = [stage for stage in dockerfile.split("\nFROM ") if stage.startswith("base AS build\n")]
    assert re.search(r"^ARG VERSION=\d", build, flags=re.MULTILINE)
    variable = f"SETUPTOOLS_SCM_PRETEND_VERSION_FOR_{PROJECT['name'].upper()}"
    assert f'{variable}="${{VERSION}}" \\\n    /opt/glyphrec/bin/pip install' in build


# --- Kubernetes ---


@pytest.fixture(scope="module")
def objects() -> dict[str, dict[str, Any]]:
    """Kind and name -> object."""
    text = (ROOT / "deploy/kubernetes/glyphrec.yaml").read_text(encoding="utf-8")
    return {f"{each['kind']} {each['metadata']['name']}": each for each in yaml.safe_load_all(text)}


@pytest.fixture(scope="module")
def pod(objects: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return objects["Deployment glyphrec"]["spec"]["template"]


def test_every_selector_finds_the_pods(objects: dict[str, dict[str, Any]], pod: dict[str, Any]) -> None:
    labels = pod["metadata"]["labels"]
    for name, each in objects.items():
        selector = each["spec"].get("selector") or each["spec"]["podSelector"]
        assert selector.get("matchLabels", selector) == labels, name
    (container,) = pod["spec"]["containers"]
    assert container["ports"] == [{"name": "http", "containerPort": Settings.model_fields["port"].default}]


def test_pods_are_probed_where_the_service_answers(pod: dict[str, Any]) -> None:
    (container,) = pod["spec"]["containers"]
    for probe, path in (
        ("startupProbe", health.PATHS[False]),
        ("livenessProbe", health.PATHS[False]),
        ("readinessProbe", health.PATHS[True]),
    ):
        assert container[probe]["httpGet"] == {"path": path, "port": "http"}


def test_a_pod_has_its_mounts_and_as_long_to_stop_as_it_needs(
    pod: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    spec = pod["spec"]
    (container,) = spec["containers"]
    assert {each["name"] for each in container["volumeMounts"]} == {each["name"] for each in spec["volumes"]}
    mounts = [each["mountPath"] for each in container["volumeMounts"]]
    for each in container["env"]:
        name, value = each["name"], each["value"]
        if value.startswith("/"):
            assert Path(value).parts[1] in {Path(mount).parts[1] for mount in mounts}, name
        if name in FILE_VARIABLES:
            secret = tmp_path / name
            secret.write_text("redis://redis:6379/0" if "REDIS" in name else f"a-key-for-{name}")
            value = str(secret)
        monkeypatch.setenv(name, value)
    settings = load_settings()
    assert spec["terminationGracePeriodSeconds"] > settings.stop_delay_s + settings.shutdown_timeout_s
    assert container["resources"]["limits"]["cpu"], "the threads follow it"


def test_a_pod_has_no_rights_that_it_does_not_need(pod: dict[str, Any]) -> None:
    spec = pod["spec"]
    (container,) = spec["containers"]
    user = re.search(r"^USER (\d+)$", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert user
    assert spec["securityContext"]["runAsUser"] == int(user[1])
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["automountServiceAccountToken"] is spec["enableServiceLinks"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
