"""The routes under /items/{id}/image. A picture takes the way of its item: service/flows/indexing.py."""

from enum import StrEnum
from io import BytesIO
from typing import Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Query, Request, Response
from numpy.typing import NDArray
from PIL import Image

from service.api.conditions import OF_A_CONDITION, WITH_ETAG, IfMatchDep, etag_of
from service.api.dependencies import NEEDS_REDIS, CallDep, ModelDep
from service.api.direct import ApiRoute
from service.api.items import ItemIdPath, find_item, patched_item
from service.api.policies import policy
from service.api.schemas import PatchedItem
from service.core.drawn_fields import draw_fields
from service.core.encoder_view import encoder_view
from service.core.image_field import FIELD
from service.core.items import Item, check_item_id
from service.core.pictures import MEDIA_TYPES
from service.core.render import WHITE, item_text, render_text
from service.errors import InvalidItem, NotAPicture, PictureNotFound
from service.http.problems import OF_A_PUT, OF_AN_ITEM
from service.http.security import Scope
from service.lifecycle.model import Model
from service.store.picture_records import StoredPicture
from service.store.records import StoredItem

router = APIRouter(tags=["items"], route_class=ApiRoute)

NO_PICTURE = "No picture is kept for it. Send one with PUT"
READS_NONE = "The served bundle reads no pictures. Ask for part=kept"
READS_FIELDS = "The served bundle reads the fields {}, and no pixels. Ask for part=kept"
BINARY = {"type": "string", "format": "binary"}
PICTURE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {media_type: {"schema": BINARY} for media_type in MEDIA_TYPES.values()},
    }
}


class ImagePart(StrEnum):
    """What GET /items/{id}/image shows."""

    ALL = "all"
    TEXT = "text"
    PHOTO = "photo"
    KEPT = "kept"


async def require_picture(request: Request) -> None:
    """Refuse a body of a type that no picture has. The bytes say later what they are. Raises NotAPicture."""
    given = request.headers.get("content-type", "")[:100]
    if given.partition(";")[0].strip().lower() not in MEDIA_TYPES.values():
        raise NotAPicture(given)


@router.get(
    "/items/{item_id:path}/image",
    response_class=Response,
    dependencies=[NEEDS_REDIS],
    responses=OF_AN_ITEM
    | {
        200: {
            "description": "OK",
            "content": {"image/png": {"schema": BINARY}, "image/webp": {"schema": BINARY}},
        }
    },
)
@policy(Scope.READ)
async def item_image(
    item_id: ItemIdPath,
    model: ModelDep,
    part: Annotated[
        ImagePart,
        Query(
            description="all: whatever the tokenizer reads; text: the drawn text; photo: the pixels of the "
            "photo; kept: the picture that is kept for the item, as WebP"
        ),
    ] = ImagePart.ALL,
) -> Response:
    """The item as the tokenizer sees it, as PNG: its strips of text, and below them its photo, or its fields
    where these are drawn.

    A tokenizer that reads fields by their values sees no pixels. The answer is 404 then, unless the kept
    picture is wanted.
    """
    stored = await find_item(model, item_id)
    picture = (await model.store.pictures.get_many([stored.item_id])).get(stored.item_id)
    if part is ImagePart.KEPT:
        if picture is None:
            raise PictureNotFound(item_id, NO_PICTURE)
        return Response(picture.data, media_type="image/webp")
    seen = _seen(model, stored, picture, part)
    png = BytesIO()
    Image.fromarray(seen).save(png, format="PNG")
    return Response(png.getvalue(), media_type="image/png")


@router.put(
    "/items/{item_id:path}/image",
    dependencies=[NEEDS_REDIS, Depends(require_picture)],
    responses=OF_AN_ITEM | OF_A_PUT | OF_A_CONDITION | WITH_ETAG,
    openapi_extra=PICTURE_BODY,
)
@policy(Scope.WRITE)
async def put_image(
    item_id: ItemIdPath,
    request: Request,
    response: Response,
    model: ModelDep,
    call: CallDep,
    if_match: IfMatchDep,
) -> PatchedItem:
    """Give an item its picture: the bytes of a JPEG, a PNG or a WebP. An animation shows its first frame.

    The item is read again if its picture is another one, and may move. A small canonical form is kept.
    """
    data = await request.body()
    return await _change(model, item_id, lambda item: {**item, FIELD: data}, response, call, if_match)


@router.delete(
    "/items/{item_id:path}/image",
    dependencies=[NEEDS_REDIS],
    responses=OF_AN_ITEM | OF_A_PUT | OF_A_CONDITION | WITH_ETAG,
)
@policy(Scope.WRITE)
async def delete_image(
    item_id: ItemIdPath, response: Response, model: ModelDep, call: CallDep, if_match: IfMatchDep
) -> PatchedItem:
    """Take an item's picture away. The item is read again by its text alone, so it needs a text."""

    def without_image(item: Item) -> Item:
        return {name: value for name, value in item.items() if name != FIELD}

    return await _change(model, item_id, without_image, response, call, if_match)


async def _change(
    model: Model, item_id: str, change: Any, response: Response, call: CallDep, if_match: IfMatchDep
) -> PatchedItem:
    patched = await model.indexer.patch(check_item_id(item_id), change, call.stages, call.deadline, if_match)
    call.stages.start("write")
    response.headers.update(etag_of(patched.outcome.revision))
    return patched_item(patched)


def _seen(
    model: Model, stored: StoredItem, picture: StoredPicture | None, part: ImagePart
) -> NDArray[np.uint8]:
    """The pixels that go into the tokenizer: gray [row, column], or RGB [row, column, 3] with a photo."""
    spec, render = model.manifest.pictures, model.manifest.render
    fields = model.manifest.fields
    if fields is not None and not fields.beside_pixels:
        raise PictureNotFound(stored.item_id, READS_FIELDS.format(", ".join(fields.names)))
    if part is ImagePart.PHOTO and (spec is None or (picture is None and spec.shows == "photo")):
        raise PictureNotFound(stored.item_id, NO_PICTURE if spec else READS_NONE)
    text = _strips(model, stored.item, part)
    if part is ImagePart.TEXT or spec is None:
        return text
    try:
        photo = encoder_view(stored.item, None if picture is None else picture.data, spec, render)
    except InvalidItem as error:
        raise PictureNotFound(stored.item_id, str(error)) from None
    if photo is None:  # else [size, size, 3]
        return text
    if part is ImagePart.PHOTO or spec.shows == "unit":  # a unit has the text in it
        return photo
    width = max(text.shape[1], photo.shape[1])
    both = np.full((len(text) + len(photo), width, 3), WHITE, np.uint8)
    both[: len(text), : text.shape[1]] = text[..., None]
    both[len(text) :, : photo.shape[1]] = photo
    return both


def _strips(model: Model, item: Item, part: ImagePart) -> NDArray[np.uint8]:
    """The strips of an item's text [row, column], and below them those of its fields if these are drawn."""
    render, vocabulary = model.manifest.render, model.loaded.vocabulary
    if model.manifest.draws_fields and vocabulary is not None and part is not ImagePart.TEXT:
        strips = draw_fields(item, vocabulary, render).strips
    else:
        strips = render_text(item_text(item, render), render).strips
    found: NDArray[np.uint8] = np.concatenate(list(strips))
    return found
