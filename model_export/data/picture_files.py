"""The pictures that items name in their field `image`: files in the folder of the items.

Nothing is fetched and nothing is decoded here. A file is known by its first bytes, not by its name. A picture
that cannot be used is left out and counted, with the place of the first one. A picture that is found leaves
the item's fields, as a path is no text and says nothing outside its folder.
"""

import os
import re
import shutil
import stat
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

from model_export.data.dataset import DataError, Dataset, Item
from service.core.json_lines import shown
from service.core.limits import MAX_PICTURE_BYTES
from service.core.pictures import format_of
from service.core.whole_files import write_whole

FIELD = "image"
FOLDER = "images"  # of a written dataset
MISSING = "pictures that are missing"
UNREADABLE = "pictures that cannot be read"
NO_PICTURE = "pictures that are neither JPEG, PNG nor WebP"
TOO_LARGE = "pictures that are too large"
ADDRESS = "pictures that are addresses, which nobody fetches"
NO_PATH = "pictures that are no path"

HEAD_BYTES = 12
SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp"}
ADDRESS_FORM = re.compile(r"\s*(?:[A-Za-z][A-Za-z0-9+.-]*://|data:|//)")


class PictureFiles:
    """Finds the pictures of one folder's items and counts those that cannot be used."""

    def __init__(self, folder: Path, *, paths_only: bool = True) -> None:
        """`paths_only`: an `image` that is not a string is an error; else it is left out and counted."""
        self._folder = os.path.realpath(folder)
        self._paths_only = paths_only
        self._count: Counter[str] = Counter()
        self._first: dict[str, str] = {}

    def take(self, item: Item, place: str, wrong: Callable[[str], DataError]) -> Path | None:
        """Take the field `image` out of `item` -> its file, or None if there is none that can be used.

        An address stays in the item as an ordinary field. `place` tells people where the item is, and `wrong`
        makes the error for a problem of the item. Raises it if `image` is not a path inside the folder.
        """
        value = item.get(FIELD)
        if value is None or value == "":
            return None
        problem, path = self._found(value, wrong)
        if problem != ADDRESS:
            del item[FIELD]
        if problem is not None:
            self._count[problem] += 1
            self._first.setdefault(problem, f"{shown(value)} in {place}")
        return path

    @property
    def exclusions(self) -> dict[str, int]:
        """What was left out, in words with the place of the first -> how often."""
        return {f"{what} (first: {self._first[what]})": count for what, count in self._count.items()}

    def _found(self, value: object, wrong: Callable[[str], DataError]) -> tuple[str | None, Path | None]:
        """Why there is no picture, or the picture's file."""
        if not isinstance(value, str):
            if self._paths_only:
                raise wrong(
                    f"{FIELD!r} is {shown(value)}, which is not a string. Write the path of a JPEG, PNG or "
                    f"WebP file in the folder, or leave {FIELD!r} out."
                )
            return NO_PATH, None
        if ADDRESS_FORM.match(value):
            return ADDRESS, None
        try:
            path = os.path.realpath(os.path.join(self._folder, value))
        except ValueError:  # a null character
            raise wrong(f"{FIELD!r} is {shown(value)}, which is no path. Correct it.") from None
        if os.path.isabs(value) or os.path.commonpath((path, self._folder)) != self._folder:
            raise wrong(
                f"{FIELD!r} is {shown(value)}, which leads outside {self._folder}. Copy the file into that "
                "folder and write its path from there."
            )
        problem = _problem(path)
        return problem, None if problem else Path(path)


def copy_pictures(dataset: Dataset, folder: Path) -> dict[int, str]:
    """Copy the dataset's pictures into `folder`/images -> item: path from `folder`.

    A file is named by its content, so items with the same picture share it, and the same pictures have the
    same names. A file that is there already is kept. Raises DataError if a picture cannot be read any more,
    and OSError if one cannot be written.
    """
    names = {}
    for item, path in dataset.images.items():
        digest = dataset.image_hashes[item]
        names[item] = f"{FOLDER}/{digest[:2]}/{digest}{_suffix(path)}"
        target = folder / names[item]
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            write_whole(target, partial(shutil.copyfile, path))
    return names


def _problem(path: str) -> str | None:
    """Why a file is no picture for us, by its kind, its size and its first bytes. None if it is one."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):  # a pipe would never end
            return UNREADABLE
        if status.st_size > MAX_PICTURE_BYTES:
            return TOO_LARGE
        with open(path, "rb", buffering=0) as file:
            return None if format_of(file.read(HEAD_BYTES)) else NO_PICTURE
    except (FileNotFoundError, NotADirectoryError):
        return MISSING
    except OSError:
        return UNREADABLE


def _suffix(path: Path) -> str:
    with path.open("rb", buffering=0) as file:
        return SUFFIXES.get(format_of(file.read(HEAD_BYTES)) or "", "")
