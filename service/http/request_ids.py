"""The id of a request: the client's own in X-Request-ID, or a new one."""

import re
from uuid import uuid4

_SAFE = re.compile(r"[A-Za-z0-9._:-]{1,128}")  # in a header and in a log line


def request_id_of(given: str) -> str:
    """The client's own id if it is safe to repeat, else a new one."""
    return given if _SAFE.fullmatch(given) else new_request_id()


def new_request_id() -> str:
    """32 hexadecimal digits."""
    return uuid4().hex
