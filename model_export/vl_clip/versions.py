"""The versions of VL-CLIP's steps, as in model_export/pipeline/versions.py."""

from model_export.encoders.compact import reader as compact
from model_export.picture_configs import SpaceConfig
from model_export.pipeline.versions import Versions
from model_export.vl_clip import (
    class_maps,
    clip_space,
    detector,
    joint_space,
    linear_space,
    photo_reader,
    regions,
)
from model_export.vl_clip.configs import ClipConfig, GroundingConfig
from service.core import pictures, render


def of_space(config: SpaceConfig | ClipConfig) -> Versions:
    """The versions from pairs to a learned space."""
    if isinstance(config, ClipConfig):
        return {"pictures": pictures.VERSION, "clip_space": clip_space.VERSION}
    return {
        "drawing": render.VERSION,
        "compact": compact.VERSION,
        "pictures": pictures.VERSION,
        "photo_reader": photo_reader.VERSION,
        "linear_space": linear_space.VERSION,
        "joint_space": joint_space.VERSION,
    }


def of_grounding(config: GroundingConfig) -> Versions:
    """The versions from photos to boxes, without those of the space."""
    match config.way:
        case "classes":
            return {"class_maps": class_maps.VERSION, "photo_reader": photo_reader.VERSION}
        case "regions":
            return {"regions": regions.VERSION}
        case "detector":
            return {"detector": detector.VERSION}
        case _:
            return {}
