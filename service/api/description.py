"""The description of the API and the page that shows it, also behind a proxy that serves them below a prefix.

The page names its files by relative addresses, so it needs no prefix. The description names the prefix as the
server of all routes. Both are open to everybody, and hold no secrets.
"""

from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from starlette.responses import HTMLResponse

from service.api.direct import ApiRoute
from service.api.policies import Policies, policy
from service.http.security import Scope

ASSETS = "docs/assets"  # without a slash at the start: beside the page, wherever that is

router = APIRouter(route_class=ApiRoute)

SCHEMES: dict[str, dict[str, str]] = {
    "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "bearer": {"type": "http", "scheme": "bearer"},
}


@router.get("/docs", include_in_schema=False)
@policy(Scope.OPEN)
async def docs() -> HTMLResponse:
    """A page to read the description and to try requests. It loads nothing from other hosts."""
    return get_swagger_ui_html(
        openapi_url="openapi.json",
        title="glyphrec",
        swagger_js_url=f"{ASSETS}/swagger-ui-bundle.js",
        swagger_css_url=f"{ASSETS}/swagger-ui.css",
        swagger_favicon_url=f"{ASSETS}/favicon.png",
    )


def describe(app: FastAPI, policies: Policies, *, has_keys: bool) -> None:
    """Let the description name the ways to send a key, if the service has keys."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title,
                version=app.version,
                summary=app.summary,
                routes=app.routes,
            )
            if has_keys:
                schema["components"]["securitySchemes"] = SCHEMES
                for path, operations in schema["paths"].items():
                    for method, operation in operations.items():
                        if policies.scope_of(method.upper(), path) is not Scope.OPEN:
                            operation["security"] = [{name: []} for name in SCHEMES]
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI's documentation extends the description
