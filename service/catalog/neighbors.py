"""Similar items are neighbors in the trie: the longer the common prefix, the more similar they are."""

from collections.abc import Mapping, Set
from typing import NamedTuple

from service.catalog.catalog import Catalog
from service.core.filters import Filter
from service.core.sid import Codes, Sid


class Neighbor(NamedTuple):
    """A similar item, and how much of its Semantic ID it has in common with the item that was asked for."""

    item_id: str
    sid: Sid
    shared_levels: int  # leading codes in common, at least one


def neighbors(
    catalog: Catalog,
    popularity: Mapping[str, float],
    item_id: str,
    limit: int,
    asked: Filter | None = None,
    excluded: Set[str] = frozenset(),
) -> list[Neighbor]:
    """Up to `limit` other items that share at least the first code with this one.

    They pass the filter, which the item itself need not, and are not excluded. Longest common prefix first,
    then the most popular, then trie order. Empty if the item does not exist. Hold `catalog.lock` if a filter
    is given.
    """
    own = catalog.sid_of(item_id)
    if own is None:
        return []
    view = None if asked is None else catalog.views.view_of(asked)
    trie, passes = (catalog.trie, catalog.has) if view is None else (view.trie, view.passes)
    left_out = {item_id, *excluded}
    found: list[Neighbor] = []
    nearer: set[int] = set()  # full prefixes with a longer common prefix, which are in `found` already
    for shared_levels in range(catalog.spec.num_levels, 0, -1):
        living = set(trie.living(own.codes[:shared_levels]))
        ranked = sorted(
            (-popularity.get(other, 0.0), leaf, slot, other)
            for leaf in living - nearer
            for slot, other in enumerate(catalog.items_at(catalog.spec.codes_of(leaf)))
            if other not in left_out and passes(other)
        )
        for *_, other in ranked[: limit - len(found)]:
            if sid := catalog.sid_of(other):
                found.append(Neighbor(other, sid, shared_levels))
        if len(found) == limit:
            break
        nearer = living
    return found


def shared_levels(one: Codes, other: Codes) -> int:
    """How many leading codes both have in common."""
    found = 0
    for mine, theirs in zip(one, other, strict=True):
        if mine != theirs:
            break
        found += 1
    return found
