"""POST /recommend/batch: many queries in one request, for mailings and nightly pages.

Each query goes the way of POST /recommend, with its own place in the queue, time limit and outcome. Only as
many are in the queue at once as fill one batch of the recommender, so other requests wait for one batch more
at most.
"""

import asyncio
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter
from pydantic import Field, TypeAdapter, ValidationError

from service.api.dependencies import JSON_ONLY, Call, CallDep
from service.api.direct import ApiRoute
from service.api.policies import policy
from service.api.recommend import ONE_SEARCH, recommended
from service.api.recommend_schemas import RecommendRequest, RecommendResponse
from service.api.schemas import _In, _Out
from service.core.limits import MAX_BATCH_QUERIES
from service.errors import ServiceError
from service.http.problems import OF_A_BODY, OF_A_QUEUE, Problem, invalid_problem, problem_of
from service.http.security import Scope
from service.inference.batching import Reservation
from service.lifecycle.model import Model
from service.telemetry.stages import Stages

router = APIRouter(tags=["recommend"], route_class=ApiRoute)

PATH = "/recommend/batch"
MAX_STEM = 120  # characters; an id may have 128, and one with a number behind it must still be an id
REFUSED = (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE)

_validate = TypeAdapter(RecommendRequest).validate_python


class RecommendBatchRequest(_In):
    """Queries, each with the fields of POST /recommend. A wrong one does not fail the others."""

    queries: list[dict[str, Any]] = Field(
        min_length=1,
        max_length=MAX_BATCH_QUERIES,
        description='each is a body of POST /recommend, such as {"history": ["a1"], "limit": 5}',
    )


class BatchedPage(_Out):
    """The outcome of one query: a page, or the problem that POST /recommend would answer."""

    request_id: str = Field(description="of this query, for POST /events: that of the request, and a number")
    page: RecommendResponse | None
    problem: Problem | None


class RecommendBatchResponse(_Out):
    """One outcome for each query."""

    results: list[BatchedPage] = Field(description="in the order of the request")


@router.post(PATH, dependencies=[JSON_ONLY], responses=OF_A_BODY | OF_A_QUEUE)
@policy(Scope.READ, admission=ONE_SEARCH)
async def recommend_batch(body: RecommendBatchRequest, call: CallDep) -> RecommendBatchResponse:
    """The next items after each of many histories. The status is 200 even if no query has a page.

    Ask again for the queries whose `problem` has the status 429 or 503.
    """
    with call.state.model().in_use() as model:
        turn = asyncio.Semaphore(_num_at_once(model))

        async def one(number: int, query: dict[str, Any]) -> BatchedPage:
            async with turn:
                return await _outcome(number, query, call, call.reservation if number == 0 else None)

        async with asyncio.TaskGroup() as tasks:
            asked = [tasks.create_task(one(number, query)) for number, query in enumerate(body.queries)]
    return RecommendBatchResponse(results=[each.result() for each in asked])


async def _outcome(
    number: int, query: dict[str, Any], call: Call, reservation: Reservation | None
) -> BatchedPage:
    """`reservation`: of the head of the request, which its first query uses."""
    request_id = f"{call.request_id[:MAX_STEM]}-{number}"
    metrics = call.state.metrics
    own = call._replace(request_id=request_id, stages=Stages(), reservation=reservation)
    try:
        page = await recommended(_validate(query), own)
    except ValidationError as error:
        details = [{**each, "loc": ("body", *each["loc"])} for each in error.errors(include_url=False)]
        problem, outcome = invalid_problem(details, PATH, request_id), "invalid"
    except ServiceError as error:
        problem = problem_of(error, instance=PATH, request_id=request_id)
        outcome = "refused" if error.status in REFUSED else "invalid"
    else:
        own.stages.stop("write")
        metrics.observe_stages(own.stages)
        metrics.batch_queries.labels("answered").inc()
        return BatchedPage(request_id=request_id, page=page, problem=None)
    metrics.batch_queries.labels(outcome).inc()
    return BatchedPage(request_id=request_id, page=None, problem=problem)


def _num_at_once(model: Model) -> int:
    return max(1, model.loaded.max_batch_beams // model.loaded.num_beams)
