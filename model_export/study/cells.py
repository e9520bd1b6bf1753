"""A cell of the study is computed once and kept in the repository, so a fresh clone can go on from there.

There is one JSON file per dataset, name and seed. It holds the rank of every user's target and not only
means, because intervals and paired differences need the ranks. The ranks have one byte per user. They are
compressed with zlib and written as base64. Everything else is plain JSON with its keys in a fixed order.
"""

import base64
import binascii
import json
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from service.core.whole_files import write_whole
from service.errors import GlyphrecError

TOP_K = 10
NO_USERS = np.zeros(0, dtype=np.uint8)
NAME = re.compile(r"[\w@.+=-]+")

Ranks = NDArray[np.uint8]  # [user]  rank of the target from 0; TOP_K if it is not among the first TOP_K


class DamagedCell(GlyphrecError):
    """A cell's file cannot be read."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(
            f"{path}: the file is damaged ({reason}). Delete it, and `glyphrec study` computes the cell "
            "again."
        )


@dataclass(frozen=True, eq=False)
class CellResult:
    """The result of one configuration with one seed on one dataset.

    `key` is a hash of data and configuration. A stored cell is used only if its key is the current one.
    `made_with` holds the versions of the stages that computed the cell (pipeline/versions.py). If a version
    has changed since, the study keeps the cell and says so. A cell that ranks nothing, for example a
    robustness cell, has empty ranks. Raises ValueError for a name that cannot be a file name and for
    impossible ranks.
    """

    dataset: str
    name: str  # for example "default", "sasrec", "tiger_text"
    label: str  # the name in words
    groups: tuple[str, ...]  # the tables that show the cell
    seed: int
    key: str
    made_with: Mapping[str, int]  # stage -> version
    ranks_excluded: Ranks = field(default_factory=NO_USERS.copy)  # without the items of the history
    ranks_included: Ranks = field(default_factory=NO_USERS.copy)  # with the items of the history
    code_ranks: Ranks | None = None  # of the target's codes among the beams; for reference only
    figures: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in (self.dataset, self.name):
            if not NAME.fullmatch(name):
                raise ValueError(f"{name!r} cannot name a file. Use only letters, digits and _@.+=-")
        for ranks in (self.ranks_excluded, self.ranks_included, self.code_ranks):
            if ranks is not None and (ranks.dtype != np.uint8 or ranks.ndim != 1 or (ranks > TOP_K).any()):
                raise ValueError(
                    f"ranks must be uint8 [user] and at most {TOP_K}, got {ranks.dtype} {ranks.shape}"
                )
        if len(self.ranks_excluded) != len(self.ranks_included):
            raise ValueError(
                f"ranks_excluded has {len(self.ranks_excluded)} users, and ranks_included has "
                f"{len(self.ranks_included)}. They must have the same users."
            )


def path_of(folder: Path, dataset: str, name: str, seed: int) -> Path:
    """The file of a cell below `folder`."""
    return folder / dataset / f"{name}-{seed}.json"


def save(folder: Path, result: CellResult) -> Path:
    """Write the cell whole or not at all. Returns its path."""
    path = path_of(folder, result.dataset, result.name, result.seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "dataset": result.dataset,
        "name": result.name,
        "label": result.label,
        "groups": list(result.groups),
        "seed": result.seed,
        "key": result.key,
        "made_with": dict(result.made_with),
        "figures": {name: float(value) for name, value in sorted(result.figures.items())},
        "ranks_excluded": _packed(result.ranks_excluded),
        "ranks_included": _packed(result.ranks_included),
        "code_ranks": None if result.code_ranks is None else _packed(result.code_ranks),
    }
    text = json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False)
    write_whole(path, lambda partial: partial.write_text(text + "\n", encoding="utf-8"))
    return path


def load(folder: Path, dataset: str, name: str, seed: int) -> CellResult | None:
    """The stored cell, or None if there is none yet. Raises DamagedCell if its file cannot be read."""
    path = path_of(folder, dataset, name, seed)
    return _read(path) if path.exists() else None


def _read(path: Path) -> CellResult:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        codes = content["code_ranks"]
        result = CellResult(
            dataset=content["dataset"],
            name=content["name"],
            label=content["label"],
            groups=tuple(content["groups"]),
            seed=int(content["seed"]),
            key=content["key"],
            made_with=_versions(content["made_with"]),
            ranks_excluded=_unpacked(content["ranks_excluded"]),
            ranks_included=_unpacked(content["ranks_included"]),
            code_ranks=None if codes is None else _unpacked(codes),
            figures={name: float(value) for name, value in content["figures"].items()},
        )
    except KeyError as error:
        raise DamagedCell(path, f"it lacks {error}") from error
    except (ValueError, TypeError, AttributeError, binascii.Error, zlib.error) as error:
        raise DamagedCell(path, str(error)) from error
    if path != path_of(path.parents[1], result.dataset, result.name, result.seed):
        raise DamagedCell(path, f"it holds {result.dataset}/{result.name}-{result.seed}")
    return result


def _versions(content: Any) -> dict[str, int]:
    if not isinstance(content, dict):
        raise TypeError(f"made_with must map stages to versions, got {content!r}")
    return {str(stage): int(version) for stage, version in content.items()}


def _packed(ranks: Ranks) -> str:
    return base64.b64encode(zlib.compress(ranks.tobytes(), 9)).decode()


def _unpacked(text: Any) -> Ranks:
    return np.frombuffer(zlib.decompress(base64.b64decode(text, validate=True)), dtype=np.uint8)
