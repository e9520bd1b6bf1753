"""Every error that a client or an operator can cause. Each says what happened, with the value, and what to do."""

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
            f"All {num_slots} slots of the codes {shown} are taken: that many items look alike to this tokenizer. "
            "Delete some of them or export a bundle with more codes."
        )
