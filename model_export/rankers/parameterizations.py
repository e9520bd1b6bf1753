"""How an item's codes, or its id, become rows of a bounded embedding table (arXiv 2504.02137 §3, Table 1).

An item's embedding is the sum of its rows. With codes c1, c2, … and K codes at each level, the raw rows are

    trigram            K²c1 + K c2 + c3                                 one row
    fourgram           K³c1 + K²c2 + K c3 + c4                          one row
    all bigrams        K²(i-1) + K c_i + c_{i+1}          for i = 1..L-1
    prefix-ngram       Σ_{t=1..i} K^{i-t}(c_t + 1) - 1    for i = 1..n  every prefix from level one on
    all n-grams        the same of c_s, c_{s+1}, …        for every start s, each with a range of its own
    plain sum          K(i-1) + c_i                       for i = 1..L  not compared in the paper
    random hash        a hash of the id                                 one row
    individual         the id                                           one row, and as many rows as items

A row is the raw row modulo the size of the table. The ranges of different prefix lengths are disjoint before
the modulo. "All n-grams" is how some readers understood the paper's prefixes, which all begin at level one.
The levels may differ in size: K is the largest.
"""

from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from model_export.ranker_config import ParameterizationKind

KINDS: tuple[ParameterizationKind, ...] = get_args(ParameterizationKind)
OF_IDS = ("random-hash", "individual")  # these read the id of an item, and the others its codes
MAX_PRODUCT = 2**62  # of rows and codes: no step of Horner's scheme may leave 64 bits


@dataclass(frozen=True)
class Parameterization:
    """One way to rows. `levels`: the codes of each level. `depth`: the longest n-gram of prefixes and of all
    n-grams.

    Raises ValueError for levels that are too few, and for sizes that 64 bits do not hold.
    """

    kind: ParameterizationKind
    levels: tuple[int, ...]
    num_rows: int
    depth: int = 0  # 0: all levels

    def __post_init__(self) -> None:
        needed = {"trigram": 3, "fourgram": 4, "all-bigrams": 2}.get(self.kind, max(self.depth, 1))
        if len(self.levels) < needed:
            raise ValueError(f"{self.kind} needs {needed} levels, and the codes have {len(self.levels)}")
        if not 1 <= self.num_rows <= MAX_PRODUCT // (self.num_codes + 1):
            raise ValueError(
                f"a table of {self.num_rows} rows does not fit {self.num_codes} codes a level: their product "
                f"must stay below 2**62. Use 1 to {MAX_PRODUCT // (self.num_codes + 1)} rows"
            )

    @property
    def num_codes(self) -> int:
        """K: the codes of the largest level."""
        return max(self.levels)

    @property
    def reads_ids(self) -> bool:
        """Whether rows follow from the id of an item and not from its codes."""
        return self.kind in OF_IDS

    def __str__(self) -> str:
        """The name for people: "prefix-3gram"."""
        return f"prefix-{self.depth or len(self.levels)}gram" if self.kind == "prefix" else self.kind

    def rows(self, ids: Tensor, codes: Tensor) -> Tensor:
        """The rows of items: ids [...], codes [..., level], both int64 -> [..., gram] from 0 to num_rows - 1.

        Ids and codes are 0 or more. What an item's kind does not read may be anything of the right shape.
        """
        levels = range(len(self.levels))
        depth = self.depth or len(self.levels)
        match self.kind:
            case "trigram":
                found = [self._horner(codes, [0, 1, 2])]
            case "fourgram":
                found = [self._horner(codes, [0, 1, 2, 3])]
            case "all-bigrams":
                found = [self._horner(codes, [i, i + 1], start=i) for i in levels[:-1]]
            case "prefix":
                found = self._prefixes(codes, range(depth))
            case "all-ngrams":
                # Each start has the ranges of all lengths, below those of the next start.
                ranges = sum(self.num_codes**length for length in range(1, depth + 1))
                found = [
                    (row + start * ranges % self.num_rows) % self.num_rows
                    for start in levels
                    for row in self._prefixes(codes, range(start, min(start + depth, len(levels))))
                ]
            case "plain-sum":
                found = [(codes[..., i] + i * self.num_codes) % self.num_rows for i in levels]
            case "random-hash":
                found = [hashed(ids) % self.num_rows]
            case "individual":
                found = [ids % self.num_rows]
        return torch.stack(found, dim=-1)

    def _horner(self, codes: Tensor, levels: list[int], start: int = 0) -> Tensor:
        """start * K^n + the n codes of `levels` as one number to the base K, modulo the table."""
        row = torch.full_like(codes[..., 0], start)
        for level in levels:
            row = (row * self.num_codes + codes[..., level]) % self.num_rows
        return row

    def _prefixes(self, codes: Tensor, levels: range) -> list[Tensor]:
        """The rows of the runs of codes that begin at the first of `levels`, the shortest first."""
        row, found = torch.zeros_like(codes[..., 0]), []
        for level in levels:
            row = (row * self.num_codes + codes[..., level] + 1) % self.num_rows
            found.append((row + self.num_rows - 1) % self.num_rows)
        return found


def hashed(ids: Tensor) -> Tensor:
    """A 32-bit hash of non-negative ids below 2**31, the same on every machine: int64 [...], 0 to 2**32 - 1.

    Two rounds of multiply and shift (Mueller's integer hash), which 64 bits hold.
    """
    value = ids & 0xFFFFFFFF
    for factor in (0x45D9F3B, 0x45D9F3B):
        value = ((value ^ (value >> 16)) * factor) & 0xFFFFFFFF
    return value ^ (value >> 16)


def rows_for(num_items: int, collision_factor: float) -> int:
    """The size of a table with so many items for each row, at least 1."""
    return max(1, round(num_items / collision_factor))
