"""The catalog as a tree to look at: the branches below a prefix of codes, and the items below it. Pure.

The counts compare whole columns, so hold `Catalog.lock` and stay off the event loop.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

from service.catalog.catalog import Catalog
from service.catalog.views import View
from service.core.filters import Filter
from service.core.sid import Codes, Sid
from service.core.trie import SidTrie


class Branch(NamedTuple):
    """One code below a prefix."""

    code: int
    num_items: int
    example_ids: tuple[str, ...]  # from different places below, in trie order


class Branches(NamedTuple):
    """The codes below a prefix that have items."""

    num_items: int  # below the prefix, also in branches that are not among these
    branches: list[Branch]  # by code
    next_code: int | None  # where the next ones begin; None: these are the last
    catalog_version: int


class Placed(NamedTuple):
    """An item and its Semantic ID."""

    item_id: str
    sid: Sid


class Listing(NamedTuple):
    """Items in trie order."""

    num_items: int  # that there are in all, before and after these too
    items: list[Placed]
    has_more: bool
    catalog_version: int


def branches(
    catalog: Catalog, codes: Codes, asked: Filter | None, *, first_code: int, limit: int, num_examples: int
) -> Branches:
    """Up to `limit` branches below `codes`, which are fewer than the levels, from `first_code` on."""
    view = None if asked is None else catalog.views.view_of(asked)
    level = len(codes)
    num_codes = catalog.spec.levels[level]
    span = math.prod(catalog.spec.levels[level + 1 :])  # leaves below one branch
    first = catalog.spec.prefix_of(codes) * num_codes * span
    counts = catalog.views.num_below(first, span, num_codes, view)
    living = [code for code in counts.nonzero()[0].tolist() if code >= first_code]
    return Branches(
        num_items=int(counts.sum()),
        branches=[
            Branch(code, int(counts[code]), tuple(_examples(catalog, view, (*codes, code), num_examples)))
            for code in living[:limit]
        ],
        next_code=living[limit] if len(living) > limit else None,
        catalog_version=catalog.version,
    )


def items_below(
    catalog: Catalog, codes: Codes, asked: Filter | None, *, after: Sid | None, limit: int
) -> Listing:
    """Up to `limit` items below `codes`, in trie order, behind the Semantic ID `after`."""
    view = None if asked is None else catalog.views.view_of(asked)
    span = math.prod(catalog.spec.levels[len(codes) :])
    counts = catalog.views.num_below(catalog.spec.prefix_of(codes) * span, span, 1, view)
    found = list(islice(_items_from(catalog, view, codes, after), limit + 1))
    return Listing(int(counts[0]), found[:limit], len(found) > limit, catalog.version)


def first_below(catalog: Catalog, view: View | None, codes: Codes) -> str | None:
    """The first item below a prefix, in trie order; None if there is none. O(levels)."""
    found = next(_items_from(catalog, view, codes, None), None)
    return None if found is None else found.item_id


def _items_from(catalog: Catalog, view: View | None, codes: Codes, after: Sid | None) -> Iterator[Placed]:
    trie = catalog.trie if view is None else view.trie
    start = 0 if after is None else catalog.spec.prefixes(after.codes)[-1]
    for leaf in trie.living(codes, start):
        for item_id in catalog.items_of(leaf):
            sid = catalog.sid_of(item_id)
            assert sid is not None, "the catalog's maps agree"
            if (view is None or view.passes(item_id)) and (after is None or sid > after):
                yield Placed(item_id, sid)


def _examples(catalog: Catalog, view: View | None, codes: Codes, limit: int) -> Iterator[str]:
    """Items from branches that are far apart, or the first ones if no branch is left below."""
    if len(codes) == catalog.spec.num_levels:
        yield from (each.item_id for each in islice(_items_from(catalog, view, codes, None), limit))
        return
    trie = catalog.trie if view is None else view.trie
    below = _children(trie, codes)
    chosen = [below[place * len(below) // limit] for place in range(limit)]
    for code in dict.fromkeys(chosen):
        if item_id := first_below(catalog, view, (*codes, code)):
            yield item_id


def _children(trie: SidTrie, codes: Codes) -> Sequence[int]:
    found: list[int] = trie.children(len(codes), trie.spec.prefix_of(codes)).tolist()
    return found
