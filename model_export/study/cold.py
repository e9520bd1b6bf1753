"""Cold items (question 5): some items are taken out of all training and added when everything is trained.

    catalog ─ remove ─▶ train on the rest ─▶ add the cold items ─▶ how often do their users see them?

Pictures are measured on a real service. A bundle is exported, and a service runs it. The cold items are
posted, and recommendations are requested over HTTP. No service can run a text encoder, or draw CARD's unit of
a new item with neighbors, so these go through the same steps offline. The controls run offline on both sides.
"""

import base64
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer

from model_export.configs import FamaePicturesConfig, MiniLmConfig, RunConfig
from model_export.data.dataset import DataError, Dataset, Item, make_dataset
from model_export.data.splits import MIN_ITEMS_TO_EVALUATE, Split, Targets, leave_one_out
from model_export.evaluation.evaluate import BATCH, codes_for
from model_export.evaluation.metrics import hits_at
from model_export.evaluation.near_copies import shared_levels
from model_export.evaluation.ranking import ItemsOfCodes, Ranker, SearchFunction, search_by
from model_export.export import export
from model_export.generators.beam_search import eager_search
from model_export.local_service import local_service
from model_export.picture_configs import CardConfig
from model_export.pipeline import generating, stages
from model_export.pipeline.run import Run
from model_export.study.coding import coder, codes_of_fields
from model_export.study.cold_units import codes_of_units
from service.core.bundle import RECOMMENDER, Bundle
from service.core.cpus import usable_cpus
from service.core.limits import MAX_EXCLUDED, MAX_HISTORY
from service.core.render import item_text
from service.core.sid import SidSpec
from service.errors import GlyphrecError
from service.inference.runtime import RecommenderSession

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py
CUTOFFS = (10, 50, 100)
TOP_K = CUTOFFS[-1]  # the longest page that a service returns
PHOTOS_PER_POST = 4  # whole photos, which must fit into a body
ITEMS_PER_POST = 32  # the service reads them as one batch, so equal codes get their slots in this order

# Their cold cells take the same steps without a service. No service reads text. One could read fields as
# pictures, but here each value is read once for all items that have it, which is faster.
Offline = MiniLmConfig | FamaePicturesConfig
Codes = NDArray[np.int64]  # [item, level]
Ranked = NDArray[np.int32]  # [user, TOP_K]  item indices; -1 in places without an item


class Removed(NamedTuple):
    """A dataset without its cold items. Items get new indices: first the items of `dataset`, then `items`."""

    dataset: Dataset  # without the cold items; training may use all of it
    items: list[Item]  # the cold items
    cold: Targets  # test users with a cold target; their histories may hold other cold items
    warm: Targets  # the other test users, except those whose target is in the training part
    photos: list[Path | None]  # of the cold items

    @property
    def item_ids(self) -> list[str]:
        """The ids in the order of the new numbers."""
        return [*self.dataset.item_ids, *(item["item_id"] for item in self.items)]


class ColdModel(NamedTuple):
    """A model that was trained without the cold items."""

    spec: SidSpec
    codes: Codes  # of the items of Removed.dataset
    search: Callable[[ItemsOfCodes], SearchFunction]  # its search over any catalog


class Outcome(NamedTuple):
    """The codes and the rankings of the cold items."""

    model: ColdModel
    codes: Codes  # of the cold items, as they were assigned when the items were added
    ranked: Ranked  # for the users of Removed.cold


def cold(
    run: Run, *, share: float = 0.05, seed: int = 0, units_with_neighbors: bool = False
) -> dict[str, float]:
    """The share of users with a cold target who find it among the first items, for each of CUTOFFS.

    The history is left out of the ranking. For comparison there are the same rates with random codes, by
    chance, and for warm targets. The figures also say how often a cold item shares codes with the nearest
    trained item. Figures that end in `_se` are standard errors.

    Counts have no say: nothing was counted with a cold item, and the question is what its codes are worth.
    `share`: the part of the catalog that becomes cold. `units_with_neighbors`: CARD's unit of a cold item
    shows its nearest items by content. Raises DataError if no user can be tested.
    """
    config = replace(run.config, opinions=None)
    run = replace(run, config=config)
    removed = remove(run.dataset, run.split, share=share, seed=seed)
    run.say(f"      {removed.dataset.name}; {len(removed.cold)} users have one of these as their target")
    with stages.deterministic():
        is_served = not (units_with_neighbors or isinstance(config.encoder, Offline))
        outcome = served(removed, run) if is_served else offline(removed, run)
        return figures_of(removed, outcome, config, seed=seed)


def figures_of(removed: Removed, outcome: Outcome, config: RunConfig, *, seed: int) -> dict[str, float]:
    """The figures of `cold`, computed from the outcome."""
    model, targets = outcome.model, removed.cold.targets
    rng = np.random.default_rng(seed)
    random_codes = rng.integers(0, model.spec.levels, size=outcome.codes.shape)
    at_random = rank(model, random_codes, removed.cold, config)
    warm = rank(model, outcome.codes, removed.warm, config)
    return (
        {"cold_num_items": float(len(removed.items)), "cold_num_targets": float(len(targets))}
        | _hits("cold_hit@{}", outcome.ranked, targets)
        | _hits("cold_hit@{}_random_codes", at_random, targets)
        | {f"cold_hit@{k}_chance": _chance(removed, k) for k in CUTOFFS}
        | {"warm_num_targets": float(len(removed.warm))}
        | _hits("warm_hit@{}", warm, removed.warm.targets)
        | _relatives(removed, outcome, config)
    )


def remove(dataset: Dataset, split: Split, *, share: float, seed: int) -> Removed:
    """Take `share` of the items out of catalog and sequences. They are drawn from the test targets.

    A cold user's sequence ends before its cold target, so training sees only a part of the user's history. A
    warm user may be left with so few items that all of them are trained on, even the target. Such users are
    not in `warm`. Raises DataError if no user can be tested.
    """
    candidates = np.unique(split.test.targets)
    if not len(candidates):
        raise DataError(
            f"{dataset.name}: no user has {MIN_ITEMS_TO_EVALUATE} items, so no user can be tested. "
            "Give more interactions."
        )
    count = min(max(1, round(share * dataset.num_items)), len(candidates))
    chosen = np.sort(np.random.default_rng(seed).choice(candidates, size=count, replace=False))
    is_cold = np.zeros(dataset.num_items, dtype=bool)
    is_cold[chosen] = True
    kept = np.flatnonzero(~is_cold)
    number = np.empty(dataset.num_items, dtype=np.int32)  # [old number]
    number[np.concatenate([kept, chosen])] = np.arange(dataset.num_items)
    remaining = [number[sequence[~is_cold[sequence]]] for sequence in dataset.sequences]
    reduced = make_dataset(
        f"{dataset.name} without {count} cold items",
        [dataset.items[item] for item in kept],
        zip(dataset.user_ids, remaining, strict=True),
        dataset.exclusions | {"cold items": count},
        images={int(number[item]): path for item, path in dataset.images.items() if not is_cold[item]},
    )

    test = split.test
    is_of_cold = is_cold[test.targets]  # [target]
    is_left_out = np.array([len(remaining[user]) >= MIN_ITEMS_TO_EVALUATE for user in test.users], dtype=bool)

    def those(rows: NDArray[np.bool_]) -> Targets:
        histories = [number[test.histories[row]] for row in np.flatnonzero(rows)]
        return Targets(test.users[rows], histories, number[test.targets[rows]])

    cold_items = [dataset.items[item] for item in chosen]
    photos = [dataset.images.get(int(item)) for item in chosen]
    return Removed(reduced, cold_items, those(is_of_cold), those(~is_of_cold & is_left_out), photos)


def served(removed: Removed, run: Run) -> Outcome:
    """Export a bundle, start a service with it, post the cold items and request recommendations."""
    folder = run.cache.folder
    bundle = export(
        removed.dataset, folder / "cold", run.config, cache_folder=folder, say=run.say, named_by_key=True
    )
    session = RecommenderSession(
        bundle.file(RECOMMENDER), bundle.manifest.recommender, threads=usable_cpus().num_threads
    )
    model = ColdModel(bundle.manifest.sid, codes_for(bundle, removed.dataset), partial(search_by, session))
    run.say("      posting the cold items to a service and requesting recommendations")
    return Outcome(model, *_ask_service(bundle, removed))


def offline(removed: Removed, run: Run) -> Outcome:
    """The same steps without a bundle and a service.

    Raises GlyphrecError if the configuration treats collisions with a suffix.
    """
    config = run.config
    run = replace(run, dataset=removed.dataset, split=leave_one_out(removed.dataset))
    read = stages.read(run)
    coded = stages.code(run, read)
    if coded.spec != config.sid:
        raise GlyphrecError(
            f"configuration {config.name}: a suffix numbers the items of one catalog, so a new item cannot "
            "get one. Choose another treatment of collisions."
        )
    generator = generating.generate(run, coded.codes, coded.spec, vectors=coded.vectors).generator
    generator.to("cuda" if torch.cuda.is_available() else "cpu")
    model = ColdModel(coded.spec, coded.codes, partial(eager_search, generator))
    if isinstance(config.pictures, CardConfig):
        codes = codes_of_units(run, read, coded, removed.items, removed.photos)
    elif isinstance(config.encoder, FamaePicturesConfig):
        codes = codes_of_fields(read, coded, config, removed.items)
    else:
        codes = coder(read, coded, config)(_texts(removed.items, config))
    return Outcome(model, codes, rank(model, codes, removed.cold, config))


def rank(model: ColdModel, cold_codes: Codes, users: Targets, config: RunConfig) -> Ranked:
    """The pages that a service would find for `users`, with the cold items at `cold_codes`."""
    catalog = ItemsOfCodes.build(model.spec, np.concatenate([model.codes, cold_codes]))
    ranker = Ranker(
        model.search(catalog),
        catalog,
        history_length=config.history_length,
        num_beams=min(2 * TOP_K, config.beam_limit),  # a service starts with as many for a page of TOP_K
        beam_limit=config.beam_limit,
        batch_size=BATCH,
    )
    return ranker.rank(users.histories, TOP_K, progress="test users")


def _ask_service(bundle: Bundle, removed: Removed) -> tuple[Codes, Ranked]:
    """The codes of the cold items and the pages of the cold users, from a service with its own Redis.

    The service fills up short pages with popular items. These do not count.
    """
    ids = removed.item_ids
    number = {item_id: place for place, item_id in enumerate(ids)}
    ranked = np.full((len(removed.cold), TOP_K), -1, dtype=np.int32)
    codes: list[list[int]] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        local_service(
            bundle.path, data_dir=Path(folder) / "redis", log=Path(folder) / "service.log"
        ) as service,
    ):
        reads_photos = bundle.manifest.pictures is not None
        per_post = PHOTOS_PER_POST if reads_photos else ITEMS_PER_POST
        for start in range(0, len(removed.items), per_post):
            some = range(start, min(start + per_post, len(removed.items)))
            posted = {"items": [_posted(removed, place, reads_photos) for place in some]}
            for result in _post(service.client, "/items", posted):
                if result["error"]:
                    raise GlyphrecError(f"the service refused a cold item: {result['error']['detail']}")
                codes.append(result["codes"])
        for row, history in enumerate(removed.cold.histories):
            older = dict.fromkeys(ids[item] for item in history[:-MAX_HISTORY][::-1])
            asked = {
                "history": [ids[item] for item in history[-MAX_HISTORY:]],
                "exclude_item_ids": list(older)[:MAX_EXCLUDED],
                "limit": TOP_K,
            }
            page = _post(service.client, "/recommend", asked)
            found = [number[each["item_id"]] for each in page if each["score"] is not None]
            ranked[row, : len(found)] = found
    return np.array(codes, dtype=np.int64), ranked


def _posted(removed: Removed, place: int, reads_photos: bool) -> Item:
    """A cold item as it is posted, with its photo if the bundle reads photos."""
    item, photo = removed.items[place], removed.photos[place]
    if photo is None or not reads_photos:
        return item
    return item | {"image": {"data": base64.b64encode(photo.read_bytes()).decode()}}


def _post(client: httpx.Client, route: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    response = client.post(route, json=body)
    if response.is_error:
        raise GlyphrecError(f"POST {route}: {response.status_code} {response.text}")
    items: list[dict[str, Any]] = response.json()["items"]
    return items


def _hits(name: str, ranked: Ranked, targets: NDArray[np.int32]) -> dict[str, float]:
    """The share of users whose target is among the first k, and its standard error, for each k of CUTOFFS.

    Hits of users with the same target are correlated, so the error counts targets as the sample, and not
    users.
    """
    figures: dict[str, float] = {}
    for k in CUTOFFS:
        hit = hits_at(ranked, targets, k)  # [user]
        rate = float(hit.mean()) if len(hit) else 0.0
        surplus = np.bincount(targets, weights=hit - rate)  # [target]
        figures[name.format(k)] = rate
        figures[f"{name.format(k)}_se"] = float(np.sqrt(np.square(surplus).sum())) / max(1, len(hit))
    return figures


def _chance(removed: Removed, k: int) -> float:
    """The expected hits of random pages without the history. They never hold a target from the history."""
    num_items, cold = len(removed.item_ids), removed.cold
    num_left = np.array([num_items - len(np.unique(history)) for history in cold.histories])  # [user]
    can_be_found = [
        target not in set(h.tolist()) for h, target in zip(cold.histories, cold.targets, strict=True)
    ]
    return float(np.mean(can_be_found * np.minimum(1.0, k / np.maximum(1, num_left))))


def _relatives(removed: Removed, outcome: Outcome, config: RunConfig) -> dict[str, float]:
    """The shares of cold items that share codes with their nearest trained item, and with a random one.

    The nearest item has the most similar letters, by TF-IDF of runs of three to five letters.
    """
    trained, came = _texts(removed.dataset.items, config), _texts(removed.items, config)
    letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), dtype=np.float32).fit(trained)
    cosine = letters.transform(came) @ letters.transform(trained).T  # [cold item, item]
    codes = outcome.model.codes
    near = shared_levels(outcome.codes, codes[cosine.toarray().argmax(axis=1)])  # [cold item]
    anything = np.concatenate(
        [shared_levels(np.broadcast_to(row, codes.shape), codes) for row in outcome.codes]
    )
    return {
        "cold_shares_first_code": float((near >= 1).mean()),
        "cold_shares_two_codes": float((near >= 2).mean()),
        "cold_shares_first_code_chance": float((anything >= 1).mean()),
        "cold_shares_two_codes_chance": float((anything >= 2).mean()),
    }


def _texts(items: list[Item], config: RunConfig) -> list[str]:
    return [item_text(item, config.render) for item in items]
