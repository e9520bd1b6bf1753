"""`glyphrec serve` with two workers: real processes, one port, a killed worker, and a stop under load."""

import os
import signal
from contextlib import suppress

import httpx
import pytest

from model_export.local_service import local_service
from tests.e2e.reconnecting import Reconnecting
from tests.e2e.traffic import until
from tests.known_bundle import KNOWN_ITEMS, write_known_bundle
from tests.service.processes import finished
from tests.service.scraping import by_label, read, value

START_TIMEOUT_S = 400  # two processes, one after the other
NUM_CLIENTS = 6
KEY = "an-admin-key-of-the-test"
RECOMMEND = {"route": "/recommend", "method": "POST", "status": "200"}

pytestmark = pytest.mark.skipif(
    len(os.sched_getaffinity(0)) < 2, reason="one processor, so two workers are refused. Give the tests two"
)


@pytest.fixture
def service(redis_url, tmp_path, bundle):
    settings = {
        "GLYPHREC_WORKERS": "2",
        "GLYPHREC_MAX_WAIT_MS": "10000",
        "GLYPHREC_BUNDLES_DIR": str(tmp_path),
    }
    write_known_bundle(tmp_path / "retrained", KNOWN_ITEMS, recommender_id="00000000beef")
    with local_service(
        bundle,
        redis_url=redis_url,
        log=tmp_path / "log",
        settings=settings | {"GLYPHREC_ADMIN_KEYS": KEY},
        ready_timeout_s=START_TIMEOUT_S,
    ) as service:
        service.client.headers["X-API-Key"] = KEY
        yield service


def ask(service, method, path, body=None):
    """On a connection of its own, so that any worker may get it."""
    headers = {"X-API-Key": KEY}
    return httpx.request(method, service.url + path, json=body, headers=headers, timeout=60)


def answered(request):
    """The first answer. A worker that was killed resets the connections that it had not taken yet."""
    while True:
        with suppress(httpx.TransportError):
            return request()


def scrape(service):
    answer = ask(service, "GET", "/metrics")
    assert answer.status_code == 200, answer.text
    return read(answer.text)


def workers(service):
    return ask(service, "GET", "/health/ready").json()["workers"]


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def until_all_are_ready(service):
    until(lambda: ask(service, "GET", "/health/ready").status_code == 200, START_TIMEOUT_S)


def test_a_killed_worker_costs_only_what_it_was_answering_and_its_counts_stay(service):
    first, second = workers(service)
    assert (first["status"], second["status"]) == ("ready", "ready")
    assert first["pid"] != second["pid"]

    for _ in range(40):
        assert ask(service, "POST", "/recommend", {"history": ["item-0"]}).status_code == 200
    for _ in range(6):  # whichever worker answers
        found = scrape(service)
        assert value(found, "http_requests_total", **RECOMMEND) == 40
        assert value(found, "workers") == 2
        assert by_label(found, "worker_up", "worker") == {"1": 1, "2": 1}
        assert value(found, "ready") == 1
        assert value(found, "catalog_items") == len(KNOWN_ITEMS)
        assert {dict(labels)["worker"] for name, labels in found if name == "process_open_fds"} == {"1", "2"}

    changed = ask(service, "POST", "/admin/bundles", {"bundle": "retrained"})
    assert changed.status_code == 200, changed.text
    for _ in range(12):
        page = ask(service, "POST", "/recommend", {"history": ["item-0"]}).json()
        assert page["model_version"] == "00000000beef"
    counted = value(scrape(service), "http_requests_total", **RECOMMEND)

    clients = [Reconnecting(service.url, KEY) for _ in range(NUM_CLIENTS)]
    until(lambda: all(each.num_answered >= 5 for each in clients))
    os.kill(second["pid"], signal.SIGKILL)
    answer = answered(lambda: ask(service, "GET", "/health/ready"))
    assert answer.status_code == 503
    assert "worker 2" in answer.json()["phase"]
    until(lambda: not is_alive(second["pid"]))
    begun = [each.num_answered + len(each.lost) for each in clients]
    until(lambda: all(each.num_answered + len(each.lost) > n for each, n in zip(clients, begun, strict=True)))
    # What it was answering, and connections that it had not taken before it was gone (decision 22).
    num_lost = [len(each.lost) for each in clients]
    assert all(each.lost.count(b"") <= 1 for each in clients), [each.lost for each in clients]
    until_all_are_ready(service)
    third = workers(service)[1]
    assert third["pid"] != second["pid"]
    assert [len(each.lost) for each in clients] == num_lost, [each.lost for each in clients]

    found = scrape(service)
    assert value(found, "http_requests_total", **RECOMMEND) >= counted, "what was told is not taken back"
    assert value(found, "worker_restarts_total", worker="2") == 1
    for _ in range(12):  # the new one has the bundle that the others were changed to
        page = ask(service, "POST", "/recommend", {"history": ["item-0"]}).json()
        assert page["model_version"] == "00000000beef"

    service.process.send_signal(signal.SIGTERM)
    for each in clients:
        each.thread.join()
    assert [len(each.lost) for each in clients] == num_lost, "the stop loses no request"
    assert service.process.wait(60) == 0
    for pid in (first["pid"], third["pid"]):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_workers_end_when_their_supervisor_is_killed(service):
    pids = [each["pid"] for each in workers(service)]
    service.process.kill()
    service.process.wait()

    def are_gone():
        return all(not os.path.exists(f"/proc/{pid}") or is_zombie(pid) for pid in pids)

    until(are_gone, 60)


def is_zombie(pid):
    with open(f"/proc/{pid}/stat", encoding="utf-8") as file:
        return file.read().rpartition(") ")[2].startswith("Z")


def test_a_second_service_on_the_port_of_workers_is_refused(service, bundle, redis_url):
    url = httpx.URL(service.url)
    for more in ([], ["--workers", "2"]):
        status, _, err = finished("serve", "--bundle", bundle, "--port", url.port, *more, REDIS_URL=redis_url)
        assert status == 2
        assert f"Cannot listen on http://127.0.0.1:{url.port}: address already in use" in err


def test_more_workers_than_processors_are_refused_at_the_start(bundle, redis_url):
    status, _, err = finished("serve", "--bundle", bundle, "--workers", "1000", REDIS_URL=redis_url)
    assert status == 2
    assert "GLYPHREC_WORKERS is 1000, but there are" in err
