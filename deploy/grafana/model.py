"""The models that are served: their quality in the export's evaluation and their live quality."""

from grafana_foundation_sdk.models.dashboard import Dashboard

from deploy.grafana.panels import (
    Query,
    Row,
    framed,
    lines,
    of_model,
    quantile,
    rate,
    rows,
    share,
    total,
    where,
)

RECOMMENDED = "glyphrec_recommendations_total"
OF_ITEMS = "glyphrec_recommended_items_total"
ATTRIBUTED = rate("glyphrec_feedback_attributed_total", "recommender_id", recommender_id="~$model")


def by_replica(counter: str, **matchers: str) -> str:
    """A rate that `of_model` can join with the model of each replica."""
    return rate(counter, "instance", "job", **matchers)


def build() -> Dashboard:
    """The dashboard that compares model versions."""
    return framed(
        "glyphrec-model",
        "Model and quality",
        "Live quality by model version beside the export's own figures, exactness, coverage, model changes.",
        [
            Row("What was taken of what was recommended", LIVE),
            Row("Before it was served", OFFLINE),
            Row("What is recommended", PAGES),
            Row("The search", SEARCH),
            Row("Changes of the model", CHANGES),
        ],
    )


LIVE = [
    lines(
        "Hit rate by model version",
        "Share of reported events whose item was among the first k of the page that the event names. Only "
        "what clients report counts, so compare versions, not absolute values.",
        "percentunit",
        Query(
            "("
            + rate("glyphrec_feedback_hits_total", "recommender_id", "k", recommender_id="~$model")
            + f") / on (recommender_id) group_left () ({ATTRIBUTED} > 0)",
            "{{recommender_id}}, hit@{{k}}",
        ),
        most=1,
    ),
    lines(
        "Mean reciprocal rank by model version",
        "1 if users always take the first recommendation, 0 if they take none of the page.",
        "short",
        Query(
            share(
                rate("glyphrec_feedback_reciprocal_rank_total", "recommender_id", recommender_id="~$model"),
                ATTRIBUTED,
            ),
            "{{recommender_id}}",
        ),
        most=1,
    ),
    lines(
        "Hits on known and new pairs",
        "Share of events whose item was among the first ten, for pairs of the newest item of the history and "
        "the item that was taken: those that the counts knew before (seen) and the others.",
        "percentunit",
        Query(
            share(
                rate("glyphrec_feedback_pairs_total", "pair", result="hit"),
                rate("glyphrec_feedback_pairs_total", "pair"),
            ),
            "{{pair}}",
        ),
        most=1,
    ),
    lines(
        "Events",
        "Events sent to POST /events: new ones, repeated ones, and those whose page is remembered.",
        "cps",
        Query(rate("glyphrec_feedback_events_total", "outcome"), "{{outcome}}"),
        Query(rate("glyphrec_feedback_attributed_total"), "attributed to a page"),
    ),
]

OFFLINE = [
    rows(
        "The export's own figures",
        "Measured by the export on its test users. The bundle's manifest has the same figures.",
        "short",
        f"max by (metric, recommender_id) (glyphrec_offline_quality{where()} * on (instance, job) "
        f"group_left (recommender_id) glyphrec_model_info{where(recommender_id='~$model')})",
        {"recommender_id": "Model version", "metric": "Figure", "Value": "Value"},
        width=12,
    ),
    rows(
        "What is served",
        "The tokenizer and the model of each replica.",
        "short",
        f"glyphrec_model_info{where(recommender_id='~$model')}",
        {
            "instance": "Replica",
            "recommender_id": "Model version",
            "tokenizer_id": "Tokenizer",
            "generator": "Generator",
            "config": "Configuration",
            "data": "Data",
        },
        width=12,
    ),
]

PAGES = [
    lines(
        "Recommendations by source",
        "model: found by search. popular: no known history. similar: GET /items/{item_id}/similar.",
        "reqps",
        Query(rate(RECOMMENDED, "source"), "{{source}}"),
    ),
    lines(
        "New items among the recommended",
        "Share of recommended items without an interaction in the training data. It falls to 0 if new "
        "items are never found.",
        "percentunit",
        Query(share(rate(OF_ITEMS, novelty="new"), rate(OF_ITEMS)), "new"),
    ),
    lines(
        "Reranked pages",
        "Share of the pages that the ranker put in order, because their requests asked for it.",
        "percentunit",
        Query(share(rate("glyphrec_reranked_pages_total"), rate(RECOMMENDED)), "reranked"),
        most=1,
    ),
    lines(
        "Coverage",
        "Distinct items on the pages of the last ten minutes, as a share of the catalog, by replica.",
        "percentunit",
        Query(
            f"max by (instance, job) (glyphrec_recommended_distinct_items{where()}) / "
            f"(glyphrec_catalog_items{where()} > 0)",
            "{{instance}}",
        ),
        most=1,
    ),
    lines(
        "Answered from popularity",
        "Share of recommendations whose history held no known item.",
        "percentunit",
        Query(
            share(rate(RECOMMENDED, source="popular"), rate(RECOMMENDED, source="~model|popular")), "popular"
        ),
        steps=[(0.5, "yellow")],
    ),
    lines(
        "Unknown items in histories",
        "Ids per second that are not in the catalog: deleted, misspelled, or from another catalog.",
        "cps",
        Query(rate("glyphrec_unknown_history_items_total"), "unknown"),
    ),
    lines(
        "Pages remembered",
        "Pages kept for later events. An event for an older page is not attributed.",
        "short",
        Query(total("glyphrec_feedback_remembered_pages", "instance"), "{{instance}}"),
    ),
    lines(
        "Learned events",
        "Events added to the counts of items that were taken together, which later searches follow. Events "
        "of unknown items are not added, and none are with GLYPHREC_LEARN=false.",
        "cps",
        Query(rate("glyphrec_learned_events_total"), "learned"),
    ),
    lines(
        "Items with counts",
        "Items of which a replica knows what was taken together with them. All replicas show the same.",
        "short",
        Query(total("glyphrec_co_count_items", "instance"), "{{instance}}"),
    ),
    lines(
        "Counts behind Redis",
        "Seconds since a replica last had all counts that are in Redis. Until then it serves older ones.",
        "s",
        Query(total("glyphrec_co_count_lag_seconds", "instance", func="max"), "{{instance}}"),
    ),
]

SEARCH = [
    lines(
        "Proven exact by model version",
        "Share of the model's pages that are provably its best over the whole catalog. It falls with fewer "
        "beams, less certain scores, or a catalog that has outgrown its codes.",
        "percentunit",
        Query(
            share(
                of_model(by_replica(RECOMMENDED, source="model", exact="true")),
                of_model(by_replica(RECOMMENDED, source="model")),
            ),
            "{{recommender_id}}",
        ),
        steps=[(0, "red"), (0.2, "yellow"), (0.4, "green")],
        most=1,
        width=6,
    ),
    lines(
        "Proven exact, filtered or not",
        "The filter is inside the search, so filtered pages should be proven at least as often.",
        "percentunit",
        Query(
            share(
                rate(RECOMMENDED, "filtered", source="model", exact="true"),
                rate(RECOMMENDED, "filtered", source="model"),
            ),
            "filtered: {{filtered}}",
        ),
        most=1,
        width=6,
    ),
    lines(
        "Beams that live at the end of a search",
        "Out of GLYPHREC_NUM_BEAMS. If they are few, the filter or the catalog leaves little to choose from.",
        "short",
        Query(quantile(0.1, "glyphrec_valid_beams"), "p10"),
        Query(quantile(0.5, "glyphrec_valid_beams"), "p50"),
        width=6,
    ),
    lines(
        "Widenings in a recommendation, mean",
        "Searches repeated with twice the beams if a page was short or must be exact. Each is a run.",
        "short",
        Query(share(rate("glyphrec_widenings_total"), rate(RECOMMENDED, source="model")), "widenings"),
        steps=[(1, "yellow"), (3, "red")],
        width=6,
    ),
]

CHANGES = [
    lines(
        "Bundles taken and refused",
        "Changes within ten minutes by result. A failed one changed nothing. Its response says why.",
        "short",
        Query(f"sum by (result) (increase(glyphrec_bundle_swaps_total{where()}[10m]))", "{{result}}"),
        steps=[(1, "yellow")],
        width=12,
    ),
    lines(
        "Behind the active tokenizer",
        "1 if the replica serves another tokenizer than the active one.",
        "short",
        Query(f"glyphrec_behind{where()}", "{{instance}}"),
        steps=[(1, "red")],
        width=12,
    ),
]
