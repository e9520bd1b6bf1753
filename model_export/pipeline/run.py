"""What one run of the offline step works on and with. It is passed on as one."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from model_export.configs import RunConfig
from model_export.data.dataset import Dataset
from model_export.data.splits import Split, leave_one_out
from model_export.pipeline.cache import StageCache

Say = Callable[[str], None]  # tells the user a line


def silent(_line: str) -> None:
    """A `Say` that tells nobody."""


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
        """With the last two items of each user left out: the test target and the validation target."""
        return cls(dataset, leave_one_out(dataset), config, StageCache(cache_folder), say)
