"""A service whose catalog is larger than its bundle's, and the request that is sent to it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.workload.bundles import catalog_of
from benchmarks.workload.processes import children, run_import, until_idle
from model_export.local_service import LocalService, local_service
from service.core.bundle import Bundle
from service.store.server import start_server

HISTORY = 20
LIMIT = 10
READY_TIMEOUT_S = 1_800  # a million items take minutes
JSON = {"content-type": "application/json"}


def enlarged(bundle: Bundle, num_items: int) -> list[dict[str, Any]]:
    """Lines of so many items: the bundle's again and again, with another last code each time."""
    known = catalog_of(bundle)
    rng = np.random.default_rng(0)
    last = rng.integers(bundle.manifest.sid.levels[-1], size=num_items).tolist()
    rows = []
    for n in range(num_items):
        row = known[n % len(known)]
        item_id = row["item_id"] if n < len(known) else f"{row['item_id']}-{n // len(known)}"
        codes = row["codes"] if n < len(known) else [*row["codes"][:-1], last[n]]
        rows.append({**row, "item_id": item_id, "codes": codes, "item": {**row["item"], "item_id": item_id}})
    return rows


def write_body(catalog: Sequence[dict[str, Any]], folder: Path, limit: int = LIMIT) -> Path:
    """A file with the body of POST /recommend: a history of random items."""
    places = np.random.default_rng(0).choice(len(catalog), min(HISTORY, len(catalog)), replace=False)
    path = folder / "body.json"
    history = [catalog[place]["item_id"] for place in places]
    path.write_text(json.dumps({"history": history, "limit": limit}), encoding="utf-8")
    return path


@contextmanager
def redis_with(bundle: Bundle, catalog: Sequence[dict[str, Any]], folder: Path) -> Iterator[str]:
    """The URL of a Redis that holds the catalog."""
    lines = folder / "catalog.jsonl"
    with lines.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in catalog)
    with start_server(folder / "redis") as server:
        run_import(lines, "--tokenized", "--bundle", bundle.path, "--redis-url", server.url)
        yield server.url


@contextmanager
def idle_service(
    bundle: Bundle, redis_url: str, folder: Path, settings: Mapping[str, str] | None = None
) -> Iterator[LocalService]:
    """A service that is done with what a start does beside the answers: it looks for items that were not
    read, and builds the graph of the vectors.
    """
    with local_service(
        bundle.path,
        redis_url=redis_url,
        log=folder / "log",
        settings=settings,
        ready_timeout_s=READY_TIMEOUT_S,
    ) as service:
        for pid in (service.process.pid, *children(service.process.pid)):
            until_idle(pid)
        yield service


@contextmanager
def service_with(
    bundle: Bundle,
    catalog: Sequence[dict[str, Any]],
    folder: Path,
    settings: Mapping[str, str] | None = None,
) -> Iterator[LocalService]:
    """An idle service that started on a Redis which already held the catalog."""
    with redis_with(bundle, catalog, folder) as url, idle_service(bundle, url, folder, settings) as service:
        yield service
