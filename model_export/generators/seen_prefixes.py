"""The prefixes that occur in training, numbered level by level, and the vectors of each prefix.

Rows 1..n of a level are its seen prefixes in trie order, so the children of one parent are in consecutive
rows. Row 0 stands for every unseen prefix, and its embedding is zero.

The children of a parent are stored in one of two ways. On a dense level, a parent's children are a large part
of all rows. A table gives the row of every code, and one product computes a term for all rows. On a sparse
level, a parent has few children among many rows, for example on the deep levels of large catalogs. Only the
rows of these children are gathered. The training data decide between the two, never the catalog that is
served.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from model_export.generators.base import Modules
from service.core.sid import SidSpec

# A product touches every row. A gather touches the children of about fifty beams, each at the cost of ten
# rows.
ROWS_PER_GATHERED_CHILD = 500
UNSEEN, ROOT = 0, 1  # UNSEEN: row 0 of any level. ROOT: the row of the empty prefix, above the first level.


class SeenPrefixes(nn.Module):
    """The rows of one level and their embeddings."""

    # Sparse levels have the first three, and dense levels have the last.
    num_children: Tensor  # [parent row]
    first_child: Tensor  # [parent row]
    code_of: Tensor  # [row]
    row_of: Tensor  # [parent row, code]

    def __init__(
        self, *, seen: NDArray[np.int64], parents: NDArray[np.int64], num_codes: int, width: int
    ) -> None:
        """`seen` [row]: the prefixes of this level, ascending and unique. `parents`: those of the level
        above.
        """
        super().__init__()
        self.num_codes, self.num_rows = num_codes, len(seen)
        self.has_one_parent = len(parents) == 1  # then all rows are its children
        parent_row = 1 + np.searchsorted(parents, seen // num_codes)  # [seen]
        code = seen % num_codes
        num_children = np.bincount(parent_row, minlength=len(parents) + 1)  # [parent row]
        self.max_children = int(num_children.max(initial=1))
        self.is_sparse = len(seen) > ROWS_PER_GATHERED_CHILD * self.max_children
        if self.is_sparse:
            self._keep("num_children", num_children)  # [parent row]
            self._keep("first_child", np.cumsum([1, *num_children[:-1]]))  # [parent row]
            # The zeros at the end make room for a window of max_children after every first child.
            self._keep("code_of", np.concatenate([[0], code, np.zeros(self.max_children)]))  # [row]
        else:
            row_of = np.zeros((len(parents) + 1, num_codes))
            row_of[parent_row, code] = np.arange(1, len(seen) + 1)
            self._keep("row_of", row_of)  # [parent row, code]
        self.embedding = vectors_of(len(seen), width)

    def rows(self, parent_row: Tensor, code: Tensor) -> Tensor:
        """The row of each prefix, given its parent's row [...] and its last code [...] -> [...]"""
        if not self.is_sparse:
            return _take(self.row_of.view(-1), parent_row * self.num_codes + code)
        rows, is_child = self.window(parent_row)  # [..., child]
        return torch.where(is_child & (_take(self.code_of, rows) == code[..., None]), rows, UNSEEN).sum(-1)

    def window(self, parent_row: Tensor) -> tuple[Tensor, Tensor]:
        """Rows [..., child] from the first child of each parent [...] on, and a mask of those that are
        children.

        Sparse levels only.
        """
        place = torch.arange(self.max_children, device=parent_row.device)
        rows = _take(self.first_child, parent_row)[..., None] + place
        return rows, place < _take(self.num_children, parent_row)[..., None]

    def rows_below(self, parent_row: Tensor) -> Tensor:
        """The row of each code below a parent: [...] -> [..., code]. It is UNSEEN if training had no such
        code.
        """
        if not self.is_sparse:
            return F.embedding(parent_row, self.row_of).long()
        rows, is_child = self.window(parent_row)  # [..., child]
        none = rows.new_zeros(1).expand(*parent_row.shape, self.num_codes)
        return none.scatter_add(-1, _take(self.code_of, rows), rows * is_child)

    def _keep(self, name: str, values: NDArray[Any]) -> None:
        self.register_buffer(name, torch.from_numpy(values.astype(np.int32)))


class PrefixBonus(nn.Module):
    """The term that the newest state adds to the score of a seen prefix. Each prefix has one vector."""

    def __init__(self, prefixes: SeenPrefixes, width: int) -> None:
        super().__init__()
        self.prefixes = [prefixes]  # in a list, because its weights belong to another module
        self.vectors = vectors_of(prefixes.num_rows + prefixes.max_children * prefixes.is_sparse, width)

    def of_rows(self, h: Tensor) -> Tensor | None:
        """h [batch, width] -> [batch, row], for `of_children`. None on sparse levels, which compute less."""
        return None if self.prefixes[0].is_sparse else h @ self.vectors.weight.T

    def of_children(self, h: Tensor, of_rows: Tensor | None, parent_row: Tensor, rows: Tensor) -> Tensor:
        """h · Q[p, c] for each child: [batch, beam, code]. The values of unseen children mean nothing.

        h [batch, width]; of_rows: the result of `of_rows(h)`; parent_row [batch, beam]; rows [batch, beam,
        code]: the rows of the children.
        """
        (prefixes,) = self.prefixes
        if of_rows is not None:
            return of_rows.gather(1, rows.flatten(1)).view(rows.shape)
        rows, is_child = prefixes.window(parent_row)  # [batch, beam, child]
        vectors: Tensor = self.vectors(rows).flatten(1, 2)  # [batch, beam * child, width]
        bonus = (vectors @ h[..., None]).view(rows.shape) * is_child
        none = bonus.new_zeros(1).expand(*parent_row.shape, prefixes.num_codes)
        return none.scatter_add(2, _take(prefixes.code_of, rows), bonus)

    def of_own_children(self, h: Tensor, parent_row: Tensor, rows: Tensor) -> Tensor:
        """`of_children` for one parent per state: h [pair, width], parents [pair], rows [pair, code] ->
        [pair, code]

        In training each state needs the children of only one prefix, the true one. Gathering them costs a
        tenth of a product with all rows.
        """
        (prefixes,) = self.prefixes
        if prefixes.is_sparse or prefixes.has_one_parent:
            return self.of_children(h, self.of_rows(h), parent_row[:, None], rows[:, None])[:, 0]
        bonus: Tensor = (self.vectors(rows) @ h[..., None])[..., 0]
        return bonus

    @torch.no_grad()
    def start_from(self, means: Tensor) -> None:
        """Start from vectors [row, width] of the prefixes instead of noise."""
        self.vectors.weight[: len(means)] += means


def seen_prefixes(spec: SidSpec, codes: NDArray[np.integer[Any]], width: int) -> list[SeenPrefixes]:
    """The seen prefixes of each level. codes [item, level]: the items in the training sequences."""
    seen = [np.unique(prefix) for prefix in spec.prefixes_of(np.asarray(codes))]
    root = np.zeros(1, dtype=np.int64)
    return [
        SeenPrefixes(seen=own, parents=parents, num_codes=num_codes, width=width)
        for own, parents, num_codes in zip(seen, [root, *seen], spec.levels, strict=False)
    ]


@torch.no_grad()
def prefix_means(prefixes: Modules[SeenPrefixes], codes: Tensor, vectors: Tensor) -> list[Tensor]:
    """The mean vector of the items below each prefix: [row, width] per level, zero for UNSEEN.

    codes [item, level] and vectors [item, width] belong to seen items.
    """
    means = []
    row = torch.full_like(codes[:, 0], ROOT)
    for level, own in enumerate(prefixes):
        row = own.rows(row, codes[:, level])  # [item]
        total = vectors.new_zeros(own.num_rows + 1, vectors.shape[1]).index_add(0, row, vectors)
        count = torch.bincount(row, minlength=own.num_rows + 1).clamp(min=1)
        means.append(total / count[:, None])
    return means


def item_vectors(prefixes: Modules[SeenPrefixes], history: Tensor, hidden: Tensor | None = None) -> Tensor:
    """The sum of an item's prefix embeddings: codes [batch, position, level] -> [batch, position, width]

    The prefixes are c1, c1c2, c1c2c3, … (prefix-ngram, arXiv 2504.02137 §3). An unseen item uses the
    embeddings of its seen prefixes. Rows of the last level that are `hidden` [row] count as unseen. At
    PADDING the vector means nothing.
    """
    codes = history.clamp(min=0)
    row = torch.full_like(codes[..., 0], ROOT)
    total = torch.zeros(())
    for level, own in enumerate(prefixes):
        row = own.rows(row, codes[..., level])
        if hidden is not None and level == len(prefixes) - 1:
            row = row.masked_fill(hidden[row], UNSEEN)
        vector: Tensor = own.embedding(row)
        total = vector if level == 0 else total + vector
    return total


def _take(table: Tensor, place: Tensor) -> Tensor:
    """table [n] at each place [...]. In ONNX an embedding is a Gather, and an index a slower GatherND."""
    return F.embedding(place, table[:, None]).squeeze(-1).long()


def vectors_of(num_rows: int, width: int) -> nn.Embedding:
    """Vectors of the rows UNSEEN and 1..num_rows. The vector of UNSEEN starts at zero, and no look-up trains
    it.
    """
    vectors = nn.Embedding(num_rows + 1, width, padding_idx=UNSEEN)
    nn.init.normal_(vectors.weight, std=0.02)
    with torch.no_grad():
        vectors.weight[UNSEEN] = 0.0
    return vectors
