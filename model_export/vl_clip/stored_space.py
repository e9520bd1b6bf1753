"""Our joint space in one file: `glyphrec vl-clip` learns it, and an export can put it into a bundle."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from model_export.encoders.compact import reader as compact
from model_export.encoders.compact.letter_grams import LetterGrams, symbols_of
from model_export.picture_configs import SpaceConfig
from model_export.vl_clip.joint_space import JointSpace, Projection, Projections
from model_export.vl_clip.photo_reader import PhotoReader
from model_export.vl_clip.versions import of_space
from service.core.bundle import RenderSpec
from service.core.whole_files import write_whole
from service.errors import GlyphrecError

SPACE = "space.pt"
AGAIN = "Learn it again with `glyphrec vl-clip`."


def save_space(space: JointSpace, folder: Path) -> None:
    """Write the space to `folder`."""
    pooling, projections = space.pooling, space.projections
    content = {
        "versions": of_space(space.config),
        "config": asdict(space.config),
        "render": space.render.model_dump_json(),
        "lengths": pooling.lengths,
        "row_of": pooling.row_of,
        "idf": pooling.idf,
        "basis": pooling.basis,
        "text": projections.text.state_dict(),
        "photo": projections.photo.state_dict(),
        "curve": projections.curve,
    }
    write_whole(folder / SPACE, lambda partial: torch.save(content, partial))


def space_file(folder: str) -> Path:
    """The file of the space in a folder. Raises GlyphrecError if there is none."""
    path = Path(folder) / SPACE
    if not path.is_file():
        raise GlyphrecError(
            f"{path}: there is no learned space. Give a folder that `glyphrec vl-clip --out` wrote without "
            "--clip, as a bundle cannot hold CLIP's tokenizer of texts."
        )
    return path


def load_space(folder: str) -> JointSpace:
    """The space that `save_space` wrote. Raises GlyphrecError if this release cannot use it."""
    path = space_file(folder)
    try:
        content: dict[str, Any] = torch.load(path, weights_only=True)
        config, versions = SpaceConfig(**content["config"]), content["versions"]
        if versions != of_space(config):
            raise GlyphrecError(f"{path}: was learned by another release. {AGAIN}")
        return _space_of(content, config)
    except GlyphrecError:
        raise
    except Exception as error:  # torch, zipfile and pickle have no common base
        raise GlyphrecError(f"{path}: is no learned space ({type(error).__name__}). {AGAIN}") from error


def _space_of(content: dict[str, Any], config: SpaceConfig) -> JointSpace:
    pooling = LetterGrams(
        classifier=compact.load_weights(compact.weights_file()).letters,
        symbol_of=symbols_of(compact.ALPHABET),
        row_of=content["row_of"].numpy(),
        idf=content["idf"].numpy(),
        basis=content["basis"].numpy(),
        lengths=tuple(content["lengths"]),
    )
    text, photo = (Projection(dim, config).eval() for dim in (pooling.feature_dim, PhotoReader.feature_dim))
    text.load_state_dict(content["text"])
    photo.load_state_dict(content["photo"])
    render = RenderSpec.model_validate_json(content["render"])
    return JointSpace(Projections(text, photo, tuple(content["curve"])), pooling, config, render)
