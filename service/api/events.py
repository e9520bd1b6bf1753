"""POST /events: HTTP shapes only; what becomes of events is service/flows/feedback.py."""

from http import HTTPStatus

from fastapi import APIRouter

from service.api.dependencies import JSON_ONLY, NEEDS_REDIS, FeedbackDep
from service.api.schemas import EventsRequest, EventsResponse
from service.http.json_body import JsonRoute
from service.http.problems import OF_A_BODY
from service.store.events import Event

router = APIRouter(tags=["recommend"], route_class=JsonRoute)


@router.post(
    "/events", status_code=HTTPStatus.ACCEPTED, dependencies=[JSON_ONLY, NEEDS_REDIS], responses=OF_A_BODY
)
async def take_events(body: EventsRequest, feedback: FeedbackDep) -> EventsResponse:
    """Tell what was taken of the pages of POST /recommend, to any replica: all of it or nothing is taken in.

    An `event_id` counts once, so send again what had no answer. `request_id` is the X-Request-ID of the
    answer with the page; where a client gave its own to several, the newest page counts. Events about pages
    that nobody remembers any more are taken in too, and count for no model.
    """
    events = [Event(each.event_id, each.request_id, each.item_id) for each in body.events]
    num_new = await feedback.take(events)
    return EventsResponse(accepted=num_new, duplicates=len(events) - num_new)
