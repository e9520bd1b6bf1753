"""The `glyphrec` command as a user runs it: processes, exit codes, and one line with the reason."""

import gzip
import importlib.metadata
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest

from service.cli import main
from service.core.version import service_version
from tests.house import PROJECT, SOURCES
from tests.known_bundle import KNOWN_ITEMS, write_known_bundle
from tests.service.processes import command, finished, free_port, wait_until_ready

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def served(bundle, tmp_path_factory):
    """The URL of a service in its own process, with its own Redis."""
    port, data = free_port(), tmp_path_factory.mktemp("redis")
    process = command("serve", "--bundle", bundle, "--port", port, "--data-dir", data)
    url = f"http://127.0.0.1:{port}"
    wait_until_ready(url, process)
    yield url
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert "Traceback" not in err


def test_a_served_bundle_recommends_and_its_redis_ends_with_it(bundle, tmp_path):
    port = free_port()
    process = command("serve", "--bundle", bundle, "--port", port, "--data-dir", tmp_path / "redis")
    url = f"http://127.0.0.1:{port}"
    wait_until_ready(url, process)
    answer = httpx.post(f"{url}/recommend", json={"history": ["item-0"]}).json()
    assert len(answer["items"]) == 10
    httpx.post(f"{url}/items", json={"item_id": "new", "title": "Brand new"}).raise_for_status()
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert not (tmp_path / "redis" / "redis.sock").exists()

    again = command("serve", "--bundle", bundle, "--port", port, "--data-dir", tmp_path / "redis")
    wait_until_ready(url, again)
    assert httpx.get(f"{url}/items/new").json()["item"]["title"] == "Brand new"
    again.send_signal(signal.SIGINT)
    again.communicate(timeout=30)
    assert again.returncode == 130


def test_a_client_that_goes_away_in_the_middle_of_a_body_harms_nobody(served):
    address = (httpx.URL(served).host, httpx.URL(served).port)
    for _ in range(5):
        with socket.create_connection(address) as connection:
            connection.sendall(
                b"POST /items HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
                b'Content-Length: 1000\r\n\r\n{"items": [{"item_id"'
            )
    with socket.create_connection(address) as connection:
        connection.sendall(b"NONSENSE\r\n\r\n")
        assert connection.recv(100).startswith(b"HTTP/1.1 400")
    assert httpx.get(f"{served}/health/ready").status_code == httpx.codes.OK
    assert httpx.post(f"{served}/recommend", json={"history": ["item-0"]}).status_code == httpx.codes.OK


def test_an_address_that_answers_without_json_is_one_clear_error(capsys):
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as other:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{other.server_port}"
        assert main(["recommend", "item-0", "--url", url]) == 2
        other.shutdown()
    assert f"{url}/recommend: answered 501 without JSON" in capsys.readouterr().err


def test_import_posts_every_item_of_a_file_or_folder(served, tmp_path, capsys):
    items = [{"item_id": f"imported-{i}", "title": f"Imported {i}"} for i in range(25)]
    with gzip.open(tmp_path / "items.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write("\n\n".join(map(json.dumps, items)))
    assert main(["import", str(tmp_path), "--url", served, "--batch", "10"]) == 0
    assert "25 created" in capsys.readouterr().out
    assert main(["import", str(tmp_path / "items.jsonl.gz"), "--url", served]) == 0
    assert "25 unchanged" in capsys.readouterr().out


def test_import_at_a_rate_sends_small_requests_that_far_apart(served, tmp_path, monkeypatch):
    path = tmp_path / "items.jsonl"
    path.write_text("".join(json.dumps({"item_id": f"slow-{n}", "title": f"t {n}"}) + "\n" for n in range(7)))
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    assert main(["import", str(path), "--url", served, "--rate", "25"]) == 0
    assert len(pauses) == 2  # between three requests of at most three items, ten times a second
    assert all(0 <= pause <= 3 / 25 for pause in pauses)
    assert main(["import", str(path), "--url", served, "--rate", "0"]) == 2


def test_import_names_the_items_that_failed_and_stores_the_others(served, tmp_path, capsys):
    lines = [
        '{"item_id": "fine", "title": "Fine"}',
        '{"title": "no id"}',
        "",
        '{"item_id": "blank", "title": ""}',
    ]
    (tmp_path / "items.jsonl").write_text("\n".join(lines))
    assert main(["import", str(tmp_path), "--url", served]) == 1
    shown = capsys.readouterr()
    assert "1 created, 2 failed" in shown.out
    assert "items.jsonl:2: item_id: is missing" in shown.err
    assert "items.jsonl:4: item: has no text" in shown.err


def test_import_counts_the_values_that_filters_cannot_use_and_shows_one_of_each_field(
    served, tmp_path, capsys
):
    available = [True, "no", None, "false"]
    items = [
        {"item_id": f"odd-{n}", "title": f"Odd {n}", "available": each} for n, each in enumerate(available)
    ]
    (tmp_path / "items.jsonl").write_text("\n".join(map(json.dumps, items)))
    assert main(["import", str(tmp_path), "--url", served]) == 0
    shown = capsys.readouterr()
    assert "4 created" in shown.out
    assert "filters cannot use available of 2 items" in shown.err
    assert "items.jsonl:2: available is not true or false" in shown.err


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"item_id": "a"}\n{"item_id"', "items.jsonl:2: not JSON"),
        (b"\xff\xfe", "not UTF-8"),
        (None, "has no items.jsonl"),
        (
            b'{"item_id": "a", "codes": [1, 2], "slot": 0, "popularity": 3, "item": {"item_id": "a"}}',
            "items.jsonl:1: an item with its codes, as in a bundle. Import such a file with --tokenized",
        ),
        (b'{"item_id": "a"}\n{"user_id": "u", "items": ["a"]}', "items.jsonl:2: a user's interactions"),
    ],
)
def test_import_of_a_broken_file_posts_nothing_and_says_where(served, tmp_path, capsys, content, words):
    if content is not None:
        (tmp_path / "items.jsonl").write_bytes(content)
    before = httpx.get(f"{served}/info").json()["catalog"]
    assert main(["import", str(tmp_path), "--url", served]) == 2
    assert words in capsys.readouterr().err
    assert httpx.get(f"{served}/info").json()["catalog"] == before


def test_recommend_prints_items_with_their_scores_and_words(served, capsys):
    assert main(["recommend", "item-0", "nobody", "--limit", "3", "--url", served]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "unknown: nobody"
    assert lines[1].startswith("next items")
    assert len(lines) == 5
    answer = httpx.post(f"{served}/recommend", json={"history": ["item-0", "nobody"], "limit": 3}).json()
    for line, item in zip(lines[2:], answer["items"], strict=True):
        assert line.split()[:3] == [f"{item['score']:.3f}", item["semantic_id"], item["item_id"]]
        assert "hing" in line or "mported" in line
    assert main(["recommend", "--url", served]) == 0
    assert capsys.readouterr().out.startswith("popular items")
    assert main(["recommend", "item-0", "--json", "--url", served]) == 0
    assert json.loads(capsys.readouterr().out)["source"] == "model"


def test_recommend_takes_a_filter_as_the_api_does(served, capsys):
    asked = {"item_ids": ["item-3", "item-4", "item-0"]}
    assert main(["recommend", "item-0", "--exact", "--filter", json.dumps(asked), "--url", served]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "next items, exact"
    assert {line.split()[2] for line in lines[1:]} == {"item-3", "item-4"}
    assert main(["recommend", "item-0", "--filter", '{"item_ids": []}', "--url", served]) == 0
    assert capsys.readouterr().out == "no item passes the filter\n"


def test_rank_prints_given_items_in_order_with_their_scores_and_words(served, capsys):
    asked = ["item-3", "gone", "item-4", "item-5"]
    assert main(["rank", *asked, "--after", "item-1", "--after", "item-0", "--url", served]) == 0
    printed = capsys.readouterr().out.splitlines()
    body = {"history": ["item-1", "item-0"], "item_ids": asked}
    answer = httpx.post(f"{served}/rank", json=body).json()
    assert printed[:2] == ["unknown item ids: gone", "ranked by the generator"]
    assert [line.split()[2] for line in printed[2:]] == [row["item_id"] for row in answer["items"]]
    assert "Thing number 3" in "".join(printed)
    wanted = ["--filter", '{"item_ids": ["item-3"]}', "--limit", "1", "--json"]
    assert main(["rank", *asked, *wanted, "--url", served]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert [row["item_id"] for row in answer["items"]] == ["item-3"]
    assert main(["rank", "item-3", "--url", served]) == 0
    assert capsys.readouterr().out.startswith("ranked by popularity\n")
    assert main(["recommend", "item-0", "--rerank", "--url", served]) == 2
    assert "has no ranker" in capsys.readouterr().err


def test_search_prints_items_with_their_likeness_and_words(served, tmp_path, capsys):
    assert main(["search", "Thing number 3", "--limit", "3", "--url", served]) == 0
    lines = capsys.readouterr().out.splitlines()
    answer = httpx.post(f"{served}/search", json={"query": "Thing number 3", "limit": 3}).json()
    for line, item in zip(lines, answer["items"], strict=True):
        assert line.split()[:3] == [f"{item['score']:.3f}", item["semantic_id"], item["item_id"]]
    assert main(["search", "Thing", "--filter", '{"item_ids": ["item-3"]}', "--json", "--url", served]) == 0
    assert [each["item_id"] for each in json.loads(capsys.readouterr().out)["items"]] == ["item-3"]
    assert main(["search", "Thing", "--filter", '{"item_ids": []}', "--url", served]) == 0
    assert capsys.readouterr().out == "no item passes the filter\n"
    assert main(["search", "--url", served]) == 2
    assert "Give a text, or a picture" in capsys.readouterr().err
    assert main(["search", "--image", str(tmp_path / "none.jpg"), "--url", served]) == 2
    assert "none.jpg" in capsys.readouterr().err
    (tmp_path / "some.jpg").write_bytes(b"some")
    assert main(["search", "--image", str(tmp_path / "some.jpg"), "--url", served]) == 2
    assert "reads no pictures" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("{", "--filter {: not JSON"),
        ('{"attributes": {"price": NaN}}', "not JSON"),
        ('{"color": "red"}', "filter.color"),
        ('{"attributes": {"color": "red"}}', "color"),
    ],
)
def test_a_filter_that_cannot_be_asked_is_refused_in_one_line(served, capsys, asked, words):
    assert main(["recommend", "item-0", "--filter", asked, "--url", served]) == 2
    shown = capsys.readouterr().err
    assert words in shown
    assert shown.count("\n") == 1


def test_a_refused_request_is_one_line(served, capsys):
    assert main(["recommend", "item-0", "--limit", "0", "--url", served]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_without_a_service_the_client_says_how_to_start_one(capsys):
    assert main(["recommend", "a", "--url", f"http://127.0.0.1:{free_port()}"]) == 2
    shown = capsys.readouterr().err
    assert "glyphrec serve" in shown
    assert shown.count("\n") == 1


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--bundle", "/no/such/folder"], "manifest.json: not found"),
        ([], "GLYPHREC_BUNDLE: not set"),
        (["--bundle", "b", "--host", "0.0.0.0"], "GLYPHREC_API_KEYS"),
        (["--bundle", "b", "--port", "99999"], "GLYPHREC_PORT"),
        (["--bundle", "b", "--redis-url", "http://x"], "REDIS_URL"),
        (["--bundle", "b", "--redis-url", "redis://:secret@x:port/0"], "REDIS_URL"),
    ],
)
def test_serve_refuses_in_one_line(args, words, tmp_path):
    code, out, err = finished("serve", *args, "--data-dir", tmp_path)
    assert (code, out) == (2, "")
    assert words in err.splitlines()[-1]
    assert "Traceback" not in err


def test_serve_refuses_a_bundle_whose_file_was_changed(tmp_path):
    bundle = write_known_bundle(tmp_path / "bundle", KNOWN_ITEMS)
    with (bundle / "recommender.onnx").open("r+b") as file:
        file.seek(100)
        file.write(b"?")
    code, _, err = finished("serve", "--bundle", bundle, "--data-dir", tmp_path / "redis")
    assert code == 2
    assert "recommender.onnx: sha256 is" in err.splitlines()[-1]
    assert "Traceback" not in err


def test_serve_says_when_its_port_is_taken(served, bundle, tmp_path):
    port = httpx.URL(served).port
    code, _, err = finished("serve", "--bundle", bundle, "--port", port, "--data-dir", tmp_path / "redis")
    assert code != 0
    assert "address already in use" in err
    assert "Traceback" not in err


@pytest.fixture
def registered(tmp_path):
    """An installed distribution that registers one command that loads and one that lacks a package."""
    info = tmp_path / "offline-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: offline\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[glyphrec.commands]\n"
        "hello = offline_hello:add\n"
        "late = offline_hello:add_late\n"
        "train = offline_train:add\n"
    )
    (tmp_path / "offline_hello.py").write_text(
        "def add(subparsers):\n"
        "    subparsers.add_parser('hello', help='greet').set_defaults(run=lambda args: print('hello'))\n"
        "def add_late(subparsers):\n"
        "    subparsers.add_parser('late').set_defaults(run=late)\n"
        "def late(args):\n"
        "    import torch_of_another_world\n"
    )
    (tmp_path / "offline_train.py").write_text("import torch_of_another_world\n")
    return str(tmp_path)


def test_registered_commands_run(registered):
    assert finished("hello", PYTHONPATH=registered)[:2] == (0, "hello\n")


@pytest.mark.parametrize("args", [["train", "--data", "x"], ["train", "--help"], ["late"]])
def test_a_command_whose_package_is_missing_says_what_to_install(registered, args):
    code, _, err = finished(*args, PYTHONPATH=registered)
    assert code == 2
    assert err.count("\n") == 1
    assert "torch_of_another_world" in err
    assert "pip install 'glyphrec[export]'" in err


def test_the_command_says_which_version_is_installed():
    assert finished("--version")[:2] == (0, f"glyphrec {service_version()}\n")
    assert service_version() == importlib.metadata.version("glyphrec")


def test_help_shows_every_command_also_those_that_cannot_run(registered):
    code, out, _ = finished("--help", PYTHONPATH=registered)
    assert code == 0
    for name in ("serve", "import", "recommend", "rank", "search", "hello", "train"):
        assert name in out


def test_where_the_package_of_a_command_is_absent_as_in_the_image_help_does_not_offer_it():
    absent = """
import sys
from service.cli import main

class Absent:
    @staticmethod
    def find_spec(name, *_):
        if name == "model_export":
            raise ModuleNotFoundError("No module named 'model_export'", name=name)

sys.meta_path.insert(0, Absent)
main(["--help"])
"""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, SOURCES))}
    shown = subprocess.run(
        [sys.executable, "-P", "-c", absent], env=environment, capture_output=True, text=True, check=True
    ).stdout
    offered = set(re.findall(r"^    ([a-z]+)\b", shown, flags=re.MULTILINE))
    registered = PROJECT["entry-points"]["glyphrec.commands"].keys()
    assert {"serve", "health", "catalogs", "fsck"} <= offered
    assert offered.isdisjoint(registered)
    assert "pip install" not in shown
