"""A replica that is told to stop answers every accepted request. Real processes, real signals."""

import signal
import socket
import threading
import time

import httpx
import pytest

from model_export.local_service import local_service
from tests.e2e.reconnecting import Reconnecting
from tests.e2e.traffic import until
from tests.known_bundle import KNOWN_ITEMS, write_known_bundle

NUM_CALLERS = 8


@pytest.fixture
def delay_s():
    return "4"


@pytest.fixture
def service(redis_url, tmp_path, monkeypatch, delay_s):
    monkeypatch.setenv("GLYPHREC_MAX_WAIT_MS", "10000")
    monkeypatch.setenv("GLYPHREC_SHUTDOWN_TIMEOUT_S", "20")
    monkeypatch.setenv("GLYPHREC_MAX_BATCH_STRIPS", "1")
    bundle = write_known_bundle(tmp_path / "bundle", KNOWN_ITEMS)
    monkeypatch.setenv("GLYPHREC_STOP_DELAY_S", delay_s)
    with local_service(bundle, redis_url=redis_url, log=tmp_path / "log") as service:
        yield service


class Callers:
    """Ask until the replica says that it is not ready, as a load balancer does."""

    def __init__(self, url):
        self.is_ready = True
        self.outcomes = []
        self.num_after_signal = 0
        self.was_signalled = False
        self._url = url
        self.threads = [threading.Thread(target=self._call, args=(n,)) for n in range(NUM_CALLERS)]
        self.threads.append(threading.Thread(target=self._watch))
        for thread in self.threads:
            thread.start()

    def _watch(self):
        with httpx.Client(base_url=self._url, timeout=30) as client:
            while self.is_ready:
                try:
                    self.is_ready = client.get("/health/ready").status_code == 200
                except httpx.HTTPError as error:
                    self.outcomes.append(repr(error))
                    self.is_ready = False
                time.sleep(0.02)  # the load balancer's interval

    def _call(self, name):
        with httpx.Client(base_url=self._url, timeout=30) as client:
            number = 0
            while self.is_ready:
                number += 1
                try:
                    if number % 2:
                        answer = client.post("/recommend", json={"history": ["item-0"]})
                    else:
                        item = {"item_id": f"{name}-{number}", "title": f"Item {name} {number}"}
                        answer = client.post("/items", json=item)
                    self.outcomes.append(answer.status_code)
                    self.num_after_signal += self.was_signalled
                except httpx.HTTPError as error:
                    self.outcomes.append(repr(error))


def test_sigterm_under_load_turns_readiness_off_answers_all_that_was_taken_and_exits_with_zero(service):
    callers = Callers(service.url)
    until(lambda: len(callers.outcomes) >= 2 * NUM_CALLERS)
    long_answers = []

    def post_many():
        items = [{"item_id": f"long-{n}", "title": f"A long request {n}"} for n in range(1_000)]
        with httpx.Client(base_url=service.url, timeout=60) as client:
            long_answers.append(client.post("/items", json={"items": items}))

    long_request = threading.Thread(target=post_many)
    long_request.start()
    while service.client.get("/items/long-0").status_code != 200:  # it is being answered
        assert long_request.is_alive()
    callers.was_signalled = True
    service.process.send_signal(signal.SIGTERM)
    for thread in (*callers.threads, long_request):
        thread.join()
    assert service.process.wait(30) == 0
    assert set(callers.outcomes) == {200}
    assert callers.num_after_signal > 0, "new requests are answered until the others have noticed"
    assert not callers.is_ready
    (answer,) = long_answers
    assert answer.status_code == 200
    assert {each["status"] for each in answer.json()["items"]} == {"created"}
    with pytest.raises(httpx.TransportError):
        httpx.get(service.url + "/health/live")


def test_while_it_stops_it_says_so_and_closes_its_connections(service):
    service.process.send_signal(signal.SIGTERM)
    give_up_at = time.monotonic() + 5
    while (answer := service.client.get("/health/ready")).status_code == 200:
        assert time.monotonic() < give_up_at
    assert (answer.status_code, answer.json()["status"]) == (503, "stopping")
    assert answer.headers["connection"] == "close"
    assert service.client.post("/recommend", json={"history": ["item-0"]}).status_code == 200
    assert service.process.wait(30) == 0


@pytest.mark.parametrize("delay_s", ["0", "1"])
def test_no_request_of_clients_that_reconnect_is_lost(service):
    clients = [Reconnecting(service.url) for _ in range(NUM_CALLERS)]
    until(lambda: all(each.num_answered >= 20 for each in clients))
    service.process.send_signal(signal.SIGTERM)
    for each in clients:
        each.thread.join()
    assert [each.lost for each in clients if each.lost] == []
    assert service.process.wait(30) == 0


@pytest.mark.parametrize("delay_s", ["0"])
def test_a_request_that_has_begun_to_come_is_answered_and_silent_connections_delay_nothing(service):
    url = httpx.URL(service.url)
    with (
        socket.create_connection((url.host, url.port)) as begun,
        socket.create_connection((url.host, url.port)) as late,
        socket.create_connection((url.host, url.port)) as silent,
    ):
        begun.sendall(b"GET /health/live HTTP/1.1\r\n")
        service.client.get("/health/live")  # so the bytes before are read
        service.process.send_signal(signal.SIGTERM)
        until(lambda: refuses(url))  # the sockets are closed, and the service waits for the rest
        late.sendall(b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n")
        begun.sendall(b"Host: x\r\n\r\n")
        for client in (begun, late):
            answer = client.recv(65_536)
            assert answer.startswith(b"HTTP/1.1 200")
            assert b"connection: close" in answer.lower()
        assert silent.recv(1) == b""
    assert service.process.wait(30) == 0


def refuses(url):
    try:
        socket.create_connection((url.host, url.port), timeout=5).close()
    except ConnectionRefusedError:
        return True
    return False


@pytest.mark.parametrize("delay_s", ["20"])
def test_ctrl_c_does_not_wait_for_load_balancers(service):
    service.process.send_signal(signal.SIGINT)
    started = time.monotonic()
    service.process.wait(30)
    assert time.monotonic() - started < 15, "the delay is 20"
