"""`tree` with another embedding of the history's items, to compare with prefixes (docs/embeddings.md).

`tree` adds up the embeddings of an item's prefixes, one row for each prefix that training has: prefix-ngram
without a modulo. Here the rows of history items follow from another parameterization of a table of their own.
Decoding is the same. A generator sees codes and no ids, so the number of all codes stands for the id.

Items that `tree` hides in a step of training (tree.py) stay visible in histories here.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from model_export.configs import HashedTreeConfig
from model_export.generators.tree import TreeGenerator, principal_axes
from model_export.rankers.parameterizations import Parameterization, rows_for
from service.core.sid import SidSpec

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py


class HashedHistoryTree(TreeGenerator):
    """`tree` whose history items have rows of another parameterization."""

    def __init__(
        self,
        *,
        config: HashedTreeConfig,
        spec: SidSpec,
        history_length: int,
        seen_codes: NDArray[np.int64],
        seen_vectors: NDArray[np.float32] | None = None,
    ) -> None:
        """The arguments are those of TreeGenerator."""
        super().__init__(
            config=config,
            spec=spec,
            history_length=history_length,
            seen_codes=seen_codes,
            seen_vectors=seen_vectors,
        )
        num_rows = rows_for(len(seen_codes), config.items_per_row)
        self.parameterization = Parameterization(config.history, spec.levels, num_rows)
        self.table = nn.Embedding(num_rows, config.width)
        nn.init.normal_(self.table.weight, std=0.02)
        if config.start_scale and seen_vectors is not None:
            content = torch.from_numpy(config.start_scale * principal_axes(seen_vectors, config.width))
            self._start_rows(torch.from_numpy(seen_codes.astype(np.int64)), content)

    @torch.no_grad()
    def _start_rows(self, codes: Tensor, vectors: Tensor) -> None:
        """Add to each row the mean of its items' vectors. codes [item, level], vectors [item, width]"""
        rows = self._rows(codes)  # [item, gram]
        total = torch.zeros_like(self.table.weight)
        for gram in rows.T:
            total.index_add_(0, gram, vectors)
        count = torch.bincount(rows.flatten(), minlength=len(total)).clamp(min=1)
        self.table.weight += total / count[:, None]

    def _rows(self, codes: Tensor) -> Tensor:
        full = torch.zeros_like(codes[..., 0])
        for level, num_codes in enumerate(self.spec.levels):
            full = full * num_codes + codes[..., level]
        return self.parameterization.rows(full, codes)

    def _items(self, history: Tensor, hidden: Tensor | None) -> Tensor:  # noqa: ARG002  see the docstring above
        """The vectors of a history's items: codes [batch, position, level] -> [batch, position, width]"""
        found: Tensor = self.table(self._rows(history.clamp(min=0))).sum(dim=-2)
        return found
