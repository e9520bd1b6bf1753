"""The SID trie. A prefix read as an integer is its own trie state, so the trie is a table of counts per
level: no nodes, no children, no rebuild. An edit touches one cell a level; a row of children is one
contiguous slice.
"""

import hashlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.contract import NUM_SLOTS, Codes, SidSpec, table_dtypes

Tables = tuple[NDArray[Any], ...]  # level l: [K1*…*Kl], how many items live below each prefix


class CountTrie:
    """How many items live below every prefix of `spec`.

    `tables` are the live arrays themselves, given to the recommender graph as they are. Another thread may
    read them during an edit: a leaf is written before its parents on insert and after them on delete, so a
    prefix that is seen alive has, at that moment, a living item below it.
    """

    def __init__(self, spec: SidSpec) -> None:
        self.spec = spec
        self.tables: Tables = tuple(
            np.zeros(cells, dtype=dtype)
            for cells, dtype in zip(spec.num_prefixes, table_dtypes(spec), strict=True)
        )

    @classmethod
    def from_codes(cls, spec: SidSpec, codes: NDArray[np.integer[Any]]) -> "CountTrie":
        """Build from codes [item, level] in one pass. Raises ValueError where a code has over NUM_SLOTS
        items.
        """
        trie = cls(spec)
        for table, prefix in zip(trie.tables, spec.prefixes_of(codes), strict=True):
            found, count = np.unique(prefix, return_counts=True)
            if table is trie.tables[-1] and count.size and count.max() > NUM_SLOTS:
                raise ValueError(f"{count.max()} items share one code; {NUM_SLOTS} is the limit")
            table[found] = count
        return trie

    def insert(self, codes: Codes) -> None:
        """Add one item. O(levels). Raises OverflowError where the code is full."""
        self.spec.check(codes)
        prefixes = self.spec.prefixes(codes)
        if self.tables[-1][prefixes[-1]] >= NUM_SLOTS:
            raise OverflowError(f"codes {codes} already have {NUM_SLOTS} items")
        for table, prefix in zip(reversed(self.tables), reversed(prefixes), strict=True):
            table[prefix] += 1

    def delete(self, codes: Codes) -> None:
        """Take one item away. O(levels). Raises KeyError where none lives there."""
        self.spec.check(codes)
        prefixes = self.spec.prefixes(codes)
        if self.tables[-1][prefixes[-1]] == 0:
            raise KeyError(f"no item lives at codes {codes}")
        for table, prefix in zip(self.tables, prefixes, strict=True):
            table[prefix] -= 1

    def count(self, codes: Codes) -> int:
        """How many items live below these codes; fewer codes than levels ask for a prefix, none for all."""
        if not codes:
            return len(self)
        prefix = 0
        for code, num_codes in zip(codes, self.spec.levels, strict=False):
            prefix = prefix * num_codes + code
        return int(self.tables[len(codes) - 1][prefix])

    def __len__(self) -> int:
        return int(self.tables[0].sum(dtype=np.int64))

    def digest(self) -> str:
        """Equal for equal contents, whatever the order of edits: what two replicas compare."""
        return hashlib.sha256(self.tables[-1].tobytes()).hexdigest()[:16]
