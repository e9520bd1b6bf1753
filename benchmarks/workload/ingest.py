"""Items that must be read: one by one, in bulk, and beside live traffic. A part of serving.py."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from model_export.local_service import LocalService, glyphrec_command
from service.core.bundle import TOKENIZER, Bundle
from service.core.render import item_text, render_text
from service.inference.runtime import Tokenizer

BATCHES = (1, 4, 8, 16, 32)
TURNS = 3
LIVE_SHARE = 0.3  # of saturation, beside the ingest


class Load(NamedTuple):
    p99_ms: Callable[[float], float]  # of POST /recommend, at a share of saturation
    seconds: float  # that it lasts
    items_per_s: float  # of the import beside it


def ingest(
    service: LocalService,
    bundle: Bundle,
    catalogue: Sequence[dict[str, Any]],
    folder: Path,
    num_items: int,
    load: Load,
) -> dict[str, float]:
    one_by_one, bulk = new_items(catalogue, num_items // 5, "one"), new_items(catalogue, num_items, "bulk")
    own = tokenizer_alone(bundle, bulk)
    took_s = []
    for item in one_by_one:
        started = time.perf_counter()
        service.client.post("/items", json=item).raise_for_status()
        took_s.append(time.perf_counter() - started)
    started = time.perf_counter()
    run_import(lines_of(bulk, folder), "--url", service.url)
    bulk_s = time.perf_counter() - started
    without, beside = [], []
    for turn in range(TURNS):  # one after the other, as the machine changes
        without.append(load.p99_ms(LIVE_SHARE))
        some = new_items(catalogue, int(load.items_per_s * load.seconds), f"beside {turn}")
        process = start_import(lines_of(some, folder), "--url", service.url, "--rate", load.items_per_s)
        beside.append(load.p99_ms(LIVE_SHARE))
        process.wait()
    return {
        "tokenizer_items_per_s": own,
        "one_by_one_items_per_s": len(one_by_one) / sum(took_s),
        "items_p50_ms": 1_000 * float(np.percentile(took_s, 50)),
        "items_p99_ms": 1_000 * float(np.percentile(took_s, 99)),
        "bulk_items_per_s": len(bulk) / bulk_s,
        "ingest_share": len(bulk) / bulk_s / own,
        "p99_without_ingest_ms": float(np.median(without)),
        "p99_while_ingesting_ms": float(np.median(beside)),
        "p99_rise_while_ingesting": float(np.median(beside) / np.median(without) - 1),
    }


def tokenizer_alone(bundle: Bundle, items: Sequence[dict[str, Any]]) -> float:
    """Items a second of the graph, in its best batches. One thread, as the service gives it on two cores."""
    tokenizer = Tokenizer(bundle.file(TOKENIZER), bundle.manifest.tokenizer, threads=1)
    render = bundle.manifest.render
    strips = [render_text(item_text(item, render), render).strips for item in items[:256]]

    def items_per_s(batch: int) -> float:
        parts = [strips[start : start + batch] for start in range(0, len(strips), batch)]
        tokenizer.run(parts[0])
        started = time.perf_counter()
        for part in parts:
            tokenizer.run(part)
        return len(strips) / (time.perf_counter() - started)

    return max(items_per_s(batch) for batch in BATCHES)


def new_items(catalogue: Sequence[dict[str, Any]], count: int, mark: str) -> list[dict[str, Any]]:
    """Of the catalogue's lengths, but with a number in each title, so that nothing was read before."""
    rows = [catalogue[n % len(catalogue)]["item"] for n in range(count)]
    return [
        {**row, "item_id": f"{mark}-{n}", "title": f"{row.get('title', '')} {mark} {n}"}
        for n, row in enumerate(rows)
    ]


def lines_of(items: Sequence[dict[str, Any]], folder: Path) -> Path:
    path = folder / "new.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return path


def start_import(path: Path, *options: object) -> subprocess.Popen[bytes]:
    command = glyphrec_command("import", path, *options)
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def run_import(path: Path, *options: object) -> None:
    if status := start_import(path, *options).wait():
        sys.exit(f"`glyphrec import {path.name} {' '.join(map(str, options))}` ended with status {status}")
