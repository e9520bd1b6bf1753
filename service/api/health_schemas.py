"""The shapes of the health routes: whether a replica, and each of its workers, takes requests."""

from typing import Literal

from pydantic import Field

from service.api.schemas import _Out


class WorkerReady(_Out):
    """Whether one process of this replica takes requests."""

    worker: int = Field(description="its number, from 1")
    pid: int | None = Field(description="null while it has no process")
    status: Literal["ready", "starting", "stopping", "damaged", "silent"] = Field(
        description="silent: it did not answer within a second"
    )
    phase: str


class Ready(_Out):
    """Whether this replica takes requests, and how current its catalog is."""

    status: Literal["ready", "starting", "stopping", "damaged"]
    phase: str = Field(description="the step that the start is at, ready, or what is damaged and what to do")
    warnings: list[str] = Field(description="what in the settings of Redis endangers the catalog")
    stale: bool = Field(
        description="true while Redis is lost: recommendations go on, and changes are refused; also while a "
        "part of the catalog is missing there"
    )
    stale_for_s: float
    catalog_items: int
    catalog_version: int
    workers: list[WorkerReady] | None = Field(description="null for a replica of one process")


class Live(_Out):
    """The process answers. GET /health/ready tells about its bundle, its catalog and Redis."""

    status: Literal["alive"]
