"""The routes under /admin. They only shape HTTP; service/lifecycle/rollout.py changes the model."""

from http import HTTPStatus

from fastapi import APIRouter, Response

from service.api.dependencies import JSON_ONLY, ModelDep, RolloutDep, StateDep
from service.api.direct import ApiRoute
from service.api.policies import policy
from service.api.schemas import BundleRequest, BundlesResponse, ChangeInfo, ReplicaInfo, ServedBundle
from service.errors import NotReady
from service.http.problems import OF_A_BODY, problems
from service.http.security import Scope
from service.lifecycle.model import Model
from service.lifecycle.rollout import Rollout
from service.workers.siblings import NoSupervisor, Siblings, WorkersDisagree

router = APIRouter(prefix="/admin", tags=["admin"], route_class=ApiRoute)

OF_A_CHANGE = OF_A_BODY | problems(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT)


@router.post("/bundles", dependencies=[JSON_ONLY], responses=OF_A_CHANGE | {202: {"model": BundlesResponse}})
@policy(Scope.ADMIN)
async def change_bundle(
    body: BundleRequest, rollout: RolloutDep, state: StateDep, response: Response
) -> BundlesResponse:
    """Change to another bundle while requests are answered.

    200: this replica serves the bundle, because the tokenizer is the same. 202: the catalog is being read for
    the new tokenizer, and then all replicas switch. The same request again changes nothing, or continues the
    work of a replica that ended. With any other status, nothing has changed, unless `detail` names a worker:
    then the others have changed, and the same request brings that worker to it.
    """
    is_done = await rollout.change(body.bundle)
    model = state.readiness.model  # the model of now, not of when the request began
    if model is None:
        raise NotReady(state.readiness.phase)
    if not is_done:
        response.status_code = HTTPStatus.ACCEPTED  # the other workers learn of it as other replicas do
    elif state.siblings is not None:
        await _change_others(state.siblings, model)
    return _bundles(model, rollout)


@router.get("/bundles")
@policy(Scope.ADMIN)
async def bundles(model: ModelDep, rollout: RolloutDep) -> BundlesResponse:
    """The bundle that this replica serves, and the progress of the last change of the tokenizer."""
    return _bundles(model, rollout)


async def _change_others(siblings: Siblings, model: Model) -> None:
    try:
        refusals = await siblings.change(model.loaded.name, model.loaded.bundle.path)
    except NoSupervisor as error:
        refusals = [str(error)]
    if refusals:
        raise WorkersDisagree(model.loaded.name, refusals)


def _bundles(model: Model, rollout: Rollout) -> BundlesResponse:
    manifest = model.manifest
    return BundlesResponse(
        serving=ServedBundle(
            bundle=model.loaded.name,
            tokenizer_id=manifest.tokenizer_id,
            recommender_id=manifest.recommender_id,
            ranker_id=model.ranker_id,
        ),
        change=change_info(rollout),
    )


def change_info(rollout: Rollout | None) -> ChangeInfo | None:
    """The progress of the last change of the tokenizer, as the API shows it.

    None if no change was announced yet, or while this replica serves no model.
    """
    progress = rollout.progress() if rollout is not None else None
    if progress is None:
        return None
    announced = progress.announced
    return ChangeInfo(
        bundle=announced.bundle,
        tokenizer_id=announced.tokenizer_id,
        phase=announced.phase,
        reason=announced.reason,
        read_items=progress.num_read,
        items=progress.num_items,
        replicas=[
            ReplicaInfo(
                replica=each.replica_id,
                tokenizer_id=each.tokenizer_id,
                is_prepared=announced.tokenizer_id in (each.prepared, each.tokenizer_id),
                trouble=each.trouble,
            )
            for each in progress.replicas
        ],
    )
