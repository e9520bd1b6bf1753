"""Two replicas under a load that calls everything there is to see, and a real Prometheus that watches them.

For the test of every expression, and for the pictures in docs/operations.md:
python -m tests.e2e.watched --minutes 6 --bundle BUNDLE --out docs/dashboards          # or make pictures
"""

import argparse
import itertools
import os
import random
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import httpx
import yaml

from deploy.grafana.pictures import draw_dashboards
from model_export.local_service import LocalService, free_port, local_service
from service.core.bundle import MANIFEST, RECOMMENDER, load_bundle
from service.store.server import RedisServer, start_server
from tests.e2e import photos
from tests.e2e.traffic import until

ROOT = Path(__file__).parents[2]
RULES = ROOT / "deploy/prometheus/rules"
KEY = "an-admin-key-of-this-load"
SCRAPE_MS = 1000
RATE_INTERVAL = "5s"  # what Grafana makes of $__rate_interval at this interval of scrapes, and some more
READY_TIMEOUT_S = 30
ANSWERS = {200, 202, 404, 409, 422, 429, 503}  # all of which the load provokes
COLORS = ("red", "green", "blue", "black")
MATERIALS = (
    "oat",
    "rye",
    "steel",
    "oak",
    "wool",
    "paper",
    "almond",
    "glass",
    "cotton",
    "lemon",
    "copper",
    "rice",
)
THINGS = ("milk", "bread", "cup", "table", "scarf", "towel", "cake", "bowl", "shirt", "tea", "pan", "flour")
SIZES = ("small", "10.5 oz", "32 oz", "500 ct", "M3 x 1/2 in", "large", "2 pack", "56 oz", "1 gal", "12 in")


class Prometheus(NamedTuple):
    client: httpx.Client
    started_at: float  # seconds since 1970

    def get(self, path: str, **params: Any) -> Any:
        """The `data` of an answer; an error of Prometheus is raised with its words."""
        answer = self.client.get(f"/api/v1/{path}", params=params).json()
        assert answer["status"] == "success", f"{answer.get('error')}: {params}"
        return answer["data"]

    def judge(self, moment: float) -> None:
        """Wait until every replica was scraped after this moment, and every rule evaluated after that."""
        until(lambda: min(self._scraped_at()) > moment)
        scraped_at = max(self._scraped_at())
        until(lambda: min(self._evaluated_at()) > scraped_at)

    def _scraped_at(self) -> list[float]:
        return [_seconds(each["lastScrape"]) for each in self.get("targets")["activeTargets"]]

    def _evaluated_at(self) -> list[float]:
        return [_seconds(each["lastEvaluation"]) for each in self.get("rules")["groups"]]


class Watched(NamedTuple):
    prometheus: Prometheus
    until: float  # when the load ended


def prometheus_binary() -> Path | None:
    """As deploy/fetch_prometheus.sh finds or fetches it; None where it cannot be had."""
    fetched = subprocess.run([ROOT / "deploy/fetch_prometheus.sh"], capture_output=True, text=True)
    return Path(fetched.stdout.strip()) / "prometheus" if fetched.returncode == 0 else None


@contextmanager
def watching(binary: Path, replicas: dict[str, str], folder: Path) -> Iterator[Prometheus]:
    """A Prometheus with our rules that scrapes the replicas, names -> host:port."""
    interval = f"{SCRAPE_MS}ms"
    targets = [
        {"targets": [target], "labels": {"instance": instance}} for instance, target in replicas.items()
    ]
    _write_rules(folder / "rules")
    config = {
        "global": {"scrape_interval": interval, "scrape_timeout": interval, "evaluation_interval": interval},
        "rule_files": [f"{folder}/rules/*.yml"],
        "scrape_configs": [{"job_name": "glyphrec", "static_configs": targets}],
    }
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{free_port()}"
    started_at = time.time()
    with (folder / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                binary,
                f"--config.file={folder}/prometheus.yml",
                f"--storage.tsdb.path={folder}/data",
                f"--web.listen-address={address}",
            ],
            stdout=log,
            stderr=log,
        )
        try:
            with httpx.Client(base_url=f"http://{address}", timeout=30) as client:
                until(lambda: _is_ready(client), READY_TIMEOUT_S)
                yield Prometheus(client, started_at)
        finally:
            process.terminate()
            process.wait()


def _write_rules(folder: Path) -> None:
    """Our rules, each evaluated as often as the others: a load is over before a long window is looked at."""
    folder.mkdir()
    for path in RULES.glob("*.yml"):
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
        for group in document["groups"]:
            group.pop("interval", None)
        (folder / path.name).write_text(yaml.safe_dump(document), encoding="utf-8")


def _seconds(moment: str) -> float:
    """Since 1970, of a time as Prometheus writes it."""
    return datetime.fromisoformat(moment).timestamp()


def _is_ready(client: httpx.Client) -> bool:
    with suppress(httpx.TransportError):
        return client.get("/-/ready").is_success
    return False


@contextmanager
def watched(binary: Path, bundle: Path, folder: Path, load_s: float) -> Iterator[Watched]:
    """After the load; Prometheus still answers, and so do the replicas."""
    bundles = _bundles(bundle, folder / "bundles")
    settings = {
        "GLYPHREC_BUNDLES_DIR": str(bundles),
        "GLYPHREC_ADMIN_KEYS": KEY,
        "GLYPHREC_THREADS": "1",
    }
    with ExitStack() as stack:
        stack.enter_context(patch.dict(os.environ, settings))
        redis = stack.enter_context(start_server(folder / "redis"))
        replicas = {
            name: stack.enter_context(
                local_service(bundles / "old", redis_url=redis.url, log=folder / f"{name}.log")
            )
            for name in ("replica-a", "replica-b")
        }
        targets = {name: service.url.removeprefix("http://") for name, service in replicas.items()}
        prometheus = stack.enter_context(watching(binary, targets, folder))
        Load(list(replicas.values()), redis).run(load_s)
        prometheus.judge(time.time())
        yield Watched(prometheus, time.time())


def _bundles(source: Path, folder: Path) -> Path:
    """The bundle itself, one that was trained again, and one whose graph is damaged."""
    for name in ("old", "retrained", "damaged"):
        shutil.copytree(source, folder / name)
    manifest = load_bundle(source).manifest.model_copy(update={"recommender_id": "00000000beef"})
    (folder / "retrained" / MANIFEST).write_text(manifest.model_dump_json(), encoding="utf-8")
    (folder / "damaged" / RECOMMENDER).write_bytes(b"damaged")
    return folder


class Load:
    """Each kind of request in a thread of its own at its own pace, and in between what goes wrong."""

    def __init__(self, services: list[LocalService], redis: RedisServer) -> None:
        self._services = services
        self._redis = redis
        self._is_over = threading.Event()
        self._pages: list[dict[str, Any]] = []  # the last recommended, for events
        self.unexpected: list[str] = []
        listed = services[0].client.get("/items", params={"limit": 100}, headers={"X-API-Key": KEY})
        self._known = [each["item"]["item_id"] for each in listed.json()["items"]]

    def run(self, seconds: float) -> None:
        paces = [
            (self._recommend, 0.02),
            (self._recommend_filtered, 0.05),
            (self._recommend_exactly, 0.1),
            (self._recommend_to_a_stranger, 0.15),
            (self._rank, 0.1),
            (self._similar, 0.1),
            (self._put, 0.1),
            (self._drop, 0.4),
            (self._read, 0.3),
            (self._report, 0.05),
        ]
        threads = [threading.Thread(target=self._keep_on, args=pace) for pace in paces]
        for thread in threads:
            thread.start()
        started_at = time.monotonic()
        for share, happen in (
            (0.3, self._change_models),
            (0.5, self._post_many),
            (0.65, self._stop_redis),
            (0.8, self._rush),
        ):
            time.sleep(max(0.0, started_at + share * seconds - time.monotonic()))
            happen()
        time.sleep(max(0.0, started_at + seconds - time.monotonic()))
        self._is_over.set()
        for thread in threads:
            thread.join()
        assert self.unexpected == []

    def _keep_on(self, send: Callable[[httpx.Client, random.Random, int], object], pace_s: float) -> None:
        rng = random.Random(send.__name__)
        with ExitStack() as stack:
            clients = [stack.enter_context(self._client(service)) for service in self._services]
            for number in itertools.count():
                if self._is_over.wait(rng.expovariate(1 / pace_s)):
                    return
                send(rng.choice(clients), rng, number)

    def _client(self, service: LocalService) -> httpx.Client:
        return httpx.Client(base_url=service.url, timeout=30, headers={"X-API-Key": KEY})

    def _send(self, client: httpx.Client, method: str, path: str, **more: Any) -> httpx.Response:
        answer = client.request(method, path, **more)
        if answer.status_code not in ANSWERS:
            self.unexpected.append(f"{method} {path}: {answer.status_code} {answer.text}")
        return answer

    def _ask(self, client: httpx.Client, rng: random.Random, **more: Any) -> None:
        history = rng.choices(self._known, k=rng.randint(1, 8))
        answer = self._send(client, "POST", "/recommend", json={"history": history, **more})
        if answer.is_success:
            page = [each["item_id"] for each in answer.json()["items"]]
            self._pages = [
                *self._pages[-50:],
                {"id": answer.headers["x-request-id"], "item_ids": page},
            ]

    def _recommend(self, client: httpx.Client, rng: random.Random, _number: int) -> None:
        self._ask(client, rng, limit=20)

    def _recommend_filtered(self, client: httpx.Client, rng: random.Random, _number: int) -> None:
        self._ask(client, rng, filter={"categories_any": [rng.choice(COLORS)]})

    def _recommend_exactly(self, client: httpx.Client, rng: random.Random, _number: int) -> None:
        self._ask(client, rng, guarantee="exact")

    def _recommend_to_a_stranger(self, client: httpx.Client, _rng: random.Random, number: int) -> None:
        self._send(client, "POST", "/recommend", json={"history": [f"unknown-{number}"]})

    def _rank(self, client: httpx.Client, rng: random.Random, number: int) -> None:
        history = rng.choices(self._known, k=rng.randint(0, 8))
        asked = [*rng.choices(self._known, k=rng.randint(1, 100)), f"unknown-{number}"]
        self._send(client, "POST", "/rank", json={"history": history, "item_ids": asked})

    def _similar(self, client: httpx.Client, rng: random.Random, _number: int) -> None:
        self._send(client, "GET", f"/items/{rng.choice(self._known)}/similar")

    def _put(self, client: httpx.Client, rng: random.Random, number: int) -> None:
        again = rng.randrange(number + 1)  # the same text, or the same id with another one
        items: list[dict[str, Any]] = [_item(number), _item(again), {**_item(again), "price": number}]
        if number % 10 == 0:
            items += [{**_item(again), "title": f"Renamed {number}"}, {"item_id": "without a text"}]
            items += [{**_item(number + 1), "available": "maybe"}]  # a value that filters cannot use
        if number % 4 == 0:
            items[0] |= {"image": rng.choice(photos.SENT)}
        if number % 10 == 5:
            items += [{**_item(again), "image": {"data": "AAAA"}}]  # no picture
        self._send(client, "POST", "/items", json={"items": items})

    def _drop(self, client: httpx.Client, rng: random.Random, number: int) -> None:
        self._send(client, "DELETE", f"/items/posted-{rng.randrange(3 * number + 1)}")

    def _read(self, client: httpx.Client, _rng: random.Random, number: int) -> None:
        self._send(client, "GET", ("/info", "/items", "/health/ready", "/items/no-such-item")[number % 4])

    def _report(self, client: httpx.Client, rng: random.Random, _number: int) -> None:
        """To any replica: mostly one of the first ten, sometimes what was never recommended."""
        if not self._pages:
            return
        page = rng.choice(self._pages)
        place = min(int(rng.expovariate(0.3)), 40)
        taken = page["item_ids"][place] if place < len(page["item_ids"]) else rng.choice(self._known)
        event = {"event_id": uuid.uuid4().hex, "request_id": page["id"], "item_id": taken}
        for _ in range(1 + (rng.random() < 0.1)):  # some are sent twice
            self._send(client, "POST", "/events", json={"events": [event]})

    def _change_models(self) -> None:
        for service in self._services:
            with self._client(service) as client:
                refused = self._send(client, "POST", "/admin/bundles", json={"bundle": "damaged"})
                assert refused.status_code == httpx.codes.CONFLICT, refused.text
                changed = self._send(client, "POST", "/admin/bundles", json={"bundle": "retrained"})
                assert changed.status_code == httpx.codes.OK, changed.text

    def _post_many(self) -> None:
        with self._client(self._services[0]) as client:
            items = [_item(number) for number in range(10_000, 10_400)]
            self._send(client, "POST", "/items", json={"items": items})

    def _stop_redis(self) -> None:
        """For longer than a call may take, and than the follower waits."""
        os.kill(self._redis.pid, signal.SIGSTOP)
        try:
            time.sleep(5)  # how long it stands still
        finally:
            os.kill(self._redis.pid, signal.SIGCONT)

    def _rush(self) -> None:
        """Many at once that would all be answered in a moment, or not at all."""

        def ask(number: int) -> None:
            with self._client(self._services[0]) as client:
                for history in range(30):
                    more = {"history": [self._known[history % len(self._known)]], "limit": 1 + number}
                    patience = {"X-Request-Timeout": "0.005"}
                    self._send(client, "POST", "/recommend", json=more, headers=patience)

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def _item(number: int) -> dict[str, Any]:
    color = COLORS[number % len(COLORS)]
    rng = random.Random(number)
    words = " ".join(rng.choice(each) for each in (MATERIALS, THINGS, SIZES))
    return {
        "item_id": f"posted-{number}",
        "title": f"{words} {color}",
        "categories": [color],
        "price": number % 10,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", required=True, type=Path)
    parser.add_argument("--minutes", type=float, default=6)
    parser.add_argument("--out", type=Path, default=ROOT / "docs/dashboards")
    args = parser.parse_args()
    if not (args.bundle / MANIFEST).is_file():
        parser.error(f"{args.bundle} is no bundle. Name one: make pictures BUNDLE=folder")
    binary = prometheus_binary()
    if binary is None:
        parser.error("there is no Prometheus; deploy/fetch_prometheus.sh says why")
    with (
        tempfile.TemporaryDirectory() as folder,
        watched(binary, args.bundle, Path(folder), 60 * args.minutes) as seen,
    ):
        draw_dashboards(
            str(seen.prometheus.client.base_url),
            seen.prometheus.started_at,
            seen.until,
            args.out,
            rate_interval="10s",
        )


if __name__ == "__main__":
    main()
