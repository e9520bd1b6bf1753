"""`glyphrec doctor` over a real bundle and a real Redis: what fits is said, what does not has its remedy."""

import json
import shutil
import socket

import pytest

from service.core.bundle import RECOMMENDER
from tests.service.processes import finished

NOTHING = "redis://127.0.0.1:1/0"


def findings(*args: object, **environment: str) -> tuple[int, dict[str, list[tuple[str, str]]]]:
    """The exit status, and state and text of each finding by topic."""
    status, out, err = finished("doctor", "--json", *map(str, args), **environment)
    assert err == ""
    found: dict[str, list[tuple[str, str]]] = {}
    for line in out.splitlines():
        finding = json.loads(line)
        found.setdefault(finding["topic"], []).append((finding["state"], finding["text"]))
    return status, found


def wrong(found: dict[str, list[tuple[str, str]]]) -> list[str]:
    return [text for told in found.values() for state, text in told if state == "wrong"]


def test_a_bundle_and_a_redis_that_fit_are_told_in_lines(bundle, redis_url):
    status, out, err = finished("doctor", "--bundle", str(bundle), REDIS_URL=redis_url)
    assert (status, err) == (0, "")
    topics = [line[8:20].strip() for line in out.splitlines()[:-1]]
    assert list(dict.fromkeys(topics)) == [
        *("python", "packages", "runtime", "gpu", "processors", "memory", "fonts"),
        *("settings", "bundle", "redis"),
    ]
    assert f"{bundle.name}: 30 items" in out
    assert "a replica takes about" in out
    assert "append-only" in out, "this Redis keeps nothing, which is worth a look"
    assert out.splitlines()[-1].startswith("0 wrong, ")


def test_what_is_wrong_has_its_remedy_and_the_rest_is_looked_at_all_the_same(bundle, tmp_path):
    damaged = shutil.copytree(bundle, tmp_path / "damaged")
    (damaged / RECOMMENDER).write_bytes(b"nothing")
    status, found = findings("--bundle", damaged, "--redis-url", NOTHING)
    assert status == 2
    of_bundle, of_redis = wrong(found)
    assert "Copy it again, or export again" in of_bundle
    assert "127.0.0.1:1" in of_redis


def test_without_a_bundle_or_a_redis_it_says_how_to_name_one():
    status, found = findings()
    assert status == 0
    assert found["bundle"] == [("warning", "none is named. Give --bundle or set GLYPHREC_BUNDLE")]
    ((state, text),) = found["redis"]
    assert (state, "starts its own" in text) == ("ok", True)


def test_a_setting_that_does_not_exist_is_wrong(bundle):
    status, found = findings("--bundle", bundle, GLYPHREC_PROT="8000")
    assert status == 2
    assert wrong(found) == ["GLYPHREC_PROT: glyphrec has no such setting. Did you mean GLYPHREC_PORT?"]


def test_what_the_settings_ask_too_much_of_is_worth_a_look(bundle, redis_url):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        asked = {"GLYPHREC_THREADS": "512", "GLYPHREC_MAX_CONNECTIONS": "2000000000", "GLYPHREC_PORT": port}
        status, found = findings("--bundle", bundle, "--redis-url", redis_url, **asked)
    assert status == 0
    warnings = [text for state, text in found["settings"] if state == "warning"]
    assert [any(name in text for text in warnings) for name in asked] == [True, True, True]


@pytest.mark.usefixtures("redis")  # empties the server
def test_nothing_is_changed(bundle, redis_url):
    finished("doctor", "--bundle", str(bundle), REDIS_URL=redis_url)
    assert finished("catalogs", REDIS_URL=redis_url)[1].strip() == "Redis has no catalog."
