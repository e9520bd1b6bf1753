"""Which heads of refused requests are remembered."""

import pytest

from service.http.refusals import MAX_KNOWN, Refusals
from service.telemetry.metrics import Metrics

BODY = b'{"history": []}'
POST = b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(BODY) + BODY


@pytest.mark.parametrize(
    "start",
    [
        POST + POST,  # more than one request
        b"\r\n\r\n" + POST,  # the head is not at the beginning
        POST.replace(b"Host: x\r\n", b"Host: x\n"),  # a parser may end lines elsewhere
        POST.replace(b"Host: x", b"Host: x\r\nTransfer-Encoding: chunked"),
        POST.replace(b"Host: x", b"Host: x\r\nX-Request-ID: mine"),
        POST.replace(b"Host: x", b"Host: " + 3_000 * b"x"),
        POST.replace(b"Content-Length", b"Other-Length"),
    ],
)
def test_a_head_that_does_not_tell_all_of_its_request_is_not_remembered(start):
    refusals = Refusals(Metrics())
    head = start.strip().partition(b"\r\n\r\n")[0]
    headers = [tuple(line.split(b": ", 1)) for line in head.lower().split(b"\r\n")[1:]]
    refusals.remember(start, headers, "POST", "/recommend")
    assert refusals.known(start) is None
    refusals.remember(POST, [(b"content-length", b"%d" % len(BODY))], "POST", "/recommend")
    assert refusals.known(POST) is not None
    assert refusals.known(POST + b"G") is None


def test_only_so_many_heads_are_remembered():
    refusals = Refusals(Metrics())
    for number in range(3 * MAX_KNOWN):
        start = POST.replace(b"Host: x", b"Host: %d" % number)
        refusals.remember(start, [(b"content-length", b"%d" % len(BODY))], "POST", "/recommend")
    assert 0 < refusals.num_known <= MAX_KNOWN
