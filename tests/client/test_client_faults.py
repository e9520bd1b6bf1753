"""What is repeated, after which pause, and what is raised. The other side is a program with known answers."""

import asyncio
import json
import time
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from glyphrec_client import (
    AsyncClient,
    Client,
    ClientError,
    NoAnswer,
    ProblemError,
    Retry,
    TimedOut,
    UnexpectedAnswer,
    problems,
)
from tests.answering import Other, running
from tests.service.processes import free_port

DELETED = (200, {"X-Request-ID": "r1"}, b'{"item_id": "a", "catalog_version": 7, "a new field": 1}')
HTML = b"<html>Log in</html>"
FEW = Retry(max_tries=3, jitter=0)


def problem(slug, status, retry_after=None):
    document = {"type": f"urn:glyphrec:problem:{slug}", "title": "T", "status": status, "detail": "Do this."}
    document |= {"instance": "/x", "request_id": "r9", "errors": []}
    headers = {} if retry_after is None else {"Retry-After": retry_after}
    return status, headers, json.dumps(document).encode()


@pytest.fixture
def waited(monkeypatch):
    """The pauses of both clients, which take no time here."""
    found: list[float] = []

    async def sleep(seconds):
        found.append(seconds)

    monkeypatch.setattr(time, "sleep", found.append)
    monkeypatch.setattr("glyphrec_client.client.asyncio.sleep", sleep)
    return found


def plain(url, ask, **options):
    with Client(url, **options) as client:
        return ask(client)


def awaited(url, ask, **options):
    async def main():
        async with AsyncClient(url, **options) as client:
            return await ask(client)

    return asyncio.run(main())


both = pytest.mark.parametrize("run", [plain, awaited])


@both
def test_a_passing_trouble_is_waited_for_as_long_as_the_answer_asks(waited, run):
    told = [problem("overloaded", 429, "7"), problem("store-unavailable", 503), DELETED]
    with running(Other(*told)) as other:
        info = run(other.url, lambda client: client.any_json("GET", "/info"), retry=FEW)
    assert info["catalog_version"] == 7
    assert waited == [7.0, 0.5]
    assert other.asked == ["/info"] * 3


@both
def test_the_last_trouble_is_raised_as_its_class_after_all_tries(waited, run):
    with running(Other(problem("overloaded", 429, "3600"))) as other, pytest.raises(problems.Overloaded) as e:
        run(other.url, lambda client: client.info(), retry=FEW, timeout_s=None)
    assert (str(e.value), e.value.status, e.value.request_id) == ("Do this.", 429, "r9")
    assert e.value.type == "urn:glyphrec:problem:overloaded"
    assert len(other.asked) == 3
    assert waited == [60.0, 60.0]


@both
def test_a_pause_that_would_outlast_the_timeout_is_not_made(waited, run):
    with running(Other(problem("not-ready", 503, "20"))) as other, pytest.raises(problems.NotReady):
        run(other.url, lambda client: client.info(), timeout_s=10)
    assert (len(other.asked), waited) == (1, [])


@both
def test_what_is_left_of_the_timeout_is_told_to_the_service(waited, run):
    with running(Other(problem("overloaded", 429, "0"), DELETED)) as other:
        run(other.url, lambda client: client.delete_item("a"), timeout_s=10)
        run(other.url, lambda client: client.with_timeout(2).delete_item("a"), timeout_s=10)
        run(other.url, lambda client: client.delete_item("a"), timeout_s=100_000)
        run(other.url, lambda client: client.delete_item("a"), timeout_s=None)
    first, second, shorter, longest, without = [
        each.headers.get("x-request-timeout") for each in other.requests
    ]
    assert 9 < float(second) <= float(first) <= 10
    assert 1 < float(shorter) <= 2
    assert (longest, without) == ("3600.000", None)
    assert waited == [0.0]


def test_a_service_that_says_nothing_in_time_is_timed_out(monkeypatch):
    monkeypatch.setattr("glyphrec_client.client.GRACE_S", 0.0)

    class Silent(Other):
        def answer(self, handler):
            handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
            self.requests.append(None)
            time.sleep(0.5)

    with running(Silent()) as other, Client(other.url, timeout_s=0.1) as client:
        with pytest.raises(TimedOut) as error:
            client.recommend(["a"])
        assert len(other.requests) == 1
    assert error.value.was_sent


@pytest.mark.usefixtures("waited")
@both
@pytest.mark.parametrize(
    ("trouble", "tries"),
    [
        (None, 1),  # the connection is closed without an answer
        (problem("store-unavailable", 503), 1),
        (problem("took-too-long", 503), 1),
        ((502, {}, HTML), 1),
        ((504, {}, HTML), 1),
        (problem("overloaded", 429), 3),
        (problem("not-ready", 503), 3),
        (problem("stopping", 503), 3),
        (problem("too-many-connections", 503), 3),
    ],
)
def test_a_delete_is_repeated_only_where_it_cannot_have_begun(run, trouble, tries):
    with running(Other(trouble)) as other, pytest.raises(ClientError):
        run(other.url, lambda client: client.delete_item("a"), retry=FEW)
    assert len(other.asked) == tries


@pytest.mark.usefixtures("waited")
@both
@pytest.mark.parametrize(
    "trouble", [None, problem("store-unavailable", 503), (502, {}, HTML), (408, {}, b"")]
)
@pytest.mark.parametrize(
    "ask",
    [
        lambda client: client.put_item({"item_id": "a"}),
        lambda client: client.patch_item("a", {"price": 1}, if_match='"0"'),
        lambda client: client.put_image("a", b"\xff\xd8\xff"),
        lambda client: client.send_events([]),
        lambda client: client.recommend(["a"]),
        lambda client: client.change_bundle("b"),
    ],
    ids=["put", "patch", "image", "events", "recommend", "bundle"],
)
def test_what_gives_the_same_the_second_time_is_repeated_with_the_same_bytes(run, ask, trouble):
    with running(Other(trouble, trouble, problem("invalid-request", 422))) as other:
        with pytest.raises(problems.InvalidRequest):
            run(other.url, ask, retry=FEW)
        assert len(other.asked) == 3
        assert len({(each.method, each.path, each.body) for each in other.requests}) == 1


@pytest.mark.usefixtures("waited")
@both
def test_health_is_asked_once(run):
    with running(Other((503, {}, HTML))) as other, pytest.raises(UnexpectedAnswer):
        run(other.url, lambda client: client.ready())
    assert len(other.asked) == 1


@both
def test_nobody_at_the_address_is_no_answer_without_the_password(waited, run):
    url = f"http://me:secret@127.0.0.1:{free_port()}"
    with pytest.raises(NoAnswer) as error:
        run(url, lambda client: client.delete_item("a"), retry=FEW)
    assert not error.value.was_sent
    assert "no service answers there" in str(error.value)
    assert "secret" not in str(error.value)
    assert waited == [0.25, 0.5]
    with pytest.raises(NoAnswer):
        run(url, lambda client: client.info(), retry=Retry(after_no_answer=False))
    assert len(waited) == 2


@both
@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((200, {}, HTML), "answered 200, without JSON"),
        ((200, {}, b"[1]"), "not as glyphrec does: [1]"),
        ((200, {}, b'{"item_id": "a"}'), "not as glyphrec does"),
        ((302, {"Location": "https://login.example/"}, b""), "a redirect to https://login.example/"),
        ((403, {}, b'{"message": "no"}'), 'answered 403, not as glyphrec does: {"message": "no"}'),
        ((200, {}, b"[" * 100_000), "without JSON"),
    ],
)
def test_an_answer_that_is_not_the_services_is_told_apart(run, answer, said):
    with running(Other(answer)) as other, pytest.raises(UnexpectedAnswer) as error:
        run(other.url, lambda client: client.delete_item("a"))
    assert said in str(error.value)
    assert error.value.response.status_code == answer[0]


@both
def test_a_problem_of_a_newer_service_is_the_general_class(run):
    with (
        running(Other(problem("teapot", 418))) as other,
        pytest.raises(ProblemError, match="Do this") as error,
    ):
        run(other.url, lambda client: client.info())
    assert type(error.value) is ProblemError


@both
def test_an_id_of_any_signs_stays_one_part_of_the_path(run):
    ids = ["a/similar", "..", ".", "ä%2F?#", "x y"]
    with running(Other(DELETED)) as other:
        for item_id in ids:
            run(other.url, lambda client, item_id=item_id: client.delete_item(item_id), key="k" * 16)
    assert other.asked == [
        "/items/a%2Fsimilar",
        "/items/%2E%2E",
        "/items/%2E",
        "/items/%C3%A4%252F%3F%23",
        "/items/x%20y",
    ]
    assert {each.headers["x-api-key"] for each in other.requests} == {"k" * 16}


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: Client("http://[::1"), ValueError),
        (lambda: Client(key="schlüssel"), ValueError),
        (lambda: Client(timeout_s=0), ValueError),
        (lambda: Client().with_timeout(-1), ValueError),
        (lambda: Retry(max_tries=0), ValueError),
        (lambda: Retry(jitter=2), ValueError),
        (lambda: Client().recommend("a1"), TypeError),
        (lambda: Client().recommend(["a1"], request_id="a b"), ValueError),
        (lambda: Client().put_items({"item_id": "a"}), TypeError),
        (lambda: Client().put_item({"item_id": "a", "price": float("nan")}), ValueError),
        (lambda: Client().put_item({"item_id": "\ud800"}), ValueError),
        (lambda: Client().get_item(""), ValueError),
        (lambda: Client().put_image("a", b"GIF89a"), ValueError),
    ],
)
def test_a_wrong_argument_is_told_before_anything_is_sent(make, kind):
    with pytest.raises(kind):
        make()


def test_pauses_grow_are_spread_and_never_pass_the_limit():
    even = Retry(first_wait_s=1, growth=2, jitter=0, max_wait_s=60)
    assert [even.pause_s(n) for n in (1, 2, 3, 10_000)] == [1, 2, 4, 60]
    spread = [Retry(first_wait_s=1, jitter=0.5).pause_s(1) for _ in range(200)]
    assert 0.5 <= min(spread) < 0.6
    assert 0.9 < max(spread) <= 1
    assert even.pause_s(1, "3600") == 60


@pytest.mark.usefixtures("waited")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    status=st.sampled_from([200, 201, 204, 299, 304, 400, 404, 418, 500, 503]),
    headers=st.dictionaries(
        st.sampled_from(["Retry-After", "Content-Type", "Location", "Content-Encoding", "X-Request-ID"]),
        st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=10).map(str.strip),
    ),
    body=st.binary(max_size=20)
    | st.dictionaries(
        st.sampled_from(["type", "detail", "items", "catalog_version", "item_id"]),
        st.sampled_from([None, 1, "a", [], {}, "urn:glyphrec:problem:overloaded"]),
    ).map(lambda value: json.dumps(value).encode()),
)
def test_no_answer_at_all_ends_in_anything_but_a_value_or_an_error_of_the_client(status, headers, body):
    with running(Other((status, headers, body))) as other, Client(other.url) as client:
        for ask in (lambda: client.delete_item("a"), lambda: client.put_items([]), lambda: client.ready()):
            with suppress(ClientError):
                ask()
