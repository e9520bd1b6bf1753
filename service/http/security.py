"""Who may do what: keys have a scope, and each scope may all that the ones before it may."""

from collections.abc import Sequence
from enum import IntEnum

from starlette.datastructures import Headers

from service.core.keys import holds
from service.errors import AdminKeyNeeded, MissingKey, NoAdminKey, ReadOnlyKey


class Scope(IntEnum):
    """What a request needs, and what a key gives."""

    OPEN = 0  # no key
    READ = 1
    WRITE = 2
    ADMIN = 3


# Probes and scrapers carry no keys, and the API's own description holds no secrets.
_OPEN = frozenset({"/metrics", "/livez", "/readyz", "/healthz", "/docs", "/openapi.json"})
_OPEN_UNDER = ("/health/", "/docs/")
_ADMIN, _ADMIN_UNDER = "/admin", "/admin/"
_READING_POSTS = frozenset({"/recommend"})
_READING_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


class Guard:
    """Knows the hashes of all keys (keys.py), and no key."""

    def __init__(
        self, *, read_keys: Sequence[str] = (), api_keys: Sequence[str] = (), admin_keys: Sequence[str] = ()
    ) -> None:
        self._keys = {Scope.READ: read_keys, Scope.WRITE: api_keys, Scope.ADMIN: admin_keys}
        self._is_set = any(self._keys.values())

    def check(self, method: str, path: str, headers: Headers) -> None:
        """Raise MissingKey, ReadOnlyKey, AdminKeyNeeded or NoAdminKey unless the request may go on.

        Without any key set, all may do all, except what needs an admin: that nobody may then.
        """
        needed = scope_needed(method, path)
        if needed is Scope.OPEN:
            return
        given = self._scope_given(headers)
        if self._is_set and given is Scope.OPEN:
            raise MissingKey
        if needed is Scope.ADMIN and not self._keys[Scope.ADMIN]:
            raise NoAdminKey
        if self._is_set and given < needed:
            raise AdminKeyNeeded if needed is Scope.ADMIN else ReadOnlyKey

    def _scope_given(self, headers: Headers) -> Scope:
        key = _given_key(headers)
        if not key:
            return Scope.OPEN
        held = [scope for scope, hashes in self._keys.items() if holds(hashes, key)]
        return max(held, default=Scope.OPEN)


def scope_needed(method: str, path: str) -> Scope:
    """Of a path as the router sees it: decoded once, nothing else made of it."""
    if path in _OPEN or path.startswith(_OPEN_UNDER):
        return Scope.OPEN
    if path == _ADMIN or path.startswith(_ADMIN_UNDER):
        return Scope.ADMIN
    if method in _READING_METHODS or (method == "POST" and path in _READING_POSTS):
        return Scope.READ
    return Scope.WRITE


def _given_key(headers: Headers) -> str:
    key = headers.get("x-api-key")
    if key is not None:
        return key
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""
