"""Treatments of collisions: several items share all codes.

*Zero-collision reassignment* gives such items different codes at the least cost. It changes only the last
code, so an item keeps its prefix. Below one prefix this is an assignment problem of items to codes, and it is
solved exactly. The fewest items move. Among such solutions it chooses the one with the least squared distance
between the items' residuals at the last level and their codewords. If n items share a prefix and the last
level has only K codes, fewer than n, then the items cannot all differ. Each code gets at most ceil(n / K) of
them, by the same two rules. The report counts such groups, and slots distinguish their items.

The other treatments are from papers. *Sinkhorn* repeatedly spreads the items of each shared code over the
last level (LC-Rec, Zheng et al., 2023). A *suffix* numbers the items of each shared code in an extra level
(TIGER, Rajput et al., 2023).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment, linprog
from scipy.sparse import identity, kron

from model_export.quantizers.sinkhorn import sinkhorn_assign
from service.core.sid import SidSpec

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py
SINKHORN_ROUNDS = 30
MAX_ASSIGNED = 512  # members of a group; the matrix of an assignment grows with their square

Treatment = Literal["none", "sinkhorn", "zcr", "suffix"]


@dataclass(frozen=True)
class CollisionReport:
    """The effect of a treatment.

    A prefix is all codes but the last. A group is the items of one prefix, if at least two of them collide.
    """

    num_items: int
    num_groups: int
    num_reassigned: int  # items that got another last code
    num_overfull_groups: int  # groups with more items than the last level has codes
    num_overfull_items: int  # items in these groups
    max_group_before: int  # the largest number of items that share all codes
    max_group_after: int
    rate_before: float  # items that share all codes with another item / items
    rate_after: float
    missing_rate_before: float  # (items - distinct codes) / items; some papers report this rate
    missing_rate_after: float
    distance_increase: float  # squared latent distance, summed over all reassigned items

    def summary(self) -> str:
        """The report as a sentence for the terminal."""
        text = (
            f"{self.rate_before:.1%} of the items shared their codes, in groups of up to "
            f"{self.max_group_before}; {self.num_reassigned:,} items got another last code; now "
            f"{self.rate_after:.1%} share their codes"
        )
        if self.num_overfull_groups:
            text += (
                f", in groups of up to {self.max_group_after}; {self.num_overfull_items:,} items are below "
                f"{self.num_overfull_groups} prefixes that have more items than codes"
            )
        return text


@dataclass(frozen=True)
class Reassigned:
    """Codes after a treatment."""

    spec: SidSpec  # of the new codes; a suffix adds a level
    codes: NDArray[np.int64]  # [item, level]
    report: CollisionReport


class _LastLevel(NamedTuple):
    needed: NDArray[np.float64]  # [item, latent]  the residual that the codes before leave
    codebook: NDArray[np.float64]  # [code, latent]

    def distances(self, items: NDArray[np.int64]) -> NDArray[np.float64]:
        """The squared distances of items [item] to all codewords -> [item, code]."""
        result: NDArray[np.float64] = np.square(self.needed[items, None, :] - self.codebook).sum(axis=-1)
        return result

    def error(self, codes: NDArray[np.int64]) -> float:
        """The sum of the squared distances of all items to their codewords. codes is [item, level]."""
        return float(np.square(self.needed - self.codebook[codes[:, -1]]).sum())


def treat_collisions(
    how: Treatment,
    codes: NDArray[np.int64],
    latents: NDArray[np.float32],
    codebooks: Sequence[NDArray[np.float32]],
    item_ids: Sequence[str],
) -> Reassigned:
    """Treat the collisions of codes [item, level].

    latents is [item, latent], and each level's codebook is [code, latent].
    The order of the item ids decides ties, so the order of the items does not matter. Only a suffix depends
    on it, as slots do.
    """
    if how == "zcr":
        return reassign_collisions(codes, latents, codebooks, item_ids)
    spec = _spec_of(codebooks)
    if how == "suffix":
        return _append_suffix(codes, spec)
    last = _last_level(codes, latents, codebooks)
    new_codes = _spread_by_sinkhorn(codes, spec, last) if how == "sinkhorn" else codes
    return Reassigned(spec, new_codes, _report(codes, new_codes, spec, last))


def reassign_collisions(
    codes: NDArray[np.int64],
    latents: NDArray[np.float32],
    codebooks: Sequence[NDArray[np.float32]],
    item_ids: Sequence[str],
) -> Reassigned:
    """Zero-collision reassignment, with the arguments of `treat_collisions`."""
    spec, last = _spec_of(codebooks), _last_level(codes, latents, codebooks)
    by_id = np.array(sorted(range(len(item_ids)), key=item_ids.__getitem__), dtype=np.int64)
    new_codes = codes.copy()
    for group in _crowded_groups(codes, spec, by_id):
        new_codes[group, -1] = _match(last.distances(group), codes[group, -1])
    return Reassigned(spec, new_codes, _report(codes, new_codes, spec, last))


def assign_slots(codes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number the items that share codes [item, level] from 0, in the order of the catalog -> slots [item].

    The service assigns the same slots when it puts the catalog into a new Redis in this order.
    """
    taken: Counter[tuple[int, ...]] = Counter()
    slots = np.zeros(len(codes), dtype=np.int64)
    for item, row in enumerate(codes.tolist()):
        slots[item] = taken[tuple(row)]
        taken[tuple(row)] += 1
    return slots


def _match(distance: NDArray[np.float64], old: NDArray[np.int64]) -> NDArray[np.int64]:
    """A new code for each member -> [member], from distance [member, code] and the old codes [member].

    The new codes are all different, or spread as evenly as the number of codes allows.
    """
    num_members, num_codes = distance.shape
    # One more move must cost more than all distances of the group could save.
    move = (num_members + 1) * (distance.max() + 1e-6)
    keep = np.arange(num_codes) == old[:, None]  # [member, code]
    cost = np.where(keep, distance, distance + move)
    places = -(-num_members // num_codes)  # for each code
    if num_members > MAX_ASSIGNED:
        return _transport(cost, places)
    result: NDArray[np.int64] = linear_sum_assignment(np.tile(cost, places))[1] % num_codes
    return result


def _transport(cost: NDArray[np.float64], places: int) -> NDArray[np.int64]:
    """The cheapest code for each member -> [member], from cost [member, code]; a code takes `places` members.

    Members with equal costs, such as items of the same text, count as one with several units. So this is a
    transportation problem, whose linear program has whole numbers as its solution.
    """
    kinds, kind, units = np.unique(cost, axis=0, return_inverse=True, return_counts=True)
    num_kinds, num_codes = kinds.shape
    of_kind = kron(identity(num_kinds), np.ones((1, num_codes)), format="csr")
    of_code = kron(np.ones((1, num_kinds)), identity(num_codes), format="csr")
    found = linprog(
        kinds.ravel(), A_ub=of_code, b_ub=np.full(num_codes, places), A_eq=of_kind, b_eq=units, method="highs"
    )
    assert found.success, found.message
    amounts = np.rint(found.x).astype(np.int64).reshape(kinds.shape)  # [kind, code]
    codes = np.empty(len(cost), dtype=np.int64)
    for number, row in enumerate(amounts):
        codes[kind == number] = np.repeat(np.arange(num_codes), row)
    return codes


def _spread_by_sinkhorn(codes: NDArray[np.int64], spec: SidSpec, last: _LastLevel) -> NDArray[np.int64]:
    """Give new last codes to all items that share codes, until none are shared or nothing changes.

    An item that collides again goes one code further in the next round. Otherwise the rounds could cycle.
    """
    new_codes = codes.copy()
    for attempt in range(SINKHORN_ROUNDS):
        before = new_codes.copy()
        for group in _groups_of(spec.prefixes_of(before)[-1]):
            if len(group) > 1:
                new_codes[group, -1] = sinkhorn_assign(last.distances(group), nth=attempt)
        if (new_codes == before).all():
            break
    return new_codes


def _append_suffix(codes: NDArray[np.int64], spec: SidSpec) -> Reassigned:
    """Number the items of the same codes in an extra level."""
    suffix = assign_slots(codes)  # [item]
    longer = SidSpec(levels=(*spec.levels, max(2, int(suffix.max(initial=0)) + 1)))
    new_codes = np.column_stack([codes, suffix])  # [item, level]
    report = _compare(_sizes(codes, spec), _sizes(new_codes, longer))
    return Reassigned(longer, new_codes, replace(report, num_groups=len(_crowded_groups(codes, spec))))


def _report(
    codes: NDArray[np.int64], new_codes: NDArray[np.int64], spec: SidSpec, last: _LastLevel
) -> CollisionReport:
    groups = _crowded_groups(codes, spec)
    overfull = [len(group) for group in groups if len(group) > spec.levels[-1]]
    return replace(
        _compare(_sizes(codes, spec), _sizes(new_codes, spec)),
        num_groups=len(groups),
        num_reassigned=int((new_codes != codes).any(axis=1).sum()),
        num_overfull_groups=len(overfull),
        num_overfull_items=sum(overfull),
        distance_increase=last.error(new_codes) - last.error(codes),
    )


def _compare(before: NDArray[np.int64], after: NDArray[np.int64]) -> CollisionReport:
    """The report of a treatment that moves no item.

    `before` and `after` [distinct codes] count the items of each of the codes in use.
    """
    return CollisionReport(
        num_items=int(before.sum()),
        num_groups=0,
        num_reassigned=0,
        num_overfull_groups=0,
        num_overfull_items=0,
        max_group_before=int(before.max(initial=0)),
        max_group_after=int(after.max(initial=0)),
        rate_before=_share_rate(before),
        rate_after=_share_rate(after),
        missing_rate_before=_missing_rate(before),
        missing_rate_after=_missing_rate(after),
        distance_increase=0.0,
    )


def _spec_of(codebooks: Sequence[NDArray[np.float32]]) -> SidSpec:
    return SidSpec(levels=tuple(len(codebook) for codebook in codebooks))


def _last_level(
    codes: NDArray[np.int64], latents: NDArray[np.float32], codebooks: Sequence[NDArray[np.float32]]
) -> _LastLevel:
    needed = latents.astype(np.float64)  # [item, latent]
    for level, codebook in enumerate(codebooks[:-1]):
        needed = needed - codebook[codes[:, level]]
    return _LastLevel(needed, codebooks[-1].astype(np.float64))


def _groups_of(key: NDArray[np.int64], order: NDArray[np.int64] | None = None) -> list[NDArray[np.int64]]:
    """The items of each key [item]. Within a group they are in the order `order` [item], if it is given."""
    order = np.arange(len(key)) if order is None else order
    order = order[np.argsort(key[order], kind="stable")]
    return np.split(order, np.flatnonzero(np.diff(key[order])) + 1)


def _crowded_groups(
    codes: NDArray[np.int64], spec: SidSpec, order: NDArray[np.int64] | None = None
) -> list[NDArray[np.int64]]:
    """The groups: the items of each prefix, if at least two of them also share the last code."""
    full = spec.prefixes_of(codes)[-1]  # [item]
    groups = _groups_of(full // spec.levels[-1], order)
    return [group for group in groups if len(np.unique(full[group])) < len(group)]


def _sizes(codes: NDArray[np.int64], spec: SidSpec) -> NDArray[np.int64]:
    """The number of items of each of the codes in use -> [distinct codes]."""
    return np.unique(spec.prefixes_of(codes)[-1], return_counts=True)[1]


def _share_rate(sizes: NDArray[np.int64]) -> float:
    return float(sizes[sizes > 1].sum() / max(sizes.sum(), 1))


def _missing_rate(sizes: NDArray[np.int64]) -> float:
    return float(1 - len(sizes) / max(sizes.sum(), 1))
