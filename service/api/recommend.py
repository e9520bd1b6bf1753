"""POST /recommend. It only shapes HTTP; the flow is service/flows/recommend.py."""

from fastapi import APIRouter

from service.api.dependencies import Call, CallDep
from service.api.direct import ApiRoute
from service.api.filters import filter_of
from service.api.policies import Admission, policy
from service.api.recommend_schemas import (
    DiversityIn,
    Recommendation,
    RecommendRequest,
    RecommendResponse,
    SearchInfo,
)
from service.flows.search import Query
from service.flows.selection import Diversity
from service.http.problems import OF_A_BODY, OF_A_QUEUE, OF_A_RANKER
from service.http.security import Scope

router = APIRouter(tags=["recommend"], route_class=ApiRoute)

ONE_SEARCH = Admission(queue=lambda model: model.searches, units=lambda model: model.loaded.num_beams)


@router.post("/recommend", responses=OF_A_BODY | OF_A_QUEUE | OF_A_RANKER)
@policy(Scope.READ, admission=ONE_SEARCH, is_direct=True)
async def recommend(body: RecommendRequest, call: CallDep) -> RecommendResponse:
    """The next items after a history. If the history has no known item, the popular items."""
    return await recommended(body, call)


async def recommended(body: RecommendRequest, call: Call) -> RecommendResponse:
    """The answer to one query, whichever route it came by. It starts the stage `write`."""
    with call.state.model().in_use() as model:
        answer = await model.recommender.recommend(
            query_of(body), call.stages, call.deadline, call.reservation
        )
    call.stages.start("write")
    page = answer.page
    recommender_id = model.manifest.recommender_id
    call.state.pages.remember(
        call.request_id,
        recommender_id,
        [each.item_id for each in page.items],
        body.history[-model.num_remembered :] if model.num_remembered else (),
    )
    searched = SearchInfo(
        num_beams=answer.num_beams,
        widened=answer.widened,
        beam_limit_reached=answer.beam_limit_reached,
    )
    return RecommendResponse(
        items=[
            Recommendation(
                item_id=each.item_id,
                score=each.score,
                ranker_score=each.ranker_score,
                semantic_id=str(model.catalog.unpacked(each.packed_sid)),
            )
            for each in page.items
        ],
        exact=page.exact,
        exact_for="candidates" if body.rerank else "page",
        search=searched if page.was_searched else None,
        matching_items=page.matching_items,
        source=page.source,
        unknown_item_ids=page.unknown_item_ids,
        model_version=recommender_id,
        ranker_version=model.ranker_id if body.rerank else None,
        catalog_version=page.catalog_version,
    )


def query_of(body: RecommendRequest) -> Query:
    """The query of a body."""
    asked = body.filter
    excluded = [*(body.exclude_item_ids or ()), *((asked and asked.exclude_item_ids) or ())]
    diversity = body.diversity or DiversityIn()
    return Query(
        history=body.history,
        limit=body.limit,
        exclude_item_ids=frozenset(excluded),
        exclude_history=body.exclude_history,
        filter=filter_of(asked),
        diversity=Diversity(diversity.max_per_first_code, diversity.max_per_category),
        wants_exact=body.guarantee == "exact",
        rerank=body.rerank,
    )
