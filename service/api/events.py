"""POST /events. It only shapes HTTP; the flow is service/flows/feedback.py."""

from http import HTTPStatus

from fastapi import APIRouter

from service.api.dependencies import JSON_ONLY, NEEDS_REDIS, FeedbackDep
from service.api.direct import ApiRoute
from service.api.policies import policy
from service.api.schemas import EventsRequest, EventsResponse
from service.http.problems import OF_A_BODY
from service.http.security import Scope
from service.store.events import Event

router = APIRouter(tags=["recommend"], route_class=ApiRoute)


@router.post(
    "/events", status_code=HTTPStatus.ACCEPTED, dependencies=[JSON_ONLY, NEEDS_REDIS], responses=OF_A_BODY
)
@policy(Scope.WRITE)
async def take_events(body: EventsRequest, feedback: FeedbackDep) -> EventsResponse:
    """Tell which items users took from the pages of POST /recommend. Any replica accepts all events, or none.

    An `event_id` counts once, so a request without an answer can be sent again. `request_id` is the
    X-Request-ID of the answer with the page. If several pages have this id, on one replica or on several, the
    event counts once: for the newest page with the item, else for the newest page.
    Events about pages that no replica remembers are accepted, but count for no model.

    If the served model has counts of items that were taken together, events add to them, and later answers of
    all replicas follow.
    """
    events = [Event(each.event_id, each.request_id, each.item_id) for each in body.events]
    num_new = await feedback.take(events)
    return EventsResponse(accepted=num_new, duplicates=len(events) - num_new)
