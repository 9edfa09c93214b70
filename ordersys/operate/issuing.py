"""Certificates for trying and for tests: a certificate authority of one's own, and what it signs (RFC 5280).

EC keys on P-256. A key is written for its owner's eyes only, and no file is ever written over.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from ordersys.core import errors

CA = "ca"
LOOPBACK = ("localhost", "127.0.0.1", "::1")
_CLOCKS = timedelta(minutes=5)
"""By how much the clocks of two machines may differ."""
_HOST = re.compile(r"(?:\*\.)?[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*")


@dataclass(frozen=True, slots=True)
class Role:
    """Whom a certificate is for: who listens shows it to its callers, and everybody to whom they call."""

    name: str
    listens: bool
    calls: bool


ROLES = (
    Role("product-service", listens=True, calls=True),
    Role("order-service", listens=True, calls=True),  # calls the broker and the database
    Role("api", listens=True, calls=True),
    Role("notification-service", listens=False, calls=True),
    Role("operator", listens=False, calls=True),
    Role("client", listens=False, calls=True),
    Role("rabbitmq", listens=True, calls=False),
    Role("postgresql", listens=True, calls=False),
)


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @property
    def cert_pem(self) -> bytes:
        return self.certificate.public_bytes(Encoding.PEM)

    @property
    def key_pem(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def lasting(days: float, issuer: x509.Certificate | None = None) -> tuple[datetime, datetime]:
    """From now on for so many days, and not longer than the issuer; the beginning lies a little back.

    Raises UsageError when the issuer's own time is over.
    """
    now = datetime.now(UTC)
    end = now + timedelta(days=days)
    if issuer is not None and issuer.not_valid_after_utc <= now:
        raise errors.UsageError("the authority's own certificate has expired: make another in a folder of its own")
    return now - _CLOCKS, min(end, issuer.not_valid_after_utc) if issuer else end


def check_hosts(hosts: Sequence[str]) -> None:
    """Raise UsageError naming what can be neither a host's name nor its address."""
    for each in hosts:
        _name(each)


def authority(name: str, valid: tuple[datetime, datetime]) -> Pair:
    """A new certificate authority, whose certificate it signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    usage = _usage(signs_certificates=True)
    subject = _subject(name)
    builder = _builder(subject, subject, key.public_key(), key.public_key(), valid)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    return Pair(builder.add_extension(usage, critical=True).sign(key, hashes.SHA256()), key)


def issue(signer: Pair, role: Role, hosts: Sequence[str], valid: tuple[datetime, datetime]) -> Pair:
    """A certificate under the role's name; who listens is also known by `hosts`: names and addresses."""
    key = ec.generate_private_key(ec.SECP256R1())
    names = [role.name, *(hosts if role.listens else ())]
    purposes = [ExtendedKeyUsageOID.SERVER_AUTH] * role.listens + [ExtendedKeyUsageOID.CLIENT_AUTH] * role.calls
    builder = _builder(
        _subject(role.name), signer.certificate.subject, key.public_key(), signer.key.public_key(), valid
    )
    for extension, critical in (
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (_usage(signs_certificates=False), True),
        (x509.ExtendedKeyUsage(purposes), False),
        (x509.SubjectAlternativeName([_name(each) for each in dict.fromkeys(names)]), False),
    ):
        builder = builder.add_extension(extension, critical=critical)
    return Pair(builder.sign(signer.key, hashes.SHA256()), key)


def renewed(signer: Pair, old: x509.Certificate, valid: tuple[datetime, datetime]) -> x509.Certificate:
    """The same certificate for another time: same names, same key."""
    public = old.public_key()
    builder = _builder(old.subject, signer.certificate.subject, public, signer.key.public_key(), valid)
    for each in old.extensions:
        if not isinstance(each.value, x509.SubjectKeyIdentifier | x509.AuthorityKeyIdentifier):
            builder = builder.add_extension(each.value, critical=each.critical)
    return builder.sign(signer.key, hashes.SHA256())


def load(cert_file: Path, key_file: Path) -> Pair:
    """A pair that was written before; raises UsageError when a file is missing or is something else."""
    try:
        certificate = x509.load_pem_x509_certificate(cert_file.read_bytes())
        key = load_pem_private_key(key_file.read_bytes(), None)
    except OSError as error:
        raise errors.UsageError(f"cannot read {error.filename}: {error.strerror}") from error
    except (ValueError, TypeError) as error:
        raise errors.UsageError(f"{cert_file} and {key_file}: not a certificate and its key in PEM form") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise errors.UsageError(f"{key_file} is not the key of the certificate in {cert_file}")
    return Pair(certificate, key)


def save(pair: Pair, cert_file: Path, key_file: Path) -> None:
    """Write both; raises FileExistsError when there is such a file."""
    _write_new(key_file, pair.key_pem, 0o600)
    _write_new(cert_file, pair.cert_pem, 0o644)


def names_of(certificate: x509.Certificate) -> list[str]:
    """The subject alternative names, as text."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [str(each.value) for each in found]


def _write_new(file: Path, content: bytes, mode: int) -> None:
    with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as opened:
        opened.write(content)


def _subject(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


def _name(text: str) -> x509.GeneralName:
    """Raises UsageError for what can be neither a host's name nor its address."""
    try:
        return x509.IPAddress(ip_address(text.strip("[]")))
    except ValueError:
        pass
    if _HOST.fullmatch(text) is None:
        raise errors.UsageError(f"{text!r} is neither a host's name nor an address, for example db.example")
    return x509.DNSName(text)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public: CertificatePublicKeyTypes,
    issuers_public: ec.EllipticCurvePublicKey,
    valid: tuple[datetime, datetime],
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(valid[0])
        .not_valid_after(valid[1])
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        # Strict readers, as Python 3.13's own, refuse a certificate without it.
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuers_public), critical=False)
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
