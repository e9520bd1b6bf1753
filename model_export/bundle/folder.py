"""The folder of a bundle: reserved for one export, written under another name, sealed, then renamed.

So a bundle is whole or absent, and all its files come from one run.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from model_export.files import check_folder
from service.core.bundle import MANIFEST, Bundle, FileRecord, load_bundle, sha256_of
from service.errors import GlyphrecError

PARTIAL = ".partial-"


@contextmanager
def reserved(out: Path) -> Iterator[None]:
    """Let no other export write to `out` meanwhile. Raises GlyphrecError if another one does."""
    check_folder(out.parent, "--out")
    lock = FileLock(_beside(out, ".lock-"))
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise GlyphrecError(f"{out}: another export writes it. Wait for it, or give another --out.") from None
    try:
        partial = _beside(out, PARTIAL)
        for each in partial.parent.iterdir():
            if re.fullmatch(rf"{re.escape(partial.name)}-\d+-[0-9a-f]{{8}}", each.name):
                shutil.rmtree(each, ignore_errors=True)  # of an export that was killed
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def partial_folder(out: Path) -> Path:
    """The name of a new folder beside `out`, in which this process writes its bundle."""
    partial = _beside(out, PARTIAL)
    return partial.with_name(f"{partial.name}-{os.getpid()}-{os.urandom(4).hex()}")


def kept_bundle(out: Path, key: str) -> Bundle | None:
    """The bundle in `out` if it has the key `key`, or None if `out` does not exist or is an empty folder.

    Raises GlyphrecError if `out` holds anything else.
    """
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return None
    if not (out / MANIFEST).is_file():
        raise GlyphrecError(f"{out}: exists and is not a bundle. Give another --out, or delete it.")
    bundle = load_bundle(out)
    if bundle.manifest.export_key != key:
        raise GlyphrecError(
            f"{out}: holds another bundle (configuration {bundle.manifest.config}, data "
            f"{bundle.manifest.data_name}), and a bundle is never changed. Give another --out, or delete it."
        )
    return bundle


def seal(bundle: Bundle, figures: dict[str, float], written: dict[str, FileRecord]) -> None:
    """Write the manifest as the last file. A folder without a manifest is not a bundle.

    `written`: the graphs and the items as they were when they were checked. Raises GlyphrecError if one of
    them has changed since.
    """
    files = files_of(bundle.path)
    changed = [name for name, record in written.items() if files.get(name) != record]
    if changed:
        raise GlyphrecError(
            f"{bundle.path}: another program has changed {', '.join(changed)} while the export ran. Export "
            "again."
        )
    manifest = bundle.manifest.model_copy(
        update={"files": files, "metrics": bundle.manifest.metrics | figures}
    )
    bundle.file(MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")


def files_of(folder: Path) -> dict[str, FileRecord]:
    """Hash and size of each file, by its name in the folder."""
    return {
        str(path.relative_to(folder)): FileRecord(sha256=sha256_of(path), num_bytes=path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _beside(out: Path, prefix: str) -> Path:
    absolute = Path(os.path.abspath(out))  # "." has no name
    return absolute.with_name(prefix + absolute.name)
