"""POST /recommend: HTTP shapes only; the flow is service/recommend.py."""

from fastapi import APIRouter

from service.api.dependencies import JSON_ONLY, PartsDep, ServingDep, StagesDep
from service.api.schemas import Recommendation, RecommendRequest, RecommendResponse
from service.recommend import Query

router = APIRouter(tags=["recommend"])


@router.post("/recommend", dependencies=[JSON_ONLY])
async def recommend(
    body: RecommendRequest, parts: PartsDep, serving: ServingDep, stages: StagesDep
) -> RecommendResponse:
    """The next items after a history. Without any known item in it, the popular ones."""
    query = Query(
        history=body.history,
        limit=body.limit,
        exclude_item_ids=frozenset(body.exclude_item_ids),
        exclude_history=body.exclude_history,
        wants_exact=body.guarantee == "exact",
    )
    answer = await parts.recommender.recommend(query, stages)
    return RecommendResponse(
        items=[
            Recommendation(item_id=each.item_id, score=each.score, semantic_id=str(each.sid))
            for each in answer.items
        ],
        exact=answer.exact,
        source=answer.source,
        unknown_item_ids=answer.unknown_item_ids,
        model_version=serving.manifest.recommender_id,
        catalog_version=answer.catalog_version,
    )
