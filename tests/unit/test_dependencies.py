"""The step of our CI that looks at what we depend on: what it lets pass, what it refuses, and what it says offline."""

import json
import runpy
import subprocess
import sys
from email.message import Message
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / ".ci" / "dependencies.py"
pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="only a checkout has it")


@pytest.fixture(scope="module")
def step() -> dict[str, Any]:
    return runpy.run_path(str(SCRIPT))


@pytest.mark.parametrize(
    ("name", "expression", "fits"),
    [
        ("a", "MIT", True),
        ("a", "Apache-2.0 AND BSD-2-Clause", True),
        ("a", "GPL-3.0-only OR MIT", True),
        ("a", "(GPL-3.0-only OR MIT) AND PSF-2.0", False),  # not read: it is for people to say
        ("a", "MIT AND GPL-3.0-only", False),
        ("a", "GPL-3.0-only", False),
        ("a", "LGPL-3.0-only", False),
        ("psycopg", "LGPL-3.0-only", True),
        ("a", "", False),
    ],
)
def test_a_licence_fits_when_one_of_its_alternatives_does(
    step: dict[str, Any], name: str, expression: str, fits: bool
) -> None:
    assert step["fits"](name, expression) is fits


@pytest.mark.parametrize(
    ("said", "expression"),
    [
        ({"License-Expression": "MIT", "License": "see LICENSE"}, "MIT"),
        ({"Classifier": "License :: OSI Approved :: BSD License"}, "BSD"),
        ({"Classifier": "License :: OSI Approved :: GNU General Public License (GPL)", "License": "GPL"}, "GPL"),
        ({"License": "Apache License 2.0"}, "Apache-2.0"),
        ({"License": "Do what you like.\nBut ask."}, "Do what you like."),
        ({}, ""),
    ],
)
def test_a_licence_is_read_where_a_package_says_it(step: dict[str, Any], said: dict[str, str], expression: str) -> None:
    package = Message()
    for name, value in said.items():
        package[name] = value
    assert step["licence"](package) == expression


def test_what_is_installed_here_fits() -> None:
    done = subprocess.run([sys.executable, SCRIPT, "licences"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Apache-2.0: " in done.stdout
    assert "LGPL-3.0-only: psycopg" in done.stdout


SKIPPED = {"name": "ours", "skip_reason": "Dependency not found on PyPI"}
SOUND = {"name": "sound", "version": "1", "vulns": []}
BAD = {"name": "bad", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2"], "aliases": ["CVE-1"]}]}


@pytest.mark.parametrize(
    ("packages", "code", "said", "complaint"),
    [
        ([SKIPPED, SOUND], 0, "looked up 1 of 2 packages\n", ""),
        ([SKIPPED, SOUND, BAD], 1, "looked up 2 of 3 packages\n", "bad 1: PYSEC-1, mended in 2\n"),
        ([SKIPPED], 0, "SKIPPED, nothing was looked up: Dependency not found on PyPI\n", ""),
        (None, 0, "SKIPPED, nothing was looked up: there is no network\n", ""),
    ],
    ids=["sound", "bad", "all skipped", "offline"],
)
def test_a_known_vulnerability_fails_and_being_offline_is_said(
    tmp_path: Path, packages: list[Any] | None, code: int, said: str, complaint: str
) -> None:
    audit = tmp_path / "pip-audit"
    printed = "print('there is no network', file=sys.stderr); sys.exit(1)"
    if packages is not None:
        printed = f"print({json.dumps({'dependencies': packages})!r}); sys.exit({code})"
    audit.write_text(f"#!{sys.executable}\nimport sys\n{printed}\n")
    audit.chmod(0o755)
    command = [sys.executable, SCRIPT, "vulnerabilities", audit, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, said, complaint)


def test_without_the_tool_it_is_skipped(tmp_path: Path) -> None:
    command = [sys.executable, SCRIPT, "vulnerabilities", tmp_path / "nothing", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("SKIPPED, nothing was looked up: ")
