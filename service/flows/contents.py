"""What is read of an item: its text, and the picture that is kept for it or comes with the request.

check -> decode -> compare with what is kept. The result says what will be stored, and from which content.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from service.core.bundle import Manifest
from service.core.filters import DeclaredFields, UnusedValue
from service.core.image_field import (
    FIELD,
    ImageWish,
    PictureReference,
    notes_on,
    split_image,
    with_reference,
)
from service.core.item_fields import Vocabulary, source_of
from service.core.items import Item, check_item
from service.core.pictures import KeptPicture
from service.core.render import content_hash, item_text
from service.errors import InvalidItem, ServiceError
from service.flows.pictures import PictureReader
from service.store.picture_records import PictureChange
from service.store.records import HeldWithPicture, ItemRecord

UNKNOWN_VALUE = "has a new value for the tokenizer's {}, which is read as absent; a later bundle may know it"


@dataclass(frozen=True)
class CheckedItem:
    """An item that passed its checks. Which picture it will have is not decided yet."""

    fields: Item  # without a picture
    text: str
    wish: ImageWish
    unused: Sequence[UnusedValue]
    kept: KeptPicture | None = None  # of a picture that came with the request

    @property
    def item_id(self) -> str:
        """The id of the item."""
        item_id: str = self.fields["item_id"]
        return item_id


class Content(NamedTuple):
    """An item as it will be stored, and the picture that is to be read with it."""

    record: ItemRecord
    text: str
    picture: PictureReference | None
    data: bytes | None  # of the picture; None if there is none, or if the store has it
    unused: Sequence[UnusedValue]
    is_known: bool  # whether this tokenizer has read just this content


class ContentReader:
    """Decides the content of items for one bundle."""

    def __init__(
        self,
        manifest: Manifest,
        pictures: PictureReader,
        *,
        filter_fields: DeclaredFields,
        max_item_chars: int,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        """`vocabulary`: of a tokenizer that reads fields by their values."""
        self._render = manifest.render
        self._reads_pictures = manifest.pictures is not None
        self._pictures = pictures
        self._filter_fields = filter_fields
        self._max_item_chars = max_item_chars
        self._vocabulary = vocabulary

    def check(self, item: object) -> CheckedItem | ServiceError:
        """Check one item. Needs no event loop. A picture is decoded later."""
        try:
            raw, wish = split_image(item) if isinstance(item, dict) else (item, ImageWish("leave"))
            fields = check_item(raw, self._max_item_chars)
        except ServiceError as error:
            return error
        unused = [*self._filter_fields.unused_in(fields), *self._unknown_in(fields)]
        return CheckedItem(fields, item_text(fields, self._render), wish, unused)

    def _unknown_in(self, item: Item) -> list[UnusedValue]:
        names = () if self._vocabulary is None else self._vocabulary.unknown_in(item)
        return [UnusedValue(source_of(name), UNKNOWN_VALUE.format(name)) for name in names]

    async def decode(self, checked: CheckedItem) -> CheckedItem | ServiceError:
        """The item with the canonical form of the picture that came with it, if one did."""
        if checked.wish.kind != "replace" or checked.kept is not None:
            return checked
        try:
            kept = await self._pictures.keep(checked.wish.data)
        except InvalidItem as error:
            return error
        wish = checked.wish._replace(data=b"")  # the bytes as they came are not needed again
        return replace(checked, wish=wish, kept=kept)

    def content(self, checked: CheckedItem, present: HeldWithPicture) -> Content | ServiceError:
        """What to store, given what is there. Stored as it says, or not at all if that has changed."""
        try:
            picture, change = _picture_after(checked, present.picture)
        except InvalidItem as error:
            return error
        if not checked.text and not (picture and self._reads_pictures):
            or_photo = " or a picture" if self._reads_pictures else ""
            return InvalidItem("item", f"has no text to read. Give it a title{or_photo}")
        item = with_reference(checked.fields, picture)
        found = content_hash(checked.text, picture.sha256 if picture else None)
        is_same_picture = checked.kept is None or picture == present.picture
        is_read = present.held is not None and present.held.content_hash == found
        notes = notes_on(checked.wish, picture, reads_pictures=self._reads_pictures)
        return Content(
            ItemRecord(checked.item_id, found, item, change),
            checked.text,
            picture,
            None if checked.kept is None else checked.kept.data,
            [*checked.unused, *notes],
            is_read and is_same_picture,
        )


def _picture_after(
    checked: CheckedItem, present: PictureReference | None
) -> tuple[PictureReference | None, PictureChange]:
    """The picture that the item will have, and the change that leads to it. Raises InvalidItem."""
    wish, kept = checked.wish, checked.kept
    if kept is not None:
        return PictureReference(kept.sha256, kept.width, kept.height), PictureChange.set(kept)
    if wish.kind == "remove":
        return None, PictureChange.drop()
    if wish.kind == "same" and (present is None or present.sha256 != wish.sha256):
        has = f"the picture {present.sha256}" if present else "no picture"
        raise InvalidItem(
            FIELD,
            f"names the picture {wish.sha256}, but {has} is kept for the item. Leave the field out, or send "
            "the picture itself",
        )
    return present, PictureChange.none_but(present)
