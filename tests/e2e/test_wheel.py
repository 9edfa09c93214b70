"""What is built is what works: the wheel alone, outside the checkout, with nothing but its dependencies."""

import ast
import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email import message_from_bytes
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = "Scripts" if sys.platform == "win32" else "bin"


def build(kind: str, source: Path, output: Path) -> Path:
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", f"--{kind}", "--outdir", str(output), str(source)],
        check=True,
        capture_output=True,
        timeout=120,
    )
    return next(output.iterdir())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", ROOT, tmp_path_factory.mktemp("sdist"))


def content(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}


def sources(folder: str, *patterns: str) -> dict[str, bytes]:
    """The files of the checkout below this folder, by their path below it."""
    found = [path for pattern in patterns for path in (ROOT / folder).rglob(pattern) if path.is_file()]
    return {path.relative_to(ROOT / folder).as_posix(): path.read_bytes() for path in found}


def test_the_wheel_holds_the_package_its_types_its_protos_and_its_seed_data(wheel: Path) -> None:
    packed = content(wheel)
    expected = {f"ordersys/{name}": data for name, data in sources("ordersys", "*.py", "*.pyi", "py.typed").items()}
    expected |= {f"ordersys/api/static/{name}": data for name, data in sources("ordersys/api/static", "*").items()}
    expected |= {f"ordersys/protos/{name}": data for name, data in sources("protos", "*.proto").items()}
    expected |= {f"ordersys/seed_data/{name}": data for name, data in sources("data", "*.json").items()}
    assert {name: packed.get(name) for name in expected} == expected
    for name in (
        "py.typed",
        "core/v1/order_pb2_grpc.pyi",
        "order/migrations/0001_initial.py",
        "seed_data/products.json",
        "api/static/dashboard.html",
    ):
        assert f"ordersys/{name}" in packed


def test_the_wheel_holds_nothing_else(wheel: Path) -> None:
    places = {name.split("/", 1)[0] for name in content(wheel)}
    assert {place for place in places if not place.endswith(".dist-info")} == {"ordersys"}
    assert not [name for name in content(wheel) if "__pycache__" in name or "tests/" in name]


def test_the_wheel_is_for_every_platform_and_carries_its_license(wheel: Path) -> None:
    assert wheel.name.endswith("-py3-none-any.whl")
    assert any(name.endswith("licenses/LICENSE") for name in content(wheel))


def test_the_sdist_builds_the_same_wheel(wheel: Path, sdist: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    tree = next(tmp_path.iterdir())
    again = build("wheel", tree, tmp_path / "again")
    assert again.name == wheel.name
    assert content(again) == content(wheel)


def test_the_sdist_holds_what_it_takes_to_test_it(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tests = {f"tests/{name}" for name in sources("tests", "*.py", "*.js", "*.json") if "node_modules" not in name}
    assert tests | {"pyproject.toml", "README.md", "LICENSE", "CHANGELOG.md", "protos/generate.py"} <= names
    assert not [name for name in names if "node_modules" in name or "__pycache__" in name]


def test_every_module_that_is_imported_comes_with_a_declared_dependency(wheel: Path) -> None:
    """The environment below borrows all that is installed here, so it would not miss one."""
    declared = _closure(wheel)
    by_module = metadata.packages_distributions()
    imported = set()
    for name, source in content(wheel).items():
        if name.endswith(".py") and not name.startswith("ordersys/protos/"):
            for node in ast.walk(ast.parse(source)):
                modules = [each.name for each in node.names] if isinstance(node, ast.Import) else []
                modules += [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []
                imported |= {module.partition(".")[0] for module in modules}
    foreign = imported - set(sys.stdlib_module_names) - {"ordersys"}
    assert {"grpc", "pika", "flask", "sqlalchemy"} <= foreign
    undeclared = {
        module: by_module.get(module)
        for module in foreign
        if not {canonicalize_name(each) for each in by_module.get(module, ())} & declared
    }
    assert not undeclared


def _closure(wheel: Path) -> set[str]:
    """Its dependencies without extras, and theirs."""
    described = next(data for name, data in content(wheel).items() if name.endswith(".dist-info/METADATA"))
    waiting = message_from_bytes(described).get_all("Requires-Dist", [])
    seen: set[str] = set()
    while waiting:
        requirement = Requirement(waiting.pop())
        name = canonicalize_name(requirement.name)
        wanted = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if wanted and name not in seen:
            seen.add(name)
            waiting += metadata.requires(name) or []
    return seen


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh environment with the wheel; its dependencies are borrowed from the environment of this run."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True, timeout=60)
    python = folder / SCRIPTS / "python"
    # Installed before it can see the ordersys of this run, which would satisfy pip.
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--disable-pip-version-check", str(wheel)], check=True, capture_output=True, timeout=60)
    # A .pth adds a folder behind the environment's own, and the .pth files in it (an editable install) are not read.
    paths = sysconfig.get_paths()
    own = sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)})
    Path(own, "borrowed.pth").write_text(f"{paths['purelib']}\n{paths['platlib']}\n", encoding="utf-8")
    return folder


def run(installed: Path, folder: Path, *command: str) -> str:
    """What a command of that environment prints, started in a folder that has nothing to do with the checkout."""
    environment = {"PATH": os.environ["PATH"], "HOME": str(folder), "ORDERSYS_HOME": str(folder / "home")}
    done = subprocess.run(
        [str(installed / SCRIPTS / command[0]), *command[1:]],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_installed_package_is_the_one_of_the_wheel(installed: Path, tmp_path: Path) -> None:
    where = run(installed, tmp_path, "python", "-c", "import ordersys; print(ordersys.__file__)")
    assert Path(where.strip()).is_relative_to(installed)


def test_the_installed_command_says_its_version(installed: Path, tmp_path: Path) -> None:
    assert run(installed, tmp_path, "ordersys", "--version") == f"ordersys {metadata.version('ordersys')}\n"
    assert run(installed, tmp_path, "python", "-m", "ordersys", "--version").startswith("ordersys ")


def test_the_installed_command_finds_its_own_seed_data(installed: Path, tmp_path: Path) -> None:
    settings = json.loads(run(installed, tmp_path, "ordersys", "config", "--json"))
    assert Path(settings["ORDERSYS_DATA"]).is_relative_to(installed)
    assert Path(settings["ORDERSYS_DATA"], "products.json").is_file()


def test_the_installed_command_shows_the_whole_story(installed: Path, tmp_path: Path) -> None:
    run(installed, tmp_path, "ordersys", "demo")
