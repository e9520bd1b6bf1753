"""The inputs of one run of the offline step, in one object."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from model_export.configs import RunConfig
from model_export.data.dataset import Dataset
from model_export.data.splits import Split, leave_one_out
from model_export.pipeline.cache import StageCache

Say = Callable[[str], None]  # shows the user a line


def silent(_line: str) -> None:
    """A `Say` that shows nothing."""


@dataclass(frozen=True)
class Run:
    """One configuration on one data set. The configuration holds the seed."""

    dataset: Dataset
    split: Split
    config: RunConfig
    cache: StageCache
    say: Say = silent

    @classmethod
    def of(cls, dataset: Dataset, config: RunConfig, cache_folder: Path, say: Say = silent) -> "Run":
        """A run. The last two items of each user are the validation target and the test target."""
        return cls(dataset, leave_one_out(dataset), config, StageCache(cache_folder, say), say)
