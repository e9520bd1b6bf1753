"""Similar items are neighbours in the trie: the longer their common prefix, the more alike they are."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from service.catalog import Catalog
from service.contract import Sid


class Neighbour(NamedTuple):
    item_id: str
    sid: Sid
    shared_levels: int  # leading codes in common, at least one


def neighbours(
    catalog: Catalog, popularity: Mapping[str, float], item_id: str, limit: int
) -> list[Neighbour]:
    """Up to `limit` living items that share at least the first code with a living one.

    Longest common prefix first; among equals the more popular, then trie order.
    """
    own = catalog.sid_of(item_id)
    if own is None:
        return []
    found: list[Neighbour] = []
    spec, leaves = catalog.spec, catalog.trie.tables[-1]
    inner = range(0)  # full prefixes below the longer common prefix: they have been taken already
    for shared_levels in range(spec.num_levels, 0, -1):
        prefix = spec.prefixes(own.codes)[shared_levels - 1]
        width = len(leaves) // spec.num_prefixes[shared_levels - 1]
        outer = range(prefix * width, (prefix + 1) * width)
        living = np.flatnonzero(leaves[outer.start : outer.stop]) + outer.start
        ranked = sorted(
            (-popularity.get(other, 0.0), leaf, slot, other)
            for leaf in living.tolist()
            if leaf not in inner
            for slot, other in enumerate(catalog.items_at(spec.codes_of(leaf)))
            if other != item_id
        )
        for *_, other in ranked[: limit - len(found)]:
            if sid := catalog.sid_of(other):
                found.append(Neighbour(other, sid, shared_levels))
        if len(found) == limit:
            break
        inner = outer
    return found
