"""Who may do what: a key has a scope, and each scope includes the ones before it."""

from collections.abc import Callable, Sequence
from enum import IntEnum
from http import HTTPStatus

from starlette.datastructures import Headers

from service.core.keys import holds
from service.errors import ServiceError


class Scope(IntEnum):
    """What a request needs, and what a key gives."""

    OPEN = 0  # without a key
    READ = 1
    WRITE = 2
    ADMIN = 3


class MissingKey(ServiceError):
    """Raised if the service has keys, the route needs one, and the request gives none of them."""

    status = HTTPStatus.UNAUTHORIZED
    slug = "missing-key"

    def __init__(self) -> None:
        super().__init__(
            "The request has no key that this service knows. Send one in `X-API-Key` or as "
            "`Authorization: Bearer`."
        )


class ReadOnlyKey(ServiceError):
    """Raised if a request would change the catalog and its key gives only the read scope."""

    status = HTTPStatus.FORBIDDEN
    slug = "read-only-key"

    def __init__(self) -> None:
        super().__init__("This key may only read. Use a key of GLYPHREC_API_KEYS to change the catalog.")


class AdminKeyNeeded(ServiceError):
    """Raised if a request to /admin/ has a key without the admin scope."""

    status = HTTPStatus.FORBIDDEN
    slug = "admin-key-needed"

    def __init__(self) -> None:
        super().__init__("This key may not use /admin/. Use a key of GLYPHREC_ADMIN_KEYS.")


class NoAdminKey(ServiceError):
    """Raised for a request to /admin/ if GLYPHREC_ADMIN_KEYS is empty, whatever key the request has."""

    status = HTTPStatus.FORBIDDEN
    slug = "no-admin-key"

    def __init__(self) -> None:
        super().__init__(
            "Nobody may use /admin/ while the service has no admin key, not even on loopback. "
            "Set GLYPHREC_ADMIN_KEYS. `glyphrec key` makes a key."
        )


class Guard:
    """Checks the key of a request. It holds the hashes of all keys (keys.py), and no key."""

    def __init__(
        self,
        scope_of: Callable[[str, str], Scope],
        *,
        read_keys: Sequence[str] = (),
        api_keys: Sequence[str] = (),
        admin_keys: Sequence[str] = (),
    ) -> None:
        """`scope_of` tells the scope that a method and a path need."""
        self._scope_of = scope_of
        self._keys = {Scope.READ: read_keys, Scope.WRITE: api_keys, Scope.ADMIN: admin_keys}
        self._is_set = any(self._keys.values())

    def check(self, method: str, path: str, headers: Headers) -> None:
        """Raise MissingKey, ReadOnlyKey, AdminKeyNeeded or NoAdminKey unless the request may go on.

        If no key is set at all, everybody may read and write. The admin scope is closed until it has a key.
        """
        needed = self._scope_of(method, path)
        if needed is not Scope.OPEN:
            self.check_key(needed, _given_key(headers))

    def check_key(self, needed: Scope, key: str) -> None:
        """`check` of a request that needs this scope and gave this key; an empty text is no key."""
        given = self._scope_given(key)
        if self._is_set and given is Scope.OPEN:
            raise MissingKey
        if needed is Scope.ADMIN and not self._keys[Scope.ADMIN]:
            raise NoAdminKey
        if self._is_set and given < needed:
            raise AdminKeyNeeded if needed is Scope.ADMIN else ReadOnlyKey

    def _scope_given(self, key: str) -> Scope:
        if not key or not self._is_set:
            return Scope.OPEN
        held = [scope for scope, hashes in self._keys.items() if holds(hashes, key)]
        return max(held, default=Scope.OPEN)


def _given_key(headers: Headers) -> str:
    key = headers.get("x-api-key")
    if key is not None:
        return key
    return bearer_token(headers.get("authorization", ""))


def bearer_token(authorization: str) -> str:
    """The key in an Authorization header; empty if it has none."""
    scheme, _, token = authorization.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""
