"""Load from another process: h2load, of Debian's nghttp2-client, which costs a tenth of what it asks for.

Every connection sends at its own steady rate, and waits for its answer before it sends again. They begin one
after the other, so that requests come evenly. The load is open, as that of independent users, as long as
answers come sooner than the connection is due again, `DUE_AGAIN_S`. A latency is that of one request,
from its first byte sent to its answer's last byte.
"""

import json
import math
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile

import numpy as np

from service.core.json_lines import read_json_lines

HISTORY = 20
DUE_AGAIN_S = 0.1
MAX_CALLERS = 900


@dataclass(frozen=True)
class Answers:
    """In the order of sending."""

    sent_at_s: np.ndarray  # [request]
    status: np.ndarray  # [request]; -1 where the connection failed
    latency_ms: np.ndarray  # [request]
    took_s: float


def body_of(items: Path, folder: Path, *, limit: int, seed: int = 0) -> Path:
    """A file with the body of POST /recommend: a history of items of the bundle."""
    ids = [line.value["item_id"] for line in read_json_lines(items)]
    history = np.random.default_rng(seed).choice(ids, min(HISTORY, len(ids)), replace=False).tolist()
    path = folder / "body.json"
    path.write_text(json.dumps({"history": history, "limit": limit}), encoding="utf-8")
    return path


def send(url: str, body: Path, *, callers: int = 0, rate: float = 0, seconds: float) -> Answers:
    """POST the body `rate` times a second; or from so many `callers`, as often as answers come."""
    if shutil.which("h2load") is None:
        sys.exit("h2load is missing. Debian and Ubuntu have it: apt install nghttp2-client")
    with NamedTemporaryFile("r") as log:
        command = ["h2load", "--h1", f"--data={body}", "--header=content-type: application/json"]
        command += [f"--log-file={log.name}", url]
        if rate:
            callers = min(max(1, round(rate * DUE_AGAIN_S)), MAX_CALLERS)
            at_once = max(1, round(rate / 1_000))
            command += [f"--requests={max(round(rate * seconds), callers)}", f"--rps={rate / callers}"]
            command += [f"--rate={at_once}", f"--rate-period={round(1_000 * at_once / rate)}ms"]
        else:
            command += [f"--duration={math.ceil(seconds)}"]
        subprocess.run([*command, f"--clients={callers}"], check=True, stdout=subprocess.DEVNULL)
        sent_us, status, latency_us = np.loadtxt(log, dtype=np.int64, ndmin=2).T
    order = np.argsort(sent_us, kind="stable")
    sent_us, status, latency_us = sent_us[order], status[order], latency_us[order]
    took_s = float((sent_us + latency_us).max() - sent_us[0]) / 1e6
    return Answers((sent_us - sent_us[0]) / 1e6, status, latency_us / 1e3, took_s)
