"""The version of each stage that a configuration runs. It is a part of the keys of stages, bundles and study
cells.

A version is the number VERSION in the stage's own module. It is raised when the same input gives another
output, and only then. A test pins a known output to each number (tests/model_export/pin.py). A module that
only helps a stage has no number. The pinned output depends on it, so the test notices its changes too.
"""

from model_export.configs import (
    AnyQuantizerConfig,
    FamaeConfig,
    FamaePicturesConfig,
    HashedTreeConfig,
    MiniLmConfig,
    RunConfig,
    SasRecConfig,
    TigerConfig,
    TreeConfig,
)
from model_export.encoders import choose as choose_encoder
from model_export.encoders import famae, fusion, head, minilm
from model_export.encoders.images.choose import image_encoder_version
from model_export.generators import hashed_history, sasrec, tiger, training, tree
from model_export.picture_configs import CardConfig, PicturesConfig
from model_export.pipeline import counts, neighbors, opinions
from model_export.quantizers import choose as choose_quantizer
from model_export.quantizers import collisions
from service.core import item_fields, pictures, render, unit

Versions = dict[str, int]  # stage -> version

GENERATORS = {
    TreeConfig: {"tree": tree.VERSION},
    HashedTreeConfig: {"tree": tree.VERSION, "hashed_history": hashed_history.VERSION},
    TigerConfig: {"tiger": tiger.VERSION},
    SasRecConfig: {"sasrec": sasrec.VERSION},
}


def versions_of(config: RunConfig) -> Versions:
    """The versions of all stages from the items to a trained generator."""
    if isinstance(config.generator, SasRecConfig):
        return of_generator(config.generator)
    weighing = {} if config.opinions is None else {"counts": counts.VERSION, "opinions": opinions.VERSION}
    return of_codes(config) | of_generator(config.generator) | weighing


def of_reading(config: RunConfig) -> Versions:
    """The versions from items to features. A text encoder reads the line of text that would be drawn."""
    if isinstance(config.encoder, FamaeConfig):
        found = {"fields": item_fields.VERSION, "famae": famae.VERSION}
        if isinstance(config.encoder, FamaePicturesConfig):
            found |= {"drawing": render.VERSION} | choose_encoder.encoder_version(config.encoder.reader)
        return found
    if isinstance(config.encoder, MiniLmConfig):
        return {"drawing": render.VERSION, "minilm": minilm.VERSION}
    return {"drawing": render.VERSION} | choose_encoder.encoder_version(config.encoder)


def of_photos(config: PicturesConfig) -> Versions:
    """The versions from photos to their features."""
    found = {"pictures": pictures.VERSION} | image_encoder_version(config)
    if isinstance(config, CardConfig):
        found |= {"unit": unit.VERSION}
        if config.neighbors == "collaborative":
            found |= {"neighbors": neighbors.VERSION} | of_generator(SasRecConfig())
    return found


def of_vectors(config: RunConfig) -> Versions:
    """The versions from items to the head's vectors."""
    found = of_reading(config)
    if not isinstance(config.encoder, FamaeConfig):  # it has no head
        found |= {"head": head.VERSION}
    if config.pictures is not None:
        found |= of_photos(config.pictures) | {"fusion": fusion.VERSION}
    return found


def of_codes(config: RunConfig) -> Versions:
    """The versions from items to codes, with the treatment of collisions."""
    found = of_vectors(config) | of_quantizer(config.quantizer) | {"collisions": collisions.VERSION}
    if choose_quantizer.learns_from_purchases(config.quantizer):  # it learns from SASRec's vectors
        found |= of_generator(SasRecConfig())
    return found


def of_quantizer(config: AnyQuantizerConfig) -> Versions:
    """The version of the quantizer."""
    return choose_quantizer.versions_of_quantizer(config)


def of_generator(config: TreeConfig | TigerConfig | SasRecConfig) -> Versions:
    """The versions of the generator and of the training loop."""
    return GENERATORS[type(config)] | {"training": training.VERSION}
