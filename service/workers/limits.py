"""How many workers this machine can have."""

from pathlib import Path

from service.core.cpus import UsableCpus
from service.core.memory import UsableMemory
from service.errors import GlyphrecError

# Of a worker beside its graphs and its catalog: Python, its packages and ONNX Runtime. `glyphrec doctor` says
# what a replica of a bundle takes in all.
LEAST_BYTES = 150 * 10**6
MEGABYTE = 1e6


def least_bytes(bundle: Path) -> int:
    """The memory that a worker takes at least: its own, and the graphs of the bundle."""
    files = bundle.glob("*.onnx*") if bundle.is_dir() else ()
    return LEAST_BYTES + sum(each.stat().st_size for each in files)


def check_workers(num_workers: int, bundle: Path, cpus: UsableCpus, memory: UsableMemory) -> None:
    """Raise GlyphrecError if so many workers can only wait for each other, or do not fit."""
    if num_workers > cpus.num_threads:
        raise GlyphrecError(
            f"GLYPHREC_WORKERS is {num_workers}, but there are {cpus}. Under load each worker keeps one "
            f"busy, and workers that wait for each other answer later. Set it to {cpus.num_threads} at most."
        )
    least = least_bytes(bundle)
    if memory.available and num_workers * least > memory.available:
        raise GlyphrecError(
            f"GLYPHREC_WORKERS is {num_workers}, and each takes {least / MEGABYTE:,.0f} MB at least, before "
            f"its catalog; {memory.available / MEGABYTE:,.0f} MB are available. Set it to "
            f"{max(1, memory.available // least)}, or give the service more memory."
        )
