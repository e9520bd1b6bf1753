"""Semantic IDs: how many codes each level has, and a prefix of codes as one integer."""

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, field_validator

# Redis holds a slot as two bytes beside the codes. The largest number is not used as a slot.
NUM_SLOTS = 65_535
# Redis' sorted set holds each code as two bytes.
MAX_CODES_PER_LEVEL = 65_536
# Above this size the rows of the deepest level are pages, allocated on demand (trie.SidTrie).
MAX_DENSE_BYTES = 2**26
# The index of the pages has 4 bytes for each parent prefix of the deepest level: at most 256 MiB.
MAX_PARENTS = 2**26


Codes = tuple[int, ...]


class Sid(NamedTuple):
    """A Semantic ID: the codes carry meaning, the slot only distinguishes items with the same codes."""

    codes: Codes
    slot: int

    def __str__(self) -> str:
        return "-".join(map(str, (*self.codes, self.slot)))


class Frozen(BaseModel):
    """An immutable model; an unknown field is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SidSpec(Frozen):
    """How many codes each level has, outermost first: `levels=(64, 64, 32)`."""

    levels: tuple[int, ...] = Field(min_length=1, max_length=8)
    paged: bool | None = Field(
        default=None, description="whether the trie's deepest level is paged; null: if it is large"
    )

    @field_validator("levels")
    @classmethod
    def _levels_fit(cls, levels: tuple[int, ...]) -> tuple[int, ...]:
        if any(not 1 <= codes <= MAX_CODES_PER_LEVEL for codes in levels):
            raise ValueError(f"each level needs 1 to {MAX_CODES_PER_LEVEL} codes, got {levels}")
        if math.prod(levels[:-1]) > MAX_PARENTS:
            raise ValueError(
                f"{levels} has {math.prod(levels[:-1])} prefixes above the last level; the trie's index "
                f"holds {MAX_PARENTS}. Use fewer or smaller levels"
            )
        return levels

    @property
    def num_levels(self) -> int:
        """The number of codes of every item. The slot is not counted."""
        return len(self.levels)

    @property
    def num_prefixes(self) -> tuple[int, ...]:
        """How many different prefixes each level has: K1, K1*K2, …"""
        return tuple(math.prod(self.levels[: level + 1]) for level in range(self.num_levels))

    @property
    def num_parents(self) -> tuple[int, ...]:
        """How many different prefixes lead to each level: 1, K1, K1*K2, …"""
        return (1, *self.num_prefixes[:-1])

    @property
    def row_bytes(self) -> tuple[int, ...]:
        """Bytes of one trie row of each level: a bit for each code."""
        return tuple(-(-num_codes // 8) for num_codes in self.levels)

    @property
    def is_paged(self) -> bool:
        """Whether the trie stores its deepest level in pages.

        The default depends on the size of the level's dense table: pages if it exceeds MAX_DENSE_BYTES.
        """
        if self.paged is not None:
            return self.paged
        return self.num_parents[-1] * self.row_bytes[-1] > MAX_DENSE_BYTES

    def check(self, codes: Codes) -> None:
        """Raise ValueError unless `codes` has one code for each level, within that level."""
        fits = len(codes) == self.num_levels and all(
            0 <= c < k for c, k in zip(codes, self.levels, strict=True)
        )
        if not fits:
            raise ValueError(f"codes {codes} do not fit the levels {self.levels}")

    def prefixes(self, codes: Codes) -> tuple[int, ...]:
        """The prefix of each level that has a code, as one integer: p1 = c1, p2 = c1*K2 + c2, …"""
        prefix, found = 0, []
        for code, num_codes in zip(codes, self.levels, strict=False):
            prefix = prefix * num_codes + code
            found.append(prefix)
        return tuple(found)

    def prefix_of(self, codes: Codes) -> int:
        """The first codes of an item as one integer; 0 for none."""
        return self.prefixes(codes)[-1] if codes else 0

    def prefixes_of(self, codes: NDArray[np.integer[Any]]) -> tuple[NDArray[np.int64], ...]:
        """`prefixes` of many items at once: codes [item, level] -> for each level the prefixes [item]."""
        prefix = np.zeros(len(codes), dtype=np.int64)
        found = []
        for level, num_codes in enumerate(self.levels):
            prefix = prefix * num_codes + codes[:, level]
            found.append(prefix)
        return tuple(found)

    def codes_of(self, prefix: int, num_levels: int | None = None) -> Codes:
        """The codes with the full prefix `prefix`, or with a prefix of `num_levels`; inverts `prefix_of`."""
        codes = []
        for num_codes in reversed(self.levels[:num_levels]):
            prefix, code = divmod(prefix, num_codes)
            codes.append(code)
        return tuple(reversed(codes))

    def codes_of_prefixes(self, prefixes: NDArray[np.int64]) -> NDArray[np.int64]:
        """`codes_of` many full prefixes at once: [item] -> [item, level]"""
        codes = np.empty((len(prefixes), self.num_levels), dtype=np.int64)
        for level in reversed(range(self.num_levels)):
            prefixes, codes[:, level] = np.divmod(prefixes, self.levels[level])
        return codes
