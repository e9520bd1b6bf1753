"""What routes need, by type: the model that serves, and the stopwatch of the request."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from service.batching import Place
from service.errors import NotJson, NotReady
from service.metrics import Metrics, Stages
from service.model import Model, Readiness
from service.rollout import Rollout
from service.settings import Settings


@dataclass
class Serving:
    """What create_app puts in `app.state.serving`."""

    settings: Settings
    metrics: Metrics
    readiness: Readiness
    rollout: Rollout | None = None  # as long as `readiness.parts` are there

    def admit(self, method: str, path: str) -> Place | None:
        """A place in the queue, where the request will need one, before it is read any further.

        Raises Overloaded for what would be turned away later: now it costs little.
        """
        parts = self.readiness.parts
        if parts is None or (method, path) != ("POST", "/recommend"):
            return None
        return parts.searches.reserve(parts.loaded.num_beams)


async def get_serving(request: Request) -> Serving:
    serving: Serving = request.app.state.serving
    return serving


ServingDep = Annotated[Serving, Depends(get_serving)]


async def get_parts(serving: ServingDep) -> AsyncIterator[Model]:
    """The model that serves now; the request keeps it to its end, whatever is swapped meanwhile."""
    parts = serving.readiness.parts
    if parts is None:
        raise NotReady(serving.readiness.phase)
    with parts.in_use():
        yield parts


async def get_rollout(serving: ServingDep) -> Rollout:
    if serving.rollout is None:
        raise NotReady(serving.readiness.phase)
    return serving.rollout


async def get_stages(request: Request) -> Stages:
    stages: Stages = request.state.stages
    return stages


async def get_place(request: Request) -> Place | None:
    place: Place | None = getattr(request.state, "place", None)  # other servers than ours admit nobody
    return place


async def get_deadline(request: Request) -> float:
    deadline: float = request.state.deadline
    return deadline


async def require_json(request: Request) -> None:
    """A body must be called JSON: browsers send some other types across sites without asking."""
    content_type = request.headers.get("content-type", "")
    kind = content_type.partition(";")[0].strip().lower()
    if not (kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))):
        raise NotJson(content_type[:100])


PartsDep = Annotated[Model, Depends(get_parts)]
RolloutDep = Annotated[Rollout, Depends(get_rollout)]
PlaceDep = Annotated[Place | None, Depends(get_place)]
DeadlineDep = Annotated[float, Depends(get_deadline)]


async def require_redis(parts: PartsDep) -> None:
    """Refuse at once what needs Redis while it is known to be away, rather than wait for it too."""
    if parts.follower.lost is not None:
        raise parts.follower.lost.with_traceback(None)


StagesDep = Annotated[Stages, Depends(get_stages)]
JSON_ONLY = Depends(require_json)
NEEDS_REDIS = Depends(require_redis)
