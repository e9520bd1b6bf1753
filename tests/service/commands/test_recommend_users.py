"""`glyphrec recommend --users`: a line for each user, bad lines named, and a run that goes on."""

import json

import httpx
import pytest

from model_export.local_service import local_service
from service.cli import main
from service.core.limits import MAX_HISTORY

pytestmark = pytest.mark.slow

USERS = [
    '{"user_id": "u1", "history": ["item-0", "item-1"]}',
    "not JSON",
    '{"user_id": "u2", "items": ["item-3"], "limit": 2}',
    "",
    '{"user_id": "u3", "history": 7}',
    "[1]",
    '{"user_id": "u4", "history": []}',
]


@pytest.fixture(scope="module")
def url(bundle, redis_server, tmp_path_factory):
    log = tmp_path_factory.mktemp("log") / "log"
    settings = {"GLYPHREC_CATALOG": "users"}
    with local_service(
        bundle, redis_url=redis_server.url, log=log, settings=settings, ready_timeout_s=200
    ) as service:
        yield service.url


def written(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_each_line_has_its_page_or_its_problem_in_order_and_bad_lines_are_named(url, tmp_path, capsys):
    users, out = tmp_path / "users.jsonl", tmp_path / "pages.jsonl"
    users.write_text("\n".join(USERS) + "\n")
    assert main(["recommend", "--users", str(users), "--out", str(out), "--limit", "4", "--url", url]) == 1
    told = capsys.readouterr()
    lines = written(out)
    assert [each["user_id"] for each in lines] == ["u1", None, "u2", "u3", None, "u4"]
    assert ["problem" in each for each in lines] == [False, True, False, True, True, False]
    for place, (history, limit) in {0: (["item-0", "item-1"], 4), 2: (["item-3"], 2), 5: ([], 4)}.items():
        alone = httpx.post(f"{url}/recommend", json={"history": history, "limit": limit}).json()
        assert {name: lines[place][name] for name in alone} == alone
    for number in (2, 5, 6):
        assert f"{users}:{number}: " in told.err
    assert told.out == "3 pages, 3 lines without one, 0 from before\n"


def test_a_run_that_was_killed_amid_a_line_is_gone_on_with(url, tmp_path, capsys):
    users, out = tmp_path / "users.jsonl", tmp_path / "pages.jsonl"
    given = [{"user_id": n, "history": [f"item-{n % 30}"] * (MAX_HISTORY + n % 2)} for n in range(300)]
    users.write_text("".join(json.dumps(each) + "\n" for each in given))
    arguments = ["recommend", "--users", str(users), "--out", str(out), "--limit", "1", "--url", url]
    assert main(arguments) == 0
    whole = written(out)
    assert [each["user_id"] for each in whole] == list(range(300))
    text = out.read_bytes()
    ends = [place for place, byte in enumerate(text) if byte == ord("\n")]
    out.write_bytes(text[: ends[99] + 20])  # 100 lines and a part of one
    assert main(arguments) == 0
    assert "200 pages, 0 lines without one, 100 from before" in capsys.readouterr().out
    again = written(out)
    assert [each["items"] for each in again] == [each["items"] for each in whole]
    assert main(arguments) == 0, "nothing is left to do"
    users.write_text("")
    assert main(arguments) == 2
    assert "has 300 lines" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--users", "a"], "belong together"),
        (["--out", "a"], "belong together"),
        (["--users", "a", "--out", "b", "item-0"], "the file has the histories"),
        (["--users", "a", "--out", "b", "--json"], "the file has the histories"),
        (["--users", "none", "--out", "b"], "none: not found"),
    ],
)
def test_options_that_do_not_fit_together_are_told(url, tmp_path, monkeypatch, capsys, more, words):
    monkeypatch.chdir(tmp_path)
    assert main(["recommend", *more, "--url", url]) == 2
    assert words in capsys.readouterr().err
