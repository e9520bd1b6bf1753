"""POST /search. It only shapes HTTP; the flow is service/flows/item_search.py."""

from fastapi import APIRouter

from service.api.dependencies import CallDep
from service.api.direct import ApiRoute
from service.api.filters import filter_of
from service.api.policies import Admission, policy
from service.api.search_schemas import FoundItemOut, SearchRequest, SearchResponse
from service.flows.item_search import Which
from service.flows.query_encoder import Likeness
from service.http.problems import OF_A_BODY, OF_A_QUEUE, OF_VECTORS
from service.http.security import Scope

router = APIRouter(tags=["search"], route_class=ApiRoute)

# A query has a strip or two, as it is short.
ONE_QUERY = Admission(queue=lambda model: model.queries, units=lambda _model: 1)


@router.post("/search", responses=OF_A_BODY | OF_A_QUEUE | OF_VECTORS)
@policy(Scope.READ, admission=ONE_QUERY, is_direct=True)
async def search(body: SearchRequest, call: CallDep) -> SearchResponse:
    """The items most like a text, a picture, or both together.

    The query is read as an item with that title and picture would be, and its vector is compared with those
    of the items. So typos, abbreviations and other units of the same quantity cost little, and words with
    the same meaning but other letters are not found.
    """
    asked = body.filter
    excluded = [*(body.exclude_item_ids or ()), *((asked and asked.exclude_item_ids) or ())]
    which = Which(body.limit, frozenset(excluded), filter_of(asked))
    query = Likeness(body.query or "", body.image.data if body.image else "")
    with call.state.model().in_use() as model:
        answer = await model.searcher.search(query, which, call.stages, call.deadline, call.reservation)
    call.stages.start("write")
    found = answer.found
    return SearchResponse(
        items=[
            FoundItemOut(item_id=each.item_id, score=each.score, semantic_id=str(each.sid))
            for each in found.items
        ],
        exact=found.is_exact,
        matching_items=found.matching_items,
        truncated=answer.query.truncated,
        missing_characters=answer.query.missing,
        tokenizer_id=model.tokenizer_id,
        catalog_version=found.catalog_version,
    )
