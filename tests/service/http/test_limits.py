"""The steps of the envelope that look at a request's head and body, one by one."""

import asyncio
import math

import pytest
from starlette.datastructures import Headers

from service.errors import BadTimeout, BodyTooLarge, BodyTooSlow, HeadTooLarge, TargetTooLong
from service.http import limits
from service.http.problems import RefusedBody
from service.http.request_ids import new_request_id, request_id_of


def head(path="/items", query=b"", headers=()):
    return {"path": path, "raw_path": path.encode(), "query_string": query, "headers": list(headers)}


def test_a_head_may_reach_each_limit_and_no_more():
    room = limits.MAX_TARGET_BYTES
    limits.check_head(head("/" * room))
    limits.check_head(head("/", b"a" * (room - 1)))
    limits.check_head(head(query=b"&" * (limits.MAX_PARAMETERS - 1)))
    limits.check_head(head(headers=[(b"a", b"")] * limits.MAX_HEADERS))
    limits.check_head(head(headers=[(b"a", b"x" * (limits.MAX_HEAD_BYTES - 1))]))
    for too_long in (
        head("/" * (room + 1)),
        head("/", b"a" * room),
        head(query=b"&" * limits.MAX_PARAMETERS),
    ):
        with pytest.raises(TargetTooLong):
            limits.check_head(too_long)
    for too_large in ([(b"a", b"")] * (limits.MAX_HEADERS + 1), [(b"a", b"x" * limits.MAX_HEAD_BYTES)]):
        with pytest.raises(HeadTooLarge):
            limits.check_head(head(headers=too_large))


@pytest.mark.parametrize("length", [None, "", "10", "-11", "eleven", "1²"])
def test_a_length_up_to_the_limit_or_no_length_at_all_passes(length):
    limits.check_body_length(Headers({} if length is None else {"content-length": length}), 10)


def test_a_length_above_the_limit_is_refused_before_the_body_comes():
    with pytest.raises(BodyTooLarge):
        limits.check_body_length(Headers({"content-length": "11"}), 10)


async def test_a_deadline_is_the_timeout_from_now_and_infinite_without_one():
    now = asyncio.get_running_loop().time()
    assert limits.deadline_of(Headers({})) == math.inf
    assert limits.deadline_of(Headers({"x-request-timeout": "0.5"})) == pytest.approx(now + 0.5, abs=0.2)
    for given in ("0", "-1", "nan", "3601", "1e3"):
        with pytest.raises(BadTimeout, match="Give seconds above 0"):
            limits.deadline_of(Headers({"x-request-timeout": given}))


def coming(*parts):
    """`receive` of a body in parts, and of the end of the connection after it."""
    messages = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    messages[-1]["more_body"] = False
    waiting = iter([*messages, {"type": "http.disconnect"}])

    async def receive():
        return next(waiting)

    return receive


async def test_a_body_comes_through_in_its_parts_and_then_the_end_of_the_connection():
    receive = limits.bounded_body(coming(b"12345", b"67890"), max_bytes=10, timeout_s=5)
    messages = [await receive() for _ in range(3)]
    assert [message.get("body") for message in messages] == [b"12345", b"67890", None]
    assert messages[-1]["type"] == "http.disconnect"


async def test_a_body_is_refused_as_soon_as_it_is_longer_than_the_limit():
    receive = limits.bounded_body(coming(b"12345", b"678901"), max_bytes=10, timeout_s=5)
    await receive()
    with pytest.raises(RefusedBody) as refused:
        await receive()
    assert isinstance(refused.value.error, BodyTooLarge)


async def test_a_body_that_stops_is_refused_after_the_timeout():
    async def never():
        await asyncio.Event().wait()

    with pytest.raises(RefusedBody) as refused:
        await limits.bounded_body(never, max_bytes=10, timeout_s=0.01)()
    assert isinstance(refused.value.error, BodyTooSlow)


@pytest.mark.parametrize(
    "given",
    [
        *("a", "A.b:c-d_9", "x" * 128, "Root=1-67891233-abcdef012345678912345678;Parent=5a/b", "{0f-1a}"),
        *("a1b2c3==", "00-4bf9-00f0-01", "<a|b>", "!#$%&'()*+,", "~"),
    ],
)
def test_a_safe_request_id_is_the_clients_own(given):
    assert request_id_of(given) == given


@pytest.mark.parametrize("given", ["", "a b", "a\nb", "ä", "x" * 129, '"', "\\", "\x7f"])
def test_any_other_is_replaced_by_a_new_one(given):
    found = request_id_of(given)
    assert found != given
    assert len(found) == len(new_request_id()) == 32
