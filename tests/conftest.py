"""What every test may use: a real server of Redis' kind, emptied before each test, and a real tiny export.

How tests are selected and shared between workers is in hooks.py.
"""

import os

# Before torch, tqdm and transformers are imported: small tensors are slower on several threads, nobody
# watches bars, and no test asks a model hub or reports to ONNX Runtime's maker.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import NamedTuple

import hypothesis
import numpy as np
import pytest
from filelock import FileLock
from redis.asyncio import Redis

from model_export.configs import tiny
from model_export.data.dataset import Dataset, make_dataset
from model_export.data.tables import read_dataset
from service.core.bundle import Bundle
from service.store.client import connect
from service.store.server import RedisServer, start_server

pytest_plugins = ["tests.hooks"]

NUM_SMALL_ITEMS = 160

# The same examples in every run of CI, so that a red run is red again; anywhere else new ones each time.
hypothesis.settings.register_profile("ci", derandomize=True, database=None, print_blob=True, deadline=None)
hypothesis.settings.register_profile("explore", print_blob=True, deadline=None)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "explore")


class TinyExport(NamedTuple):
    bundle: Bundle
    dataset: Dataset
    cache: Path


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all workers of pytest-xdist, each of which has a base folder inside it."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base


@pytest.fixture(scope="session")
def redis_server() -> Iterator[RedisServer]:
    with start_server() as server:
        yield server


@pytest.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator[Redis]:
    client = connect(redis_server.url)
    await client.flushall()
    yield client
    await client.aclose()


@pytest.fixture
def redis_url(redis_server: RedisServer, redis: Redis) -> str:  # noqa: ARG001  `redis` empties the server
    return redis_server.url


@pytest.fixture(scope="session")
def small_dataset() -> Dataset:
    """Real groceries, few enough to read in seconds: the most bought items, short histories."""
    groceries = read_dataset("completejourney")
    count = np.bincount(np.concatenate(groceries.sequences), minlength=groceries.num_items)
    kept = np.sort(np.argsort(-count, kind="stable")[:NUM_SMALL_ITEMS])
    index = np.full(groceries.num_items, -1, dtype=np.int32)
    index[kept] = np.arange(len(kept))
    histories = []
    for user_id, sequence in zip(groceries.user_ids, groceries.sequences, strict=True):
        history = index[sequence]
        histories.append((user_id, history[history >= 0][:25]))
    return make_dataset("small", [groceries.items[item] for item in kept], histories, {})


@pytest.fixture(scope="session")
def tiny_export(small_dataset: Dataset, shared_folder: Path) -> TinyExport:
    """A bundle that the whole pipeline made, configuration tiny, once for all tests and all workers."""
    from model_export.export import export  # here, so that the service's tests run where torch is not

    folder = shared_folder / "tiny"
    with FileLock(shared_folder / "tiny.lock"):  # the second worker finds the bundle of the first
        bundle = export(
            small_dataset, folder / "bundle", tiny(), cache_folder=folder / "cache", say=lambda _: None
        )
    return TinyExport(bundle, small_dataset, folder / "cache")
