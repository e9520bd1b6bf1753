"""Catalogs of known items, and a slow exact ranking of them."""

from service.catalog.catalog import Catalog
from service.core.sid import Sid
from service.telemetry.stages import Stages
from tests.known_bundle import SPEC, ranking


def catalog_of(items):
    """Slots are given in the order of the items."""
    catalog = Catalog(SPEC, {each.item_id: each.popularity for each in items})
    for each in items:
        catalog.put(each.item_id, Sid(each.codes, len(catalog.items_at(each.codes))))
    return catalog


async def page_of(recommender, query):
    return (await recommender.recommend(query, Stages())).page


def popular(catalog, limit, excluded):
    return [item_id for item_id in catalog.by_popularity() if item_id not in excluded][:limit]


def truth(catalog, history, excluded):
    """The whole catalog, best first: (item id, score)."""
    codes = [catalog.sid_of(item_id).codes for item_id in history if catalog.sid_of(item_id)]
    living = {catalog.sid_of(item_id).codes for item_id in catalog.by_popularity()}
    return [
        (item_id, score)
        for score, each in ranking(codes, living)
        for item_id in catalog.items_at(each)
        if item_id not in excluded
    ]
