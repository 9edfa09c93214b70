"""The certificate files of one party: what is wrong with them is said before anybody is served."""

import logging
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from certificates import EXPIRED, FUTURE, NOW, Authority, around
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from ordersys.core import errors, tls
from ordersys.core.tls import Files, Kept

Wrong = Callable[[Authority], tuple[Files, str]]


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.at(tmp_path / "ca")


def no_key(made: Authority) -> tuple[Files, str]:
    return Files(made.ca, made.issue("a").cert), "ORDERSYS_TLS_CERT_FILE is set and ORDERSYS_TLS_KEY_FILE is not"


def no_certificate(made: Authority) -> tuple[Files, str]:
    return Files(key=made.issue("a").key), "ORDERSYS_TLS_KEY_FILE is set and ORDERSYS_TLS_CERT_FILE is not"


def missing_ca(made: Authority) -> tuple[Files, str]:
    return Files("/nowhere/ca.crt"), r"ORDERSYS_TLS_CA_FILE: cannot read /nowhere/ca\.crt: No such file or directory"


def missing_certificate(made: Authority) -> tuple[Files, str]:
    made_files = made.issue("a")
    return Files(cert="/nowhere/a.crt", key=made_files.key), r"ORDERSYS_TLS_CERT_FILE: cannot read /nowhere/a\.crt"


def a_folder(made: Authority) -> tuple[Files, str]:
    return Files(made.ca, made.issue("a").cert, str(made.folder)), "ORDERSYS_TLS_KEY_FILE: cannot read .*: Is a dir"


def no_pem(made: Authority) -> tuple[Files, str]:
    (made.folder / "text").write_text("hello", encoding="utf-8")
    return Files(str(made.folder / "text")), "ORDERSYS_TLS_CA_FILE: .*text holds no certificate in PEM form"


def damaged(made: Authority) -> tuple[Files, str]:
    files = made.issue("a")
    Path(files.cert).write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", encoding="utf-8")
    return files, "ORDERSYS_TLS_CERT_FILE: .* holds no certificate"


def key_for_certificate(made: Authority) -> tuple[Files, str]:
    files = made.issue("a")
    return Files(made.ca, files.key, files.key), "ORDERSYS_TLS_CERT_FILE: .* holds no certificate in PEM form"


def certificate_for_key(made: Authority) -> tuple[Files, str]:
    files = made.issue("a")
    return Files(made.ca, files.cert, files.cert), "ORDERSYS_TLS_KEY_FILE: .* holds no private key in PEM form"


def another_key(made: Authority) -> tuple[Files, str]:
    files = made.issue("a")
    key = made.issue("b").key
    return Files(made.ca, files.cert, key), f"TLS_KEY_FILE: {key} is not the key of the certificate in {files.cert}"


def encrypted_key(made: Authority) -> tuple[Files, str]:
    files = made.issue("a")
    form = Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    Path(files.key).write_bytes(made.pair.key.private_bytes(*form))
    return files, "ORDERSYS_TLS_KEY_FILE: .* is encrypted"


def expired(made: Authority) -> tuple[Files, str]:
    files = made.issue("a", EXPIRED)
    return files, rf"TLS_CERT_FILE: the certificate in {files.cert} expired at {EXPIRED[1]:%Y-%m-%d %H:%M:%S} UTC"


def not_yet_valid(made: Authority) -> tuple[Files, str]:
    files = made.issue("a", FUTURE)
    return files, rf"TLS_CERT_FILE: the certificate in {files.cert} is not valid before {FUTURE[0]:%Y-%m-%d} "


def expired_ca(made: Authority) -> tuple[Files, str]:
    old = Authority.at(made.folder / "old", EXPIRED)
    return Files(old.ca), f"TLS_CA_FILE: the certificate in {old.ca} expired at"


@pytest.mark.parametrize(
    "wrong",
    [
        *(no_key, no_certificate, missing_ca, missing_certificate, a_folder, no_pem, damaged, key_for_certificate),
        *(certificate_for_key, another_key, encrypted_key, expired, not_yet_valid, expired_ca),
    ],
)
def test_a_wrong_file_is_named_with_its_setting_and_what_is_wrong(wrong: Wrong, authority: Authority) -> None:
    files, message = wrong(authority)
    with pytest.raises(errors.UsageError, match=message):
        Kept(files)


def test_the_names_of_other_settings_are_said(authority: Authority) -> None:
    settings = ("api_tls_client_ca_file", "api_tls_cert_file", "api_tls_key_file")
    with pytest.raises(errors.UsageError, match="ORDERSYS_API_TLS_KEY_FILE is not"):
        Files(cert=authority.issue("a").cert, settings=settings).read()


def test_an_old_ca_beside_a_valid_one_does_no_harm(authority: Authority) -> None:
    old = Authority.at(authority.folder / "old", EXPIRED)
    bundle = authority.folder / "bundle.crt"
    bundle.write_bytes(old.pair.cert_pem + authority.pair.cert_pem)
    assert Files(str(bundle)).read().ca == bundle.read_bytes()


def test_without_any_file_there_is_no_tls() -> None:
    assert not Files()
    assert Files("ca.crt")


def test_new_files_are_read_when_they_are_there_and_not_before(authority: Authority) -> None:
    kept = Kept(authority.issue("a"))
    first = kept.current()
    assert kept.current() is first
    authority.issue("a")
    assert kept.current() is not first
    assert kept.current().cert == Path(kept.files.cert).read_bytes()


def test_a_replaced_file_with_the_time_and_size_of_the_old_one_is_seen(authority: Authority) -> None:
    kept = Kept(authority.issue("a"))
    new = authority.issue("b", file="b")
    for old_file, new_file in ((kept.files.key, new.key), (kept.files.cert, new.cert)):
        found = Path(old_file).stat()
        os.utime(new_file, ns=(found.st_atime_ns, found.st_mtime_ns))
        Path(new_file).replace(old_file)
    assert kept.current().names == ("b",)


def test_a_broken_new_file_leaves_the_old_in_use_and_is_said_once(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    kept = Kept(authority.issue("a"))
    first = kept.current()
    Path(kept.files.cert).write_text("half a cert", encoding="utf-8")
    assert [kept.current() for _ in range(3)] == [first] * 3
    Path(kept.files.cert).unlink()
    assert [kept.current() for _ in range(3)] == [first] * 3
    [broken, missing] = [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]
    assert "holds no certificate in PEM form" in broken
    assert "No such file" in missing
    assert all("what was read before stays in use" in each for each in (broken, missing))

    caplog.clear()
    authority.issue("a")
    assert kept.current() is not first
    assert [each.levelno for each in caplog.records if each.levelno > logging.INFO] == []


def test_a_certificate_that_expires_while_it_is_in_use_is_said_once(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    now = NOW[1].timestamp() - 60
    kept = Kept(authority.issue("a"), clock=lambda: now)
    kept.current()
    assert caplog.text == ""
    now += 61
    for _ in range(3):
        kept.current()
    assert caplog.text.count("our own certificate has expired, others will refuse it") == 1


def test_expiries_are_those_of_the_first_certificate_to_expire_in_each_sound_file(authority: Authority) -> None:
    own = authority.issue("a", around(-1, 7))
    soon = Authority.at(authority.folder / "soon", around(-1, 3))
    bundle = authority.folder / "bundle.crt"
    bundle.write_bytes(authority.pair.cert_pem + soon.pair.cert_pem)
    settings = ("broker_ca_file", "broker_cert_file", "broker_key_file")
    found = tls.expiries(own, Files(str(bundle), "/nowhere", own.key, settings))
    assert set(found) == {"tls_ca_file", "tls_cert_file", "broker_ca_file"}
    days = {name: (when - time.time()) / 86_400 for name, when in found.items()}
    assert days == pytest.approx({"tls_ca_file": 30, "tls_cert_file": 7, "broker_ca_file": 3}, abs=0.1)
    assert NOW[1].timestamp() == pytest.approx(found["tls_ca_file"], abs=1)


@pytest.mark.parametrize("bind", ["127.0.0.1:1", "127.3.2.1:0", "[::1]:50051", "localhost:1", "LOCALHOST.:1"])
def test_on_this_machine_alone_no_tls_is_needed(bind: str) -> None:
    tls.refuse_exposed("the API", bind, tls=False, insecure=False)


@pytest.mark.parametrize("bind", ["0.0.0.0:1", "[::]:1", "10.0.0.5:50051", "shop.example:1", "localhost.example:1"])
def test_other_machines_are_served_with_tls_or_after_it_was_said_aloud(
    bind: str, caplog: pytest.LogCaptureFixture
) -> None:
    tls.refuse_exposed("the API", bind, tls=True, insecure=False)
    assert caplog.text == ""
    with pytest.raises(errors.UsageError, match=rf"the API would listen on {re.escape(bind)} without TLS.*--insecure"):
        tls.refuse_exposed("the API", bind, tls=False, insecure=False)
    tls.refuse_exposed("the API", bind, tls=False, insecure=True)
    assert f"INSECURE: the API has no TLS on {bind}: everybody" in caplog.text
