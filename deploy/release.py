"""Build the distributions of a release and try each as a user would: `make release`.

There are two: glyphrec, and glyphrec-client of clients/python. The sdist comes from the working tree and the
wheel from the sdist. Each is installed into an environment of its own, with the versions of constraints.txt.
glyphrec serves a small bundle from there, and the client asks a service from there. Nothing is tagged or
uploaded.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from model_export.local_service import free_port
from tests.known_bundle import KNOWN_ITEMS, write_known_bundle

ROOT = Path(__file__).parents[1]
CLIENT = ROOT / "clients/python"
DIST = ROOT / "dist"
CONSTRAINTS = ROOT / "constraints.txt"
READY_TIMEOUT_S = 60.0
ASK = "import sys; from glyphrec_client import Client; print(len(Client(sys.argv[1]).recommend([]).items))"
# An environment of a user has none of ours.
FOREIGN = ("GLYPHREC_", "REDIS_", "PYTHON")


class ReleaseError(Exception):
    """A distribution that must not be released."""


def main() -> None:
    """Build, check and try all distributions. Exits with status 1 and the reason if one fails."""
    shutil.rmtree(DIST, ignore_errors=True)
    try:
        wheel, sdist = build(ROOT, "glyphrec")
        of_client = build(CLIENT, "glyphrec_client")
        run(sys.executable, "-m", "twine", "check", "--strict", wheel, sdist, *of_client)
        for distribution in (wheel, sdist):
            try_out(distribution)
        for distribution in of_client:
            try_out_client(distribution, version_of(wheel))
    except (ReleaseError, subprocess.CalledProcessError) as error:
        sys.exit(f"Not fit for a release: {error}")
    print(next_steps(wheel, sdist))


def build(project: Path, name: str) -> tuple[Path, Path]:
    """The wheel and the sdist of the project in a folder, in dist/. `name` is what their files begin with."""
    print(f"Building the sdist of {name}, and the wheel from it.", flush=True)
    environment = os.environ | {"PIP_CONSTRAINT": str(CONSTRAINTS)}
    with tempfile.TemporaryFile() as log:
        command = [sys.executable, "-m", "build", "--outdir", str(DIST), str(project)]
        status = subprocess.run(command, env=environment, stdout=log, stderr=log, check=False).returncode
        log.seek(0)
        if status:
            raise ReleaseError(f"the build ended with status {status}: {log.read().decode()[-2000:]}")
    (wheel,), (sdist,) = DIST.glob(f"{name}-*.whl"), DIST.glob(f"{name}-*.tar.gz")
    return wheel, sdist


def try_out(distribution: Path) -> None:
    """Install `distribution` into an empty environment and run its commands. Raises ReleaseError."""
    print(f"Trying {distribution.name} in an empty environment.", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        venv.create(folder / "venv", with_pip=True)
        programs = folder / "venv/bin"
        install = [programs / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        run(*install, "--constraint", CONSTRAINTS, f"{distribution}[cpu,embedded]")
        shown = run(programs / "glyphrec", "--version", folder=folder)
        version = version_of(distribution)
        if shown != f"glyphrec {version}\n":
            raise ReleaseError(f"`glyphrec --version` says {shown!r}, the file name says {version}")
        offers = run(programs / "glyphrec", "--help", folder=folder)
        for command in ("serve", "import", "recommend", "export", "demo"):
            if not re.search(rf"^ +{command}\b", offers, flags=re.MULTILINE):
                raise ReleaseError(f"`glyphrec --help` does not offer {command}")
        if not (refused := remedy_without_torch(programs, folder)).startswith(
            "glyphrec: `glyphrec export` needs"
        ):
            raise ReleaseError(
                f"`glyphrec export` without torch does not say what to install but {refused!r}"
            )
        serve(programs, folder, version)


def try_out_client(distribution: Path, version: str) -> None:
    """Install the client into an empty environment, and ask a service of this one. Raises ReleaseError."""
    print(f"Trying {distribution.name} in an empty environment.", flush=True)
    if (found := version_of(distribution)) != version:
        raise ReleaseError(f"{distribution.name} has version {found}, and glyphrec has {version}")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        venv.create(folder / "venv", with_pip=True)
        python = folder / "venv/bin/python"
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        run(*install, "--constraint", CONSTRAINTS, distribution)
        with serving(Path(sys.executable).parent, folder) as url:
            if run(python, "-c", ASK, url, folder=folder) != "10\n":
                raise ReleaseError(f"{distribution.name} does not get the ten items of a page")


def remedy_without_torch(programs: Path, folder: Path) -> str:
    """What a command of the offline step says in an environment that has only the serving part."""
    command = [str(programs / "glyphrec"), "export", "--data", "d", "--out", "o"]
    return subprocess.run(
        command, cwd=folder, env=clean_environment(), capture_output=True, text=True, check=False
    ).stderr


def serve(programs: Path, folder: Path, version: str) -> None:
    """Serve a bundle from the environment and ask for a recommendation."""
    with serving(programs, folder) as url, httpx.Client(base_url=url, timeout=10) as client:
        found = client.post("/recommend", json={"history": []}).raise_for_status().json()["items"]
        reported = client.get("/info").raise_for_status().json()["service_version"]
    if not found or reported != version:
        raise ReleaseError(f"the service has version {reported} and recommends {len(found)} items")


@contextmanager
def serving(programs: Path, folder: Path) -> Iterator[str]:
    """The URL of a service from the environment that is ready. Raises ReleaseError."""
    bundle, port = write_known_bundle(folder / "bundle", KNOWN_ITEMS), free_port()
    command = [programs / "glyphrec", "serve", "--bundle", bundle, "--port", port]
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*map(str, command), "--data-dir", str(folder / "redis")],
            cwd=folder,
            env=clean_environment(),
            stdout=output,
            stderr=output,
        )
    try:
        url = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=url, timeout=10) as client:
            until_ready(client, process, log)
        yield url
    finally:
        process.terminate()
        process.wait()


def until_ready(client: httpx.Client, process: subprocess.Popen[bytes], log: Path) -> None:
    """Poll until the service is ready. Raises ReleaseError if the process ends or READY_TIMEOUT_S pass."""
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if client.get("/health/ready").is_success:
                return
        except httpx.TransportError:
            pass  # not listening yet
        time.sleep(0.1)
    raise ReleaseError(f"the service did not get ready: {log.read_text()[-2000:]}")


def next_steps(wheel: Path, sdist: Path) -> str:
    """The commands to run next. They depend on whether the version comes from a tag."""
    version = version_of(wheel)
    made = f"{wheel.relative_to(ROOT)}, {sdist.relative_to(ROOT)} and those of the client are built and work."
    if "dev" in version or "+" in version:
        return (
            f"{made}\n{version} is no release: the commit has no tag of its own, or files are changed.\n"
            "For a release, move the entries of CHANGELOG.md from Unreleased to the version, commit, tag\n"
            "that commit, as in git tag -a v0.2.0 -m 'glyphrec 0.2.0', and run make release again."
        )
    return (
        f"{made}\nNext: git push origin v{version}, then twine upload dist/*, and build the image with\n"
        f"docker build -t glyphrec:{version} --build-arg VERSION={version} ."
    )


def version_of(distribution: Path) -> str:
    """The version in the name of a wheel or an sdist."""
    return distribution.name.removesuffix(".tar.gz").split("-")[1]


def run(*command: object, folder: Path = ROOT) -> str:
    """What a command prints. Raises ReleaseError with its last words where it fails."""
    done = subprocess.run(
        [*map(str, command)], cwd=folder, env=clean_environment(), capture_output=True, text=True, check=False
    )
    if done.returncode:
        shown = " ".join(map(str, command))
        raise ReleaseError(
            f"`{shown}` ended with status {done.returncode}: {(done.stdout + done.stderr)[-2000:]}"
        )
    return done.stdout


def clean_environment() -> dict[str, str]:
    """This process' environment without the variables that change how glyphrec, Redis or Python run."""
    return {name: value for name, value in os.environ.items() if not name.startswith(FOREIGN)}


if __name__ == "__main__":
    main()
