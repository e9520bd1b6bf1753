"""Similar items are neighbours in the trie: the longer their common prefix, the more alike they are."""

from collections.abc import Mapping
from typing import NamedTuple

from service.catalog.catalog import Catalog
from service.core.sid import Sid


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
    nearer: set[int] = set()  # full prefixes below the longer common prefix: they have been taken already
    for shared_levels in range(catalog.spec.num_levels, 0, -1):
        living = set(catalog.trie.living(own.codes[:shared_levels]))
        ranked = sorted(
            (-popularity.get(other, 0.0), leaf, slot, other)
            for leaf in living - nearer
            for slot, other in enumerate(catalog.items_at(catalog.spec.codes_of(leaf)))
            if other != item_id
        )
        for *_, other in ranked[: limit - len(found)]:
            if sid := catalog.sid_of(other):
                found.append(Neighbour(other, sid, shared_levels))
        if len(found) == limit:
            break
        nearer = living
    return found
