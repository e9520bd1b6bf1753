"""The id of a request: the client's own in X-Request-ID, or a new one."""

import re
from uuid import uuid4

# In a header, in a log line, and inside a string of JSON: all visible ASCII but quotation marks and
# backslashes. Ids of gateways and of traces have =, / and braces.
_SAFE = re.compile(r"[!#-\[\]-~]{1,128}")


def request_id_of(given: str) -> str:
    """The client's own id if it is safe to repeat, else a new one."""
    return given if _SAFE.fullmatch(given) else new_request_id()


def new_request_id() -> str:
    """32 hexadecimal digits."""
    return uuid4().hex
