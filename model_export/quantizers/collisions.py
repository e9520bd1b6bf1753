"""Items that share all codes get codes of their own, at the least cost (zero-collision reassignment).

Only the last code changes, so an item stays below its prefix. Below one prefix this is an assignment problem,
items to codes, solved exactly: first the fewest items moved, then the least squared distance between what an
item still needs at the last level and the codeword that it gets. Where n items share a prefix and the last
level has only K < n codes they cannot all differ: there each code takes at most ceil(n / K) of them, under
the same two rules. Such groups are reported, and slots tell their items apart.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from service.contract import SidSpec


@dataclass(frozen=True)
class CollisionReport:
    """What was done. A group is the items below one prefix (all codes but the last) where any two collide."""

    num_items: int
    num_groups: int
    num_reassigned: int  # items with another last code than before
    num_overfull_groups: int  # of the groups, those with more items than the last level has codes
    num_overfull_items: int  # items in those
    max_group_before: int  # most items that share all codes
    max_group_after: int
    rate_before: float  # items whose codes another item has too / items
    rate_after: float
    missing_rate_before: float  # (items - distinct codes) / items, as some papers count
    missing_rate_after: float
    distance_increase: float  # squared latent distance, summed over all reassigned items

    @property
    def mean_distance_increase(self) -> float:
        return self.distance_increase / max(self.num_reassigned, 1)

    def summary(self) -> str:
        """In words, for a person."""
        text = (
            f"{self.rate_before:.1%} of the items shared codes, up to {self.max_group_before} the same; "
            f"{self.num_reassigned:,} moved to another last code, now {self.rate_after:.1%} share"
        )
        if self.num_overfull_groups:
            text += (
                f", up to {self.max_group_after} the same: {self.num_overfull_items:,} items lie below "
                f"{self.num_overfull_groups} prefixes that have more items than codes"
            )
        return text


@dataclass(frozen=True)
class Reassigned:
    codes: NDArray[np.int64]  # [item, level]
    report: CollisionReport


def reassign_collisions(
    codes: NDArray[np.int64],
    latents: NDArray[np.float32],
    codebooks: Sequence[NDArray[np.float32]],
    item_ids: Sequence[str],
) -> Reassigned:
    """Resolve collisions of codes [item, level] of latents [item, latent] with codebooks [code, latent].

    Equal costs are settled by the order of the item ids, so items in another order get the same codes.
    """
    spec = SidSpec(levels=tuple(len(codebook) for codebook in codebooks))
    num_codes = spec.levels[-1]
    needed = latents.astype(np.float64)  # [item, latent]
    for level, codebook in enumerate(codebooks[:-1]):
        needed = needed - codebook[codes[:, level]]
    last = codebooks[-1].astype(np.float64)  # [code, latent]

    new_codes = codes.copy()
    num_overfull_groups = num_overfull_items = 0
    distance_increase = 0.0
    groups = _crowded_groups(codes, spec, _by_id(item_ids))
    for group in groups:
        if len(group) > num_codes:
            num_overfull_groups += 1
            num_overfull_items += len(group)
        distance = np.square(needed[group, None, :] - last).sum(axis=-1)  # [member, code]
        old = codes[group, -1]  # [member]
        new = _match(distance, old)
        member = np.arange(len(group))
        distance_increase += float((distance[member, new] - distance[member, old]).sum())
        new_codes[group, -1] = new

    before, after = _sizes(codes, spec), _sizes(new_codes, spec)
    report = CollisionReport(
        num_items=len(codes),
        num_groups=len(groups),
        num_reassigned=int((new_codes != codes).any(axis=1).sum()),
        num_overfull_groups=num_overfull_groups,
        num_overfull_items=num_overfull_items,
        max_group_before=int(before.max(initial=0)),
        max_group_after=int(after.max(initial=0)),
        rate_before=_share_rate(before),
        rate_after=_share_rate(after),
        missing_rate_before=_missing_rate(before),
        missing_rate_after=_missing_rate(after),
        distance_increase=distance_increase,
    )
    return Reassigned(new_codes, report)


def assign_slots(codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number items that share codes [item, level] 0, 1, 2, … in the order of the catalogue -> slots [item].

    The service finds the same slots when it puts the catalogue into a new Redis in that order.
    """
    taken: Counter[tuple[int, ...]] = Counter()
    slots = np.zeros(len(codes), dtype=np.int64)
    for item, row in enumerate(codes.tolist()):
        slots[item] = taken[tuple(row)]
        taken[tuple(row)] += 1
    return slots


def _match(distance: NDArray[np.float64], old: NDArray[np.int64]) -> NDArray[np.int64]:
    """A code for each member, from distance [member, code] and the codes they had [member]: all different, or
    as evenly spread as the number of codes allows.
    """
    num_members, num_codes = distance.shape
    # One more move costs more than all distances of the group together can save.
    move = (num_members + 1) * (distance.max() + 1e-6)
    keep = np.arange(num_codes) == old[:, None]  # [member, code]
    places = -(-num_members // num_codes)  # of each code
    cost = np.tile(np.where(keep, distance, distance + move), places)  # [member, place * code]
    return linear_sum_assignment(cost)[1] % num_codes


def _by_id(item_ids: Sequence[str]) -> NDArray[np.int64]:
    """Item indices [item] in the order of their ids."""
    return np.array(sorted(range(len(item_ids)), key=item_ids.__getitem__), dtype=np.int64)


def _crowded_groups(
    codes: NDArray[np.int64], spec: SidSpec, by_id: NDArray[np.int64]
) -> list[NDArray[np.int64]]:
    """The items below each prefix of all but the last code where any two have the last one in common too,
    in the order `by_id` [item].
    """
    full = spec.prefixes_of(codes)[-1]  # [item]
    prefix = full // spec.levels[-1]
    order = by_id[np.argsort(prefix[by_id], kind="stable")]
    groups = np.split(order, np.flatnonzero(np.diff(prefix[order])) + 1)
    return [group for group in groups if len(np.unique(full[group])) < len(group)]


def _sizes(codes: NDArray[np.int64], spec: SidSpec) -> NDArray[np.int64]:
    """How many items have each of the codes in use."""
    return np.unique(spec.prefixes_of(codes)[-1], return_counts=True)[1]


def _share_rate(sizes: NDArray[np.int64]) -> float:
    return float(sizes[sizes > 1].sum() / max(sizes.sum(), 1))


def _missing_rate(sizes: NDArray[np.int64]) -> float:
    return float(1 - len(sizes) / max(sizes.sum(), 1))
