"""What an import says about values that nobody can use: how many in each field, and one example."""

import sys
from collections import Counter

from service.core.image_field import FIELD


class UnusedValues:
    """The values of one import, counted by field."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    def add(self, where: str, field: str, reason: str) -> None:
        """Note one value. `where` names its item or line."""
        self._counts[field] += 1
        self._examples.setdefault(field, f"{where}: {field} {reason}")

    def tell(self) -> None:
        """Write one line for each field to stderr."""
        for field, count in sorted(self._counts.items()):
            print(
                f"{_user_of(field)} {field} of {count} items, first {self._examples[field]}", file=sys.stderr
            )


def _user_of(field: str) -> str:
    return "the tokenizer does not read" if field == FIELD else "filters cannot use"
