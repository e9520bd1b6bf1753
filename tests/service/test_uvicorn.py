"""The names of uvicorn that it may change without notice, and that the service uses or replaces.

Where one of these tests fails after an upgrade, service/server.py or service/http/connection.py is broken:
compare them with the new uvicorn before you widen the bounds in pyproject.toml.
"""

import inspect
import re
from importlib.metadata import version
from pathlib import Path

import pytest
import uvicorn
from packaging.requirements import Requirement
from uvicorn.protocols.http import httptools_impl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from service.http.connection import BoundedHttp
from service.http.whole_request import WholeRequest
from service.server import GracefulServer
from tests.house import PROJECT, ROOT

REMEDY = "uvicorn {version} has no {name}: see the first lines of this file"
OF_PROTOCOL = {
    "connection_made": ["transport"],
    "connection_lost": ["exc"],
    "data_received": ["data"],
    "send_400_response": ["msg"],
    "on_message_begin": [],
    "on_headers_complete": [],
    "on_body": ["body"],
    "on_message_complete": [],
    "on_response_complete": [],
}
OF_SERVER = {"handle_exit": ["sig", "frame"], "on_tick": ["counter"], "shutdown": ["sockets"]}
ATTRIBUTES_OF_PROTOCOL = {
    *("cycle", "expect_100_continue", "flow", "headers", "loop", "parser", "pipeline", "scope"),
    *("server_state", "transport", "url"),
}
ATTRIBUTES_OF_SERVER = {"_captured_signals", "server_state", "servers", "should_exit", "started"}


def missing(name: str) -> str:
    return REMEDY.format(version=version("uvicorn"), name=name)


def overridden(ours: type, theirs: type) -> set[str]:
    return {name for name in vars(ours) if name in vars(theirs) and not name.startswith("__")}


def assigned(of: type) -> set[str]:
    return set(re.findall(r"\bself\.(\w+)(?:: [^=\n]+)? = ", inspect.getsource(of)))


@pytest.mark.parametrize(("theirs", "names"), [(HttpToolsProtocol, OF_PROTOCOL), (uvicorn.Server, OF_SERVER)])
def test_uvicorn_has_the_methods_that_ours_replace(theirs: type, names: dict[str, list[str]]) -> None:
    for name, parameters in names.items():
        assert hasattr(theirs, name), missing(name)
        assert list(inspect.signature(getattr(theirs, name)).parameters) == ["self", *parameters], missing(
            f"{name}({', '.join(parameters)})"
        )


@pytest.mark.parametrize(
    ("theirs", "names"),
    [(HttpToolsProtocol, ATTRIBUTES_OF_PROTOCOL), (uvicorn.Server, ATTRIBUTES_OF_SERVER)],
)
def test_uvicorn_keeps_its_state_in_the_attributes_that_ours_read(theirs: type, names: set[str]) -> None:
    absent = names - assigned(theirs)
    assert absent == set(), missing(", ".join(sorted(absent)))


def test_uvicorn_has_status_lines_that_ours_send() -> None:
    assert hasattr(httptools_impl, "STATUS_LINE"), missing("STATUS_LINE")
    assert httptools_impl.STATUS_LINE[429].startswith(b"HTTP/1.1 429 ")


def test_a_whole_request_has_all_that_uvicorn_asks_of_the_answer_under_way() -> None:
    asked = set(re.findall(r"\bself\.cycle\.(\w+)", inspect.getsource(HttpToolsProtocol)))
    assert {"response_complete", "keep_alive", "disconnected", "message_event"} <= asked
    assert asked <= set(dir(WholeRequest)), "see service/http/whole_request.py"


def test_uvicorn_starts_the_next_request_of_a_connection_as_ours_does() -> None:
    parameters = inspect.signature(HttpToolsProtocol._start_asgi_task).parameters
    assert list(parameters) == ["self", "cycle", "app"], missing("_start_asgi_task(cycle, app)")
    assert "self._start_asgi_task(cycle, app)" in inspect.getsource(HttpToolsProtocol.on_response_complete)


def test_uvicorn_knows_when_an_answer_is_complete() -> None:
    assert "response_complete" in assigned(httptools_impl.RequestResponseCycle), missing("response_complete")


@pytest.mark.parametrize(
    ("ours", "theirs", "names"),
    [(BoundedHttp, HttpToolsProtocol, OF_PROTOCOL), (GracefulServer, uvicorn.Server, OF_SERVER)],
)
def test_these_lists_are_complete(ours: type, theirs: type, names: dict[str, list[str]]) -> None:
    assert overridden(ours, theirs) == names.keys()
    attributes = ATTRIBUTES_OF_PROTOCOL if ours is BoundedHttp else ATTRIBUTES_OF_SERVER
    theirs_alone = assigned(theirs) - assigned(ours)
    used = set(re.findall(r"\bself\.(\w+)", inspect.getsource(ours))) & theirs_alone
    assert used <= attributes


def test_uvicorn_is_held_below_its_next_minor_release() -> None:
    (wanted,) = [each for each in map(Requirement, PROJECT["dependencies"]) if each.name == "uvicorn"]
    major, minor, *_ = version("uvicorn").split(".")
    assert wanted.specifier.contains(version("uvicorn"))
    assert not wanted.specifier.contains(f"{major}.{int(minor) + 1}.0")


def test_only_these_files_use_names_of_uvicorn_that_are_not_in_its_documentation() -> None:
    deep = {
        str(path.relative_to(ROOT))
        for path in Path(ROOT / "service").rglob("*.py")
        if re.search(r"^\s*(?:from|import) uvicorn", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    }
    assert deep == {"service/server.py", "service/http/connection.py"}
