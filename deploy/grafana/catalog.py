"""How many items, how fresh, how fast they come in, how well the codes hold them, and what Redis does."""

from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.grafana.panels import Query, Row, framed, lines, mean, number, quantile, rate, share, total, where

INDEXED = "glyphrec_indexed_items_total"
CALLS = "glyphrec_redis_calls_total"


def build() -> Dashboard:
    return framed(
        "glyphrec-catalogue",
        "Catalog and ingest",
        "Freshness of every replica, posted items, room in the code space, Redis.",
        [
            Row("Now", NOW),
            Row("Freshness", FRESHNESS),
            Row("Ingest", INGEST),
            Row("Codes", CODES),
            Row("Redis and filters", REDIS),
        ],
    )


NOW = [
    number(
        "Items",
        "Living items, on the replica that has most.",
        "short",
        total("glyphrec_catalog_items", func="max"),
    ),
    number(
        "Version",
        "Last change of the log taken in; only grows, except where Redis was restored or flushed.",
        "locale",
        total("glyphrec_catalog_version", func="max"),
    ),
    number(
        "Entries behind",
        "Changes in the log that the slowest replica has yet to take in. Beyond GLYPHREC_LOG_LENGTH it loads "
        "everything anew.",
        "short",
        total("glyphrec_catalog_lag_entries", func="max"),
        [(1_000, "yellow"), (50_000, "red")],
    ),
    number(
        "Seconds behind",
        "Between a change's being written and its being taken in, on the slowest replica.",
        "s",
        total("glyphrec_catalog_lag_seconds", func="max"),
        [(2, "yellow"), (10, "red")],
    ),
    number(
        "Out of touch with Redis",
        "The longest of any replica. Recommendations go on; changes are refused.",
        "s",
        total("glyphrec_catalog_stale_seconds", func="max"),
        [(1, "yellow"), (30, "red")],
    ),
    number(
        "Redis may lose",
        "Newest acknowledged changes that a failing machine of Redis may take along; infinite without an "
        "append-only file.",
        "s",
        total("glyphrec_redis_loss_window_seconds", func="max"),
        [(2.5, "red")],
    ),
    number(
        "Posted items",
        "Items a second, whatever became of them.",
        "cps",
        rate(INDEXED),
    ),
    number(
        "Not ours",
        "Values in Redis that were skipped; glyphrec fsck names them.",
        "short",
        total("glyphrec_unreadable_values", func="max"),
        [(1, "red")],
    ),
]

FRESHNESS = [
    lines(
        "Items by replica",
        "Equal within a second on all of them.",
        "short",
        Query(total("glyphrec_catalog_items", "instance"), "{{instance}}"),
    ),
    lines(
        "Seconds behind, by replica",
        "0 when level; grows while entries wait.",
        "s",
        Query(total("glyphrec_catalog_lag_seconds", "instance"), "{{instance}}"),
        steps=[(10, "red")],
    ),
    lines(
        "Entries behind, by replica",
        "What is written and not yet taken in.",
        "short",
        Query(total("glyphrec_catalog_lag_entries", "instance"), "{{instance}}"),
        steps=[(50_000, "red")],
    ),
]

INGEST = [
    lines(
        "Posted items by outcome",
        "Only created and moved items are drawn and read.",
        "cps",
        Query(rate(INDEXED, "status"), "{{status}}"),
    ),
    lines(
        "Failed items",
        "Share of the posted items. The answer to each says why.",
        "percentunit",
        Query(share(rate(INDEXED, status="failed"), rate(INDEXED)), "failed"),
        steps=[(0.01, "yellow"), (0.05, "red")],
    ),
    lines(
        "POST /items",
        "One request, however many items it holds.",
        "s",
        Query(quantile(0.5, "glyphrec_http_request_seconds", route="/items", method="POST"), "p50"),
        Query(quantile(0.99, "glyphrec_http_request_seconds", route="/items", method="POST"), "p99"),
        steps=[(60, "yellow"), (600, "red")],
    ),
    lines(
        "Strips waiting to be read",
        "Strips of pictures before the tokenizer, waiting and in the batch that runs.",
        "short",
        Query(total("glyphrec_queue_units", "instance", queue="tokenizer"), "{{instance}}, waiting"),
        Query(total("glyphrec_running_units", "instance", queue="tokenizer"), "{{instance}}, running"),
        steps=[(2_048, "yellow"), (3_686, "red")],
    ),
    lines(
        "Time of an item's stages, mean",
        "Of one request. tokenize is the graph; render draws.",
        "s",
        Query(mean("glyphrec_stage_seconds", "stage", flow="index"), "{{stage}}"),
        stacked=True,
    ),
    lines(
        "Reading anew for another tokenizer",
        "Items that the tokenizer to come must read and has read; the replicas switch when both are equal.",
        "short",
        Query(total("glyphrec_rollout_items", func="max"), "to read"),
        Query(total("glyphrec_rollout_read_items", func="max"), "read"),
    ),
]

CODES = [
    lines(
        "Items that share their codes",
        "Share of the catalog that only the slot tells apart. Many look alike to this tokenizer, and are "
        "recommended together.",
        "percentunit",
        Query(
            f"max(glyphrec_catalog_colliding_items{where()} / (glyphrec_catalog_items{where()} > 0))",
            "colliding",
        ),
        steps=[(0.2, "yellow"), (0.5, "red")],
    ),
    lines(
        "Slots in use",
        "The most items at the same codes. At the limit of slots more of them are refused with 507.",
        "short",
        Query(total("glyphrec_catalog_slots_in_use", func="max"), "slots"),
    ),
    lines(
        "Codes in use by level",
        "Share of the codes of a level that have living items. Low from level 2 on: the tokenizer fits this "
        "catalog badly.",
        "percentunit",
        Query(total("glyphrec_codebook_used_ratio", "level", func="max"), "level {{level}}"),
        most=1,
    ),
]

REDIS = [
    lines(
        "Calls by command",
        "Our scripts by their names.",
        "ops",
        Query(rate(CALLS, "command"), "{{command}}"),
    ),
    lines(
        "Failed calls",
        "Share of the calls to Redis: away, slow, full, read-only.",
        "percentunit",
        Query(share(rate(CALLS, result="error"), rate(CALLS)), "failed"),
        steps=[(0.001, "yellow"), (0.01, "red")],
    ),
    lines(
        "Out of touch with Redis, by replica",
        "All at once: Redis. One: its network.",
        "s",
        Query(total("glyphrec_catalog_stale_seconds", "instance"), "{{instance}}"),
        steps=[(30, "red")],
    ),
    lines(
        "Filter views: found ready",
        "Share of filtered searches whose items were gathered before. Low: raise GLYPHREC_MAX_VIEW_BYTES, or "
        "ask for fewer different filters.",
        "percentunit",
        Query(
            share(
                rate("glyphrec_filter_view_hits_total"),
                f"({rate('glyphrec_filter_view_hits_total')} + {rate('glyphrec_filter_view_misses_total')})",
            ),
            "ready",
        ),
        steps=[(0, "red"), (0.5, "yellow"), (0.9, "green")],
        most=1,
    ),
    lines(
        "Filter views: built and given up",
        "Given up as often as built: the views in use do not fit.",
        "ops",
        Query(rate("glyphrec_filter_view_misses_total"), "built"),
        Query(rate("glyphrec_filter_view_evictions_total"), "given up"),
    ),
    lines(
        "Filter views: memory",
        "Of their tables; GLYPHREC_MAX_VIEW_BYTES bounds it.",
        "bytes",
        Query(total("glyphrec_filter_view_bytes", "instance"), "{{instance}}"),
    ),
]
