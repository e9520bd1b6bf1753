"""One class for each type of problem that the service answers with.

The name of a class is the last part of its type: `urn:glyphrec:problem:item-not-found` is ItemNotFound.
"""

from collections.abc import Mapping
from typing import Any

import httpx

from glyphrec_client.errors import PROBLEM_TYPES, PassingProblem, ProblemError

# --- the items and the queries ---


class ItemNotFound(ProblemError):
    """The catalog has no item with this id."""

    slug = "item-not-found"


class InvalidItem(ProblemError):
    """An item breaks a rule of items. `document["errors"]` names the field."""

    slug = "invalid-item"


class PictureNotFound(ProblemError):
    """The item has no picture of the requested part."""

    slug = "picture-not-found"


class NoSuchPrefix(ProblemError):
    """An address names codes that no Semantic ID of the bundle begins with."""

    slug = "no-such-prefix"


class NoSuchFile(ProblemError):
    """The explorer has no file of that name."""

    slug = "no-such-file"


class BeamNotTold(ProblemError):
    """The beam of the served bundle cannot be shown level by level."""

    slug = "beam-not-told"


class TooManyItems(ProblemError):
    """One request has more items than the service takes. `put_many` splits them."""

    slug = "too-many-items"


class ItemChanged(ProblemError):
    """Another request changed the item at the same time. Send the request again."""

    slug = "item-changed"


class PreconditionFailed(ProblemError):
    """The item is not as `if_match` wants it, and nothing has changed."""

    slug = "precondition-failed"


class InvalidCondition(ProblemError):
    """The header If-Match cannot be read, or came with a batch."""

    slug = "invalid-condition"


class SidSpaceFull(ProblemError):
    """Other items have all slots of the item's codes."""

    slug = "sid-space-full"


class UnknownFilterField(ProblemError):
    """The filter names a field that the service does not declare."""

    slug = "unknown-filter-field"


class InvalidFilter(ProblemError):
    """The filter breaks a rule."""

    slug = "invalid-filter"


class InvalidQuery(ProblemError):
    """The query of a search has nothing to search with, or the bundle cannot read it."""

    slug = "invalid-query"


class SearchOff(ProblemError):
    """The service keeps no vectors, so it cannot search."""

    slug = "search-off"


class NoVectors(ProblemError):
    """The item, or the whole catalog, has no vectors."""

    slug = "no-vectors"


class NoRanker(ProblemError):
    """A page shall be reranked, and the served bundle has no ranker."""

    slug = "no-ranker"


class InvalidCursor(ProblemError):
    """The cursor does not come from this catalog."""

    slug = "invalid-cursor"


class InvalidRequest(ProblemError):
    """A value of the request is wrong. `document["errors"]` names each one."""

    slug = "invalid-request"


# --- time and load ---


class NotReady(PassingProblem):
    """The replica is still starting."""

    slug = "not-ready"


class Stopping(PassingProblem):
    """The replica is shutting down."""

    slug = "stopping"


class Overloaded(PassingProblem):
    """The queue is full."""

    slug = "overloaded"


class TooManyConnections(PassingProblem):
    """The replica has as many connections as it may have."""

    slug = "too-many-connections"


class TookTooLong(PassingProblem):
    """The request was not done by its deadline. A change may have been made nevertheless."""

    slug = "took-too-long"


class BadTimeout(ProblemError):
    """The timeout is not within the limits of the service."""

    slug = "bad-timeout"


# --- the bytes of a request ---


class NotHttp(ProblemError):
    """The bytes are not an HTTP/1.1 request."""

    slug = "not-http"


class TargetTooLong(ProblemError):
    """The path and the query are too long."""

    slug = "target-too-long"


class TargetNotUtf8(ProblemError):
    """The path is not UTF-8."""

    slug = "target-not-utf8"


class HeadTooLarge(ProblemError):
    """The headers are too many or too long."""

    slug = "head-too-large"


class BodyTooLarge(ProblemError):
    """The body has more bytes than the service takes."""

    slug = "body-too-large"


class BodyTooSlow(PassingProblem):
    """The body came too slowly."""

    slug = "body-too-slow"


class NotJson(ProblemError):
    """The Content-Type of the body is not JSON."""

    slug = "not-json"


class EncodedBody(ProblemError):
    """The body is packed."""

    slug = "encoded-body"


class NotAPatch(ProblemError):
    """The Content-Type of a PATCH is unknown."""

    slug = "not-a-patch"


class NotAPicture(ProblemError):
    """The Content-Type of a picture is unknown."""

    slug = "not-a-picture"


class InvalidJson(ProblemError):
    """The body does not follow RFC 8259."""

    slug = "invalid-json"


# --- routes and keys ---


class NoSuchRoute(ProblemError):
    """The service has no such route. Check the URL of the client, and the release of the service."""

    slug = "no-such-route"


class MethodNotAllowed(ProblemError):
    """The route does not take this method."""

    slug = "method-not-allowed"


class MissingKey(ProblemError):
    """The service knows none of the request's keys."""

    slug = "missing-key"


class ReadOnlyKey(ProblemError):
    """The key may only read."""

    slug = "read-only-key"


class AdminKeyNeeded(ProblemError):
    """The key may not use the routes under /admin."""

    slug = "admin-key-needed"


class NoAdminKey(ProblemError):
    """The service has no admin key, so nobody may use the routes under /admin."""

    slug = "no-admin-key"


# --- bundles ---


class NoBundlesFolder(ProblemError):
    """The replica has no folder of bundles."""

    slug = "no-bundles-folder"


class BundleNotFound(ProblemError):
    """The folder of bundles has none of this name."""

    slug = "bundle-not-found"


class BundleRefused(ProblemError):
    """The bundle failed its checks, and nothing has changed."""

    slug = "bundle-refused"


class WorkersDisagree(ProblemError):
    """Some workers of the replica have changed to a bundle, and others have not. Ask again."""

    slug = "workers-disagree"


class ChangeUnderWay(ProblemError):
    """Another change of the model is under way."""

    slug = "change-under-way"


# --- Redis ---


class CatalogInUse(ProblemError):
    """Another replica has put the catalog into use."""

    slug = "catalog-in-use"


class CatalogDamaged(PassingProblem):
    """Redis has lost a part of the catalog."""

    slug = "catalog-damaged"


class StoreUnavailable(PassingProblem):
    """Redis cannot answer now. A change may have been made nevertheless."""

    slug = "store-unavailable"


class StoreFault(ProblemError):
    """Redis refuses a command, because of its version or because of foreign data."""

    slug = "store-fault"


class Internal(ProblemError):
    """The request failed inside the replica. Its log tells more under `request_id`."""

    slug = "internal"


PROBLEMS: dict[str, type[ProblemError]] = {
    each.slug: each
    for each in (*ProblemError.__subclasses__(), *PassingProblem.__subclasses__())
    if each.slug
}


def problem_error(response: httpx.Response, document: Mapping[str, Any]) -> ProblemError:
    """The error for a problem document of the service."""
    slug = str(document.get("type", "")).removeprefix(PROBLEM_TYPES)
    return PROBLEMS.get(slug, ProblemError)(response, document)
