"""How fast an event log becomes a data set, and how much memory that takes.

    python -m benchmarks.event_log [--events 10000000]

A CSV of random events is written: users with 20 events each, items by a power law, three kinds. Each
way reads it in a process of its own, from the file to the sequences of all users. The baseline is a loop with
Python's csv module that fills the same arrays; what comes after the arrays is the same code. Peak memory is
that of the whole process, with what it imports.

The last line is JSON. duckdb_s is the claim; target: 60 for ten million events on two cores.
"""

import csv
import json
import resource
import subprocess
import sys
import tempfile
import time
from array import array
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks import report
from model_export.data.dataset import Dataset, make_dataset
from model_export.data.event_log.read import read_event_log
from model_export.data.events import Events, first_of_each, histories, in_order

EVENTS_PER_USER = 20
MAX_ITEMS = 200_000
KINDS = ("view", "cart", "purchase")
CHUNK = 200_000
START_S, SPAN_S = 1_600_000_000, 10_000_000


def main(argv: Sequence[str]) -> int:
    parser = report.arguments(__doc__)
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument(
        "--read", nargs=2, metavar=("WAY", "FILE"), help="for the processes that are measured"
    )
    args = parser.parse_args(argv)
    if args.read is not None:
        measure(*args.read)
        return 0
    num_events = 20_000 if args.tiny else args.events
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "log.csv"
        write_log(path, num_events)
        print(f"{num_events:,} events, {path.stat().st_size / 1e6:,.0f} MB of CSV")
        found = {way: in_a_process(way, path) for way in WAYS}
    if len({each["interactions"] for each in found.values()}) != 1:
        raise AssertionError(f"the ways read different events: {found}")
    named = {
        way: {
            f"{way}_s": each["s"],
            f"{way}_events_per_s": num_events / each["s"],
            f"{way}_peak_mb": each["peak_mb"],
        }
        for way, each in found.items()
    }
    figures = {"events": float(num_events)} | named["duckdb"]
    report.finish("event_log", argv, figures, named["csv_module"], shown=False)
    return 0


def write_log(path: Path, num_events: int) -> None:
    rng = np.random.default_rng(0)
    num_users = max(1, num_events // EVENTS_PER_USER)
    with path.open("w", encoding="utf-8") as file:
        file.write("user_id,item_id,timestamp,event_type\n")
        for start in range(0, num_events, CHUNK):
            count = min(CHUNK, num_events - start)
            users = rng.integers(0, num_users, count).tolist()
            items = (rng.zipf(1.2, count) % MAX_ITEMS).tolist()
            times = (START_S + rng.integers(0, SPAN_S, count)).tolist()
            kinds = rng.integers(0, len(KINDS), count).tolist()
            rows = zip(users, items, times, kinds, strict=True)
            file.write("".join(f"U{u:08d},{i:07d},{t},{KINDS[k]}\n" for u, i, t, k in rows))


def in_a_process(way: str, path: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.event_log", "--read", way, str(path)]
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    found: dict[str, float] = json.loads(output.splitlines()[-1])
    return found


def measure(way: str, file: str) -> None:
    started = time.perf_counter()
    dataset = WAYS[way](Path(file))
    took = time.perf_counter() - started
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6  # Linux counts in KiB
    print(json.dumps({"s": took, "peak_mb": peak_mb, "interactions": sum(map(len, dataset.sequences))}))


def by_duckdb(path: Path) -> Dataset:
    return read_event_log(str(path)).dataset


def by_csv_module(path: Path) -> Dataset:
    user_of: dict[str, int] = {}
    item_of: dict[str, int] = {}
    user, item, moment = array("q"), array("q"), array("q")
    with path.open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            user.append(user_of.setdefault(row["user_id"], len(user_of)))
            item.append(item_of.setdefault(row["item_id"], len(item_of)))
            moment.append(int(row["timestamp"]) * 1000)
    users, items = list(user_of), list(item_of)
    events = Events(np.array(user, np.int64), np.array(item, np.int64), np.array(moment, np.int64))
    ordered = first_of_each(in_order(events, users, items))
    described = [{"item_id": name, "title": name} for name in items]
    return make_dataset("log", described, histories(ordered, users), {})


WAYS = {"duckdb": by_duckdb, "csv_module": by_csv_module}


if __name__ == "__main__":
    report.run(main)
