"""Long work over photos, stored part by part. An interrupted run goes on after the last finished part."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model_export.files import read_or_remove
from model_export.pipeline.cache import StageCache
from service.core.progress import ProgressBar
from service.core.whole_files import write_whole

ITEMS_PER_PART = 250

Rows = NDArray[np.float32]


def in_parts(
    cache: StageCache,
    stage: str,
    inputs: tuple[Any, ...],
    count: int,
    make: Callable[[int, int], Rows],
    *,
    desc: str,
) -> Rows:
    """The rows [photo, any] of `count` photos, from the cache if they are there for these inputs.

    `make` gives the rows of the photos from the first number up to, but not including, the second.
    """
    parts = cache.path(stage, ".parts", *inputs)

    def write(target: Path) -> None:
        parts.mkdir(exist_ok=True)
        found = []
        with ProgressBar(total=count, desc=desc, unit="photo", mininterval=1.0) as progress:
            for start in range(0, max(count, 1), ITEMS_PER_PART):
                stop = min(start + ITEMS_PER_PART, count)
                path = parts / f"{start:08d}.npy"
                part = read_or_remove(path, load_array) if path.is_file() else None
                if part is None:
                    part = make(start, stop)
                    save_array(path, part)
                found.append(part)
                progress.update(stop - start)
        save_array(target, np.concatenate(found))

    found: Rows = cache.get(cache.path(stage, ".npy", *inputs), write, load_array)
    shutil.rmtree(parts, ignore_errors=True)
    return found


def save_array(path: Path, values: NDArray[Any]) -> None:
    """Write an array to a .npy file, whole or not at all."""

    def write(partial: Path) -> None:
        with partial.open("wb") as file:
            np.save(file, values)

    write_whole(path, write)


def load_array(path: Path) -> Any:
    """Read an array that `save_array` wrote."""
    with path.open("rb") as file:
        return np.load(file)
