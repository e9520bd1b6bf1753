"""The stores of a catalog as the settings want them, for every process that writes to it."""

from redis.asyncio import Redis, RedisCluster

from service.core.bundle import Manifest
from service.settings import Settings
from service.store.items import ItemStore


def item_store(redis: Redis | RedisCluster, settings: Settings, manifest: Manifest) -> ItemStore:
    """The items of the settings' catalog, with the codes and vectors of the manifest's tokenizer."""
    return ItemStore(
        redis,
        catalog=settings.catalog,
        tokenizer_id=manifest.tokenizer_id,
        spec=manifest.sid,
        fields=settings.filter_fields,
        log_length=settings.log_length,
        vector_dim=vector_dim(settings, manifest),
    )


def vector_dim(settings: Settings, manifest: Manifest) -> int | None:
    """Numbers of an item's vector; None if the settings want no vectors."""
    return manifest.vector_dim if settings.search else None
