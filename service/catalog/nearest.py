"""A graph of neighbors: HNSW (Malkov and Yashunin, 2018) by the library faiss.

faiss adds nodes and cannot remove one. So a place that gets another row gets another node, and its old node
belongs to no place. When these are many, the graph is `worn`, and a new one replaces it (graph_builder.py).

Any thread may call it, and each call has the graph for itself. The library computes without the interpreter's
lock, so the event loop goes on meanwhile.
"""

from collections.abc import Sequence
from importlib import import_module
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import NDArray

CONNECTIVITY = 16  # neighbors of a node; twice as many in the lowest layer
EXPANSION_ADD = 80  # candidates while a node is added
EXPANSION_SEARCH = 96  # candidates of a search, until a measured recall asks for more
MAX_EXPANSION = 1_536
NOBODY = -1
# The links of the lowest layer, the share of a node in higher layers, and what faiss notes of it.
NODE_BYTES = 4 * 2 * CONNECTIVITY + 4 * CONNECTIVITY // (CONNECTIVITY - 1) + 12
WORN_SHARE = 0.5  # of the nodes


class NearestGraph:
    """Rows [dim] of int8 by their places, near each other by their cosine."""

    def __init__(self, dim: int, sample: NDArray[np.int8]) -> None:
        """`sample` [any, dim]: rows like those that will come, by which the graph's copies are rounded."""
        self.expansion = EXPANSION_SEARCH  # candidates of a search, or as many as it is asked for
        # Only now: it takes a quarter of a second, and a small catalog needs no graph. Its stubs lack names.
        faiss: Any = import_module("faiss")
        self._search_parameters: Any = faiss.SearchParametersHNSW
        self._index: Any = faiss.IndexHNSWSQ(
            dim, faiss.ScalarQuantizer.QT_8bit, CONNECTIVITY, faiss.METRIC_INNER_PRODUCT
        )
        self._index.hnsw.efConstruction = EXPANSION_ADD
        self._index.train(_directions(sample))
        self._dim = dim
        self._place_of = np.full(0, NOBODY)  # [node]; NOBODY: the place has another node, or none
        self._node_of = np.full(0, NOBODY)  # [place]; NOBODY: the place has none
        self._num_nodes = self._num_places = 0
        self._lock = Lock()

    def __len__(self) -> int:
        return self._num_places

    @property
    def is_worn(self) -> bool:
        """Whether so many nodes are of no place that a new graph is worth its time."""
        return self._num_nodes - self._num_places > WORN_SHARE * max(1, self._num_nodes)

    @property
    def num_bytes(self) -> int:
        """Memory of the graph with its own copy of the rows, estimated."""
        return self._num_nodes * (self._dim + NODE_BYTES) + self._place_of.nbytes + self._node_of.nbytes

    def apply(self, places: Sequence[int], rows: Sequence[NDArray[np.int8] | None]) -> None:
        """Set or replace the rows [dim] at these places; None removes one. A place occurs once."""
        added = [(place, row) for place, row in zip(places, rows, strict=True) if row is not None]
        with self._lock:
            self._node_of = _grown(self._node_of, max(places, default=-1) + 1)
            self._leave(np.array(places, dtype=np.int64))
            if not added:
                return
            self._index.add(_directions(np.stack([row for _, row in added])))
            taken = np.array([place for place, _ in added])
            end = self._num_nodes + len(added)
            self._place_of = _grown(self._place_of, end)
            self._place_of[self._num_nodes : end] = taken
            self._node_of[taken] = np.arange(self._num_nodes, end)
            self._num_nodes, self._num_places = end, self._num_places + len(added)

    def nearest(self, query: NDArray[np.int8], count: int) -> list[int]:
        """About the `count` places with the largest cosines to the query [dim], best first.

        They are fewer if nodes of no place are among them.
        """
        parameters = self._search_parameters(efSearch=max(self.expansion, count))
        with self._lock:
            _, nodes = self._index.search(_directions(query[None]), count, params=parameters)
            places = self._place_of[nodes[0][nodes[0] >= 0]]
        found: list[int] = places[places != NOBODY].tolist()
        return found

    def _leave(self, places: NDArray[np.int64]) -> None:
        nodes = self._node_of[places]
        nodes = nodes[nodes != NOBODY]
        self._place_of[nodes] = NOBODY
        self._node_of[places] = NOBODY
        self._num_places -= len(nodes)


def _grown(column: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """The column with room for so many numbers, and for as many again so that growth is rare."""
    if length <= len(column):
        return column
    return np.concatenate([column, np.full(2 * length - len(column), NOBODY)])


def _directions(rows: NDArray[np.int8]) -> NDArray[np.float32]:
    """Rows [row, dim] -> the same directions with length 1, so that inner products are cosines."""
    found = rows.astype(np.float32)
    found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)
    return found
