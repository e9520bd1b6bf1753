"""Every error that a client or an operator can cause. Each says what happened and what to do."""

from http import HTTPStatus


class GlyphrecError(Exception):
    """Anything from outside that is wrong: a file, a setting, a request. The message is for a person."""


class ContractMismatch(GlyphrecError):
    """A bundle, a graph or a table is not what was promised. The service refuses to start on it."""


class ServiceError(GlyphrecError):
    """An error that a request can cause. Rendered as an RFC 9457 problem document by one handler in app.py.

    `slug` is the stable part of the problem's `type`; `retry_after_s` becomes a Retry-After header.
    """

    status: HTTPStatus = HTTPStatus.INTERNAL_SERVER_ERROR
    slug: str = "internal"
    retry_after_s: int | None = None


class ItemNotFound(ServiceError):
    status = HTTPStatus.NOT_FOUND
    slug = "item-not-found"

    def __init__(self, item_id: str) -> None:
        super().__init__(f"No item has the id {item_id!r}. POST /items adds it.")


class SidSpaceFull(ServiceError):
    status = HTTPStatus.INSUFFICIENT_STORAGE
    slug = "sid-space-full"

    def __init__(self, codes: tuple[int, ...], num_slots: int) -> None:
        shown = "-".join(map(str, codes))
        super().__init__(
            f"All {num_slots} slots of the codes {shown} are taken: that many items look alike to this "
            "tokenizer. Delete some of them or export a bundle with more codes."
        )


class Overloaded(ServiceError):
    """Said before the work is queued, so that a client waits outside and not in a growing line."""

    status = HTTPStatus.TOO_MANY_REQUESTS
    slug = "overloaded"

    def __init__(self, queue: str, retry_after_s: int) -> None:
        super().__init__(
            f"The {queue} queue is full. Send this again in {retry_after_s} s, or start more replicas."
        )
        self.retry_after_s = retry_after_s


class NotReady(ServiceError):
    status = HTTPStatus.SERVICE_UNAVAILABLE
    slug = "not-ready"
    retry_after_s = 1

    def __init__(self, phase: str) -> None:
        super().__init__(f"This replica is still starting ({phase}). GET /health/ready says when it is done.")


class StoppedServing(ServiceError):
    status = HTTPStatus.SERVICE_UNAVAILABLE
    slug = "stopping"
    retry_after_s = 1

    def __init__(self) -> None:
        super().__init__("This replica is shutting down. Send the request again to another one.")


class TookTooLong(ServiceError):
    status = HTTPStatus.SERVICE_UNAVAILABLE
    slug = "took-too-long"
    retry_after_s = 1

    def __init__(self, what: str, timeout_s: float) -> None:
        super().__init__(f"{what} was not done within {timeout_s:.3g} s. Send the request again.")


class BadTimeout(ServiceError):
    status = HTTPStatus.BAD_REQUEST
    slug = "bad-timeout"

    def __init__(self, given: str, limit_s: int) -> None:
        super().__init__(
            f"X-Request-Timeout is {given[:40]!r}. Give seconds above 0 and up to {limit_s}, as in 0.5, "
            "or leave it out."
        )


class InvalidItem(ServiceError):
    """What an item may not be; service/core/items.py states the rules."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY
    slug = "invalid-item"

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field


class TooManyItems(ServiceError):
    status = HTTPStatus.UNPROCESSABLE_ENTITY
    slug = "too-many-items"

    def __init__(self, num_items: int, limit: int) -> None:
        super().__init__(f"{num_items} items in one request; the limit is {limit}. Send several requests.")


class UnknownFilterField(ServiceError):
    status = HTTPStatus.UNPROCESSABLE_ENTITY
    slug = "unknown-filter-field"

    def __init__(self, field: str, declared: str) -> None:
        known = f"Declared are {declared}" if declared else "No field is declared"
        super().__init__(
            f"No filter can ask for the field {field!r}. {known}; GLYPHREC_FILTER_FIELDS declares them, "
            "as in brand:text,price:number."
        )


class InvalidFilter(ServiceError):
    """What a filter may not ask; service/core/filters.py states the rules."""

    status = HTTPStatus.UNPROCESSABLE_ENTITY
    slug = "invalid-filter"

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}.")


class InvalidCursor(ServiceError):
    status = HTTPStatus.UNPROCESSABLE_ENTITY
    slug = "invalid-cursor"

    def __init__(self, cursor: str) -> None:
        shown = cursor if len(cursor) <= 40 else cursor[:40] + "…"
        super().__init__(
            f"The cursor {shown!r} is not one that this catalogue gave. "
            "Give `next_cursor` of the page before, or none for the first page."
        )


class BodyTooLarge(ServiceError):
    status = HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    slug = "body-too-large"

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"The body is larger than {limit_bytes} bytes. Send fewer items, or shorter texts.")


class BodyTooSlow(ServiceError):
    status = HTTPStatus.REQUEST_TIMEOUT
    slug = "body-too-slow"

    def __init__(self, timeout_s: float) -> None:
        super().__init__(
            f"The body stopped for {timeout_s:g} s, or came too slowly for longer. Send the request again."
        )


class TargetTooLong(ServiceError):
    status = HTTPStatus.REQUEST_URI_TOO_LONG
    slug = "target-too-long"

    def __init__(self, limit_bytes: int, limit_parameters: int) -> None:
        super().__init__(
            f"Path and query may have {limit_bytes} bytes and {limit_parameters} parameters. Send fewer."
        )


class HeadTooLarge(ServiceError):
    status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
    slug = "head-too-large"

    def __init__(self) -> None:
        super().__init__(
            "The request has too many headers, or too long ones. Send fewer; no route needs many."
        )


class TooManyConnections(ServiceError):
    status = HTTPStatus.SERVICE_UNAVAILABLE
    slug = "too-many-connections"
    retry_after_s = 1

    def __init__(self) -> None:
        super().__init__(
            "This replica holds as many connections as it may. Keep yours open and use them again, or start "
            "more replicas."
        )


class NotHttp(ServiceError):
    status = HTTPStatus.BAD_REQUEST
    slug = "not-http"

    def __init__(self) -> None:
        super().__init__("This is no HTTP/1.1 request. Send one that RFC 9112 allows.")


class InvalidJson(ServiceError):
    status = HTTPStatus.BAD_REQUEST
    slug = "invalid-json"

    def __init__(self, reason: str) -> None:
        super().__init__(f"The body is not JSON: {reason}.")


class NotJson(ServiceError):
    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    slug = "not-json"

    def __init__(self, content_type: str) -> None:
        given = f"is {content_type!r}" if content_type else "is missing"
        super().__init__(f"Content-Type {given}. Send JSON with `Content-Type: application/json`.")


class MissingKey(ServiceError):
    status = HTTPStatus.UNAUTHORIZED
    slug = "missing-key"

    def __init__(self) -> None:
        super().__init__("Give a key that this service knows, in `X-API-Key` or as `Authorization: Bearer`.")


class ReadOnlyKey(ServiceError):
    status = HTTPStatus.FORBIDDEN
    slug = "read-only-key"

    def __init__(self) -> None:
        super().__init__("This key may only read. Use a key of GLYPHREC_API_KEYS to change the catalogue.")


class AdminKeyNeeded(ServiceError):
    status = HTTPStatus.FORBIDDEN
    slug = "admin-key-needed"

    def __init__(self) -> None:
        super().__init__("What is under /admin/ needs a key of GLYPHREC_ADMIN_KEYS, and this is none.")


class NoAdminKey(ServiceError):
    status = HTTPStatus.FORBIDDEN
    slug = "no-admin-key"

    def __init__(self) -> None:
        super().__init__(
            "What is under /admin/ is closed while the service has no admin key, also on loopback. "
            "Set GLYPHREC_ADMIN_KEYS to one or more; `glyphrec key` makes one."
        )


class NoBundlesFolder(ServiceError):
    status = HTTPStatus.CONFLICT
    slug = "no-bundles-folder"

    def __init__(self) -> None:
        super().__init__(
            "This replica has no folder of bundles. Set GLYPHREC_BUNDLES_DIR to one and start it again."
        )


class BundleNotFound(ServiceError):
    status = HTTPStatus.NOT_FOUND
    slug = "bundle-not-found"

    def __init__(self, name: str) -> None:
        super().__init__(
            f"GLYPHREC_BUNDLES_DIR of this replica has no folder {name!r}. Copy the bundle there."
        )


class BundleRefused(ServiceError):
    """The bundle failed its checks; what was served before is served on."""

    status = HTTPStatus.CONFLICT
    slug = "bundle-refused"

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"The bundle {name!r} was refused, and nothing was changed: {reason}")


class ChangeUnderWay(ServiceError):
    status = HTTPStatus.CONFLICT
    slug = "change-under-way"
    retry_after_s = 5

    def __init__(self) -> None:
        super().__init__(
            "Another change of the model is under way. GET /admin/bundles tells how far it is; "
            "send this again when it is done."
        )


class StoreUnavailable(ServiceError):
    """Redis cannot take the call now; the same call may succeed in a moment."""

    status = HTTPStatus.SERVICE_UNAVAILABLE
    slug = "store-unavailable"
    retry_after_s = 2

    def __init__(self, reason: str) -> None:
        super().__init__(f"{reason} What was not acknowledged can safely be sent again.")


class StoreFault(ServiceError):
    """Redis answers, but not as a Redis that holds only our keys would. Waiting does not mend it."""

    status = HTTPStatus.INTERNAL_SERVER_ERROR
    slug = "store-fault"

    def __init__(self) -> None:
        super().__init__(
            "Redis refused a command that the catalogue needs. The service's log has Redis' own words; "
            "usually another program writes under the same keys, or the server is older than Redis 7."
        )


class ItemChanged(ServiceError):
    status = HTTPStatus.CONFLICT
    slug = "item-changed"

    def __init__(self, item_id: str) -> None:
        super().__init__(
            f"The item {item_id!r} was changed by somebody else meanwhile. Send the request again."
        )


# What is turned away for now, by slug: it may be sent again as it is.
REFUSALS = frozenset(
    error.slug
    for error in ServiceError.__subclasses__()
    if error.status
    in (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)
)
