"""The id of a request: the client's own in X-Request-ID, or a new one."""

import os
import re
from collections.abc import Iterator

# In a header, in a log line, and inside a string of JSON: all visible ASCII but quotation marks and
# backslashes. Ids of gateways and of traces have =, / and braces.
_SAFE = re.compile(r"[!#-\[\]-~]{1,128}")

NUM_BYTES = 16
NUM_AT_ONCE = 256  # a call of the system costs as much as the rest of a short request


def request_id_of(given: str) -> str:
    """The client's own id if it is safe to repeat, else a new one."""
    return given if _SAFE.fullmatch(given) else new_request_id()


def new_request_id() -> str:
    """32 random hexadecimal digits."""
    return next(_ids)


def _random_ids() -> Iterator[str]:
    while True:
        digits = os.urandom(NUM_BYTES * NUM_AT_ONCE).hex()
        for begin in range(0, len(digits), 2 * NUM_BYTES):
            yield digits[begin : begin + 2 * NUM_BYTES]


_ids = _random_ids()
