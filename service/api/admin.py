"""The routes under /admin: HTTP shapes only; the change of a model is service/lifecycle/rollout.py."""

from http import HTTPStatus

from fastapi import APIRouter, Response

from service.api.dependencies import JSON_ONLY, PartsDep, RolloutDep, ServingDep
from service.api.schemas import BundleRequest, BundlesResponse, ChangeInfo, ReplicaInfo, ServedBundle
from service.errors import NotReady
from service.http.json_body import JsonRoute
from service.http.problems import OF_A_BODY, problems
from service.lifecycle.model import Model
from service.lifecycle.rollout import Rollout

router = APIRouter(prefix="/admin", tags=["admin"], route_class=JsonRoute)

OF_A_CHANGE = OF_A_BODY | problems(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT)


@router.post("/bundles", dependencies=[JSON_ONLY], responses=OF_A_CHANGE | {202: {"model": BundlesResponse}})
async def change_bundle(
    body: BundleRequest, rollout: RolloutDep, serving: ServingDep, response: Response
) -> BundlesResponse:
    """Go over to another bundle while requests are answered.

    200: done, on this replica, as the tokenizer stays. 202: the catalogue is being read for the new
    tokenizer; then all replicas switch. To send it again changes nothing, or takes up what a dead replica
    left. Anything else: nothing was changed.
    """
    if not await rollout.change(body.bundle):
        response.status_code = HTTPStatus.ACCEPTED
    parts = serving.readiness.parts  # now, not when the request began
    if parts is None:
        raise NotReady(serving.readiness.phase)
    return _bundles(parts, rollout)


@router.get("/bundles")
async def bundles(parts: PartsDep, rollout: RolloutDep) -> BundlesResponse:
    """The bundle that this replica serves, and how far the last change of the tokenizer is."""
    return _bundles(parts, rollout)


def _bundles(parts: Model, rollout: Rollout) -> BundlesResponse:
    manifest = parts.manifest
    return BundlesResponse(
        serving=ServedBundle(
            bundle=parts.loaded.name,
            tokenizer_id=manifest.tokenizer_id,
            recommender_id=manifest.recommender_id,
        ),
        change=change_info(rollout),
    )


def change_info(rollout: Rollout | None) -> ChangeInfo | None:
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
