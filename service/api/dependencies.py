"""What routes need, by type: the parts of a service that is ready, and the stopwatch of the request."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from service.catalog import Catalog, CatalogFollower
from service.contract import Manifest
from service.errors import NotJson, NotReady
from service.indexing import Indexer
from service.metrics import Metrics, Stages
from service.recommend import Recommender
from service.settings import Settings
from service.store import ItemStore


@dataclass(frozen=True)
class Parts:
    """Everything that answers requests, once Redis has been found and the catalogue is loaded."""

    store: ItemStore
    follower: CatalogFollower
    indexer: Indexer
    recommender: Recommender
    popularity: Mapping[str, float]  # item id -> interactions in the training data

    @property
    def catalog(self) -> Catalog:
        return self.follower.catalog


@dataclass
class Readiness:
    """How far the start has come. `parts` is None until requests can be answered."""

    phase: str = "starting"
    parts: Parts | None = None


@dataclass(frozen=True)
class Serving:
    """What create_app puts in `app.state.serving`."""

    settings: Settings
    manifest: Manifest
    metrics: Metrics
    readiness: Readiness


def get_serving(request: Request) -> Serving:
    serving: Serving = request.app.state.serving
    return serving


ServingDep = Annotated[Serving, Depends(get_serving)]


def get_parts(serving: ServingDep) -> Parts:
    if serving.readiness.parts is None:
        raise NotReady(serving.readiness.phase)
    return serving.readiness.parts


def get_stages(request: Request) -> Stages:
    stages: Stages = request.state.stages
    return stages


def require_json(request: Request) -> None:
    """A body must be called JSON: browsers send some other types across sites without asking."""
    content_type = request.headers.get("content-type", "")
    kind = content_type.partition(";")[0].strip().lower()
    if not (kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))):
        raise NotJson(content_type[:100])


def require_redis(parts: Annotated[Parts, Depends(get_parts)]) -> None:
    """Refuse at once what needs Redis while it is known to be away, rather than wait for it too."""
    if parts.follower.lost is not None:
        raise parts.follower.lost.with_traceback(None)


PartsDep = Annotated[Parts, Depends(get_parts)]
StagesDep = Annotated[Stages, Depends(get_stages)]
JSON_ONLY = Depends(require_json)
NEEDS_REDIS = Depends(require_redis)
