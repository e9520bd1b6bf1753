"""A whole service in this process, for tests over HTTP, and a check of its problem documents."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import httpx
from fastapi import FastAPI

from service.app import create_app
from service.settings import Settings

READY_TIMEOUT_S = 20


@asynccontextmanager
async def running(bundle: Path, redis_url: str, **settings: object) -> AsyncIterator[httpx.AsyncClient]:
    """A client of a service that is ready."""
    async with starting(bundle, redis_url, **settings) as (app, client):
        await until_ready(app)
        yield client


@asynccontextmanager
async def starting(
    bundle: Path, redis_url: str, **settings: object
) -> AsyncIterator[tuple[FastAPI, httpx.AsyncClient]]:
    app = create_app(Settings(bundle=bundle, redis_url=redis_url, threads=1, **settings))
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://service", timeout=30) as client,
    ):
        yield app, client


async def until_ready(app: FastAPI) -> None:
    async with asyncio.timeout(READY_TIMEOUT_S):
        while app.state.service.readiness.model is None:
            await asyncio.sleep(0.01)


def is_problem(response: httpx.Response, status: int, slug: str) -> bool:
    """The status, and a whole RFC 9457 document with the request's id."""
    problem = response.json()
    assert response.status_code == status, problem
    assert response.headers["content-type"] == "application/problem+json"
    assert problem["type"] == f"urn:glyphrec:problem:{slug}"
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    assert problem["instance"] == quote(response.request.url.path)
    assert problem["request_id"] == response.headers["x-request-id"]
    assert "Traceback" not in response.text
    assert "pydantic" not in response.text
    return True
