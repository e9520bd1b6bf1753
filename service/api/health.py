"""Is it alive, is it ready, what does it serve, and how is it doing."""

from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from service.api.admin import change_info
from service.api.dependencies import PartsDep, ServingDep
from service.api.schemas import MAX_HISTORY, MAX_LIMIT, CatalogInfo, InfoResponse, LimitsInfo, Live, Ready
from service.errors import StoreUnavailable

router = APIRouter(tags=["health"])


@router.get("/livez", include_in_schema=False)
@router.get("/health/live")
async def live() -> Live:
    """The event loop turns; restart the process where this does not answer."""
    return Live(status="alive")


@router.get("/readyz", include_in_schema=False)
@router.get("/healthz", include_in_schema=False)
@router.get("/health/ready", responses={503: {"model": Ready}})
async def ready(serving: ServingDep, response: Response) -> Ready:
    """200 once the bundle is verified, the catalogue loaded and a warm-up search has run; before that 503.

    A replica that loses Redis later stays ready, as it keeps recommending; `stale` says so.
    """
    parts = serving.readiness.model
    is_stopping = serving.readiness.is_stopping
    if parts is None or is_stopping:
        response.status_code = 503
        response.headers["Retry-After"] = "1"
    return Ready(
        status="stopping" if is_stopping else "ready" if parts else "starting",
        phase="answering what still comes" if is_stopping else serving.readiness.phase,
        stale=parts.follower.is_stale if parts else False,
        stale_for_s=parts.follower.stale_for_s if parts else 0.0,
        catalog_items=parts.catalog.num_items if parts else 0,
        catalog_version=parts.catalog.version if parts else 0,
    )


@router.get("/info")
async def info(serving: ServingDep, parts: PartsDep) -> InfoResponse:
    """What is served: the models, the catalogue, the limits."""
    manifest, settings = parts.manifest, serving.settings
    redis: dict[str, Any] = {}
    if parts.follower.lost is None:
        with suppress(StoreUnavailable):
            persistence = await parts.store.persistence()
            redis = persistence.as_json()
            serving.metrics.redis_loss_window_seconds.set(persistence.loss_window.seconds)
    catalog = parts.catalog
    return InfoResponse(
        service_version=service_version(),
        bundle=parts.loaded.name,
        tokenizer_id=manifest.tokenizer_id,
        recommender_id=manifest.recommender_id,
        generator=manifest.generator,
        config=manifest.config,
        data_name=manifest.data_name,
        created_at=manifest.created_at,
        levels=list(manifest.sid.levels),
        history_length=manifest.history_length,
        filter_fields=dict(settings.filter_fields.kinds),
        render=manifest.render.model_dump(),
        metrics=manifest.metrics,
        catalog=CatalogInfo(
            name=settings.catalog,
            items=catalog.num_items,
            version=catalog.version,
            digest=catalog.digest,
            stale_for_s=parts.follower.stale_for_s,
        ),
        limits=LimitsInfo(
            items_per_request=settings.max_items_per_request,
            item_chars=settings.max_item_chars,
            body_bytes=settings.max_body_bytes,
            history=MAX_HISTORY,
            limit=MAX_LIMIT,
            num_beams=min(settings.num_beams, manifest.beam_limit),
            beam_limit=manifest.beam_limit,
        ),
        change=change_info(serving.rollout),
        redis=redis,
    )


@router.get("/metrics", include_in_schema=False)
async def metrics(serving: ServingDep) -> Response:
    return Response(generate_latest(serving.metrics.registry), media_type=CONTENT_TYPE_LATEST)


def service_version() -> str:
    try:
        return version("glyphrec")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "0"
