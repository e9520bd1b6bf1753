"""Build the image and try it as an operator would: `make image`.

It needs buildah, and root or what buildah needs without it. `--base` names the image to build from. Without
it one is made: a Debian by debootstrap, with this interpreter's own CPython, so that nothing is pulled from a
hub. The container serves a small bundle from a real Redis. The last line is JSON with the size of what we add
to the base, and of its largest parts. Exit status 3: the image cannot be built on this machine.
"""

import argparse
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
from redis import Redis

from model_export.local_service import free_port
from service.store.server import start_server
from tests.house import PROJECT, ROOT
from tests.known_bundle import KNOWN_ITEMS, write_known_bundle

IMAGE, BASE = "localhost/glyphrec-tried", "localhost/glyphrec-base"
UID = 10_001
READY_TIMEOUT_S = 120.0
NOT_TRIED = 3
DEBIAN = "bookworm"


class ImageError(Exception):
    """The image does not do what it must."""


class BaseError(Exception):
    """No base can be made on this machine."""


class Buildah:
    """buildah with the user's store of images, or with one in a folder that ends with it."""

    def __init__(self, folder: Path | None) -> None:
        self._command = ["buildah"]
        if folder is not None:
            self._command += ["--root", str(folder / "store"), "--runroot", str(folder / "run")]
            self._command += ["--storage-driver", "vfs"]  # needs nothing of the kernel
        self._environment = os.environ | {"BUILDAH_ISOLATION": os.environ.get("BUILDAH_ISOLATION", "chroot")}

    def __call__(self, *arguments: object) -> str:
        """Run to the end -> stdout. Raises ImageError with what it said."""
        done = subprocess.run(
            [*self._command, *map(str, arguments)],
            env=self._environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise ImageError(f"buildah {arguments[0]}: {(done.stdout + done.stderr)[-3_000:]}")
        return done.stdout.strip()

    def start(self, *arguments: object) -> subprocess.Popen[str]:
        """Run in the background."""
        return subprocess.Popen(
            [*self._command, *map(str, arguments)],
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


def main() -> None:
    """Build and try. Exits with status 1 and the reason if the image does not do what it must."""
    parser = argparse.ArgumentParser(prog="python -m deploy.image", description=__doc__)
    parser.add_argument("--base", help="image to build from, as buildah names it; default: one that is made")
    parser.add_argument("--version", default="0.0", help="what the image reports as its version")
    args = parser.parse_args()
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM)
    )  # the folder goes, as after an error
    needed = ["buildah", *([] if args.base else ["debootstrap"])]
    if absent := [name for name in needed if shutil.which(name) is None]:
        remedy = f"On Debian: apt install {' '.join(absent)}"
        print(f"The image is not tried: no {' and no '.join(absent)} here. {remedy}")
        sys.exit(NOT_TRIED)
    try:
        with tempfile.TemporaryDirectory(prefix="glyphrec-image-") as folder:
            buildah = Buildah(None if args.base else Path(folder))  # whose base is in the user's store
            print(json.dumps(try_image(buildah, Path(folder), args.base, args.version)))
    except BaseError as error:
        print(f"The image is not tried, because no base can be made here: {error}")
        sys.exit(NOT_TRIED)
    except ImageError as error:
        sys.exit(f"The image does not do what it must: {error}")


def try_image(buildah: Buildah, folder: Path, base: str | None, version: str) -> dict[str, object]:
    """Build the image, make every check, and tell the sizes in MB."""
    started_at = time.perf_counter()
    if base is None:
        say("making a base")
        try:
            base = make_base(buildah, folder)
            check_base(buildah, base)
        except (ImageError, OSError) as error:
            raise BaseError(error) from error
    say("building")
    buildah(
        *("bud", "--format", "docker", "--layers=false", "--build-arg", f"BASE={base}"),
        *("--build-arg", f"VERSION={version}", "--build-arg", "REVISION=tried", "-t", IMAGE, ROOT),
    )
    build_s = time.perf_counter() - started_at
    container = buildah("from", IMAGE)
    sizes = check_content(Path(buildah("mount", container)))
    check_configuration(json.loads(buildah("inspect", "--type", "image", IMAGE)), version)
    check_help(buildah("run", container, "glyphrec", "--help"))
    say("serving")
    check_service(buildah, container, folder)
    return {**sizes, "build_s": round(build_s)}


def check_base(buildah: Buildah, base: str) -> None:
    """Commands must run in the base and reach pip's packages, or no failure below tells of the image."""
    container = buildah("from", base)
    fetch = "python3 -m venv /tmp/tried && /tmp/tried/bin/pip download -q --no-deps -d /tmp/tried idna"
    buildah("run", container, "sh", "-c", fetch)
    buildah("rm", container)


def make_base(buildah: Buildah, folder: Path) -> str:
    """A Debian with this interpreter's CPython, without packages and tests -> the name of the image."""
    root = folder / "debian"
    run("debootstrap", "--variant=minbase", "--include=python3,python3-venv,ca-certificates", DEBIAN, root)
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    target = root / "opt/python"
    unwanted = shutil.ignore_patterns(
        "site-packages", "dist-packages", "test", "idlelib", "__pycache__", "*.a"
    )
    library = Path(sys.base_prefix) / "lib"
    shutil.copytree(library / python, target / "lib" / python, symlinks=True, ignore=unwanted)
    (target / "bin").mkdir()
    shutil.copy2(os.path.realpath(sys.executable), target / "bin" / python)
    (target / "bin/python3").symlink_to(python)
    for each in library.glob(f"lib{python}*.so*"):
        shutil.copy2(each, target / "lib", follow_symlinks=False)
    (root / "etc/ld.so.conf.d/python.conf").write_text("/opt/python/lib\n")
    run("chroot", root, "/sbin/ldconfig")
    for name in (
        "/etc/pip.conf",
        "/etc/ssl/certs/ca-certificates.crt",
    ):  # how this machine reaches its packages
        if Path(name).is_file():
            shutil.copy2(name, root / name[1:])
    container = buildah("from", "scratch")
    buildah("copy", "-q", container, root, "/")
    path = "/opt/python/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    buildah("config", "--env", f"PATH={path}", "--cmd", "sh", container)
    buildah("commit", "-q", container, BASE)
    buildah("rm", container)
    shutil.rmtree(root)
    return BASE


def check_content(root: Path) -> dict[str, object]:
    """What must not be in the image, and the sizes of what is -> MB in all, and of the largest parts."""
    ours = root / "opt/glyphrec"
    (packages,) = ours.glob("lib/python3*/site-packages")
    for name in ("pip", "setuptools", "torch", "model_export", "onnxruntime/transformers"):
        demand(not (packages / name).exists(), f"it holds {name}")
    tests = [str(path.relative_to(packages)) for path in packages.rglob("tests") if path.is_dir()]
    demand(not tests, f"it holds tests: {tests[:3]}")
    parts = {path.name: size_mb(path) for path in packages.iterdir() if path.is_dir()}
    largest = dict(sorted(parts.items(), key=lambda part: -part[1])[:6])
    return {"added_mb": size_mb(ours), "largest_mb": largest, "python": platform.python_version()}


def check_configuration(inspected: dict[str, object], version: str) -> None:
    """The labels, the user and the health check."""
    docker = inspected["Docker"]
    assert isinstance(docker, dict)
    config = docker["config"]
    labels = config["Labels"]
    found = (labels["org.opencontainers.image.version"], labels["org.opencontainers.image.revision"])
    demand(found == (version, "tried"), f"its labels are {labels}")
    demand(labels["org.opencontainers.image.licenses"] == "Apache-2.0", f"its labels are {labels}")
    demand(config["User"] == str(UID), f"its user is {config['User']!r}")
    demand(config["Healthcheck"]["Test"] == ["CMD", "glyphrec", "health"], "it has another health check")


def check_help(shown: str) -> None:
    """The help must not offer what the image cannot do."""
    offered = set(re.findall(r"^    ([a-z][a-z-]*)", shown, flags=re.MULTILINE))
    beyond = offered & PROJECT["entry-points"]["glyphrec.commands"].keys()
    demand("serve" in offered and not beyond, f"its help offers {sorted(beyond)}, which it cannot do")


def check_service(buildah: Buildah, container: str, folder: Path) -> None:
    """Serve a bundle from a real Redis as the image's user: health, readiness, an answer, an item, a stop."""
    bundle = write_known_bundle(folder / "bundle", KNOWN_ITEMS)
    for path in (folder, bundle, *bundle.iterdir()):
        path.chmod(0o755)
    with redis_on_a_port() as redis_url, serving(buildah, container, bundle, redis_url) as url:
        for options in ([], ["--ready"]):
            buildah("run", *variables(url), container, "glyphrec", "health", *options)
        found = httpx.post(f"{url}/recommend", json={"history": ["item-0"]}, timeout=30)
        demand(found.status_code == httpx.codes.OK, f"it answered {found.status_code} {found.text}")
        posted = httpx.post(f"{url}/items", json={"item_id": "new", "title": "Brand new"}, timeout=30)
        demand(posted.status_code == httpx.codes.OK, f"it answered {posted.status_code} {posted.text}")
    bundle.chmod(0o700)
    told = refused(buildah, container, bundle)
    demand(f"uid {UID}" in told and "mode 0700" in told and "Traceback" not in told, f"it said: {told}")


@contextmanager
def redis_on_a_port() -> Iterator[str]:
    """The URL of a server that the container can reach: it shares this machine's network."""
    with start_server() as server, Redis.from_url(server.url) as redis:
        port = free_port()
        redis.config_set("port", port)
        yield f"redis://127.0.0.1:{port}/0"


@contextmanager
def serving(buildah: Buildah, container: str, bundle: Path, redis_url: str) -> Iterator[str]:
    """The container's URL while it serves. Raises ImageError unless it stops with status 0."""
    url = f"http://127.0.0.1:{free_port()}"
    environment = [*variables(url), "--env", f"REDIS_URL={redis_url}"]
    mount = ["--volume", f"{bundle}:/bundle:ro"]
    process = buildah.start("run", *mount, *environment, container, "glyphrec", "serve")
    try:
        wait_until_ready(url, process)
        yield url
    finally:
        os.kill(served_by(process.pid), signal.SIGTERM)  # buildah itself would kill it without a word
        try:
            told, _ = process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            raise ImageError("it does not stop within 30 s") from None
    demand(process.returncode == 0, f"it stopped with status {process.returncode}: {told[-2_000:]}")


def served_by(pid: int) -> int:
    """The process of the service among the descendants of buildah, or buildah itself if there is none."""
    waiting = [pid]
    while waiting:
        each = waiting.pop()
        with suppress(OSError):  # it has ended meanwhile
            if Path(f"/proc/{each}/cmdline").read_bytes().startswith(b"/opt/glyphrec/bin/python"):
                return each
            for children in Path(f"/proc/{each}/task").glob("*/children"):
                waiting += map(int, children.read_text().split())
    return pid


def refused(buildah: Buildah, container: str, bundle: Path) -> str:
    """What the container says that may not read its bundle."""
    nowhere = ("--env", "REDIS_URL=redis://127.0.0.1:1/0", "--env", "GLYPHREC_ALLOW_ANONYMOUS=true")
    arguments = ("run", "--volume", f"{bundle}:/bundle:ro", *nowhere)
    told, _ = buildah.start(*arguments, container, "glyphrec", "serve").communicate(timeout=60)
    return told


def variables(url: str) -> list[str]:
    """The settings of the container, as arguments of buildah."""
    port = url.rpartition(":")[2]
    settings = ("GLYPHREC_HOST=127.0.0.1", f"GLYPHREC_PORT={port}", "GLYPHREC_THREADS=1")
    return [part for each in settings for part in ("--env", each)]


def wait_until_ready(url: str, process: subprocess.Popen[str]) -> None:
    """Raises ImageError if it ends or takes too long."""
    give_up_at = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < give_up_at:
        if process.poll() is not None:
            raise ImageError(
                f"it ended with status {process.returncode}: {process.communicate()[0][-2_000:]}"
            )
        try:
            if httpx.get(f"{url}/health/ready", timeout=5).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise ImageError("it is not ready in time")


def size_mb(folder: Path) -> int:
    """Bytes of its files in MB, links not followed."""
    paths = (path for path in folder.rglob("*") if not path.is_symlink() and path.is_file())
    return round(sum(path.stat().st_size for path in paths) / 1e6)


def run(*command: object) -> None:
    """Raises ImageError with what the command said."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise ImageError(f"{command[0]}: {(done.stdout + done.stderr)[-2_000:]}")


def demand(holds: bool, otherwise: str) -> None:
    """Raises ImageError."""
    if not holds:
        raise ImageError(otherwise)


def say(what: str) -> None:
    """Progress for people; the last line is for machines."""
    print(f"Image: {what}.", flush=True)


if __name__ == "__main__":
    main()
