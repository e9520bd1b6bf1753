"""schemathesis against a real service: every route of its OpenAPI, all checks, valid and invalid requests.

    python -m benchmarks.fuzz --cases 10000 --seed 0

Prints each failure with a curl line that repeats it. The baseline is none.
The last line is JSON.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import report
from model_export.local_service import local_service
from tests.known_bundle import KNOWN_ITEMS, write_known_bundle

ROOT = Path(__file__).parents[1]
CASES_PER_EXAMPLE = 13  # what one more example of each route and phase adds, at least
KEY = "an-admin-key-that-may-all"
SETTINGS = {
    "GLYPHREC_FILTER_FIELDS": "price:number,brand:text,used:boolean",
    "GLYPHREC_ADMIN_KEYS": KEY,
    "GLYPHREC_BUNDLES_DIR": ".",
}


class Fuzzed(NamedTuple):
    cases: int
    failures: int
    seconds: float
    said: str


def fuzz(url: str, folder: Path, *, cases: int, seed: int, timeout_s: float) -> Fuzzed:
    """Send `cases` requests or more; `folder` takes what schemathesis remembers.

    Raises CalledProcessError where schemathesis itself fails.
    """
    examples = max(1, cases // CASES_PER_EXAMPLE)
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(ROOT / "tests/fuzzing.toml")]
    command += ["run", f"{url}/openapi.json", "--max-examples", str(examples)]  # all checks by default
    command += ["--seed", str(seed), "--no-color", "--suppress-health-check", "all"]
    command += ["--header", f"X-API-Key: {KEY}"]
    command += ["--generation-database", "none", "--continue-on-failure"]
    started = time.perf_counter()
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    counted = re.search(r"(\d+) generated(?:, (\d+) found)?", done.stdout)
    if counted is None or done.returncode not in (0, 1):
        raise subprocess.CalledProcessError(done.returncode, command, done.stdout, done.stderr)
    failures = int(counted[2] or 0) if done.returncode else 0
    return Fuzzed(int(counted[1]), failures or done.returncode, time.perf_counter() - started, done.stdout)


def main(argv: Sequence[str]) -> int:
    parser = report.arguments(__doc__)
    parser.add_argument("--cases", type=int, default=10_000, help="requests, at least (default 10000)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    cases = 1 if args.tiny else args.cases
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        bundle = write_known_bundle(folder / "bundle", KNOWN_ITEMS)
        with local_service(
            bundle, data_dir=folder / "redis", log=folder / "log", settings=SETTINGS
        ) as service:
            found = fuzz(service.url, folder, cases=cases, seed=args.seed, timeout_s=24 * 3600)
            assert service.client.get("/health/ready").is_success
        log = (folder / "log").read_text()
    print(found.said)
    traces = log.count("Traceback")
    figures = {"cases": found.cases, "failures": found.failures, "traces": traces}
    report.finish("fuzz", argv, figures | {"seed": args.seed, "seconds": round(found.seconds)}, {})
    return 1 if found.failures or traces else 0


if __name__ == "__main__":
    report.run(main)
