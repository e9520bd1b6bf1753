"""Every error that a client or an operator can cause. Each message says what is wrong and what to do."""

from http import HTTPStatus


class GlyphrecError(Exception):
    """A file, a setting or a request is wrong. The message is for a person."""


class ContractMismatch(GlyphrecError):
    """A bundle, a graph or a table does not match its description. The service refuses to start with it."""


class ServiceError(GlyphrecError):
    """An error that a request can cause. http/problems.py renders it as an RFC 9457 problem document.

    `slug` is the stable part of the problem's `type`. `retry_after_s` becomes the Retry-After header.
    """

    status: HTTPStatus = HTTPStatus.INTERNAL_SERVER_ERROR
    slug: str = "internal"
    retry_after_s: int | None = None


# --- the items and the queries ---


class ItemNotFound(ServiceError):
    """Raised if a request names an item that is not in the catalog."""

    status = HTTPStatus.NOT_FOUND
    slug = "item-not-found"

    def __init__(self, item_id: str) -> None:
        super().__init__(f"No item has the id {item_id!r}. Check the id, or add the item with POST /items.")


class InvalidItem(ServiceError):
    """An item breaks a rule of service/core/items.py."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY
    slug = "invalid-item"

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field


class PictureNotFound(ServiceError):
    """Raised if the picture of an item is asked for, and there is none to show."""

    status = HTTPStatus.NOT_FOUND
    slug = "picture-not-found"

    def __init__(self, item_id: str, reason: str) -> None:
        super().__init__(f"The item {item_id!r} has no such picture. {reason}.")


class TooManyItems(ServiceError):
    """Raised if one request has more items than GLYPHREC_MAX_ITEMS_PER_REQUEST allows."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY
    slug = "too-many-items"

    def __init__(self, num_items: int, limit: int) -> None:
        super().__init__(
            f"The request has {num_items} items, but the limit is {limit}. Send several requests."
        )


class ItemChanged(ServiceError):
    """Raised, or returned for one item of a batch, if another request changed the item after it was read."""

    status = HTTPStatus.CONFLICT
    slug = "item-changed"

    def __init__(self, item_id: str) -> None:
        super().__init__(
            f"Somebody else changed the item {item_id!r} at the same time. Send the request again."
        )


class PreconditionFailed(ServiceError):
    """Raised, or returned for one item of a batch, if the item is not of a revision that may be replaced."""

    status = HTTPStatus.PRECONDITION_FAILED
    slug = "precondition-failed"

    def __init__(self, item_id: str) -> None:
        super().__init__(
            f"The item {item_id!r} is not as If-Match wants it, and nothing has changed. GET the item, look "
            "at what it is now, and send the request with the ETag of that answer."
        )


class InvalidCondition(ServiceError):
    """Raised if the header If-Match cannot be read, or comes with a batch of items."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY
    slug = "invalid-condition"

    def __init__(self, reason: str) -> None:
        super().__init__(f"If-Match {reason}")


class SidSpaceFull(ServiceError):
    """Raised, or returned for one item of a batch, if other items have all slots of its codes."""

    status = HTTPStatus.INSUFFICIENT_STORAGE
    slug = "sid-space-full"

    def __init__(self, codes: tuple[int, ...], num_slots: int) -> None:
        shown = "-".join(map(str, codes))
        super().__init__(
            f"All {num_slots} slots of the codes {shown} are taken, because that many items look alike to "
            "this tokenizer. Delete some of these items, or export a bundle with more codes."
        )


class UnknownFilterField(ServiceError):
    """Raised if a filter has a condition on a field that GLYPHREC_FILTER_FIELDS does not declare."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY
    slug = "unknown-filter-field"

    def __init__(self, field: str, declared: str) -> None:
        known = f"The declared fields are {declared}" if declared else "No field is declared"
        super().__init__(
            f"The filter names the field {field!r}, which is not declared. {known}. Use a declared field, or "
            "declare this one in GLYPHREC_FILTER_FIELDS, for example brand:text,price:number."
        )


class InvalidFilter(ServiceError):
    """A filter breaks a rule of service/core/filters.py."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY
    slug = "invalid-filter"

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}.")


class InvalidCursor(ServiceError):
    """Raised if the cursor of a page of items cannot be read."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY
    slug = "invalid-cursor"

    def __init__(self, cursor: str) -> None:
        shown = cursor if len(cursor) <= 40 else cursor[:40] + "…"
        super().__init__(
            f"The cursor {shown!r} does not come from this catalog. "
            "Give `next_cursor` of the page before, or no cursor for the first page."
        )


# --- time and load ---


class NotReady(ServiceError):
    """Raised if a request comes before this replica has loaded its bundle and its catalog."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    slug = "not-ready"
    retry_after_s = 1

    def __init__(self, phase: str) -> None:
        super().__init__(
            f"This replica is still starting ({phase}). Wait until GET /health/ready answers 200."
        )


class StoppedServing(ServiceError):
    """Raised for every job that waits in a queue when the queue stops, or that comes later."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    slug = "stopping"
    retry_after_s = 1

    def __init__(self) -> None:
        super().__init__("This replica is shutting down. Send the request to another replica.")


class Overloaded(ServiceError):
    """Raised before the work is queued, so that the client waits and the queue stays short."""

    status = HTTPStatus.TOO_MANY_REQUESTS
    slug = "overloaded"

    def __init__(self, queue: str, retry_after_s: int) -> None:
        super().__init__(
            f"The {queue} queue is full. Send the request again in {retry_after_s} s, or start more replicas."
        )
        self.retry_after_s = retry_after_s


class TooManyConnections(ServiceError):
    """Raised at the first request of a connection beyond the limit. The connection is then closed."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    slug = "too-many-connections"
    retry_after_s = 1

    def __init__(self) -> None:
        super().__init__(
            "This replica has as many connections as it may have. Use your open connections again, or start "
            "more replicas."
        )


class TookTooLong(ServiceError):
    """Raised if a request is not done by its deadline or within its time limit in seconds."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    slug = "took-too-long"
    retry_after_s = 1

    def __init__(self, what: str, timeout_s: float) -> None:
        super().__init__(f"{what} did not finish within {timeout_s:.3g} s. Send the request again.")


class BadTimeout(ServiceError):
    """Raised if the header X-Request-Timeout is not a number of seconds within the limit."""

    status = HTTPStatus.BAD_REQUEST
    slug = "bad-timeout"

    def __init__(self, given: str, limit_s: int) -> None:
        super().__init__(
            f"X-Request-Timeout is {given[:40]!r}. Give seconds above 0 and up to {limit_s}, for example "
            "0.5, or leave the header out."
        )


# --- the bytes of a request ---


class NotHttp(ServiceError):
    """Raised if the bytes of a connection cannot be parsed as HTTP/1.1. The connection is then closed."""

    status = HTTPStatus.BAD_REQUEST
    slug = "not-http"

    def __init__(self) -> None:
        super().__init__(
            "The bytes are not an HTTP/1.1 request. Send a request as RFC 9112 describes it, with its path "
            "percent-encoded."
        )


class TargetTooLong(ServiceError):
    """Raised if the path and the query have too many bytes, or the query has too many parameters."""

    status = HTTPStatus.REQUEST_URI_TOO_LONG
    slug = "target-too-long"

    def __init__(self, limit_bytes: int, limit_parameters: int) -> None:
        super().__init__(
            f"The path and the query have more than {limit_bytes} bytes or {limit_parameters} parameters. "
            "Shorten the ids and the query."
        )


class TargetNotUtf8(ServiceError):
    """Raised if the percent-encoded bytes of a path are not UTF-8."""

    status = HTTPStatus.BAD_REQUEST
    slug = "target-not-utf8"

    def __init__(self) -> None:
        super().__init__("The path is not UTF-8 after percent-decoding. Encode ids in UTF-8, then as %XX.")


class HeadTooLarge(ServiceError):
    """Raised if a request has too many headers, or if they or a trailer have too many bytes."""

    status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
    slug = "head-too-large"

    def __init__(self) -> None:
        super().__init__(
            "The headers of the request are too many or too long. Send only the headers that you need."
        )


class BodyTooLarge(ServiceError):
    """Raised if Content-Length is above the limit, or when more bytes than that have come."""

    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    slug = "body-too-large"

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"The body has more than {limit_bytes} bytes. Send fewer items, or shorter texts.")


class BodyTooSlow(ServiceError):
    """Raised if the next part of a body does not come in time, or if the body comes too slowly on average."""

    status = HTTPStatus.REQUEST_TIMEOUT
    slug = "body-too-slow"

    def __init__(self, timeout_s: float) -> None:
        super().__init__(
            f"The body stopped for {timeout_s:g} s, or came too slowly for that long. Send the request again."
        )


def _content_type(given: str) -> str:
    return f"Content-Type is {given!r}." if given else "Content-Type is missing."


class NotJson(ServiceError):
    """Raised if the Content-Type of a body is missing or is not a type of JSON."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    slug = "not-json"

    def __init__(self, content_type: str) -> None:
        super().__init__(f"{_content_type(content_type)} Send JSON, with `Content-Type: application/json`.")


class EncodedBody(ServiceError):
    """Raised if the head of a request says that its body is packed, as by gzip."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    slug = "encoded-body"

    def __init__(self, encoding: str) -> None:
        super().__init__(
            f"Content-Encoding is {encoding[:40]!r}. Send the body as it is: the service unpacks none."
        )


class NotAPatch(ServiceError):
    """Raised if the Content-Type of a PATCH is missing or names a kind of patch that is not known."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    slug = "not-a-patch"
    media_types = ("application/json", "application/merge-patch+json")

    def __init__(self, content_type: str) -> None:
        super().__init__(
            f"{_content_type(content_type)} Send the fields to replace as application/json, or a JSON merge "
            "patch (RFC 7396) as application/merge-patch+json."
        )


class NotAPicture(ServiceError):
    """Raised if the Content-Type of a picture is missing or is not a type that is read."""

    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    slug = "not-a-picture"

    def __init__(self, content_type: str) -> None:
        super().__init__(
            f"{_content_type(content_type)} Send the bytes of a picture, with `Content-Type: image/jpeg`, "
            "image/png or image/webp."
        )


class InvalidJson(ServiceError):
    """Raised if a body does not follow RFC 8259, has a name twice in one object, or is nested too deeply."""

    status = HTTPStatus.BAD_REQUEST
    slug = "invalid-json"

    def __init__(self, reason: str) -> None:
        super().__init__(f"The body is not JSON: {reason}. Send one JSON value in UTF-8.")


# --- bundles ---


class NoBundlesFolder(ServiceError):
    """Raised if a request names a bundle and GLYPHREC_BUNDLES_DIR is not set."""

    status = HTTPStatus.CONFLICT
    slug = "no-bundles-folder"

    def __init__(self) -> None:
        super().__init__(
            "This replica has no folder of bundles. Set GLYPHREC_BUNDLES_DIR to one, and restart the replica."
        )


class BundleNotFound(ServiceError):
    """Raised if the folder of bundles on this replica has no folder of the requested name."""

    status = HTTPStatus.NOT_FOUND
    slug = "bundle-not-found"

    def __init__(self, name: str) -> None:
        super().__init__(f"This replica has no bundle {name!r}. Copy its folder to GLYPHREC_BUNDLES_DIR.")


class BundleRefused(ServiceError):
    """The bundle failed its checks. The replica goes on with the bundle that it had."""

    status = HTTPStatus.CONFLICT
    slug = "bundle-refused"

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"The bundle {name!r} was refused, and nothing has changed. {reason}")


class ChangeUnderWay(ServiceError):
    """Raised if a change of the model is requested while this or another replica works on another one."""

    status = HTTPStatus.CONFLICT
    slug = "change-under-way"
    retry_after_s = 5

    def __init__(self) -> None:
        super().__init__(
            "Another change of the model is under way. Wait until GET /admin/bundles shows that it is done, "
            "then send the request again."
        )


# --- Redis ---


class WrongRedisUrl(GlyphrecError):
    """REDIS_URL cannot lead to a Redis that holds the catalog. Waiting does not help."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"REDIS_URL: {reason}.")


class CatalogInUse(ServiceError):
    """Raised, or returned for one item, if a catalog is no longer new: its items may have been changed."""

    status = HTTPStatus.CONFLICT
    slug = "catalog-in-use"

    def __init__(self) -> None:
        super().__init__("Another replica has put the catalog into use meanwhile.")


class ForeignCatalog(GlyphrecError):
    """The catalog of this name is in use by an unrelated bundle. Raised before anything is changed."""


class DamagedCatalog(ServiceError):
    """Redis has lost a part of the catalog: it evicted keys, or somebody deleted them."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    slug = "catalog-damaged"
    retry_after_s = 5

    def __init__(self, damage: str) -> None:
        super().__init__(
            f"Redis has lost a part of the catalog: {damage}. Restore a backup, or run "
            "`glyphrec fsck --repair` and post the lost items again. Set Redis' maxmemory-policy to "
            "noeviction."
        )


class StoreUnavailable(ServiceError):
    """Redis cannot answer the call now. The same call may succeed in a moment."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    slug = "store-unavailable"
    retry_after_s = 2

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason} A request without an answer can safely be sent again.")


class StoreFault(ServiceError):
    """Redis refuses a command, because of its version or because of foreign data. Waiting does not help."""

    status = HTTPStatus.INTERNAL_SERVER_ERROR
    slug = "store-fault"

    def __init__(self) -> None:
        super().__init__(
            "Redis refused a command that the catalog needs. Read its message in the service's log. Usually "
            "another program writes under the same keys, or the server is older than Redis 7."
        )


# Errors after which the same request may succeed later, by slug.
REFUSALS = frozenset(
    error.slug
    for error in ServiceError.__subclasses__()
    if error.status
    in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
)
