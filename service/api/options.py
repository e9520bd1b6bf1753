"""The settings that the routes need."""

from dataclasses import dataclass

from service.core.filters import DeclaredFields


@dataclass(frozen=True)
class ApiOptions:
    """Each field is the setting of the same name, see service/settings.py."""

    catalog: str
    filter_fields: DeclaredFields
    num_beams: int
    max_items_per_request: int
    max_item_chars: int
    max_body_bytes: int
    max_picture_bytes: int
    max_picture_pixels: int
