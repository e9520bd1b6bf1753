"""What `make release` says and refuses; the whole of it needs the network and some minutes."""

import os
import sys
from pathlib import Path

import pytest

from deploy import release
from deploy.release import ROOT, ReleaseError, clean_environment, next_steps, run, version_of

DIST = ROOT / "dist"


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("glyphrec-0.2.0-py3-none-any.whl", "0.2.0"),
        ("glyphrec-0.2.0.tar.gz", "0.2.0"),
        ("glyphrec-0.2.1.dev3+g1a2b3c.d20260101-py3-none-any.whl", "0.2.1.dev3+g1a2b3c.d20260101"),
        ("glyphrec-0.2.1.dev3+g1a2b3c.tar.gz", "0.2.1.dev3+g1a2b3c"),
    ],
)
def test_the_name_of_a_distribution_tells_its_version(name: str, version: str) -> None:
    assert version_of(DIST / name) == version


def test_a_tagged_version_is_followed_by_the_commands_that_publish_it() -> None:
    said = next_steps(DIST / "glyphrec-0.2.0-py3-none-any.whl", DIST / "glyphrec-0.2.0.tar.gz")
    for command in ("git push origin v0.2.0", "twine upload dist/*", "--build-arg VERSION=0.2.0"):
        assert command in said


@pytest.mark.parametrize("version", ["0.2.1.dev3+g1a2b3c", "0.2.0+d20260101"])
def test_a_commit_without_a_tag_is_not_offered_for_upload(version: str) -> None:
    said = next_steps(DIST / f"glyphrec-{version}-py3-none-any.whl", DIST / f"glyphrec-{version}.tar.gz")
    assert "git tag -a" in said
    assert "upload" not in said


def test_a_command_that_fails_stops_the_release_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(ReleaseError, match=r"status 3: no such index"):
        run(sys.executable, "-c", "import sys; print('no such index'); sys.exit(3)", folder=tmp_path)


def test_a_distribution_is_tried_without_the_settings_of_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://ours")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("GLYPHREC_BUNDLE", "ours")
    assert not {"REDIS_URL", "PYTHONPATH", "GLYPHREC_BUNDLE"} & clean_environment().keys()
    shown = run(sys.executable, "-c", "import os; print(os.environ.get('PYTHONPATH'))", folder=tmp_path)
    assert shown == "None\n"


def test_a_service_of_another_version_than_its_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The environment that is tried is this one, whose version is not 99.0."""
    programs = Path(sys.executable).parent
    monkeypatch.setattr(
        release, "clean_environment", lambda: {"PATH": os.environ["PATH"], "HOME": str(tmp_path)}
    )
    with pytest.raises(ReleaseError, match="the service has version"):
        release.serve(programs, tmp_path, "99.0")
