"""The doctor's checks that need no server: how they run, the settings, the machine, the certificates."""

import os
import stat
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import certificates as made
import pytest

from ordersys import settings
from ordersys.core import errors
from ordersys.operate.doctor import certificates, configuration, machine
from ordersys.operate.doctor.findings import Check, Finding, Level, examine, ok, problem
from ordersys.operate.doctor.machine import Space
from ordersys.operate.side_by_side import Asked

GB = 10**9


def only(found: Iterable[Finding]) -> Finding:
    [one] = list(found)
    return one


def told(found: Iterable[Finding]) -> list[tuple[Level, str]]:
    return [(each.level, each.found) for each in found]


# --- how checks run -----------------------------------------------------------------------------------------------


def test_findings_come_in_the_order_of_the_checks_however_long_each_takes() -> None:
    quick_is_done = threading.Event()

    def slow() -> Iterator[Finding]:
        assert quick_is_done.wait(20)
        yield ok("slow", "a")
        yield ok("slow", "b")

    def quick() -> list[Finding]:
        quick_is_done.set()
        return [ok("quick", "c")]

    found = examine([Check("slow", slow), Check("quick", quick)], 20)
    assert [each.found for each in found] == ["a", "b", "c"]


def test_a_check_that_hangs_is_a_problem_and_holds_up_nobody() -> None:
    never = threading.Event()

    def hangs() -> list[Finding]:
        never.wait()
        return []

    began = time.monotonic()
    found = examine([Check("hangs", hangs, "kill it"), Check("fine", lambda: [ok("fine", "yes")])], 0.2)
    assert time.monotonic() - began < 10
    assert found == [problem("hangs", "no answer within 0.2 s", "kill it"), ok("fine", "yes")]
    never.set()


def test_a_check_that_fails_is_a_problem_and_hides_no_other() -> None:
    def away() -> list[Finding]:
        raise errors.Unavailable("the database is away")

    def broken() -> Iterator[Finding]:
        yield ok("broken", "so far")
        raise KeyError("x")

    found = examine([Check("away", away, "fix"), Check("broken", broken), Check("fine", lambda: [ok("fine", "")])], 20)
    assert told(found) == [
        (Level.PROBLEM, "the database is away"),
        (Level.PROBLEM, "the check failed: KeyError: 'x'"),
        (Level.OK, ""),
    ]


def test_who_is_waited_for_is_told() -> None:
    release = threading.Event()
    seen: list[list[str]] = []

    def waiting(names: list[str]) -> None:
        seen.append(names)
        if names == ["slow"]:
            release.set()

    checks = [
        Check("slow", lambda: [ok("slow", str(release.wait(20)))]),
        Check("quick", lambda: [ok("quick", "")]),
    ]
    assert [each.found for each in examine(checks, 20, waiting)] == ["True", ""]
    assert seen[-1] == ["slow"]


def test_who_hangs_is_not_asked_a_second_time() -> None:
    release, asked = threading.Event(), []

    def question() -> str:
        asked.append(1)
        release.wait(20)
        return "late"

    crew = Asked()
    assert isinstance(crew.ask({"who": question}, 0.05)["who"], errors.NoAnswer)
    assert isinstance(crew.ask({"who": question}, 0.05)["who"], errors.NoAnswer)
    release.set()
    assert crew.ask({"who": question}, 20) == {"who": "late"}
    assert len(asked) == 1
    assert crew.ask({"who": question}, 20) == {"who": "late"}
    assert len(asked) == 2


# --- settings -----------------------------------------------------------------------------------------------------


def test_the_defaults_are_fine() -> None:
    assert only(configuration.configuration(settings.load())).level is Level.OK


@pytest.mark.parametrize(
    ("chosen", "level", "said"),
    [
        ({"product_bind": "127.0.0.1:7", "order_bind": "127.0.0.1:7", "insecure": True}, "problem", "both port 7"),
        ({"product_bind": "0.0.0.0:8080", "insecure": True}, "problem", "both port 8080"),
        ({"notify_admin_bind": "127.0.0.1:9101"}, "problem", "PRODUCT_ADMIN_BIND and ORDERSYS_NOTIFY_ADMIN_BIND"),
        ({"product_bind": "127.0.0.1:6000"}, "warning", "clients look for it at 127.0.0.1:50051"),
        ({"order_address": "127.0.0.1:6000"}, "warning", "serve-order listens on 127.0.0.1:50052"),
        ({"product_bind": "0.0.0.0:50051"}, "problem", "PRODUCT_BIND is 0.0.0.0:50051 without TLS"),
        ({"order_bind": "[::]:50052", "insecure": True}, "warning", "ORDERSYS_INSECURE allows it"),
        ({"api_bind": "10.0.0.1:8080"}, "problem", "so it will not start"),
        ({"order_admin_bind": "0.0.0.0:9102"}, "warning", "the metrics are there for everybody"),
        ({"tls_cert_file": "x", "tls_key_file": "x", "tls_client_cert": "none"}, "warning", "may place orders"),
        ({"broker_url": "amqp://me:pw@mq.example/"}, "warning", "the password goes in the clear"),
        ({"broker_url": "amqps://guest:pw@mq.example/"}, "warning", "the user guest"),
        ({"order_database_url": "postgresql://u@db.example/x?sslmode=prefer"}, "warning", "does not ask for TLS"),
        ({"order_database_url": "postgresql://u@db.example/x"}, "warning", "the embedded broker is for the processes"),
        ({"broker_cert_file": "x"}, "warning", "BROKER_CERT_FILE has no effect"),
        ({"tls_ca_file": "x"}, "warning", "without a certificate of our own"),
        ({"api_jwt_jwks_url": "https://i.example/k"}, "problem", "without ORDERSYS_API_JWT_ISSUER"),
        ({"api_jwt_audience": "us"}, "problem", "AUDIENCE alone takes no tokens"),
        ({"api_jwt_jwks_url": "https://i/k", "api_jwt_public_key_file": "f"}, "problem", "are both set"),
    ],
)
def test_settings_that_contradict_each_other_or_are_unsafe_are_told(
    chosen: dict[str, object], level: str, said: str
) -> None:
    found = list(configuration.configuration(settings.load(chosen)))
    [one] = [each for each in found if said in each.found]
    assert one.level == level
    assert one.fix


@pytest.mark.parametrize(
    "chosen",
    [
        {"product_bind": "127.0.0.1:0", "order_bind": "127.0.0.1:0", "api_bind": "127.0.0.1:0"},
        {"product_admin_bind": "off", "order_admin_bind": "off", "notify_admin_bind": "off"},
        {"broker_url": "amqps://me:pw@mq.example/", "broker_ca_file": "x"},
        {"broker_url": "amqp://guest:guest@127.0.0.1/"},
        {"order_database_url": "postgresql+psycopg://u@127.0.0.1/x"},
        {
            "order_database_url": "postgresql://u@db.example/x?sslmode=verify-full",
            "broker_url": "amqps://me:pw@mq.example/",
        },
        {"product_address": "product.example:50051"},
        {"tls_ca_file": "x", "tls_cert_file": "x", "tls_key_file": "x", "product_bind": "0.0.0.0:50051"},
        {"api_jwt_jwks_url": "https://i/k", "api_jwt_issuer": "i", "api_jwt_audience": "a"},
    ],
)
def test_settings_that_are_fine_are_not_complained_about(chosen: dict[str, object]) -> None:
    assert only(configuration.configuration(settings.load(chosen))).level is Level.OK


def test_a_fix_shows_no_password() -> None:
    chosen = {"order_database_url": "postgresql://me:s3cret@db.example/x", "broker_url": "amqp://me:s3cret@mq.example/"}
    found = list(configuration.configuration(settings.load(chosen)))
    assert len(found) == 2
    assert "s3cret" not in str(found)


def test_broken_seed_data_is_a_problem(tmp_path: Path) -> None:
    (tmp_path / "products.json").write_text("[{}]")
    checks = [check for check in configuration.checks(settings.load({"data": tmp_path})) if check.name == "seed data"]
    found = only(examine(checks, 20))
    assert (found.level, "products.json" in found.found) == (Level.PROBLEM, True)
    assert (
        only(examine([each for each in configuration.checks(settings.load()) if each.name == "seed data"], 20)).level
        == "ok"
    )


# --- the machine --------------------------------------------------------------------------------------------------


class Clocks:
    """Two clocks, of which somebody may set the one while the doctor listens."""

    def __init__(self, wall: float, jump: float = 0.0) -> None:
        self.wall = wall
        self.steady = 5.0
        self._jump = jump

    def sleep(self, seconds: float) -> None:
        self.wall += seconds + self._jump
        self.steady += seconds


@pytest.mark.parametrize(
    ("clocks", "level", "said"),
    [
        (Clocks(1_900_000_000.0), Level.OK, "evenly"),
        (Clocks(1_900_000_000.0, 3.0), Level.PROBLEM, "jumped by +3.0 s"),
        (Clocks(1_900_000_000.0, -3.0), Level.PROBLEM, "jumped by -3.0 s"),
        (Clocks(0.0), Level.PROBLEM, "1970-01-01"),
    ],
)
def test_the_clock(clocks: Clocks, level: Level, said: str) -> None:
    found = only(machine.clock(lambda: clocks.wall, lambda: clocks.steady, clocks.sleep))
    assert (found.level, said in found.found) == (level, True)


def test_our_own_clock_is_fine() -> None:
    assert only(machine.clock()).level is Level.OK


@pytest.mark.parametrize(
    ("space", "level"),
    [
        (Space(100 * GB, 50 * GB, 10**6), Level.OK),
        (Space(100 * GB, 50 * GB, None), Level.OK),
        (Space(100 * GB, 4 * GB, 10**6), Level.WARNING),
        (Space(2 * GB, GB // 2, 10**6), Level.WARNING),
        (Space(100 * GB, GB // 20, 10**6), Level.PROBLEM),
        (Space(100 * GB, 50 * GB, 10), Level.PROBLEM),
    ],
)
def test_the_disk(space: Space, level: Level, tmp_path: Path) -> None:
    asked = []

    def measure(folder: Path) -> Space:
        asked.append(folder)
        return space

    found = only(machine.disk([tmp_path / "not" / "yet", tmp_path], measure))
    assert (found.level, asked) == (level, [tmp_path])
    assert list(tmp_path.iterdir()) == []


def test_the_real_disk_can_be_measured(tmp_path: Path) -> None:
    found = machine.space(tmp_path)
    assert 0 < found.free <= found.total


def test_a_home_or_file_that_this_user_may_not_write_is_a_problem(tmp_path: Path) -> None:
    chosen = settings.load({"home": tmp_path})
    (tmp_path / "order.db-shm").touch()  # of root, who looked once
    locked = {tmp_path / "order.db-shm"}
    found = list(machine.permissions(chosen, lambda path, _mode: path not in locked))
    assert told(found) == [(Level.PROBLEM, f"{tmp_path / 'order.db-shm'} cannot be written by this user")]
    found = list(machine.permissions(chosen, lambda path, _mode: path != tmp_path))
    assert told(found) == [(Level.PROBLEM, f"{tmp_path} cannot be written by this user")]


def test_what_everybody_may_read_or_write_is_a_problem(tmp_path: Path) -> None:
    key = tmp_path / "key.pem"
    key.touch()
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "product.db").touch()
    chosen = settings.load({"home": tmp_path / "home", "tls_key_file": str(key), "tls_cert_file": str(key)})
    for path in (key, tmp_path / "home" / "product.db"):
        path.chmod(0o600)
    assert only(machine.permissions(chosen)).level is Level.OK
    key.chmod(0o644)
    (tmp_path / "home" / "product.db").chmod(0o666)
    found = list(machine.permissions(chosen))
    assert [(each.level, each.fix) for each in found] == [
        (Level.PROBLEM, f"chmod o-w {tmp_path / 'home' / 'product.db'}"),
        (Level.PROBLEM, f"chmod o-rwx {key}"),
    ]
    for each in found:
        assert os.system(each.fix) == 0  # noqa: S605 - a fix is a command that can be typed
    assert only(machine.permissions(chosen)).level is Level.OK
    assert not key.stat().st_mode & stat.S_IROTH


def test_a_password_in_a_file_that_everybody_may_read_is_a_problem(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = tmp_path / "broker-url"
    secret.write_text("amqp://me:s3cret@127.0.0.1/")
    secret.chmod(0o640)
    monkeypatch.setenv("ORDERSYS_BROKER_URL_FILE", str(secret))
    assert only(machine.permissions(settings.load())).level is Level.OK
    secret.chmod(0o644)
    found = only(machine.permissions(settings.load()))
    assert (found.level, found.fix) == (Level.PROBLEM, f"chmod o-rwx {secret}")
    assert "ORDERSYS_BROKER_URL_FILE" in found.found


# --- certificates -------------------------------------------------------------------------------------------------


def certified(files: object, **more: str) -> list[Finding]:
    ca, cert, key = (getattr(files, name) for name in ("ca", "cert", "key"))
    chosen = settings.load({"tls_ca_file": ca, "tls_cert_file": cert, "tls_key_file": key, **more})
    return [finding for check in certificates.checks(chosen) for finding in check.look()]


def test_no_certificates_no_finding() -> None:
    assert certificates.checks(settings.load()) == []


def test_sound_certificates(tmp_path: Path) -> None:
    found = only(certified(made.Authority.at(tmp_path).issue("product-service")))
    assert found.level is Level.OK
    assert found.found.startswith("product-service, good until ")


@pytest.mark.parametrize(
    ("valid", "level", "said"),
    [
        (made.EXPIRED, Level.PROBLEM, "expired at"),
        (made.FUTURE, Level.PROBLEM, "is not valid before"),
        (made.around(-1, 20), Level.WARNING, "expires on"),
        (made.around(-1, 2), Level.PROBLEM, "expires on"),
    ],
)
def test_certificates_out_of_their_time(tmp_path: Path, valid: made.Valid, level: Level, said: str) -> None:
    found = only(certified(made.Authority.at(tmp_path).issue("api", valid)))
    assert (found.level, said in found.found, "api.crt" in found.found) == (level, True, True)


def test_a_ca_that_expires_soon(tmp_path: Path) -> None:
    found = only(certified(made.Authority.at(tmp_path, made.around(-1, 20)).issue("api")))
    assert (found.level, "ca.crt" in found.found) == (Level.WARNING, True)


def test_a_certificate_from_another_ca(tmp_path: Path) -> None:
    other = made.Authority.at(tmp_path / "other")
    found = only(certified(made.Authority.at(tmp_path / "one").issue("api", ca=other.ca)))
    assert (found.level, "is not from the CA" in found.found) == (Level.PROBLEM, True)


def test_a_key_of_another_certificate_and_a_missing_file(tmp_path: Path) -> None:
    authority = made.Authority.at(tmp_path)
    one, other = authority.issue("one"), authority.issue("other")
    mixed = certified(type(one)(one.ca, one.cert, other.key))
    assert (only(mixed).level, "is not the key of the certificate" in only(mixed).found) == (Level.PROBLEM, True)
    gone = certified(type(one)(one.ca, one.cert, str(tmp_path / "none.key")))
    assert (only(gone).level, "cannot read" in only(gone).found) == (Level.PROBLEM, True)


def test_the_certificates_of_the_api_and_for_the_broker_are_looked_at_too(tmp_path: Path) -> None:
    authority = made.Authority.at(tmp_path)
    own, api = authority.issue("own"), authority.issue("api")
    found = certified(
        own,
        api_tls_cert_file=api.cert,
        api_tls_key_file=own.key,
        broker_url="amqps://me:pw@mq.example/",
        broker_cert_file=api.cert,
        broker_key_file=api.key,
    )
    assert [(each.check, each.level.value) for each in found] == [
        ("certificates of the services", "ok"),
        ("certificates of the API", "problem"),
        ("certificates for the broker", "ok"),
    ]
