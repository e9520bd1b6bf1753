"""Models change under steady traffic, with real processes and a real Redis; one test kills the leader."""

import signal
import threading
import time
from contextlib import ExitStack

import httpx
import pytest

from model_export.local_service import local_service
from tests.e2e.traffic import until
from tests.known_bundle import KNOWN_ITEMS, known_codes, tokenizer_id_of, write_known_bundle
from tests.service.catalogs import assert_in_step, read_raw

KEY = "an-admin-key-of-this-test"
ADMIN = {"X-API-Key": KEY}
OLD, NEW = tokenizer_id_of(0), tokenizer_id_of(1)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundles")
    write_known_bundle(folder / "old", KNOWN_ITEMS)
    write_known_bundle(folder / "new", KNOWN_ITEMS[:10], reader=1)
    write_known_bundle(folder / "retrained", KNOWN_ITEMS, recommender_id="00000000beef")
    return folder


@pytest.fixture
def start(bundles, redis_url, tmp_path, monkeypatch):
    monkeypatch.setenv("GLYPHREC_BUNDLES_DIR", str(bundles))
    monkeypatch.setenv("GLYPHREC_ADMIN_KEYS", KEY)
    monkeypatch.setenv("GLYPHREC_THREADS", "1")
    with ExitStack() as stack:

        def start(name):
            service = local_service(bundles / "old", redis_url=redis_url, log=tmp_path / f"{name}.log")
            service = stack.enter_context(service)
            service.client.headers.update(ADMIN)
            return service

        yield start


class Load:
    """Sends recommendations and puts to each replica, one after another, and keeps every failure."""

    def __init__(self, urls):
        self.failures = []
        self.num_answers = 0
        self.posted = {}
        self._is_over = threading.Event()
        jobs = [(job, url) for url in urls for job in (self._recommend, self._put)]
        self._threads = [threading.Thread(target=self._run, args=(n, *job)) for n, job in enumerate(jobs)]

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._is_over.set()
        for thread in self._threads:
            thread.join()

    def go_on(self, num_answers=60):
        """Until so many more requests have been answered."""
        enough = self.num_answers + num_answers
        until(lambda: self.num_answers >= enough)

    def _run(self, name, job, url):
        with httpx.Client(base_url=url, headers=ADMIN, timeout=30) as client:
            number = 0
            while not self._is_over.is_set():
                number += 1
                try:
                    answer = job(client, name, number)
                except httpx.HTTPError as error:
                    self.failures.append(repr(error))
                    continue
                self.num_answers += 1
                if answer.status_code != 200:
                    self.failures.append(answer.text)
                time.sleep(0.005)  # a steady load, not all that there is

    def _recommend(self, client, _name, number):
        history = [KNOWN_ITEMS[number % 30].item_id]
        answer = client.post("/recommend", json={"history": history, "limit": 20})
        if answer.status_code == 200 and len(answer.json()["items"]) != 20:
            self.failures.append(f"a short page: {answer.text}")
        return answer

    def _put(self, client, name, number):
        item = {"item_id": f"load-{name}-{number}", "title": f"Load {name} {number}"}
        answer = client.post("/items", json=item)
        if answer.status_code == 200:
            self.posted[item["item_id"]] = item
            found = client.post(
                "/recommend", json={"history": ["item-0"], "filter": {"item_ids": [item["item_id"]]}}
            )
            if [each["item_id"] for each in found.json().get("items", [])] != [item["item_id"]]:
                self.failures.append(f"not recommendable after its 200: {item['item_id']}, {found.text}")
        return answer


def change(service, name):
    return service.client.post("/admin/bundles", json={"bundle": name})


def told(service):
    return service.client.get("/admin/bundles").json()


def serves(service, tokenizer_id):
    return told(service)["serving"]["tokenizer_id"] == tokenizer_id


async def test_no_request_fails_while_models_change_there_and_back(start, redis):
    replicas = [start("a"), start("b")]
    before = {"item_id": "before", "title": "Posted before all of it"}
    assert replicas[0].client.post("/items", json=before).status_code == 200
    with Load([each.url for each in replicas]) as load:
        load.go_on()
        for each in replicas:
            assert change(each, "retrained").status_code == 200
        assert {told(each)["serving"]["recommender_id"] for each in replicas} == {"00000000beef"}
        assert change(replicas[0], "new").status_code == 202
        until(lambda: all(serves(each, NEW) for each in replicas))
        load.go_on()
        assert change(replicas[1], "old").status_code == 202
        until(lambda: all(serves(each, OLD) for each in replicas))
        assert change(replicas[1], "new").status_code == 202
        until(lambda: all(serves(each, NEW) for each in replicas))
        load.go_on()
    assert load.failures == []
    assert load.num_answers > 200
    for item in [before, *load.posted.values()]:
        found = replicas[0].client.get(f"/items/{item['item_id']}").json()
        assert found["item"] == item
        assert tuple(found["codes"]) == known_codes(item, reader=1)
    catalogs = [lambda each=each: each.client.get("/info").json()["catalog"] for each in replicas]
    until(lambda: catalogs[0]()["version"] == catalogs[1]()["version"])
    assert catalogs[0]()["digest"] == catalogs[1]()["digest"]
    assert catalogs[0]()["items"] == len(KNOWN_ITEMS) + 1 + len(load.posted)
    assert_in_step(await read_raw(redis, "glyphrec", NEW))


async def test_a_leader_killed_while_it_reads_leaves_the_old_model_serving_and_another_one_goes_on(
    start, redis, monkeypatch
):
    monkeypatch.setenv("GLYPHREC_REREAD_SHARE", "0.01")
    leader = start("leader")
    monkeypatch.setenv("GLYPHREC_REREAD_SHARE", "1")
    other = start("other")
    items = [{"item_id": f"many-{n}", "title": f"One of many {n}"} for n in range(1000)]
    assert leader.client.post("/items", json={"items": items}).status_code == 200
    assert change(leader, "new").status_code == 202
    until(lambda: told(leader)["change"]["read_items"] > 0)
    leader.process.send_signal(signal.SIGKILL)
    leader.process.wait()
    read = await redis.hlen(f"{{glyphrec}}:codes:{NEW}")
    assert 0 < read < len(items)
    during = {"item_id": "during", "title": "Posted while nobody leads"}
    assert other.client.post("/items", json=during).status_code == 200
    assert serves(other, OLD)
    assert change(other, "new").status_code == 202
    until(lambda: serves(other, NEW))
    for item in [during, *items[::50]]:
        found = other.client.get(f"/items/{item['item_id']}").json()
        assert tuple(found["codes"]) == known_codes(item, reader=1)
    raw = await read_raw(redis, "glyphrec", NEW)
    assert_in_step(raw)
    assert len(raw.items) == len(items) + len(KNOWN_ITEMS) + 1
    # The items that the dead leader had read were not read again. Only items posted meanwhile are in the log
    # twice.
    assert len(raw.versions) <= len(raw.items) + 10
