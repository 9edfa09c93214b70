"""The project's own files: what GitHub reads is valid, and says what pyproject.toml says."""

import importlib.util
import json
import tomllib
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import check_jsonschema
import pytest
import yaml
from click.testing import CliRunner, Result
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[1]
GITHUB = ROOT / ".github"
WORKFLOWS = sorted((GITHUB / "workflows").glob("*.yml"))


def project() -> dict[str, Any]:
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return found


def workflow(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((GITHUB / "workflows" / name).read_text(encoding="utf-8"))
    return found


@pytest.fixture(scope="module")
def floors() -> ModuleType:
    spec = importlib.util.spec_from_file_location("floors", ROOT / ".ci" / "floors.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def checked(schema: str, *files: Path) -> Result:
    return CliRunner().invoke(check_jsonschema.main, ["--builtin-schema", schema, *map(str, files)])


@pytest.mark.parametrize(
    ("schema", "files"),
    [
        ("vendor.github-workflows", WORKFLOWS),
        ("vendor.dependabot", [GITHUB / "dependabot.yml"]),
        ("vendor.github-issue-forms", [GITHUB / "ISSUE_TEMPLATE" / f"{name}.yml" for name in ("bug", "wish")]),
        ("vendor.github-issue-config", [GITHUB / "ISSUE_TEMPLATE" / "config.yml"]),
    ],
)
def test_what_github_reads_is_valid(schema: str, files: list[Path]) -> None:
    assert files
    done = checked(schema, *files)
    assert done.exit_code == 0, done.output


def test_a_workflow_that_is_wrong_is_found(tmp_path: Path) -> None:
    (tmp_path / "wrong.yml").write_text("on: push\njobs: {one: {steps: [{run: true}]}}\n")
    assert checked("vendor.github-workflows", tmp_path / "wrong.yml").exit_code == 1


def test_every_python_that_is_named_is_tried() -> None:
    named = [each.rsplit(" ", 1)[1] for each in project()["classifiers"] if "Python :: 3." in each]
    assert workflow("ci.yml")["jobs"]["everything"]["strategy"]["matrix"]["python"] == named
    lowest = workflow("ci.yml")["jobs"]["dependencies"]["strategy"]["matrix"]["include"][0]
    assert (lowest["versions"], lowest["python"]) == ("lowest", named[0])
    assert project()["requires-python"] == f">={named[0]}"


def test_what_the_workflows_run_is_there() -> None:
    said = "\n".join(path.read_text(encoding="utf-8") for path in WORKFLOWS)
    tests = {
        word.removeprefix("--ignore=").partition("::")[0]
        for word in said.split()
        if word.removeprefix("--ignore=").startswith("tests/")
    }
    assert len(tests) > 5
    assert [each for each in [*tests, ".ci/run", ".ci/floors.py"] if not (ROOT / each).exists()] == []


def test_every_dependency_has_a_floor_that_this_environment_keeps(floors: ModuleType) -> None:
    extras = project()["optional-dependencies"].values()
    wanted = [*project()["dependencies"], *(each for extra in extras for each in extra)]
    for each in floors.floors(wanted):
        requirement = Requirement(each)
        assert len(requirement.specifier) == 1
        [floor] = requirement.specifier
        try:
            installed = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            continue  # of an extra that is not here, or for another platform
        assert Version(installed) >= Version(floor.version), each


@pytest.mark.parametrize("wrong", ["pika", "pika<2", "pika~=1.4", "pika>=1.4,<2"])
def test_a_dependency_without_a_floor_is_refused(floors: ModuleType, wrong: str) -> None:
    with pytest.raises(ValueError, match="pika"):
        list(floors.floors([wrong]))


def test_the_devcontainer_is_json() -> None:
    described = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    assert {"image", "postCreateCommand", "forwardPorts"} <= set(described)


def test_every_hook_runs_a_tool_of_the_development_extra() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"][0]["hooks"]
    named = {Requirement(each).name for extra in ("test", "dev") for each in project()["optional-dependencies"][extra]}
    tools = {Path(hook["entry"].split()[0]).name for hook in hooks}
    assert tools == {"ruff", "mypy", "pytest"}
    assert tools <= named
