"""What routes need, by type: the model that serves, and the stopwatch of the request."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Annotated, NamedTuple

from fastapi import Depends, Request

from service.errors import NotJson, NotReady
from service.flows.feedback import Feedback, ServedPages
from service.inference.batching import Place
from service.lifecycle.model import Model, Readiness
from service.lifecycle.rollout import Rollout
from service.settings import Settings
from service.telemetry.metrics import Metrics
from service.telemetry.stages import Stages


@dataclass
class Serving:
    """What create_app puts in `app.state.serving`."""

    settings: Settings
    metrics: Metrics
    readiness: Readiness
    pages: ServedPages
    feedback: Feedback | None = None  # once Redis is found
    rollout: Rollout | None = None  # as long as `readiness.parts` are there

    def model(self) -> Model:
        """That serves now. Raises NotReady."""
        if self.readiness.parts is None:
            raise NotReady(self.readiness.phase)
        return self.readiness.parts

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
    with serving.model().in_use() as parts:
        yield parts


async def get_rollout(serving: ServingDep) -> Rollout:
    if serving.rollout is None:
        raise NotReady(serving.readiness.phase)
    return serving.rollout


async def get_feedback(serving: ServingDep) -> Feedback:
    if serving.feedback is None:
        raise NotReady(serving.readiness.phase)
    return serving.feedback


class Call(NamedTuple):
    """What envelope.py and connection.py know of a request that its flow needs."""

    request_id: str
    stages: Stages
    deadline: float  # of the event loop's clock; infinite where the client does not say
    place: Place | None  # in the queue; None also behind another HTTP server than ours
    serving: Serving


def call_of(request: Request) -> Call:
    state = request.scope["state"]
    return Call(
        state["request_id"],
        state["stages"],
        state["deadline"],
        state.get("place"),
        request.app.state.serving,
    )


async def get_call(request: Request) -> Call:
    return call_of(request)


async def require_json(request: Request) -> None:
    """A body must be called JSON: browsers send some other types across sites without asking."""
    content_type = request.headers.get("content-type", "")
    kind = content_type.partition(";")[0].strip().lower()
    if not (kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))):
        raise NotJson(content_type[:100])


PartsDep = Annotated[Model, Depends(get_parts)]
CallDep = Annotated[Call, Depends(get_call)]
RolloutDep = Annotated[Rollout, Depends(get_rollout)]
FeedbackDep = Annotated[Feedback, Depends(get_feedback)]


async def require_redis(parts: PartsDep) -> None:
    """Refuse at once what needs Redis while it is known to be away, rather than wait for it too."""
    if parts.follower.lost is not None:
        raise parts.follower.lost.with_traceback(None)


JSON_ONLY = Depends(require_json)
NEEDS_REDIS = Depends(require_redis)
