"""POST /rank. It only shapes HTTP; the flow is service/flows/item_ranking.py."""

from fastapi import APIRouter

from service.api.dependencies import CallDep
from service.api.direct import ApiRoute
from service.api.filters import filter_of
from service.api.policies import Admission, policy
from service.api.rank_schemas import RankedItemOut, RankRequest, RankResponse
from service.flows.item_ranking import Ranking
from service.http.problems import OF_A_BODY, OF_A_QUEUE
from service.http.security import Scope

router = APIRouter(tags=["recommend"], route_class=ApiRoute)

# How many items a request has is known only when its body is read. So many are usual.
ONE_RANKING = Admission(queue=lambda model: model.rankings, units=lambda model: model.loaded.num_beams)


@router.post("/rank", responses=OF_A_BODY | OF_A_QUEUE)
@policy(Scope.READ, admission=ONE_RANKING, is_direct=True)
async def rank(body: RankRequest, call: CallDep) -> RankResponse:
    """Given items in the order in which a user would take them next.

    With a ranker in the bundle, by its score. Else by the generator: each item gets exactly the score that
    POST /recommend would give it, without a search. The history may hold items that are ranked.
    """
    ranking = Ranking(
        history=body.history,
        item_ids=body.item_ids,
        limit=body.limit,
        exclude_item_ids=frozenset((body.filter and body.filter.exclude_item_ids) or ()),
        filter=filter_of(body.filter),
    )
    with call.state.model().in_use() as model:
        ranked = await model.item_ranker.rank(ranking, call.stages, call.deadline, call.reservation)
    call.stages.start("write")
    return RankResponse(
        items=[
            RankedItemOut(item_id=item_id, score=score, semantic_id=str(sid))
            for item_id, sid, score in ranked.items
        ],
        ranked_by=ranked.by,
        matching_items=ranked.matching_items,
        unknown_item_ids=ranked.unknown_item_ids,
        unknown_history_ids=ranked.unknown_history_ids,
        model_version=model.manifest.recommender_id,
        ranker_version=model.ranker_id if ranked.by == "ranker" else None,
        catalog_version=ranked.catalog_version,
    )
