"""Where the repository is, what its pyproject.toml declares, and the texts in it."""

import subprocess
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = (ROOT, ROOT / "clients/python")  # where the packages of this tree are imported from
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT = PYPROJECT["project"]


def repository_files() -> list[Path]:
    """What is in the repository or about to be; the fallback is for a copy without its .git."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if listed.returncode == 0:
        paths = [ROOT / name for name in listed.stdout.split("\0") if name]
    else:
        tops = [top for top in ROOT.iterdir() if not top.name.startswith(".") or top.name == ".ci"]
        paths = [path for top in tops for path in ([top] if top.is_file() else top.rglob("*"))]
    return sorted(path for path in paths if path.is_file() and "__pycache__" not in path.parts)


def texts() -> dict[str, str]:
    found = {}
    for path in repository_files():
        try:
            found[str(path.relative_to(ROOT))] = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # fonts, pictures
    return found
