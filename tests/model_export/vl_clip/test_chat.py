"""Questions to a chat server: budget, retries, and the cache of answers. The server is a real one."""

import json
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from model_export.vl_clip.chat import BudgetSpent, Chat, ChatFailed, ServerUnusable, retry_after_s
from model_export.vl_clip.refinement_settings import RefinementSettings, refinement_settings
from service.errors import GlyphrecError
from tests.model_export.vl_clip.chat_server import Reply, chat_server

QUESTION = [{"role": "user", "content": [{"type": "text", "text": "What is it?"}]}]


def question(text: str) -> list[dict]:
    return [{"role": "user", "content": [{"type": "text", "text": text}]}]


def settings(url: str, **given) -> RefinementSettings:
    return RefinementSettings(**{"url": url, "model": "small", "retries": 2, "timeout_s": 5} | given)


def test_an_answer_is_asked_for_once_and_then_comes_from_the_cache(tmp_path):
    with chat_server(lambda _body, _n: Reply(" a red ball ")) as server:
        with Chat(settings(server.url, key="secret"), tmp_path) as chat:
            assert chat.ask(QUESTION) == "a red ball"
            assert chat.ask(QUESTION) == "a red ball"
            assert (chat.num_requests, chat.num_tokens, chat.num_cached) == (1, 10, 1)
        assert server.keys == ["Bearer secret"]
        assert server.asked[0]["model"] == "small"
    with Chat(settings("http://127.0.0.1:9/v1"), tmp_path) as chat:  # nobody is there, and nobody is asked
        assert chat.ask(QUESTION) == "a red ball"
    with (
        chat_server(lambda _body, _n: Reply("other")) as server,
        Chat(settings(server.url, model="large"), tmp_path) as chat,
    ):
        assert chat.ask(QUESTION) == "other"


def test_a_damaged_answer_in_the_cache_is_asked_for_again(tmp_path):
    with chat_server(lambda _body, _n: Reply("fine")) as server, Chat(settings(server.url), tmp_path) as chat:
        chat.ask(QUESTION)
        (path,) = tmp_path.glob("*/*.json")
        path.write_text("{")
        assert chat.ask(QUESTION) == "fine"
        assert json.loads(path.read_text()) == {"answer": "fine"}
        assert len(server.asked) == 2


@pytest.mark.parametrize(
    "first",
    [
        Reply("overloaded", status=503),
        Reply("slow down", status=429, headers={"Retry-After": "7"}),
        Reply(b"<html>proxy error</html>"),
        Reply(b'{"choices": []}'),
        Reply(b"[1, 2]"),
        Reply(""),
    ],
    ids=["status 503", "status 429", "no JSON", "no choice", "another form", "empty"],
)
def test_a_failed_request_is_repeated_after_a_pause(tmp_path, first):
    pauses = []
    with (
        chat_server(lambda _body, n: first if n == 0 else Reply("a ball")) as server,
        Chat(settings(server.url), tmp_path, pause=pauses.append) as chat,
    ):
        assert chat.ask(QUESTION) == "a ball"
    assert len(server.asked) == 2
    assert pauses == [7.0] if first.headers else 0.5 <= pauses[0] <= 1.0


def test_pauses_grow_and_the_last_failure_is_told(tmp_path):
    pauses = []
    with (
        chat_server(lambda _body, n: Reply(f"error {n}".encode(), status=500)) as server,
        Chat(settings(server.url, retries=4, max_pause_s=3), tmp_path, pause=pauses.append) as chat,
        pytest.raises(ChatFailed, match="no answer after 5 requests.*status 500: error 4"),
    ):
        chat.ask(QUESTION)
    assert all(low <= pause <= high for pause, (low, high) in zip(
        pauses, [(0.5, 1), (1, 2), (2, 3), (3, 3)], strict=True
    ))  # fmt: skip
    assert list(tmp_path.glob("*/*.json")) == []  # a failure is no answer


def test_a_slow_answer_is_not_waited_for(tmp_path):
    with chat_server(
        lambda _body, n: Reply("late" if n == 0 else "in time", delay_s=0.8 * (n == 0))
    ) as server:
        with Chat(settings(server.url, timeout_s=0.3), tmp_path, pause=lambda _s: None) as chat:
            assert chat.ask(QUESTION) == "in time"
        assert len(server.asked) == 2


def test_a_pause_that_is_too_long_is_given_up_on(tmp_path):
    busy = Reply("busy", status=429, headers={"Retry-After": "600"})
    with (
        chat_server(lambda _body, _n: busy) as server,
        Chat(settings(server.url), tmp_path) as chat,
        pytest.raises(ChatFailed, match="asks for a pause of 600 s"),
    ):
        chat.ask(QUESTION)
    assert len(server.asked) == 1


def test_a_refused_key_ends_everything_and_a_refused_question_only_itself(tmp_path):
    def answer(body, _n):
        text = body["messages"][0]["content"][0]["text"]
        return {"key": Reply(b"bad key", status=401), "long": Reply(b"too long", status=400)}[text]

    with chat_server(answer) as server, Chat(settings(server.url), tmp_path) as chat:
        with pytest.raises(ServerUnusable, match=r"status 401: bad key.*REFINE_KEY"):
            chat.ask(question("key"))
        with pytest.raises(ChatFailed, match="refuses the question.*too long"):
            chat.ask(question("long"))
        assert len(server.asked) == 2


def test_where_nobody_listens_the_remedy_is_told(tmp_path):
    with (
        Chat(settings("http://127.0.0.1:9/v1"), tmp_path, pause=lambda _s: None) as chat,
        pytest.raises(ServerUnusable, match="nobody answers.*REFINE_URL"),
    ):
        chat.ask(QUESTION)


@pytest.mark.parametrize("limit", [{"max_requests": 3}, {"max_tokens": 30}])
def test_a_budget_that_is_used_up_asks_nothing_more(tmp_path, limit):
    with (
        chat_server(lambda _body, _n: Reply("yes")) as server,
        Chat(settings(server.url, **limit), tmp_path) as chat,
    ):
        for number in range(3):
            chat.ask(question(str(number)))
        with pytest.raises(BudgetSpent, match="is used up"):
            chat.ask(question("one too many"))
        assert chat.ask(question("0")) == "yes"  # what is stored costs nothing
        assert len(server.asked) == 3


def test_tokens_are_estimated_where_the_server_does_not_count_them(tmp_path):
    with (
        chat_server(lambda _body, _n: Reply("12345678", tokens=None)) as server,
        Chat(settings(server.url), tmp_path) as chat,
    ):
        chat.ask(question("x" * 32))
        assert chat.num_tokens == 10


def test_retry_after_is_a_number_or_a_date():
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=30))
    assert retry_after_s("12") == 12.0
    assert 25 < retry_after_s(soon) <= 30
    assert retry_after_s("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert retry_after_s("soon") is None
    assert retry_after_s(None) is None


def test_settings_come_from_the_environment_and_say_what_is_wrong(monkeypatch, tmp_path):
    for name in ("URL", "MODEL", "KEY", "KEY_FILE"):
        monkeypatch.delenv(f"REFINE_{name}", raising=False)
    with pytest.raises(GlyphrecError, match="REFINE_URL: not set; REFINE_MODEL: not set"):
        refinement_settings()
    monkeypatch.setenv("REFINE_URL", "localhost:8001")
    monkeypatch.setenv("REFINE_MODEL", "small")
    with pytest.raises(GlyphrecError, match="REFINE_URL: is no address of HTTP"):
        refinement_settings()
    monkeypatch.setenv("REFINE_URL", "http://localhost:8001/v1/")
    (tmp_path / "key").write_text(" hidden \n")
    monkeypatch.setenv("REFINE_KEY_FILE", str(tmp_path / "key"))
    found = refinement_settings()
    assert (found.url, found.secret()) == ("http://localhost:8001/v1", "hidden")
    monkeypatch.setenv("REFINE_KEY", "told")
    with pytest.raises(GlyphrecError, match="leave one of them out"):
        refinement_settings()
    monkeypatch.delenv("REFINE_KEY_FILE")
    assert "told" not in repr(refinement_settings())
