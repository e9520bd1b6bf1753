"""Who may do what: a read-write key everything, a read-only key everything that changes nothing."""

import hmac
from hashlib import sha256

from starlette.datastructures import Headers

from service.errors import AdminKeyNeeded, MissingKey, ReadOnlyKey

# Probes and scrapers carry no keys, and the API's own description holds no secrets.
_OPEN = frozenset({"/metrics", "/livez", "/readyz", "/healthz", "/docs", "/openapi.json"})
_OPEN_UNDER = ("/health/", "/docs/")
_READING_POSTS = frozenset({"/recommend"})
_READING_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class Guard:
    """Keys are kept as hashes, so that comparing takes the same time whatever was given."""

    def __init__(
        self, *, api_keys: tuple[str, ...], read_keys: tuple[str, ...], admin_keys: tuple[str, ...] = ()
    ) -> None:
        self._may_write = [(_hash(key), True) for key in api_keys] + [
            (_hash(key), False) for key in read_keys
        ]
        self._admins = [_hash(key) for key in admin_keys]

    def check(self, method: str, path: str, headers: Headers) -> None:
        """Raise MissingKey or ReadOnlyKey unless the request may go on. Without any key set, all may."""
        is_admin = sum(hmac.compare_digest(key, _hash(_given_key(headers))) for key in self._admins) > 0
        if is_admin:
            return
        if path.startswith("/admin/"):
            raise AdminKeyNeeded
        if not self._may_write or path in _OPEN or path.startswith(_OPEN_UNDER):
            return
        given = _hash(_given_key(headers))
        known = may_write = False
        for key, writes in self._may_write:  # all of them: the time tells nothing about which
            same = hmac.compare_digest(key, given)
            known |= same
            may_write |= same and writes
        if not known:
            raise MissingKey
        reads_only = method in _READING_METHODS or (method == "POST" and path in _READING_POSTS)
        if not (reads_only or may_write):
            raise ReadOnlyKey


def _given_key(headers: Headers) -> str:
    key = headers.get("x-api-key")
    if key is not None:
        return key
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


def _hash(key: str) -> bytes:
    return sha256(key.encode()).digest()
