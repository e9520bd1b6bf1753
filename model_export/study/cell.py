"""What a cell of the study is. Its results are in cells.py, and the list of all cells is in plan.py."""

from dataclasses import dataclass
from typing import Literal

from model_export.configs import ReadableConfig, RunConfig
from model_export.data.dataset import Dataset
from model_export.data.item_fields import tells_apart

Counting = Literal["popularity", "markov", "markov_popular_ties", "item_knn", "tgh", "sum"]
# Cells that measure something else than a ranking of test users. "cold_units" is "cold" with CARD's units of
# new items drawn with their nearest by content, which no service does.
Question = Literal["robustness", "cold", "cold_units", "overlap"]


@dataclass(frozen=True)
class Cell:
    """One configuration of the study."""

    name: str
    label: str  # the name in words
    groups: tuple[str, ...]  # the tables that show the cell
    config: RunConfig
    counting: Counting | None = None  # a baseline that counts; item_knn uses the configuration's vectors
    question: Question | None = None
    shuffled: bool = False  # a control: items swap their codes at random
    num_seeds: int = 1
    has_photos: bool = False  # it runs on data sets with photos, and the others on those without
    on_all: bool = False  # it runs on both kinds of data sets

    def runs_on(self, dataset: Dataset) -> bool:
        """Whether the study runs this cell on the data set."""
        quantizer = self.config.quantizer
        if isinstance(quantizer, ReadableConfig) and not tells_apart(dataset.items, quantizer.field):
            return False
        return self.on_all or self.has_photos == bool(dataset.images)
