"""The catalog's size and freshness, the rate of posted items, the use of the code space, and Redis."""

from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.grafana.panels import Query, Row, framed, lines, mean, number, quantile, rate, share, total, where

INDEXED = "glyphrec_indexed_items_total"
CALLS = "glyphrec_redis_calls_total"


def build() -> Dashboard:
    """The dashboard for freshness, ingest, codes and Redis."""
    return framed(
        "glyphrec-catalogue",
        "Catalog and ingest",
        "Freshness of every replica, posted items, room in the code space, Redis.",
        [
            Row("Now", NOW),
            Row("Freshness", FRESHNESS),
            Row("Ingest", INGEST),
            Row("Pictures", PICTURES),
            Row("Codes", CODES),
            Row("Vectors", VECTORS),
            Row("Redis and filters", REDIS),
        ],
    )


NOW = [
    number(
        "Items",
        "Items in the catalog of the replica that has the most.",
        "short",
        total("glyphrec_catalog_items", func="max"),
        [(0, "red"), (1, "green")],
    ),
    number(
        "Version",
        "The last change of the log that was applied. It only falls if Redis was restored or flushed.",
        "locale",
        total("glyphrec_catalog_version", func="max"),
    ),
    number(
        "Entries behind",
        "Changes in the log that the slowest replica has not applied yet. Beyond GLYPHREC_LOG_LENGTH it "
        "loads the whole catalog again.",
        "short",
        total("glyphrec_catalog_lag_entries", func="max"),
        [(1_000, "yellow"), (50_000, "red")],
    ),
    number(
        "Seconds behind",
        "The time from the writing of a change until the slowest replica applies it.",
        "s",
        total("glyphrec_catalog_lag_seconds", func="max"),
        [(2, "yellow"), (10, "red")],
    ),
    number(
        "Out of touch with Redis",
        "The longest time of any replica. Recommendations continue; changes are refused.",
        "s",
        total("glyphrec_catalog_stale_seconds", func="max"),
        [(1, "yellow"), (30, "red")],
    ),
    number(
        "Redis may lose",
        "How many seconds of acknowledged changes are lost at worst if Redis' machine fails. Infinite "
        "without an append-only file.",
        "s",
        total("glyphrec_redis_loss_window_seconds", func="max"),
        [(2.5, "red")],
    ),
    number(
        "Posted items",
        "Items per second, with any outcome.",
        "cps",
        rate(INDEXED),
    ),
    number(
        "Not ours",
        "Values in Redis that were skipped as not written by glyphrec. glyphrec fsck lists them.",
        "short",
        total("glyphrec_unreadable_values", func="max"),
        [(1, "red")],
    ),
]

FRESHNESS = [
    lines(
        "Items by replica",
        "All replicas should have the same number within a second.",
        "short",
        Query(total("glyphrec_catalog_items", "instance"), "{{instance}}"),
    ),
    lines(
        "Seconds behind, by replica",
        "0 if all changes are applied. It grows while entries wait.",
        "s",
        Query(total("glyphrec_catalog_lag_seconds", "instance"), "{{instance}}"),
        steps=[(10, "red")],
    ),
    lines(
        "Entries behind, by replica",
        "Changes that are written but not yet applied.",
        "short",
        Query(total("glyphrec_catalog_lag_entries", "instance"), "{{instance}}"),
        steps=[(50_000, "red")],
    ),
]

INGEST = [
    lines(
        "Posted items by outcome",
        "Only created and moved items are rendered and tokenized.",
        "cps",
        Query(rate(INDEXED, "status"), "{{status}}"),
    ),
    lines(
        "Failed items",
        "Share of the posted items that failed. The response says why for each item.",
        "percentunit",
        Query(share(rate(INDEXED, status="failed"), rate(INDEXED)), "failed"),
        steps=[(0.01, "yellow"), (0.05, "red")],
    ),
    lines(
        "Values that filters cannot use",
        "Posted values in a type or spelling that filters do not know, or that are new to a tokenizer of "
        "fields. The response says why for each value.",
        "cps",
        Query(rate("glyphrec_unused_values_total", "field"), "{{field}}"),
    ),
    lines(
        "POST /items",
        "Time of one request, with any number of items.",
        "s",
        Query(quantile(0.5, "glyphrec_http_request_seconds", route="/items", method="POST"), "p50"),
        Query(quantile(0.99, "glyphrec_http_request_seconds", route="/items", method="POST"), "p99"),
        steps=[(60, "yellow"), (600, "red")],
    ),
    lines(
        "Strips waiting to be read",
        "Strips of pixels that wait for the tokenizer or are in the running batch.",
        "short",
        Query(total("glyphrec_queue_units", "instance", queue="tokenizer"), "{{instance}}, waiting"),
        Query(total("glyphrec_running_units", "instance", queue="tokenizer"), "{{instance}}, running"),
        steps=[(2_048, "yellow"), (3_686, "red")],
    ),
    lines(
        "Time of an item's stages, mean",
        "The mean for one request. render draws the text; tokenize runs the graph.",
        "s",
        Query(mean("glyphrec_stage_seconds", "stage", flow="index"), "{{stage}}"),
        stacked=True,
    ),
    lines(
        "Reading anew for another tokenizer",
        "Items that the next tokenizer must read and has read. Replicas switch when both are equal.",
        "short",
        Query(total("glyphrec_rollout_items", func="max"), "to read"),
        Query(total("glyphrec_rollout_read_items", func="max"), "read"),
    ),
]

PICTURES = [
    lines(
        "Pictures by outcome",
        "kept: decoded and stored. refused: broken, too large or of another type; the response says why. "
        "too_slow: given up. missing: an item that names a picture was read by its text alone.",
        "cps",
        Query(rate("glyphrec_pictures_total", "outcome"), "{{outcome}}"),
    ),
    lines(
        "Time of a picture",
        "decode makes what is kept from what was sent. pixels makes what the tokenizer reads from that.",
        "s",
        Query(quantile(0.5, "glyphrec_picture_seconds", "stage"), "{{stage}}, p50"),
        Query(quantile(0.99, "glyphrec_picture_seconds", "stage"), "{{stage}}, p99"),
        steps=[(1, "yellow"), (5, "red")],
    ),
    lines(
        "Memory of Redis for pictures",
        "What Redis takes for the kept pictures, estimated from a sample every half minute.",
        "bytes",
        Query(total("glyphrec_kept_picture_bytes", func="max"), "pictures"),
    ),
]

CODES = [
    lines(
        "Items that share their codes",
        "Share of the items that differ from another item only in their slot. If it is high, many items look "
        "alike to this tokenizer and are recommended together.",
        "percentunit",
        Query(
            f"max(glyphrec_catalog_colliding_items{where()} / (glyphrec_catalog_items{where()} > 0))",
            "colliding",
        ),
        steps=[(0.2, "yellow"), (0.5, "red")],
    ),
    lines(
        "Slots in use",
        "The largest number of items with the same codes. At the limit, further ones are refused with 507.",
        "short",
        Query(total("glyphrec_catalog_slots_in_use", func="max"), "slots"),
    ),
    lines(
        "Codes in use by level",
        "Share of a level's codes that have items. If it is low from level 2 on, the tokenizer fits this "
        "catalog badly.",
        "percentunit",
        Query(total("glyphrec_codebook_used_ratio", "level", func="max"), "level {{level}}"),
        most=1,
    ),
]

REDIS = [
    lines(
        "Calls by command",
        "Scripts are shown by their names.",
        "ops",
        Query(rate(CALLS, "command"), "{{command}}"),
    ),
    lines(
        "Failed calls",
        "Share of the calls that fail because Redis is unreachable, slow, full or read-only.",
        "percentunit",
        Query(share(rate(CALLS, result="error"), rate(CALLS)), "failed"),
        steps=[(0.001, "yellow"), (0.01, "red")],
    ),
    lines(
        "Out of touch with Redis, by replica",
        "If all replicas rise at once, look at Redis. If only one does, look at its network.",
        "s",
        Query(total("glyphrec_catalog_stale_seconds", "instance"), "{{instance}}"),
        steps=[(30, "red")],
    ),
    lines(
        "Redis may evict",
        "1 where the settings of Redis let it drop these keys when its memory is full. Dropped events are "
        "forgotten; a dropped catalog makes replicas not ready.",
        "short",
        Query(total("glyphrec_redis_may_evict", "keys", func="max"), "{{keys}}"),
        steps=[(1, "red")],
        most=1,
    ),
    lines(
        "Redis: memory",
        "What Redis uses for all programs, and its maxmemory. Without a limit the second line is 0.",
        "bytes",
        Query(total("glyphrec_redis_used_memory_bytes", func="max"), "used"),
        Query(total("glyphrec_redis_max_memory_bytes", func="max"), "allowed"),
    ),
    lines(
        "Redis: append-only file",
        "Its size on the disk. It falls with each rewrite.",
        "bytes",
        Query(total("glyphrec_redis_append_file_bytes", func="max"), "size"),
    ),
    lines(
        "Redis cannot write, by kind",
        "1 if the last writing to the disk failed. Look at the disk of Redis.",
        "short",
        Query(total("glyphrec_redis_failing", "what", func="max"), "{{what}}"),
        steps=[(1, "red")],
        most=1,
    ),
    lines(
        "Catalog damaged, by replica",
        "1 while Redis lacks a part of the catalog, and the replica is not ready. glyphrec fsck, a backup or "
        "an import makes it whole.",
        "short",
        Query(total("glyphrec_catalog_damaged", "instance", func="max"), "{{instance}}"),
        steps=[(1, "red")],
        most=1,
    ),
    lines(
        "Filter views: found ready",
        "Share of filtered searches whose view was cached. If it is low, raise GLYPHREC_MAX_VIEW_BYTES or "
        "use fewer different filters.",
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
        "If views are given up as often as they are built, the views in use do not fit into memory.",
        "ops",
        Query(rate("glyphrec_filter_view_misses_total"), "built"),
        Query(rate("glyphrec_filter_view_evictions_total"), "given up"),
    ),
    lines(
        "Filter views: memory",
        "Memory of the views' tables. GLYPHREC_MAX_VIEW_BYTES limits it.",
        "bytes",
        Query(total("glyphrec_filter_view_bytes", "instance"), "{{instance}}"),
    ),
]

VECTORS = [
    lines(
        "Items without a vector",
        "No search finds them. They come from an older release or a bundle without vectors, and a replica "
        "gives them one after its start.",
        "short",
        Query(total("glyphrec_vector_missing_items", "instance", func="max"), "{{instance}}"),
        steps=[(1, "yellow")],
        width=6,
    ),
    lines(
        "Recall of the graph",
        "Share of the ten nearest items that a search finds, measured on items of the catalog. No data "
        "without a graph: then all items are compared.",
        "percentunit",
        Query(total("glyphrec_vector_recall_ratio", "instance", func="min") + " >= 0", "{{instance}}"),
        steps=[(0, "red"), (0.95, "yellow"), (0.98, "green")],
        most=1,
        width=6,
    ),
    lines(
        "Rows that wait for the graph",
        "Changes that each search compares one by one. After an import they fall again.",
        "short",
        Query(total("glyphrec_vector_pending_rows", "instance", func="max"), "{{instance}}"),
        steps=[(5_000, "yellow")],
        width=6,
    ),
    lines(
        "Memory of the vectors",
        "Rows and graph of each replica, estimated.",
        "bytes",
        Query(total("glyphrec_vector_bytes", "instance"), "{{instance}}"),
        width=6,
    ),
]
