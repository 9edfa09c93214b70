"""`ordersys certs`: what it makes, what it leaves alone, and what it says of certificates."""

import json
import ssl
import stat
import sys
from pathlib import Path
from typing import Any

import pytest
from certificates import EXPIRED, Authority
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from typer.testing import CliRunner

from ordersys.core import errors
from ordersys.core.tls import Files, Kept
from ordersys.operate import issuing
from ordersys.operate.certs import certificates

ROLES = [role.name for role in issuing.ROLES]
SERVERS = {"product-service", "order-service", "api", "rabbitmq", "postgresql"}
CALLERS = {"product-service", "order-service", "api", "notification-service", "operator", "client"}


def certs(*arguments: str, code: int = 0) -> str:
    """What the command printed; raises what it raised."""
    done = CliRunner().invoke(certificates, arguments)
    if isinstance(done.exception, errors.OrdersysError):
        raise done.exception
    assert done.exit_code == code, done.output
    return done.stdout


def document(*arguments: str, code: int = 0) -> Any:
    return json.loads(certs(*arguments, "--json", code=code))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "certs"
    certs("init", "--dir", str(folder), "--host", "shop.example", "--host", "10.0.0.5")
    return folder


def loaded(file: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(file.read_bytes())


def extension(certificate: x509.Certificate, kind: type[Any]) -> Any:
    return certificate.extensions.get_extension_for_class(kind).value


def contents(folder: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in folder.iterdir()}


def test_every_role_gets_a_certificate_for_what_it_does_and_no_more(folder: Path) -> None:
    assert {each.stem for each in folder.iterdir()} == {"ca", *ROLES}
    for name in ROLES:
        made = loaded(folder / f"{name}.crt")
        purposes = set(extension(made, x509.ExtendedKeyUsage))
        assert (ExtendedKeyUsageOID.SERVER_AUTH in purposes) == (name in SERVERS)
        assert (ExtendedKeyUsageOID.CLIENT_AUTH in purposes) == (name in CALLERS)
        hosts = ["localhost", "127.0.0.1", "::1", "shop.example", "10.0.0.5"] if name in SERVERS else []
        assert issuing.names_of(made) == [name, *hosts]
        assert extension(made, x509.BasicConstraints).ca is False
        key = made.public_key()
        assert isinstance(key, ec.EllipticCurvePublicKey)
        assert key.curve.name == "secp256r1"
        Kept(Files(str(folder / "ca.crt"), str(folder / f"{name}.crt"), str(folder / f"{name}.key")))
    authority = loaded(folder / "ca.crt")
    assert extension(authority, x509.BasicConstraints) == x509.BasicConstraints(ca=True, path_length=0)
    assert extension(authority, x509.KeyUsage).key_cert_sign


def test_a_strict_reader_takes_them(folder: Path) -> None:
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(folder / "ca.crt"))
    client = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    for context, name in ((server, "api"), (client, "client")):
        context.load_cert_chain(folder / f"{name}.crt", folder / f"{name}.key")
        context.verify_flags |= ssl.VERIFY_X509_STRICT
    server.verify_mode = ssl.CERT_REQUIRED
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client.wrap_bio(back, there, server_hostname="10.0.0.5")
    other = server.wrap_bio(there, back, server_side=True)
    waiting = [one, other] * 5
    for each in waiting:
        try:
            each.do_handshake()
        except ssl.SSLWantReadError:
            continue
    assert other.getpeercert()["subject"] == ((("commonName", "client"),),)  # type: ignore[index]


@pytest.mark.skipif(sys.platform == "win32", reason="modes of POSIX")
def test_keys_are_for_their_owner_alone(folder: Path) -> None:
    for key in folder.glob("*.key"):
        assert stat.S_IMODE(key.stat().st_mode) == 0o600


def test_nothing_that_is_there_is_written_over_and_what_lacks_is_added(folder: Path) -> None:
    before = contents(folder)
    rows = document("init", "--dir", str(folder))["certificates"]
    assert [row["made"] for row in rows] == [False] * (1 + len(ROLES))
    assert contents(folder) == before

    for kind in ("crt", "key"):
        (folder / f"api.{kind}").unlink()
    rows = document("init", "--dir", str(folder), "--host", "other.example")["certificates"]
    assert [Path(row["file"]).stem for row in rows if row["made"]] == ["api"]
    loaded(folder / "api.crt").verify_directly_issued_by(loaded(folder / "ca.crt"))
    assert {name: each for name, each in contents(folder).items() if not name.startswith("api.")} == {
        name: each for name, each in before.items() if not name.startswith("api.")
    }


@pytest.mark.parametrize("gone", ["ca.crt", "ca.key", "client.crt", "client.key"])
def test_half_a_pair_is_somebodys_and_left_alone(gone: str, folder: Path) -> None:
    (folder / gone).unlink()
    before = contents(folder)
    with pytest.raises(errors.UsageError, match=rf"{gone} is not: nothing is written over"):
        certs("init", "--dir", str(folder))
    assert contents(folder) == before


@pytest.mark.parametrize("host", ["", "a b", "http://x", "x:1", "a..b", "me@x"])
def test_a_host_that_can_be_none_is_refused_before_anything_is_made(host: str, tmp_path: Path) -> None:
    with pytest.raises(errors.UsageError, match="neither a host's name nor an address"):
        certs("init", "--dir", str(tmp_path / "new"), "--host", host)
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_written_to_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(errors.UsageError, match="cannot write to"):
        certs("init", "--dir", str(tmp_path / "file" / "certs"))


def test_each_role_is_told_its_exact_environment(folder: Path) -> None:
    environments = document("init", "--dir", str(folder))["environments"]
    assert set(environments) == set(ROLES)
    assert environments["client"] == [
        f"export ORDERSYS_TLS_CA_FILE={folder}/ca.crt",
        f"export ORDERSYS_TLS_CERT_FILE={folder}/client.crt",
        f"export ORDERSYS_TLS_KEY_FILE={folder}/client.key",
    ]
    assert f"export ORDERSYS_API_TLS_CERT_FILE={folder}/api.crt" in environments["api"]
    assert f"ssl_options.keyfile = {folder}/rabbitmq.key" in environments["rabbitmq"]
    assert f"ssl_key_file = '{folder}/postgresql.key'" in environments["postgresql"]
    printed = certs("init", "--dir", str(folder))
    assert all(line in printed.splitlines() for lines in environments.values() for line in lines)


def test_show_says_who_and_until_when(folder: Path) -> None:
    [row] = document("show", str(folder / "api.crt"))["certificates"]
    assert (row["subject"], row["issuer"], row["expired"]) == ("CN=api", "CN=ordersys development CA", False)
    assert (row["names"][0], row["days_left"]) == ("api", 365)
    assert "EXPIRED" not in certs("show", str(folder / "api.crt"))


def test_show_fails_when_one_has_expired(folder: Path, tmp_path: Path) -> None:
    old = Authority.at(tmp_path / "old", EXPIRED)
    rows = document("show", old.ca, str(folder / "ca.crt"), code=1)["certificates"]
    assert [(row["expired"], row["days_left"]) for row in rows] == [(True, -1), (False, 3650)]
    assert "EXPIRED" in certs("show", old.ca, code=1)


def test_show_looks_at_what_the_settings_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(errors.UsageError, match="name no certificates"):
        certs("show")
    monkeypatch.setenv("ORDERSYS_TLS_CA_FILE", str(folder / "ca.crt"))
    monkeypatch.setenv("ORDERSYS_TLS_CERT_FILE", str(folder / "api.crt"))
    monkeypatch.setenv("ORDERSYS_API_TLS_CERT_FILE", str(folder / "api.crt"))
    assert [Path(row["file"]).name for row in document("show")["certificates"]] == ["ca.crt", "api.crt"]


@pytest.mark.parametrize("content", [None, b"hello"])
def test_show_names_a_file_that_is_none(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "x.crt").write_bytes(content)
    with pytest.raises(errors.UsageError, match=r"x\.crt"):
        certs("show", str(tmp_path / "x.crt"))


def test_a_renewed_certificate_has_another_time_and_all_else_as_before(folder: Path) -> None:
    before, rest = loaded(folder / "api.crt"), contents(folder)
    [row] = document("renew", "api", "--dir", str(folder), "--days", "20")["certificates"]
    after = loaded(folder / "api.crt")
    assert (row["days_left"], Path(row["file"])) == (20, folder / "api.crt")
    assert after.serial_number != before.serial_number
    assert {each.oid: each.value for each in after.extensions} == {each.oid: each.value for each in before.extensions}
    assert after.public_key() == before.public_key()
    after.verify_directly_issued_by(loaded(folder / "ca.crt"))
    assert {name for name, each in contents(folder).items() if each != rest[name]} == {"api.crt"}
    assert len(document("renew", "--dir", str(folder))["certificates"]) == len(ROLES)


def test_only_what_is_there_can_be_renewed(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(errors.UsageError, match="there is no certificate of 'shop'"):
        certs("renew", "shop", "--dir", str(folder))
    with pytest.raises(errors.UsageError, match=r"cannot read .*ca\.crt"):
        certs("renew", "--dir", str(tmp_path / "nothing"))


def test_no_certificate_outlives_its_authority(folder: Path, tmp_path: Path) -> None:
    document("renew", "client", "--dir", str(folder), "--days", "9999")
    assert loaded(folder / "client.crt").not_valid_after_utc == loaded(folder / "ca.crt").not_valid_after_utc
    old = issuing.authority("old", EXPIRED)
    for kind, content in (("crt", old.cert_pem), ("key", old.key_pem)):
        (folder / f"ca.{kind}").write_bytes(content)
    with pytest.raises(errors.UsageError, match="the authority's own certificate has expired"):
        certs("renew", "--dir", str(folder))
