"""What `make image` accepts and refuses; the whole of it needs buildah, the network and some minutes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deploy.image import UID, ImageError, check_configuration, check_content, check_help

HELP = "positional arguments:\n  command\n    serve     serve a bundle\n    fsck      check a catalog\n"


def configuration(**changes: Any) -> dict[str, object]:
    """What `buildah inspect` tells of an image that is right, but for `changes`."""
    labels = {f"org.opencontainers.image.{name}": "tried" for name in ("revision", "title")}
    labels |= {"org.opencontainers.image.version": "1.2", "org.opencontainers.image.licenses": "Apache-2.0"}
    check = {"Test": ["CMD", "glyphrec", "health"]}
    return {"Docker": {"config": {"Labels": labels, "User": str(UID), "Healthcheck": check} | changes}}


def test_an_image_as_it_should_be_passes(tmp_path: Path) -> None:
    packages = tmp_path / "opt/glyphrec/lib/python3.12/site-packages"
    (packages / "numpy").mkdir(parents=True)
    (packages / "numpy/core.so").write_bytes(bytes(3_000_000))
    assert check_content(tmp_path)["largest_mb"] == {"numpy": 3}
    check_configuration(configuration(), "1.2")
    check_help(HELP)


@pytest.mark.parametrize(
    "unwanted", ["pip", "model_export", "torch", "numpy/core/tests", "onnxruntime/transformers"]
)
def test_what_serving_does_not_need_is_not_in_the_image(tmp_path: Path, unwanted: str) -> None:
    (tmp_path / "opt/glyphrec/lib/python3.12/site-packages" / unwanted).mkdir(parents=True)
    with pytest.raises(ImageError, match="it holds"):
        check_content(tmp_path)


@pytest.mark.parametrize(
    "check",
    [
        lambda: check_help(HELP + "    export    train a bundle\n"),
        lambda: check_help(HELP + "    vl-clip   learn a space\n"),
        lambda: check_help("usage: something else"),
        lambda: check_configuration(configuration(User=""), "1.2"),
        lambda: check_configuration(configuration(Healthcheck={"Test": ["NONE"]}), "1.2"),
        lambda: check_configuration(configuration(), "1.3"),
    ],
    ids=[
        "a command without its packages",
        "one with a dash",
        "no commands",
        "root",
        "no health check",
        "another version",
    ],
)
def test_a_promise_that_the_image_breaks_is_told(check: Callable[[], None]) -> None:
    with pytest.raises(ImageError):
        check()
