"""Summarizer, evaluator and refiner, with a real server whose answers are known."""

import base64
import io
from functools import partial

import pytest
from PIL import Image

from model_export.data.neutral import read_catalog
from model_export.vl_clip.catalog import paired_items
from model_export.vl_clip.chat import Chat, ServerUnusable
from model_export.vl_clip.refinement import Refined, described, is_stop, refine, refine_all, summary_of
from model_export.vl_clip.refinement_settings import RefinementSettings
from service.core.bundle import RenderSpec
from tests.model_export.vl_clip.chat_server import Reply, chat_server
from tests.model_export.vl_clip.shop import write_shop


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return paired_items(
        read_catalog(write_shop(tmp_path_factory.mktemp("shop") / "s", count=8)), RenderSpec()
    )


def role_of(body) -> str:
    text = body["messages"][0]["content"][0]["text"]
    return {"You write": "summarizer", "You check": "evaluator", "You corre": "refiner"}[text[:9]]


def asking(server, folder, **given) -> Chat:
    chosen = {"url": server.url, "model": "small", "retries": 1} | given
    return Chat(RefinementSettings(**chosen), folder, pause=lambda _s: None)


def test_a_text_goes_round_until_the_evaluator_stops(pairs, tmp_path):
    verdicts = iter(["Name the color.", "Name the shape.", '"Stop."'])
    texts = iter(["red thing", "red ball"])

    def answer(body, _n):
        match role_of(body):
            case "summarizer":
                return Reply("thing")
            case "evaluator":
                return Reply(next(verdicts))
        return Reply(next(texts))

    with chat_server(answer) as server, asking(server, tmp_path) as chat:
        found = refine(described(pairs, 0), chat, rounds=5)
        assert found == Refined("red ball", "stopped", 3)
    roles = [role_of(body) for body in server.asked]
    assert roles == ["summarizer", "evaluator", "refiner", "evaluator", "refiner", "evaluator"]
    prompts = server.prompts()
    assert "crimson ball 0" in prompts[0]
    assert "product type: ball" in prompts[0]
    assert "thing" in prompts[2]
    assert "Name the color." in prompts[2]
    assert "red thing" in prompts[3]


def test_the_model_sees_the_photo(pairs, tmp_path):
    with chat_server(lambda _body, _n: Reply("STOP")) as server, asking(server, tmp_path) as chat:
        refine(described(pairs, 0), chat, rounds=1)
    url = server.asked[0]["messages"][0]["content"][1]["image_url"]["url"]
    kind, _, data = url.partition(",")
    assert kind == "data:image/jpeg;base64"
    shown = Image.open(io.BytesIO(base64.b64decode(data)))
    assert shown.size == (48, 64)
    red, green, blue = shown.convert("RGB").getpixel((22, 26))  # the middle of a ball in crimson
    assert red > 180
    assert max(green, blue) < 100


def test_an_evaluator_that_never_stops_is_asked_five_times(pairs, tmp_path):
    count = iter(range(100))

    def answer(body, _n):
        return Reply("more" if role_of(body) == "evaluator" else f"text {next(count)}")

    with chat_server(answer) as server, asking(server, tmp_path) as chat:
        assert refine(described(pairs, 0), chat, rounds=5) == Refined("text 4", "rounds", 5)
    roles = [role_of(body) for body in server.asked]
    assert roles.count("evaluator") == 5
    assert len(roles) == 10


def test_items_are_asked_in_parallel_and_a_second_run_asks_nothing(pairs, tmp_path):
    def answer(body, _n):
        return Reply("STOP" if role_of(body) == "evaluator" else "a toy", delay_s=0.05)

    items = [partial(described, pairs, place) for place in range(len(pairs))]
    with chat_server(answer) as server, asking(server, tmp_path) as chat:
        found = refine_all(items, chat, rounds=5, parallel=4)
        assert 1 < server.most_at_once <= 4
        asked = len(server.asked)
        assert refine_all(items, chat, rounds=5, parallel=4) == found
        assert len(server.asked) == asked == 2 * len(pairs)
    assert found == [Refined("a toy", "stopped", 1)] * len(pairs)


def test_a_spent_budget_leaves_the_other_items_their_own_text_and_a_later_run_goes_on(pairs, tmp_path):
    def answer(body, _n):
        return Reply("STOP" if role_of(body) == "evaluator" else "a toy")

    items = [partial(described, pairs, place) for place in range(len(pairs))]
    with chat_server(answer) as server:
        with asking(server, tmp_path, max_requests=6) as chat:
            found = refine_all(items, chat, rounds=5, parallel=1)
        assert [each.outcome for each in found] == ["stopped"] * 3 + ["budget"] * 5
        assert found[4].text == pairs.texts[4]
        assert summary_of(found) == "3 stopped by the evaluator, 5 out of budget"
        with asking(server, tmp_path, max_requests=10) as chat:
            assert {each.outcome for each in refine_all(items, chat, rounds=5, parallel=1)} == {"stopped"}
        assert len(server.asked) == 16


def test_an_item_without_an_answer_keeps_its_last_text(pairs, tmp_path):
    broken = Reply(b"no JSON")

    def answer(body, _n):
        if "navy" in body["messages"][0]["content"][0]["text"]:
            return broken
        return broken if role_of(body) == "evaluator" else Reply("a toy")

    with chat_server(answer) as server, asking(server, tmp_path) as chat:
        assert refine(described(pairs, 0), chat, rounds=5) == Refined("a toy", "failed", 0)
        assert refine(described(pairs, 1), chat, rounds=5) == Refined(pairs.texts[1], "failed", 0)


def test_a_refused_key_ends_the_run(pairs, tmp_path):
    items = [partial(described, pairs, place) for place in range(len(pairs))]
    with (
        chat_server(lambda _body, _n: Reply(b"no", status=401)) as server,
        asking(server, tmp_path) as chat,
        pytest.raises(ServerUnusable),
    ):
        refine_all(items, chat, rounds=5, parallel=2)
    assert len(server.asked) <= 4


@pytest.mark.parametrize("verdict", ["STOP", "stop", " Stop. ", '"STOP"', "**STOP**"])
def test_the_stop_marker_is_known_in_any_dress(verdict):
    assert is_stop(verdict)


@pytest.mark.parametrize("verdict", ["", "Do not stop.", "STOP saying that it is red", "unstoppable"])
def test_a_critique_is_no_stop_marker(verdict):
    assert not is_stop(verdict)
