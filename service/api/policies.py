"""What each route demands before it runs: the scope of the key, room in a queue, and how it is called.

The decorator `policy` declares it at the endpoint. The guard, the admission by a request's head and the
direct calls of the envelope all read these declarations, so a new route is added in one place.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from re import Pattern
from typing import Any, TypeVar

from starlette.routing import Mount, Route

from service.errors import Overloaded
from service.http.security import Scope
from service.inference.batching import MicroBatcher, Reservation
from service.lifecycle.model import Model

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])

_READING_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})


@dataclass(frozen=True)
class Admission:
    """Room in a queue of the model, reserved before the body of the request is read."""

    queue: Callable[[Model], MicroBatcher[Any, Any]]
    units: Callable[[Model], int]  # of work, as the queue counts them

    def reserve(self, model: Model) -> Reservation:
        """Raises Overloaded."""
        return self.queue(model).reserve(self.units(model))

    def refusal(self, model: Model) -> Overloaded | None:
        """What `reserve` would raise now."""
        return self.queue(model).refusal(self.units(model))


@dataclass(frozen=True)
class RoutePolicy:
    """The demands of one route on a request. They are read before its endpoint runs."""

    scope: Scope
    admission: Admission | None = None  # None: the request is refused later, if its queue is full
    is_direct: bool = False  # the envelope calls the endpoint without FastAPI; see direct.py
    is_probe: bool = False  # for monitors: answered also where all connections are taken


def policy(
    scope: Scope, *, admission: Admission | None = None, is_direct: bool = False, is_probe: bool = False
) -> Callable[[Endpoint], Endpoint]:
    """Declare the policy of an endpoint. It stands below the decorator that makes the route."""
    declared = RoutePolicy(scope, admission, is_direct, is_probe)

    def declare(endpoint: Endpoint) -> Endpoint:
        endpoint.route_policy = declared  # type: ignore[attr-defined]  # functions take attributes
        return endpoint

    return declare


def policy_of(endpoint: Callable[..., Any]) -> RoutePolicy | None:
    """None if the endpoint declares none."""
    return getattr(endpoint, "route_policy", None)


class Policies:
    """The policies of an app's routes, by method and path as the router sees them.

    `areas` gives scopes for paths that no route takes. A key that ends in a slash stands for all paths that
    begin with it, any other key for itself.
    """

    def __init__(self, areas: Mapping[str, Scope] | None = None) -> None:
        self.admissions: dict[tuple[str, str], Admission] = {}
        self._probes: set[tuple[str, str]] = set()
        self._scopes: dict[tuple[str, str], Scope] = {}  # of paths without parameters, found at once
        # By method, in the router's order: the pattern of paths, the scope, and the template of the route.
        self._patterns: dict[str, list[tuple[Pattern[str], Scope, str]]] = {}
        self._areas = dict(areas or {})
        self._open: set[str] = set()  # paths of routes that need no key

    def add(self, route: Route, declared: RoutePolicy | None = None) -> None:
        """Add a route, in the order of the router. `declared` is for a route that is not ours.

        A route without a policy needs the write scope, or that of its area if it is higher.
        """
        declared = declared or policy_of(route.endpoint)
        if declared is None:
            declared = RoutePolicy(max(Scope.WRITE, self._area_of(route.path) or Scope.WRITE))
        is_fixed = "{" not in route.path
        needs_fixed = declared.admission or declared.is_direct or declared.is_probe
        assert is_fixed or not needs_fixed, f"{route.path} has a parameter"
        for method in route.methods or ():
            if is_fixed:
                assert self._matching(method, route.path) is None, f"an earlier route takes {route.path}"
                self._scopes[method, route.path] = declared.scope
            if declared.admission is not None:
                self.admissions[method, route.path] = declared.admission
            if declared.is_probe:
                self._probes.add((method, route.path))
            self._patterns.setdefault(method, []).append((route.path_regex, declared.scope, route.path))
        if is_fixed and declared.scope is Scope.OPEN:
            self._open.add(route.path)  # with a wrong method, too: the answer is 405 without a key

    def add_files(self, mount: Mount) -> None:
        """Add a folder of files, which anybody may read."""
        self._patterns.setdefault("GET", []).append((mount.path_regex, Scope.OPEN, mount.path))

    def is_probe(self, method: str, path: str) -> bool:
        """Whether the request is answered even if all connections are taken."""
        return ("GET" if method == "HEAD" else method, path) in self._probes

    def route_of(self, method: str, path: str) -> str | None:
        """The template of the route that takes the request, for metrics; None without one."""
        patterns = self._patterns.get("GET" if method == "HEAD" else method, ())
        return next((template for pattern, _, template in patterns if pattern.match(path)), None)

    def methods_of(self, path: str) -> list[str]:
        """All methods that routes take for the path; HEAD goes with GET, and OPTIONS with any."""
        found = {method for method in self._patterns if self._matching(method, path) is not None}
        if "GET" in found:
            found.add("HEAD")
        if found:
            found.add("OPTIONS")
        return sorted(found)

    def scope_of(self, method: str, path: str) -> Scope:
        """The scope that a request needs. `path` is decoded once and otherwise as it was sent."""
        method = "GET" if method == "HEAD" else method
        scope = self._scopes.get((method, path))
        if scope is None:
            scope = self._matching(method, path)
        return scope if scope is not None else self._scope_without_route(method, path)

    def _matching(self, method: str, path: str) -> Scope | None:
        patterns = self._patterns.get(method, ())
        return next((scope for pattern, scope, _ in patterns if pattern.match(path)), None)

    def _scope_without_route(self, method: str, path: str) -> Scope:
        """Nothing runs, but without a key nobody learns which routes there are."""
        area = self._area_of(path)
        if area is not None:
            return area
        return Scope.READ if method in _READING_METHODS else Scope.WRITE

    def _area_of(self, path: str) -> Scope | None:
        if path in self._open:
            return Scope.OPEN
        if path in self._areas:
            return self._areas[path]
        return next(
            (
                scope
                for prefix, scope in self._areas.items()
                if prefix.endswith("/") and path.startswith(prefix)
            ),
            None,
        )
