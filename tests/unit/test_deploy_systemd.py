"""deploy/systemd: systemd takes the units, and commands, settings and ports are those of the code."""

import os
import shlex
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import deployed
import pytest
import servers
from deployed import HERE, role_of, roles

from ordersys.settings import Settings

SYSTEMD = HERE / "systemd"
UNITS = sorted(path.name for path in SYSTEMD.glob("*.service"))
ROLES = [name for name in UNITS if name != "ordersys-migrate.service"]
EVERY = SYSTEMD / "ordersys-.service.d" / "10-every-role.conf"
PROGRAM = "/opt/ordersys/bin/ordersys"

Unit = dict[tuple[str, str], list[str]]


def parsed(*paths: Path) -> Unit:
    """(section, option) -> its values, in the order of the files."""
    found: Unit = defaultdict(list)
    section = ""
    for path in paths:
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("["):
                section = line.strip("[]")
            elif line and not line.startswith("#"):
                option, _, value = line.partition("=")
                found[section, option].append(value)
    return found


def unit(name: str) -> Unit:
    """With what every unit has whose name begins so."""
    return parsed(SYSTEMD / name, EVERY)


def one(found: Unit, section: str, option: str) -> str:
    [value] = found[section, option]
    return value


def command(name: str) -> list[str]:
    program, *arguments = shlex.split(one(unit(name), "Service", "ExecStart"))
    assert program == PROGRAM
    return arguments


def environment(name: str) -> dict[str, str]:
    words = [word for line in unit(name)["Service", "Environment"] for word in line.split()]
    return dict(word.split("=", 1) for word in words)


def analyze(folder: Path, *arguments: str) -> str:
    if shutil.which("systemd-analyze") is None:
        servers.missing("no systemd-analyze here: apt-get install systemd")
    done = subprocess.run(
        ["systemd-analyze", *arguments],
        cwd=folder,
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{folder}:"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """The folder with a program that is there."""
    folder = Path(shutil.copytree(SYSTEMD, tmp_path / "units"))
    for path in folder.glob("*.service"):
        path.write_text(path.read_text(encoding="utf-8").replace(PROGRAM, sys.executable), encoding="utf-8")
    return folder


def test_systemd_takes_every_unit(installed: Path) -> None:
    said = analyze(installed, "verify", "--man=no", *(f"./{name}" for name in UNITS), "./ordersys.target")
    # Of units of the system it may have something to say; of ours nothing.
    assert str(installed) not in said
    assert "ordersys" not in said


def test_systemd_notices_what_is_none(installed: Path) -> None:
    (installed / "ordersys-api.service").write_text("[Service]\nType=notify\nExecStrat=/bin/true\n", encoding="utf-8")
    with pytest.raises(AssertionError, match="ordersys-api"):
        analyze(installed, "verify", "--man=no", "./ordersys-api.service")


@pytest.mark.parametrize("name", UNITS)
def test_every_unit_is_shut_in(name: str, installed: Path) -> None:
    analyze(installed, "security", "--offline=true", "--threshold=20", f"./{name}")


def test_every_role_is_there_and_both_notifiers() -> None:
    ran = sorted(" ".join(command(name)) for name in ROLES)
    assert ran == ["api", "notify --mode fanout --json", "notify --mode topic --json", "serve-order", "serve-product"]
    assert {role_of(command(name)) for name in ROLES} == set(roles().values())
    assert command("ordersys-migrate.service") == ["db", "upgrade"]


@pytest.mark.parametrize("name", UNITS)
def test_commands_and_settings_are_what_the_command_line_takes(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    deployed.accepts(command(name))
    chosen = deployed.loads(environment(name), monkeypatch, tmp_path)
    assert str(chosen.home) == f"/var/lib/{one(unit(name), 'Service', 'StateDirectory')}"
    assert chosen.log_format == "json"


def test_the_settings_of_the_example_are_settings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = (SYSTEMD / "ordersys.env").read_text(encoding="utf-8")
    given = dict(line.removeprefix("# ").split("=", 1) for line in text.splitlines() if line.startswith("# ORDERSYS_"))
    assert set().union(*(role.needs for role in roles().values())) - {"product_address", "order_address"} == {
        name.removeprefix("ORDERSYS_").lower() for name in given
    }
    deployed.loads(given, monkeypatch, tmp_path)
    [file] = {value for name in UNITS for value in unit(name)["Service", "EnvironmentFile"]}
    assert f"# {file.removeprefix('-')}, " in text


def test_no_two_roles_of_the_machine_listen_at_one_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    places: list[str] = []
    for name in ROLES:
        chosen = deployed.loads(environment(name), monkeypatch, tmp_path)
        places += [getattr(chosen, bind) for bind in role_of(command(name)).binds]
    assert len(set(places)) == len(places) == 7


@pytest.mark.parametrize("name", ROLES)
def test_a_role_starts_after_the_schemas_says_that_it_lives_and_comes_back(name: str) -> None:
    found = unit(name)
    assert one(found, "Service", "Type") == "notify"
    assert one(found, "Service", "Restart") == "on-failure"
    # It says that it lives up to its stop, which takes its grace time.
    grace = Settings().grace_seconds
    assert float(one(found, "Service", "WatchdogSec")) > 2 * grace
    assert float(one(found, "Service", "TimeoutStopSec")) > grace + 5
    after = " ".join(found["Unit", "After"]).split()
    assert "ordersys-migrate.service" in after
    assert one(found, "Unit", "Requires") == "ordersys-migrate.service"
    called = {"product_address": "ordersys-product.service", "order_address": "ordersys-order.service"}
    assert {called[need] for need in role_of(command(name)).needs & set(called)} <= set(after)
    assert one(found, "Unit", "PartOf") == one(found, "Install", "WantedBy") == "ordersys.target"


def test_who_it_is_is_made_by_the_file_for_it() -> None:
    [user] = {one(unit(name), "Service", "User") for name in UNITS}
    assert f"u {user} - " in (SYSTEMD / "ordersys.sysusers").read_text(encoding="utf-8")
