"""A real process gets bytes that no HTTP client would send. It keeps answering others, and stays small."""

import json
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest

from tests.service.processes import command, free_port, wait_until_ready

pytestmark = [pytest.mark.slow, pytest.mark.alone]

HEAD_TIMEOUT_S, BODY_TIMEOUT_S, KEEP_ALIVE_S = 1.0, 1.0, 1.0
PATIENCE_S = 20.0  # of a test with the service, on a busy machine
MAX_GROWTH_BYTES = 48 * 2**20
POST = b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
BODY = b'{"history": ["item-0"]}'
WHOLE = POST + b"Content-Length: %d\r\n\r\n" % len(BODY) + BODY


class Served:
    def __init__(self, port: int, pid: int) -> None:
        self.address = ("127.0.0.1", port)
        self.url = f"http://127.0.0.1:{port}"
        self.pid = pid

    @contextmanager
    def connected(self):
        with socket.create_connection(self.address, timeout=PATIENCE_S) as connection:
            yield connection

    def answer_to(self, *parts: bytes, cut: bool = False) -> bytes:
        """Everything that comes back until the service closes. With `cut`, our side closes after sending."""
        with self.connected() as connection:
            for part in parts:
                try:
                    connection.sendall(part)
                except (BrokenPipeError, ConnectionResetError):
                    break  # the service has closed
            if cut:
                connection.shutdown(socket.SHUT_WR)
            return received(connection)

    def resident_bytes(self) -> int:
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def is_well(self) -> bool:
        answer = httpx.post(f"{self.url}/recommend", json=json.loads(BODY), timeout=PATIENCE_S)
        return answer.status_code == 200 and len(answer.json()["items"]) == 10


def received(connection: socket.socket) -> bytes:
    found = b""
    try:
        while part := connection.recv(65_536):
            found += part
    except ConnectionResetError:
        pass  # the service closed before it read all our bytes
    return found


def sent_until_closed(connection: socket.socket, parts: Sequence[bytes], pause_s: float = 0) -> int:
    """How many parts were taken before the service closed the connection."""
    for number, part in enumerate(parts):
        try:
            connection.sendall(part)
        except (BrokenPipeError, ConnectionResetError):
            return number
        time.sleep(pause_s)
    return len(parts)


def statuses(answer: bytes) -> list[int]:
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d+) [A-Z]", answer)]


@pytest.fixture(scope="module")
def served(bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    port = free_port()
    process = command(
        *("serve", "--bundle", bundle, "--port", port, "--data-dir", folder / "redis"),
        GLYPHREC_HEAD_TIMEOUT_S=str(HEAD_TIMEOUT_S),
        GLYPHREC_BODY_TIMEOUT_S=str(BODY_TIMEOUT_S),
        GLYPHREC_KEEP_ALIVE_S=str(KEEP_ALIVE_S),
        GLYPHREC_MAX_BODY_BYTES="100000",
    )
    told: list[str] = []
    reader = threading.Thread(target=lambda: told.extend(process.stderr), daemon=True)
    try:
        wait_until_ready(f"http://127.0.0.1:{port}", process)
        reader.start()  # so that a full pipe stops nobody
        yield Served(port, process.pid)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        reader.join(10)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
    assert "Traceback" not in "".join(told), "".join(told)[-4_000:]


@pytest.fixture(autouse=True)
def others_are_served(served):
    yield
    assert served.is_well()


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"NONSENSE\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200),  # TLS
        b"\0" * 1_000,
        b"GET /\xff\xfe HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /a b HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /info HTTP/1.1\r\nHost: x\r\n folded: 1\r\n\r\n",
        b"CONNECT example.org:443 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /info HTTP/1.1\r\nHost: x\r\nBad Header: 1\r\n\r\n",
        b"GET /info HTTP/1.1\r\nHost: x\r\nA: b\0c\r\n\r\n",
        b"GET /info HTTP/1.1\nHost: x\n\n",
        POST + b"Content-Length: -1\r\n\r\n" + BODY,
        POST + b"Content-Length: 1e3\r\n\r\n" + BODY,
        POST + b"Content-Length: 99999999999999999999999\r\n\r\n" + BODY,
        POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n" + BODY,
        POST + b"Content-Length: 23\r\nTransfer-Encoding: chunked\r\n\r\n" + BODY,  # smuggling
        POST + b"Transfer-Encoding: chunked, gzip\r\n\r\n" + BODY,
    ],
)
def test_what_is_no_http_is_refused_with_a_problem_and_the_connection_closed(served, request_bytes):
    answer = served.answer_to(request_bytes, cut=True)
    assert statuses(answer) == [400]
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"application/problem+json" in head
    assert json.loads(body)["type"] == "urn:glyphrec:problem:not-http"


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /\r\n",  # HTTP/0.9
        b"GET /info\r\n\r\n",
        POST + b"Transfer-Encoding: xchunked\r\n\r\n" + BODY,  # which goes on until the end
        POST + b"Content-Length: 100\r\n\r\n" + BODY,
        POST + b"Content-Length: 4\r\n\r\n" + BODY,  # and a rest that is no request
        POST + b"Content-Length: 23\r\n\r\n",
        POST,
        POST + b"Transfer-Encoding: chunked\r\n\r\n17\r\n" + BODY[:5],
        POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n" + BODY,
        POST + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n" + BODY,
        POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 40 + b"\r\n" + BODY,
        POST + b"Transfer-Encoding: chunked\r\n\r\n17\r\n" + BODY + b"!!",
    ],
)
def test_a_request_that_was_cut_off_gets_no_answer_of_success(served, request_bytes):
    answer = served.answer_to(request_bytes, cut=True)
    assert all(400 <= status < 500 for status in statuses(answer))


def test_a_body_said_to_be_too_long_is_refused_before_it_comes(served):
    assert statuses(served.answer_to(POST + b"Content-Length: 99999999\r\n\r\n")) == [413]


def test_a_chunked_body_over_the_limit_is_refused_where_it_passes_it(served):
    before = served.resident_bytes()
    chunk = b"10000\r\n" + b" " * 65_536 + b"\r\n"
    answer = served.answer_to(POST + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 1_000)
    assert statuses(answer)[:1] == [413]
    assert served.resident_bytes() - before < MAX_GROWTH_BYTES


@pytest.mark.parametrize(
    "head",
    [
        b"X-Long: " + b"a" * 40_000 + b"\r\n",
        b"".join(b"X-%d: a\r\n" % n for n in range(101)),
        b"".join(b"X-%d: a\r\n" % n for n in range(5_000)),
        b"Cookie: " + b"a=b; " * 10_000 + b"\r\n",
    ],
)
def test_headers_too_many_or_too_long_are_refused(served, head):
    answer = served.answer_to(b"GET /info HTTP/1.1\r\nHost: x\r\n" + head + b"\r\n")
    assert statuses(answer) == [431]
    assert b"head-too-large" in answer


@pytest.mark.parametrize(
    "target", [b"/" + b"a" * 9_000, b"/items?" + b"a=b&" * 50, b"/items/%41" + b"%41" * 3_000]
)
def test_a_target_too_long_or_of_too_many_parameters_is_refused(served, target):
    answer = served.answer_to(b"GET " + target + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    assert statuses(answer) == [414]
    assert b"target-too-long" in answer


@pytest.mark.parametrize(
    ("start", "endless"),
    [
        (b"GET /", b"a" * 65_536),
        (b"GET / HTTP/1.1\r\nX: ", b"a" * 65_536),
        (b"GET / HTTP/1.1\r\n", b"X-Y: z\r\n" * 8_000),
        (b"", b"\r\n" * 32_768),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\n", b"X-Y: z\r\n" * 8_000),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n0\r\nX: ", b"a" * 65_536),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n1;", b"a" * 65_536),
    ],
)
def test_a_head_or_a_trailer_without_end_is_cut_off_and_takes_no_memory(served, start, endless):
    before = served.resident_bytes()
    with served.connected() as connection:
        connection.sendall(start)
        sent = sent_until_closed(connection, [endless] * 2_000)
    assert sent < 400
    assert served.resident_bytes() - before < MAX_GROWTH_BYTES


@pytest.mark.parametrize("start", [b"", b"G", b"GET /info HTTP/1.1\r\nHost: x\r\n", WHOLE + b"GET"])
def test_a_client_that_never_says_what_it_wants_is_left(served, start):
    with served.connected() as connection:
        connection.sendall(start)
        started = time.monotonic()
        received(connection)  # returns when the service closes
        assert time.monotonic() - started < HEAD_TIMEOUT_S + 5


def test_a_head_that_comes_a_byte_at_a_time_is_left_too(served):
    head = b"GET /info HTTP/1.1\r\nX-Slow: " + b"a" * 2_000
    with served.connected() as connection:
        assert sent_until_closed(connection, [bytes([byte]) for byte in head], pause_s=0.02) < len(head)


def test_a_body_that_stops_or_comes_too_slowly_is_given_up(served):
    head = POST + b"Content-Length: 5000\r\n\r\n"
    assert statuses(served.answer_to(head + b"{")) == [408]
    with served.connected() as connection:
        connection.sendall(head)
        started = time.monotonic()
        connection.setblocking(False)
        answer = b""
        while not answer and time.monotonic() - started < PATIENCE_S:
            connection.send(b" ")  # always sooner than the timeout of a part
            time.sleep(BODY_TIMEOUT_S / 10)
            try:
                answer = connection.recv(65_536)
            except BlockingIOError:
                continue
    assert statuses(answer) == [408]


def test_a_rest_of_a_refused_body_is_not_read_for_ever(served):
    with served.connected() as connection:
        connection.sendall(b"POST /nowhere HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        assert sent_until_closed(connection, [b"1\r\na\r\n"] * 2_000, pause_s=0.02) < 2_000


def test_pipelined_requests_are_answered_in_order_and_each_for_itself(served):
    bad = POST + b"Content-Length: 1\r\n\r\n{"
    last = b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answer = served.answer_to((WHOLE + bad) * 20 + last)
    assert statuses(answer) == [200, 400] * 20 + [200]


def test_a_flood_of_pipelined_requests_takes_no_memory(served):
    before = served.resident_bytes()
    request = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
    with served.connected() as connection:
        assert sent_until_closed(connection, [request * 2_000] * 200) < 200
    assert served.resident_bytes() - before < MAX_GROWTH_BYTES


def test_hundreds_of_idle_connections_stand_in_nobodys_way(served):
    before = served.resident_bytes()
    with ExitStack() as stack:
        connections = [stack.enter_context(served.connected()) for _ in range(400)]
        for number, connection in enumerate(connections):
            connection.sendall((b"", b"GET /inf", POST + b"Content-Length: 5000\r\n\r\n{")[number % 3])
        started = time.monotonic()
        assert served.is_well()
        assert time.monotonic() - started < 5
        assert served.resident_bytes() - before < MAX_GROWTH_BYTES
        for connection in connections:
            received(connection)  # each is left in its time


def test_a_client_that_leaves_amid_its_body_is_counted_as_one_that_left(served):
    def num_left() -> int:
        text = httpx.get(f"{served.url}/metrics", timeout=PATIENCE_S).text
        found = re.search(
            r'^glyphrec_http_requests_total\{.*route="/recommend",status="499"\} (\d+)', text, re.M
        )
        return int(found[1]) if found else 0

    before = num_left()
    with served.connected() as connection:
        connection.sendall(POST + b"Content-Length: 50\r\n\r\n{")
        assert served.is_well()  # so that its head has been read
    until = time.monotonic() + PATIENCE_S
    while num_left() == before and time.monotonic() < until:
        time.sleep(0.05)
    assert num_left() == before + 1


def test_an_upgrade_that_is_not_offered_changes_nothing(served):
    upgrade = (
        b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: x\r\n"
    )
    answer = served.answer_to(b"GET /info HTTP/1.1\r\nHost: x\r\n" + upgrade + b"\r\n")
    assert statuses(answer) == [200]


def test_expect_100_gets_its_go_ahead(served):
    with served.connected() as connection:
        connection.sendall(POST + b"Expect: 100-continue\r\nConnection: close\r\nContent-Length: 23\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 100")
        connection.sendall(BODY)
        assert statuses(received(connection)) == [200]


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (POST + b"Content-Length: 100001\r\n", 413),
        (POST + b"Content-Length: 23\r\nX-Request-Timeout: soon\r\n", 400),
        (POST + b"Content-Length: 23\r\nContent-Encoding: gzip\r\n", 415),
        (POST.replace(b"json", b"xml") + b"Content-Length: 23\r\n", 415),
        (POST.replace(b"/recommend", b"/nowhere") + b"Transfer-Encoding: chunked\r\n", 404),
    ],
)
def test_who_promises_a_body_and_is_refused_gets_the_answer_and_the_end(served, head, status):
    """Without a go-ahead, no body comes, so the connection has no use any more."""
    started = time.monotonic()
    answer = served.answer_to(head + b"Expect: 100-continue\r\n\r\n")
    assert statuses(answer) == [status]
    assert b"connection: close" in answer.lower()
    assert time.monotonic() - started < HEAD_TIMEOUT_S


def test_who_promises_no_body_keeps_the_connection(served):
    ask = b"GET /info HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n\r\n"
    assert statuses(served.answer_to(ask, ask.replace(b"Expect", b"Connection: close\r\nX-Old"))) == [
        200,
        200,
    ]
