"""What a million items cost: import, Redis' memory and restart, a fresh replica, a check, one request.

    python benchmarks/scale.py                                  1,000,000 items, and a tenth for the growth
    python benchmarks/scale.py --items 10000000 --tables-only   Redis and a replica's tables, nothing else

Codes are drawn from a tree of Zipf distributions: exponent .8 for the first code, 1.4 for the second under
each first and .5 for the third, each parent with an order of its own. The items of two bundles of `make demo`
(3,130 groceries, levels 64x64x32) are like that: first codes fall with slope -.80 where the quantiser was not
told to balance them, the 740 and 926 prefixes of two codes with -.96 and -.86; as many items drawn here have
920 prefixes, and -.84 and -.87. An export then moves items to codes that are free. These were not moved, so
more of them share codes: of a million, 1,059 share the commonest, and 453,000 of 256x256x256 are in use.

Items are as long as the groceries. The bundle's tokenizer is a sum, so that reading a picture is no part of a
put; its recommender is an untrained `tree`. Import, check and services are the real commands, on one machine
with the server, which keeps an append-only file (everysec). With --tables-only the file is cut into as many
parts as there are cores, which are imported at once. The last line is JSON.
"""

import argparse
import asyncio
import gzip
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from first import resident_mb
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from redis import Redis

from model_export import local_service
from model_export.bundle.recommender import export_recommender
from model_export.configs import TreeConfig
from model_export.generators.tree import TreeGenerator
from service.catalog.catalog import Catalog
from service.catalog.follower import CatalogFollower
from service.core.bundle import (
    ITEMS,
    MANIFEST,
    RECOMMENDER,
    TOKENIZER,
    FileRecord,
    Manifest,
    RenderSpec,
    load_bundle,
    sha256_of,
)
from service.core.graphs import recommender_graph, tokenizer_graph
from service.core.render import font_sha256
from service.core.sid import SidSpec
from service.store.client import connect
from service.store.items import ItemStore
from service.store.server import RedisServer, start_server

SPEC = SidSpec(levels=(256, 256, 256))
EXPONENTS = (0.8, 1.4, 0.5)
CATALOG = "glyphrec"
HISTORY = 20
BEAM_LIMIT = 400
SEEN_ITEMS = 20_000  # that the recommender's tables were made for
REQUESTS = 300
PUTS = 100
CHUNK = 100_000
WORDS = ("oat", "milk", "bread", "cheese", "steel", "bolt", "hex", "cap", "ice", "soup", "red", "large")

local_service.READY_TIMEOUT_S = 600.0  # a start that loads so much is what is measured


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--tables-only", action="store_true", help="no service and no check")
    parser.add_argument("--folder", type=Path, help="where files may lie, by default with all temporary ones")
    parser.add_argument("--load", nargs=2, help=argparse.SUPPRESS)  # the process that has only tables
    args = parser.parse_args()
    if args.load:
        print(json.dumps(asyncio.run(load_tables(*args.load))))
        return 0
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        bundle = write_bundle(Path(name) / "bundle")
        large, small = (
            measure(num_items, bundle, Path(name) / str(num_items), args.tables_only)
            for num_items in (args.items, args.items // 10)
        )
    print(f"{'':26}{small['items']:>14,.0f}{large['items']:>14,.0f}{'times':>8}")
    for key in large:
        print(f"{key:26}{small[key]:14,.2f}{large[key]:14,.2f}{large[key] / small[key]:8.1f}")
    tenth = {f"tenth_{key}": value for key, value in small.items()}
    print(json.dumps({key: round(value, 3) for key, value in (large | tenth).items()}))
    return 0


def measure(num_items: int, bundle: Path, folder: Path, tables_only: bool) -> dict[str, float]:
    folder.mkdir()
    num_parts = (os.cpu_count() or 1) if tables_only else 1
    parts = write_items(folder, num_items, num_parts)
    say(f"{num_items:,} items written, {sum(part.stat().st_size for part in parts) / 1e6:.0f} MB")
    figures: dict[str, float] = {"items": num_items}
    server = start_server(folder / "redis")
    try:
        empty_bytes = used_memory(server)
        empty_mb = 0.0
        if not tables_only:
            with served(bundle, server, folder) as service:
                empty_mb = resident_mb(service.process.pid)
            with Redis.from_url(server.url) as redis:
                redis.flushall()
        figures["import_s"] = commands([["import", part, "--tokenized"] for part in parts], bundle, server)
        figures["import_items_per_s"] = num_items / figures["import_s"]
        for part in parts:
            part.unlink()
        figures["redis_mb"] = (used_memory(server) - empty_bytes) / 1e6
        figures["redis_bytes_per_item"] = 1e6 * figures["redis_mb"] / num_items
        say(f"imported in {figures['import_s']:.0f} s")
        if tables_only:
            figures |= tables(bundle, server)
        else:
            with served(bundle, server, folder) as service:
                figures["replica_ready_s"] = service.ready_s
                figures["replica_mb"] = resident_mb(service.process.pid) - empty_mb
                figures["replica_bytes_per_item"] = 1e6 * figures["replica_mb"] / num_items
                figures |= latencies(service, num_items)
            say("served")
            figures["fsck_s"] = commands([["fsck"]], bundle, server)
        figures["append_only_mb"] = size_mb(folder / "redis")
        say(f"{ {key: round(value, 1) for key, value in figures.items()} }")
    finally:
        server.stop()
    started = time.perf_counter()
    with start_server(folder / "redis") as server:
        figures["redis_restart_s"] = time.perf_counter() - started
        figures["redis_items"] = len_of(server)
    assert figures.pop("redis_items") >= num_items, "the restart has lost items"
    return figures


# --- what is measured ---


def commands(at_once: Sequence[Sequence[object]], bundle: Path, server: RedisServer) -> float:
    """Seconds of whole `glyphrec` commands, from their start to the end of the last."""
    started = time.perf_counter()
    processes = [
        subprocess.Popen(
            local_service.glyphrec_command(*args, "--bundle", bundle, "--redis-url", server.url),
            stdout=sys.stderr,
            stderr=subprocess.DEVNULL,
        )
        for args in at_once
    ]
    statuses = [process.wait() for process in processes]
    assert set(statuses) == {0}, f"a command ended with status {max(statuses)}"
    return time.perf_counter() - started


def served(bundle: Path, server: RedisServer, folder: Path) -> Any:
    return local_service.local_service(bundle, redis_url=server.url, log=folder / "log")


def latencies(service: local_service.LocalService, num_items: int) -> dict[str, float]:
    rng = np.random.default_rng(1)
    histories = [[item_id(n) for n in rng.integers(num_items, size=HISTORY)] for _ in range(REQUESTS)]
    recommended = timed(
        lambda n: service.client.post("/recommend", json={"history": histories[n], "limit": 10}), REQUESTS
    )
    put = timed(
        lambda n: service.client.post("/items", json={"item_id": f"new{n}", "title": f"new thing {n}"}), PUTS
    )
    return {
        "recommend_p50_ms": float(np.percentile(recommended, 50)),
        "recommend_p99_ms": float(np.percentile(recommended, 99)),
        "put_p50_ms": float(np.percentile(put, 50)),
        "put_p99_ms": float(np.percentile(put, 99)),
    }


def timed(request: Callable[[int], Any], times: int) -> list[float]:
    took_ms = []
    for n in range(times):
        started = time.perf_counter()
        answer = request(n)
        took_ms.append(1_000 * (time.perf_counter() - started))
        answer.raise_for_status()
    return took_ms


def tables(bundle: Path, server: RedisServer) -> dict[str, float]:
    tokenizer_id = load_bundle(bundle).manifest.tokenizer_id
    process = subprocess.run(
        [sys.executable, __file__, "--load", server.url, tokenizer_id], stdout=subprocess.PIPE, check=True
    )
    return json.loads(process.stdout)


async def load_tables(url: str, tokenizer_id: str) -> dict[str, float]:
    """What a replica loads, in a process that has nothing else."""
    redis = connect(url)
    store = ItemStore(redis, catalog=CATALOG, tokenizer_id=tokenizer_id, spec=SPEC)
    catalog = Catalog(SPEC)
    before_mb = resident_mb(os.getpid())
    started = time.perf_counter()
    await CatalogFollower(catalog, store).load()
    load_s = time.perf_counter() - started
    added_mb = resident_mb(os.getpid()) - before_mb
    await redis.aclose()
    return {
        "tables_load_s": load_s,
        "tables_mb": added_mb,
        "tables_peak_mb": peak_mb() - before_mb,
        "tables_bytes_per_item": 1e6 * added_mb / catalog.num_items,
    }


def peak_mb() -> float:
    """Of this process; getrusage would tell that of the one that started it where it was larger."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1_024 / 1e6


def used_memory(server: RedisServer) -> int:
    with Redis.from_url(server.url) as redis:
        return int(redis.info("memory")["used_memory"])


def len_of(server: RedisServer) -> int:
    with Redis.from_url(server.url) as redis:
        return int(redis.hlen(f"{{{CATALOG}}}:items"))


def size_mb(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


# --- the catalogue and its bundle ---


def item_id(number: int) -> str:
    return f"B{number:09d}"


def draw_codes(num_items: int, seed: int) -> NDArray[np.int64]:
    """Codes [item, level] as the docstring of this file says."""
    rng = np.random.default_rng(seed)
    codes = np.empty((num_items, SPEC.num_levels), dtype=np.int64)
    prefix = np.zeros(num_items, dtype=np.int64)
    for level, (num_codes, exponent) in enumerate(zip(SPEC.levels, EXPONENTS, strict=True)):
        share = np.arange(1, num_codes + 1, dtype=np.float64) ** -exponent
        rank = rng.choice(num_codes, size=num_items, p=share / share.sum())
        # The likeliest code is another one under each parent: a step that is odd visits every code once.
        codes[:, level] = (rank * (2 * (prefix * 7919 % 97) + 1) + prefix * 104_729) % num_codes
        prefix = prefix * num_codes + codes[:, level]
    return codes


def write_items(folder: Path, num_items: int, num_parts: int) -> list[Path]:
    """Files of so many items together."""
    parts = [folder / f"{part}.jsonl.gz" for part in range(num_parts)]
    for part, path in enumerate(parts):
        first, end = num_items * part // num_parts, num_items * (part + 1) // num_parts
        with gzip.open(path, "wt", encoding="utf-8", compresslevel=1) as file:
            for start in range(first, end, CHUNK):
                codes = draw_codes(min(CHUNK, end - start), seed=start).tolist()
                file.writelines(_line(start + n, each) for n, each in enumerate(codes))
    return parts


def _line(number: int, codes: list[int]) -> str:
    first, second, third = codes
    words = " ".join(WORDS[code % len(WORDS)] for code in codes) + f", number {number}, {third} oz"
    item = (
        f'{{"item_id": "{item_id(number)}", "title": "{words}", "brand": "Brand {number % 2_000}", '
        f'"categories": ["Section {first}", "Shelf {first}-{second % 16}"]}}'
    )
    return (
        f'{{"item_id": "{item_id(number)}", "codes": {codes}, "slot": 0, "popularity": 1, "item": {item}}}\n'
    )


def write_bundle(folder: Path) -> Path:
    """One that can be served, without items."""
    folder.mkdir()
    torch.manual_seed(0)
    generator = TreeGenerator(
        config=TreeConfig(), spec=SPEC, history_length=HISTORY, seen_codes=draw_codes(SEEN_ITEMS, seed=0)
    )
    export_recommender(folder / RECOMMENDER, generator.eval(), history_length=HISTORY, beam_limit=BEAM_LIMIT)
    render = RenderSpec()
    render = render.model_copy(update={"font_sha256": font_sha256(render)})
    graph = tokenizer_graph(SPEC, height=render.height_px, width=render.width_px, vector_dim=1)
    onnx.save(_summing_tokenizer(render), folder / TOKENIZER)
    with gzip.open(folder / ITEMS, "wb"):
        pass
    manifest = Manifest(
        format_version=2,
        created_at="2026-01-01T00:00:00Z",
        config="scale",
        export_key="0" * 64,
        sid=SPEC,
        render=render,
        tokenizer_id="0123456789ab",
        recommender_id="ba9876543210",
        trained_for_tokenizer_id="0123456789ab",
        tokenizer=graph,
        recommender=recommender_graph(SPEC),
        generator="tree",
        history_length=HISTORY,
        beam_limit=BEAM_LIMIT,
        data_fingerprint="none",
        data_name="scale",
        num_items=0,
        metrics={},
        files={
            name: FileRecord(sha256=sha256_of(folder / name), num_bytes=(folder / name).stat().st_size)
            for name in (TOKENIZER, RECOMMENDER, ITEMS)
        },
    )
    (folder / MANIFEST).write_text(manifest.model_dump_json(), encoding="utf-8")
    return folder


def _summing_tokenizer(render: RenderSpec) -> onnx.ModelProto:
    """Codes from the sum of an item's first strip."""
    node = helper.make_node
    nodes = [
        node("Gather", ["strips", "first_strip"], ["first"], axis=0),
        node("Cast", ["first"], ["pixels"], to=TensorProto.INT64),
        node("ReduceSum", ["pixels", "picture"], ["sum"], keepdims=0),  # [item]
        node("Unsqueeze", ["sum", "column"], ["sums"]),
        node("Mul", ["sums", "primes"], ["spread"]),
        node("Mod", ["spread", "levels"], ["codes"]),
        node("Cast", ["sums"], ["vector"], to=TensorProto.FLOAT),
    ]
    constants = {"picture": [1, 2], "column": [1], "primes": [7, 31, 127], "levels": SPEC.levels}
    shape = ["strip", render.height_px, render.width_px]
    graph = helper.make_graph(
        nodes,
        "summing_tokenizer",
        [
            helper.make_tensor_value_info("strips", TensorProto.UINT8, shape),
            helper.make_tensor_value_info("first_strip", TensorProto.INT64, ["item"]),
        ],
        [
            helper.make_tensor_value_info("codes", TensorProto.INT64, ["item", SPEC.num_levels]),
            helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["item", 1]),
        ],
        [numpy_helper.from_array(np.array(each, dtype=np.int64), name) for name, each in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
