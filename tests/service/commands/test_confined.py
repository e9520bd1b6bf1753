"""The service writes no files, runs no data as code, fetches nothing, and its failures reveal nothing."""

import ast
import os
import shutil
import signal
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import pytest

import service
from model_export.local_service import glyphrec_command
from tests.house import ROOT
from tests.service.processes import command, free_port, wait_until_ready

pytestmark = pytest.mark.slow

SERVICE = Path(service.__file__).parent
# Every file system becomes read-only, and root loses what makes it root, as in docker-compose.yml.
CONFINE = """
set -e
awk '{print $2}' /proc/mounts | while read -r mount; do
  case "$mount" in /proc*|/sys*|/dev*) ;; *) mount -o remount,bind,ro "$mount" 2>/dev/null || true ;; esac
done
if touch "$HOME/written" "$PWD/written" 2>/dev/null; then exit 77; fi
exec setpriv --bounding-set=-all --inh-caps=-all --no-new-privs "$@"
"""
FAILING = """
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
import uvicorn
from service.app import create_app
from service.settings import Settings
app = create_app(Settings(bundle=Path(sys.argv[1]), redis_url=sys.argv[2], threads=1))

@app.get("/open")
async def read_a_file():
    open("/a/secret/path/of-this-machine")

@app.get("/encode")
async def answer_what_is_no_json():
    return {"a secret": float("nan"), "a": object()}

@app.get("/late")
async def fail_while_answering():
    from starlette.responses import StreamingResponse
    def parts():
        yield b"begun"
        raise ValueError("a secret")
    return StreamingResponse(parts())

uvicorn.run(app, port=int(sys.argv[3]), http="httptools", log_level="critical")
"""


@contextmanager
def ending(process):
    """The process ends with the test, even if the test fails."""
    try:
        yield
    finally:
        process.terminate()
        try:
            process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def can_confine() -> bool:
    if not all(map(shutil.which, ("unshare", "setpriv", "mount", "awk"))):
        return False
    tried = subprocess.run(["unshare", "--mount", "true"], capture_output=True)
    return tried.returncode == 0


@pytest.mark.skipif(
    not can_confine(),
    reason="no unshare(1). Run the tests as root, in a container with --privileged",
)
def test_it_serves_from_a_read_only_file_system_without_capabilities(bundle, redis_url, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    port = free_port()
    serve = glyphrec_command("serve", "--bundle", bundle, "--port", port)
    environment = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    environment |= {"HOME": str(home), "PYTHONPATH": str(ROOT), "REDIS_URL": redis_url}
    before = written_under(SERVICE, tmp_path)
    process = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", CONFINE, "sh", *serve],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    url = f"http://127.0.0.1:{port}"
    wait_until_ready(url, process)
    status = dict(line.split(":", 1) for line in Path(f"/proc/{process.pid}/status").read_text().splitlines())
    assert int(status["CapEff"], 16) == int(status["CapBnd"], 16) == 0
    assert httpx.post(f"{url}/items", json={"item_id": "new", "title": "Brand new"}).status_code == 200
    assert httpx.post(f"{url}/recommend", json={"history": ["new"]}).status_code == 200
    assert httpx.get(f"{url}/items/new/image").status_code == 200
    for path in ("/docs", "/metrics", "/info"):
        assert httpx.get(url + path).status_code == 200
    assert writable_files_of(process.pid) == []
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert written_under(SERVICE, tmp_path) == before


def test_with_a_redis_of_its_own_elsewhere_it_writes_no_file(bundle, redis_url, tmp_path):
    """The same without mounting: its folders do not change, and it has no file open for writing."""
    home, scratch = tmp_path / "home", tmp_path / "scratch"
    home.mkdir()
    scratch.mkdir()
    before = written_under(tmp_path)
    port = free_port()
    process = command(
        *("serve", "--bundle", bundle, "--port", port, "--redis-url", redis_url),
        HOME=str(home),
        ORT_DISABLE_TELEMETRY="",  # as if nobody had set it
        TMPDIR=str(scratch),
        PYTHONPYCACHEPREFIX=str(tmp_path / "compiled"),  # Python does not need it
    )
    with ending(process):
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, process)
        assert httpx.post(f"{url}/items", json={"item_id": "new", "title": "Brand new"}).status_code == 200
        assert writable_files_of(process.pid) == []
        assert remote_connections_of(process.pid) == []
    assert {path for path in written_under(tmp_path) - before if "compiled" not in path.parts} == set()


def written_under(*folders: Path) -> set[Path]:
    return {path for folder in folders for path in folder.rglob("*")}


def open_files_of(pid: int) -> dict[str, str]:
    """Number of each file descriptor -> what it is."""
    found = {}
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            found[entry.name] = os.readlink(entry)
    return found


def writable_files_of(pid: int) -> list[str]:
    """Regular files that the process has open for writing."""
    found = []
    for number, target in open_files_of(pid).items():
        if target.startswith("/") and not target.startswith("/dev/"):
            flags = Path(f"/proc/{pid}/fdinfo/{number}").read_text().split("flags:")[1].split()[0]
            if int(flags, 8) & (os.O_WRONLY | os.O_RDWR):
                found.append(target)
    return found


def remote_connections_of(pid: int) -> list[str]:
    """TCP connections of the process to elsewhere than this machine, in the kernel's hexadecimal."""
    own = set(open_files_of(pid).values())
    here = ("00000000:", "0100007F:", "0" * 32 + ":", "0000000000000000FFFF00000100007F:")
    rows = [
        line.split()
        for table in ("tcp", "tcp6")
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]
    ]
    return [row[2] for row in rows if f"socket:[{row[9]}]" in own and not row[2].startswith(here)]


def test_a_failure_inside_a_real_process_shows_neither_paths_nor_traces(bundle, redis_url):
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-c", FAILING, bundle, redis_url, str(port)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with ending(process):
        url = f"http://127.0.0.1:{port}"
        wait_until_ready(url, process)
        for path in ("/open", "/encode"):
            response = httpx.get(url + path)
            assert response.status_code == 500
            problem = response.json()
            assert problem["type"] == "urn:glyphrec:problem:internal"
            assert problem["request_id"] == response.headers["x-request-id"]
            whole = response.text + str(response.headers)
            for told in ("secret", "Traceback", ".py", "Error", "service", "line "):
                assert told not in whole, told
        with pytest.raises(httpx.RemoteProtocolError):  # half an answer is out
            httpx.get(f"{url}/late")
        assert httpx.get(f"{url}/health/ready").status_code == 200


# --- by reading the source ---

TURN_DATA_INTO_CODE = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "yaml",
    "code",
}
FETCH = {
    "urllib.request",
    "http.client",
    "requests",
    "aiohttp",
    "httpx",
    "ftplib",
    "smtplib",
    "glyphrec_client",
}
CALLS = {"eval", "exec", "compile", "__import__", "system", "popen", "allow_pickle", "shell"}


def sources() -> dict[str, ast.AST]:
    """Path below the package -> its syntax tree."""
    return {
        path.relative_to(SERVICE).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
        for path in SERVICE.rglob("*.py")
    }


def imported(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return names


def test_no_module_can_turn_data_into_code():
    assert sources()
    for name, tree in sources().items():
        assert not imported(tree) & TURN_DATA_INTO_CODE, name
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called = node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
                of = getattr(getattr(node.func, "value", None), "id", "")
                assert called not in CALLS or of == "re", name
                assert not {keyword.arg for keyword in node.keywords} & CALLS, name


def test_only_the_client_commands_fetch_and_only_the_finder_of_redis_starts_programs():
    using = {name for name, tree in sources().items() if imported(tree) & FETCH}
    assert using == {
        "commands/asking.py",
        "commands/client.py",
        "commands/health.py",
        "commands/recommend_users.py",
    }
    starting = {
        name for name, tree in sources().items() if imported(tree) & {"subprocess", "multiprocessing"}
    }
    assert starting == {"store/server.py"}
