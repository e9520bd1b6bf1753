"""The cells that a study has stored."""

from pathlib import Path

from model_export.study.cells import CellResult, load


def stored_cells(folder: Path) -> list[CellResult]:
    """All stored cells, sorted by data set, name and seed."""
    found = []
    for path in sorted(folder.glob("*/*.json")):
        name, _, seed = path.stem.rpartition("-")
        result = load(folder, path.parent.name, name, int(seed))
        assert result is not None
        found.append(result)
    return found
