"""Liveness, readiness, a description of what is served, and metrics."""

from contextlib import suppress
from typing import Any

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from service.api.admin import change_info
from service.api.dependencies import ModelDep, StateDep
from service.api.direct import ApiRoute
from service.api.health_schemas import Live, Ready, WorkerReady
from service.api.policies import policy
from service.api.schemas import (
    CatalogInfo,
    InfoResponse,
    LimitsInfo,
    PicturesInfo,
    RankerInfo,
    VectorsInfo,
)
from service.catalog.catalog import Catalog
from service.core.bundle import RankerSpec
from service.core.limits import MAX_CANDIDATES, MAX_HISTORY, MAX_LIMIT
from service.core.version import service_version
from service.errors import StoreUnavailable
from service.http.security import Scope
from service.lifecycle.model import ReadyState
from service.lifecycle.watching import note_persistence, note_pictures
from service.store.pictures import PicturesSize
from service.workers.siblings import NoSupervisor, Siblings

router = APIRouter(tags=["health"], route_class=ApiRoute)


@router.get("/livez", include_in_schema=False)
@router.get("/health/live")
@policy(Scope.OPEN, is_probe=True)
async def live() -> Live:
    """The event loop runs. Restart the process if this does not answer."""
    return Live(status="alive")


@router.get("/readyz", include_in_schema=False)
@router.get("/healthz", include_in_schema=False)
@router.get("/health/ready", responses={503: {"model": Ready}})
@policy(Scope.OPEN, is_probe=True)
async def ready(state: StateDep, response: Response) -> Ready:
    """200 once the bundle is verified, the catalog is loaded and a warm-up search has run. Before that, 503.

    A replica that loses Redis later stays ready, because it still recommends. Then `stale` is true. If Redis
    answers, but has lost a part of the catalog, the answer is 503 and `damaged`. A replica of several workers
    is ready once all of them are. What is said of the catalog is what the worker knows that answers.
    """
    model, damage = state.readiness.model, state.readiness.damage
    status, phase = state.readiness.state()
    workers = None
    if state.siblings is not None:
        workers, waits_for = await _workers(state.siblings)
        if status == "ready" and waits_for is not None:
            status, phase = waits_for
    if status != "ready":
        response.status_code = 503
        response.headers["Retry-After"] = "1"
    return Ready(
        status=status,
        phase=phase,
        workers=workers,
        warnings=list(state.readiness.warnings),
        stale=model.follower.is_stale or bool(damage) if model else False,
        stale_for_s=model.follower.stale_for_s if model else 0.0,
        catalog_items=model.catalog.num_items if model else 0,
        catalog_version=model.catalog.version if model else 0,
    )


@router.get("/info")
@policy(Scope.READ)
async def info(state: StateDep, model: ModelDep) -> InfoResponse:
    """The models, the catalog and the limits of this replica."""
    manifest, options = model.manifest, state.options
    redis: dict[str, Any] = {}
    pictures: PicturesSize | None = None
    if model.follower.lost is None:
        with suppress(StoreUnavailable):
            persistence = await model.store.persistence()
            redis = persistence.as_json()
            note_persistence(persistence, state.metrics, state.readiness)
            pictures = await model.store.pictures.size()
            note_pictures(pictures, state.metrics)
    catalog = model.catalog
    return InfoResponse(
        service_version=service_version(),
        bundle=model.loaded.name,
        tokenizer_id=manifest.tokenizer_id,
        recommender_id=manifest.recommender_id,
        generator=manifest.generator,
        config=manifest.config,
        data_name=manifest.data_name,
        created_at=manifest.created_at,
        levels=list(manifest.sid.levels),
        history_length=manifest.history_length,
        filter_fields=dict(options.filter_fields.kinds),
        render=manifest.render.model_dump(),
        fields=list(manifest.fields.names) if manifest.fields else None,
        ranker=_ranker_info(manifest.ranker),
        metrics=manifest.metrics,
        catalog=CatalogInfo(
            name=options.catalog,
            items=catalog.num_items,
            version=catalog.version,
            digest=catalog.digest,
            stale_for_s=model.follower.stale_for_s,
        ),
        pictures=PicturesInfo(
            size_px=manifest.pictures.size_px if manifest.pictures else None,
            kept=pictures.num_pictures if pictures else None,
            kept_bytes=pictures.num_bytes if pictures else None,
        ),
        vectors=_vectors_info(catalog),
        limits=LimitsInfo(
            items_per_request=options.max_items_per_request,
            item_chars=options.max_item_chars,
            body_bytes=options.max_body_bytes,
            picture_bytes=options.max_picture_bytes,
            picture_pixels=options.max_picture_pixels,
            history=MAX_HISTORY,
            limit=MAX_LIMIT,
            rank_items=MAX_CANDIDATES,
            num_beams=min(options.num_beams, manifest.beam_limit),
            beam_limit=manifest.beam_limit,
        ),
        change=change_info(state.rollout),
        redis=redis,
    )


@router.get("/metrics", include_in_schema=False)
@policy(Scope.OPEN, is_probe=True)
async def metrics(state: StateDep) -> Response:
    """All metrics of this replica, of all its workers, in the text format of Prometheus."""
    if state.siblings is None:
        return Response(generate_latest(state.metrics.registry), media_type=CONTENT_TYPE_LATEST)
    try:
        return Response(await state.siblings.metrics(), media_type=CONTENT_TYPE_LATEST)
    except NoSupervisor as error:  # the counts of one worker would look like a restart
        return Response(f"{error}\n", 503, media_type="text/plain")


async def _workers(siblings: Siblings) -> tuple[list[WorkerReady], ReadyState | None]:
    """Of each worker, and what is the matter with the first that is not ready; None if all are."""
    try:
        workers = [WorkerReady(**each) for each in await siblings.readiness()]
    except NoSupervisor as error:
        return [], ReadyState("starting", str(error))
    for each in workers:
        if each.status != "ready":
            phase = f"worker {each.worker}: {each.phase}"
            return workers, ReadyState("starting" if each.status == "silent" else each.status, phase)
    return workers, None


def _ranker_info(ranker: RankerSpec | None) -> RankerInfo | None:
    if ranker is None:
        return None
    return RankerInfo(
        ranker_id=ranker.ranker_id,
        history_length=ranker.history_length,
        parameterization=ranker.parameterization,
        aggregation=ranker.aggregation,
    )


def _vectors_info(catalog: Catalog) -> VectorsInfo:
    vectors = catalog.vectors
    if vectors is None:
        return VectorsInfo(
            dim=None,
            items=0,
            items_without=catalog.num_items,
            way="off",
            recall_at_10=None,
            pending=0,
            bytes=0,
        )
    return VectorsInfo(
        dim=vectors.dim,
        items=vectors.num_vectors,
        items_without=catalog.num_items - vectors.num_vectors,
        way="exact" if vectors.is_exact else "graph",
        recall_at_10=vectors.recall,
        pending=vectors.num_pending,
        bytes=vectors.num_bytes,
    )
