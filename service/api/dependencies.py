"""Dependencies of the routes: the service's state, the model that serves, and facts about the request."""

import re
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

from fastapi import Depends, Request

from service.api.options import ApiOptions
from service.api.policies import Policies
from service.core.items import Item, merge, merge_patch
from service.errors import NotAPatch, NotJson, NotReady, Overloaded
from service.flows.feedback import Feedback
from service.flows.served_pages import ServedPages
from service.http.whole_request import Shortcut
from service.inference.batching import Reservation
from service.lifecycle.model import Model, Readiness
from service.lifecycle.rollout import Rollout
from service.telemetry.metrics import Metrics
from service.telemetry.stages import Stages
from service.workers.siblings import Siblings


@dataclass
class ServiceState:
    """The state of one service. create_app puts it in `app.state.service`."""

    options: ApiOptions
    metrics: Metrics
    readiness: Readiness
    pages: ServedPages
    feedback: Feedback | None = None  # None until Redis is found
    rollout: Rollout | None = None  # None while `readiness.model` is None
    policies: Policies = field(default_factory=Policies)  # of the routes of the app
    shortcuts: Mapping[tuple[str, str], Shortcut] = field(default_factory=dict)  # by method and target
    siblings: Siblings | None = None  # None if this process is the whole replica

    def model(self) -> Model:
        """The model that serves now. Raises NotReady."""
        if self.readiness.model is None:
            raise NotReady(self.readiness.phase)
        return self.readiness.model

    def admit(self, method: str, path: str) -> Reservation | None:
        """Reserve what the route's policy asks for, before the body of the request is read.

        None if it asks for nothing, or no model is there yet. Raises Overloaded: to refuse now costs little.
        """
        admission = self.policies.admissions.get((method, path))
        model = self.readiness.model
        return None if admission is None or model is None else admission.reserve(model)

    def refusal(self, method: str, path: str) -> Overloaded | None:
        """What `admit` would raise now."""
        admission = self.policies.admissions.get((method, path))
        model = self.readiness.model
        return None if admission is None or model is None else admission.refusal(model)


async def get_state(request: Request) -> ServiceState:
    """The state that create_app made for the app that answers this request."""
    state: ServiceState = request.app.state.service
    return state


StateDep = Annotated[ServiceState, Depends(get_state)]


async def get_model(state: StateDep) -> AsyncIterator[Model]:
    """The model that serves now. The request keeps it to its end, even if another model takes over."""
    with state.model().in_use() as model:
        yield model


async def get_rollout(state: StateDep) -> Rollout:
    """The part of this replica in changes of the model. Raises NotReady while no model is loaded."""
    if state.rollout is None:
        raise NotReady(state.readiness.phase)
    return state.rollout


async def get_feedback(state: StateDep) -> Feedback:
    """Where posted events go. Raises NotReady until Redis is found at the start."""
    if state.feedback is None:
        raise NotReady(state.readiness.phase)
    return state.feedback


class Call(NamedTuple):
    """What the flow of a request needs from the HTTP room."""

    request_id: str
    stages: Stages
    deadline: float  # of the event loop's clock; infinite if the client gives none
    reservation: Reservation | None  # in the queue; None behind another HTTP server than ours
    state: ServiceState


def call_of(request: Request) -> Call:
    """Collect what the envelope noted about the request. Direct routes call it without FastAPI."""
    state = request.scope["state"]
    return Call(
        state["request_id"],
        state["stages"],
        state["deadline"],
        state.get("reservation"),
        request.app.state.service,
    )


async def get_call(request: Request) -> Call:
    """`call_of` as a dependency. It is async because FastAPI runs other functions in a thread."""
    return call_of(request)


async def require_json(request: Request) -> None:
    """Refuse a body of another type than JSON: browsers send some types to other sites without asking.

    A patch has a meaning of its own, so it is refused too.
    """
    if _json_type(request).endswith("-patch+json"):
        raise NotJson(_content_type(request))


Merge = Callable[[Mapping[str, Any], Mapping[str, Any]], Item]


async def get_merge(request: Request) -> Merge:
    """How the body of a PATCH changes an item, by its Content-Type. Raises NotJson or NotAPatch."""
    merges: dict[str, Merge] = dict(zip(NotAPatch.media_types, (merge, merge_patch), strict=True))
    media_type = _json_type(request)
    if media_type not in merges:
        raise NotAPatch(_content_type(request))
    return merges[media_type]


def _json_type(request: Request) -> str:
    """The media type of a body that is some kind of JSON. Raises NotJson."""
    media_type = _content_type(request).partition(";")[0].strip().lower()
    if media_type != "application/json" and not re.fullmatch(r"application/.*\+json", media_type):
        raise NotJson(_content_type(request))
    return media_type


def _content_type(request: Request) -> str:
    return request.headers.get("content-type", "")[:100]


ModelDep = Annotated[Model, Depends(get_model)]
CallDep = Annotated[Call, Depends(get_call)]
RolloutDep = Annotated[Rollout, Depends(get_rollout)]
FeedbackDep = Annotated[Feedback, Depends(get_feedback)]
MergeDep = Annotated[Merge, Depends(get_merge)]


async def require_redis(model: ModelDep) -> None:
    """Refuse at once if Redis is known to be lost, because to wait for it would take as long again."""
    if model.follower.lost is not None:
        raise model.follower.lost.with_traceback(None)


JSON_ONLY = Depends(require_json)
NEEDS_REDIS = Depends(require_redis)
