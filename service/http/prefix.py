"""The path prefix below which a proxy serves the routes, as it says or as the operator does."""

import re

from starlette.datastructures import Headers

from service.settings import PATH_PREFIX

_PREFIX = re.compile(PATH_PREFIX)


def prefix_of(headers: Headers, configured: str) -> str:
    """The configured prefix, else that of X-Forwarded-Prefix; '' without one.

    Only the description uses it. No route is found by it, because any client can send this header.
    """
    given = headers.get("x-forwarded-prefix", "").rstrip("/")
    return configured or (given if _PREFIX.fullmatch(given) else "")
