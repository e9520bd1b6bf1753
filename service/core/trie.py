"""The SID trie: one row of bits for every prefix, one bit for every code that may follow it.

A prefix read as an integer is its own trie state and the number of its row. So there are no nodes, no
pointers and no rebuild. An edit flips at most one bit per level, and the children of a prefix are one short
contiguous row, as short for ten million items as for ten.
"""

import hashlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.core.sid import NUM_SLOTS, Codes, SidSpec

Tables = tuple[NDArray[Any], ...]  # inputs of the recommender graph, named by graphs.trie_tables

# The graph sees the paged level in steps of this many pages, so that its shape changes rarely.
PAGES_PER_STEP = 4096
BYTES_PER_SHARED_CODE = 128  # the size of a dictionary entry, for num_bytes
ROWS_AT_ONCE = 256


class SidTrie:
    """Knows which codes of `spec` have items, and how many each.

    Level l holds bits [parent prefix, code] in whole bytes, lowest bit first. If the rows of the deepest
    level would take too much memory, they are pages, allocated for parents that have items: `page_of` [parent
    prefix] is the page's number, and page 0 belongs to no parent and stays empty. Address space for all pages
    is reserved at once and costs memory only where it is used, so growth never copies anything.

    Edits and searches exclude each other (Catalog.lock); the tables are the live arrays, never a copy.
    """

    def __init__(self, spec: SidSpec) -> None:
        self.spec = spec
        rows = list(spec.num_parents)
        self._page_of: NDArray[np.int32] | None = None
        if spec.is_paged:
            self._page_of = np.zeros(rows[-1], dtype=np.int32)
            rows[-1] += 1
        self._bits = tuple(
            np.zeros((count, width), dtype=np.uint8)
            for count, width in zip(rows, spec.row_bytes, strict=True)
        )
        self._num_pages = 1  # allocated so far, with the empty one
        self._free_pages: list[int] = []
        self._shared: dict[int, int] = {}  # full prefix -> items there beyond the first
        self._num_items = 0

    @classmethod
    def from_codes(cls, spec: SidSpec, codes: NDArray[np.integer[Any]]) -> "SidTrie":
        """Build from codes [item, level]. Raises ValueError if some codes have more than NUM_SLOTS items."""
        return cls.from_prefixes(spec, spec.prefixes_of(codes)[-1])

    @classmethod
    def from_prefixes(cls, spec: SidSpec, prefixes: NDArray[np.int64]) -> "SidTrie":
        """Build from the full prefix of each item [item]."""
        trie = cls(spec)
        living, counts = np.unique(prefixes, return_counts=True)
        if counts.size and counts.max() > NUM_SLOTS:
            raise ValueError(f"{counts.max()} items share one code; {NUM_SLOTS} is the limit")
        shared = counts > 1
        trie._shared = dict(zip(living[shared].tolist(), (counts[shared] - 1).tolist(), strict=True))
        trie._num_items = len(prefixes)
        for level in reversed(range(spec.num_levels)):
            parent, code = np.divmod(living, spec.levels[level])
            living = parent[np.concatenate([[True], parent[1:] != parent[:-1]])] if parent.size else parent
            row = trie._take_pages(parent, living) if level == spec.num_levels - 1 else parent
            # Each bit occurs once, so the sum of bits is their union.
            np.add.at(
                trie._bits[level].reshape(-1),
                row * spec.row_bytes[level] + (code >> 3),
                (1 << (code & 7)).astype(np.uint8),
            )
        return trie

    @property
    def tables(self) -> Tables:
        """The arrays that the graph reads, in the order of graphs.trie_tables."""
        if self._page_of is None:
            return self._bits
        seen = min(-(-self._num_pages // PAGES_PER_STEP) * PAGES_PER_STEP, len(self._bits[-1]))
        return (*self._bits[:-1], self._page_of, self._bits[-1][:seen])

    @property
    def num_bytes(self) -> int:
        """Memory of the tables and of the counts."""
        return sum(table.nbytes for table in self.tables) + BYTES_PER_SHARED_CODE * len(self._shared)

    def insert(self, codes: Codes) -> None:
        """Add one item. O(levels). Raises OverflowError if the codes are full."""
        self.spec.check(codes)
        prefixes = self.spec.prefixes(codes)
        leaf = prefixes[-1]
        if self._is_set(-1, leaf):
            if self._shared.get(leaf, 0) + 1 >= NUM_SLOTS:
                raise OverflowError(f"codes {codes} already have {NUM_SLOTS} items")
            self._shared[leaf] = self._shared.get(leaf, 0) + 1
        else:
            self._claim_page(leaf // self.spec.levels[-1])
            for level in reversed(range(self.spec.num_levels)):
                row, byte, bit = self._place(level, prefixes[level])
                if row[byte] & bit:
                    break  # its parents are set already
                row[byte] |= bit
        self._num_items += 1

    def delete(self, codes: Codes) -> None:
        """Remove one item. O(levels). Raises KeyError if these codes have none."""
        self.spec.check(codes)
        prefixes = self.spec.prefixes(codes)
        leaf = prefixes[-1]
        if not self._is_set(-1, leaf):
            raise KeyError(f"no item lives at codes {codes}")
        self._num_items -= 1
        if leaf in self._shared:
            self._shared[leaf] -= 1
            if not self._shared[leaf]:
                del self._shared[leaf]
            return
        for level in reversed(range(self.spec.num_levels)):
            row, byte, bit = self._place(level, prefixes[level])
            row[byte] ^= bit
            parent = prefixes[level] // self.spec.levels[level]
            if self._row(level, parent).any():
                break  # its parents stay set
            if level == self.spec.num_levels - 1:
                self._release_page(parent)

    def count(self, codes: Codes) -> int:
        """How many items have these codes."""
        self.spec.check(codes)
        leaf = self.spec.prefixes(codes)[-1]
        return 1 + self._shared.get(leaf, 0) if self._is_set(-1, leaf) else 0

    def __len__(self) -> int:
        return self._num_items

    @property
    def num_shared(self) -> int:
        """Codes with more than one item."""
        return len(self._shared)

    def num_used_codes(self) -> tuple[int, ...]:
        """For each level, how many of its codes lead to an item. Reads every table once."""
        last = self._bits[-1] if self._page_of is None else self._bits[-1][: self._num_pages]
        return tuple(_num_set(_union(rows)) for rows in (*self._bits[:-1], last))

    def children(self, level: int, parent: int) -> NDArray[np.int64]:
        """The codes of `level` that have items after a parent prefix, ascending."""
        bits = np.unpackbits(self._row(level, parent), count=self.spec.levels[level], bitorder="little")
        return np.flatnonzero(bits)

    def living(self, codes: Codes = (), start: int = 0) -> Iterator[int]:
        """Full prefixes from `start` on that begin with `codes` and have items, in trie order. Lazy."""
        prefix = 0
        for level, code in enumerate(codes):
            prefix = prefix * self.spec.levels[level] + code
        return self._living(prefix, len(codes), start)

    def digest(self) -> str:
        """Equal for equal contents, whatever the order of edits. Two replicas compare it."""
        hasher = hashlib.sha256()
        if self._page_of is None:
            hasher.update(self._bits[-1].tobytes())
        else:
            parents = np.flatnonzero(self._page_of)
            hasher.update(parents.tobytes())
            hasher.update(self._bits[-1][self._page_of[parents]].tobytes())
        hasher.update(repr(sorted(self._shared.items())).encode())
        return hasher.hexdigest()[:16]

    def _living(self, prefix: int, level: int, start: int) -> Iterator[int]:
        if level == self.spec.num_levels:
            if prefix >= start and self._is_set(-1, prefix):
                yield prefix
            return
        first = prefix * self.spec.levels[level]
        begun = start // math.prod(self.spec.levels[level + 1 :])  # no prefix of this level before it
        for code in self.children(level, prefix).tolist():
            if first + code < begun:
                continue
            if level == self.spec.num_levels - 1:
                yield first + code
            else:
                yield from self._living(first + code, level + 1, start)

    def _row(self, level: int, parent: int) -> NDArray[np.uint8]:
        is_deepest = level in (-1, self.spec.num_levels - 1)
        row = int(self._page_of[parent]) if is_deepest and self._page_of is not None else parent
        bits: NDArray[np.uint8] = self._bits[level][row]
        return bits

    def _place(self, level: int, prefix: int) -> tuple[NDArray[np.uint8], int, int]:
        """The row of a prefix's bit, the byte in the row, and the bit in the byte."""
        parent, code = divmod(prefix, self.spec.levels[level])
        return self._row(level, parent), code >> 3, 1 << (code & 7)

    def _is_set(self, level: int, prefix: int) -> bool:
        row, byte, bit = self._place(level, prefix)
        return bool(row[byte] & bit)

    def _claim_page(self, parent: int) -> None:
        if self._page_of is None or self._page_of[parent]:
            return
        if self._free_pages:
            self._page_of[parent] = self._free_pages.pop()
        else:
            self._page_of[parent] = self._num_pages
            self._num_pages += 1

    def _release_page(self, parent: int) -> None:
        if self._page_of is not None:
            self._free_pages.append(int(self._page_of[parent]))
            self._page_of[parent] = 0

    def _take_pages(self, parent: NDArray[np.int64], parents: NDArray[np.int64]) -> NDArray[np.int64]:
        """Allocate a page for each of `parents`, the set of `parent`. Returns the row of each of `parent`."""
        if self._page_of is None:
            return parent
        self._page_of[parents] = np.arange(1, len(parents) + 1)
        self._num_pages = 1 + len(parents)
        return self._page_of[parent].astype(np.int64)


def _union(rows: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[row, byte] -> the bits that are set in any row [byte]. It joins many rows at once, which is faster."""
    count, width = rows.shape
    whole = count - count % ROWS_AT_ONCE
    wide = np.bitwise_or.reduce(rows[:whole].reshape(-1, ROWS_AT_ONCE * width), axis=0)
    folded: NDArray[np.uint8] = np.bitwise_or.reduce(wide.reshape(ROWS_AT_ONCE, width), axis=0)
    folded |= np.bitwise_or.reduce(rows[whole:], axis=0)
    return folded


def _num_set(row: NDArray[np.uint8]) -> int:
    return int(np.unpackbits(row).sum())
