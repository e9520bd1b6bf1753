"""What schemathesis cannot know of this API, as checks of its own; fuzzing.toml names this file."""

from urllib.parse import quote

import requests
import schemathesis
from schemathesis.generation import GenerationMode

from benchmarks.fuzz import KEY

# Refusals of requests that no JSON schema could tell from good ones.
ABOUT_MEANING = (
    *("invalid-item", "invalid-cursor", "invalid-filter", "unknown-filter-field", "too-many-items"),
    *("invalid-condition", "invalid-query"),
)
LIVING = {"created", "moved", "updated", "unchanged"}


@schemathesis.check
def a_valid_request_is_refused_for_its_meaning_only(_ctx, response, case):
    if response.status_code == 422 and case.meta.generation.mode == GenerationMode.POSITIVE:
        slug = response.json()["type"].rpartition(":")[2]
        assert slug in ABOUT_MEANING, f"a request that the schema allows was refused as {slug}"


@schemathesis.check
def an_error_is_a_whole_problem(_ctx, response, _case):
    if response.status_code >= 400 and "/health/" not in response.request.url:
        problem = response.json()
        assert problem["status"] == response.status_code
        assert problem["type"].startswith("urn:glyphrec:problem:")
        assert problem["request_id"] == response.headers["x-request-id"][0]
        assert "Traceback" not in response.text


@schemathesis.check
def an_item_that_was_put_is_there(_ctx, response, case):
    """In place of schemathesis' own check, which also looks for the items of a batch that failed."""
    if case.operation.label != "POST /items" or response.status_code != 200:
        return
    for result in response.json()["items"]:
        if result["status"] in LIVING:
            url = f"{case.operation.base_url.rstrip('/')}/items/{quote(result['item_id'], safe='')}"
            assert requests.get(url, headers={"X-API-Key": KEY}, timeout=30).status_code == 200
