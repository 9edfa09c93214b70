"""The certificate files of one party: read, checked, and read again when they change. Whoever may listen without them.

Nothing here knows gRPC: the API's server and the broker's connections stand on the same files.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING

from ordersys.core import errors

if TYPE_CHECKING:
    import ssl  # half a dozen milliseconds that most commands need not spend

    from cryptography.x509 import Certificate

logger = logging.getLogger(__name__)

Stamp = tuple[int, int, int] | None
"""Inode, time of the last change in nanoseconds, and size; None when the file cannot be looked at."""


@dataclass(frozen=True, slots=True)
class Content:
    """What the files held, checked; b"" for a file that is not named. `expires` is in seconds since the epoch."""

    ca: bytes
    cert: bytes  # the certificate, and those that lead to its CA
    key: bytes
    names: tuple[str, ...]  # who the certificate says we are
    expires: float


@dataclass(frozen=True, slots=True)
class Files:
    """Where one party's PEM files are, "" = none; `settings` are the names under which they were given."""

    ca: str = ""
    cert: str = ""
    key: str = ""
    settings: tuple[str, str, str] = ("tls_ca_file", "tls_cert_file", "tls_key_file")

    def __bool__(self) -> bool:
        return any((self.ca, self.cert, self.key))

    @property
    def named(self) -> Iterator[tuple[str, str]]:
        """(setting, file) of those that are given."""
        return ((name, file) for name, file in zip(self.settings, (self.ca, self.cert, self.key), strict=True) if file)

    def stamps(self) -> tuple[Stamp, ...]:
        """Differs when a file was written or replaced since."""
        return tuple(_stamp(file) for file in (self.ca, self.cert, self.key) if file)

    def read(self) -> Content:
        """The files as they are now; raises UsageError naming the setting and what is wrong with its file."""
        ca_name, cert_name, key_name = self.settings
        if bool(self.cert) != bool(self.key):
            given, missing = (cert_name, key_name) if self.cert else (key_name, cert_name)
            raise errors.UsageError(f"{_variable(given)} is set and {_variable(missing)} is not: they belong together")
        ca = _bytes(ca_name, self.ca)
        if self.ca:
            _refuse_outdated(ca_name, self.ca, _certificates(ca_name, self.ca, ca))
        if not self.cert:
            return Content(ca, b"", b"", (), float("inf"))
        cert, key = _bytes(cert_name, self.cert), _bytes(key_name, self.key)
        leaf = _certificates(cert_name, self.cert, cert)[0]
        _refuse_outdated(cert_name, self.cert, [leaf])
        _refuse_stranger(f"{_variable(key_name)}: {self.key}", key, self.cert, leaf)
        return Content(ca, cert, key, _names(leaf), leaf.not_valid_after_utc.timestamp())


class Kept:
    """The newest sound content of the files, for any thread; a broken new file leaves the old content in use."""

    def __init__(self, files: Files, clock: Callable[[], float] = time.time) -> None:
        """Raises UsageError when a file is missing or wrong."""
        self.files = files
        self._clock = clock
        self._stamps = files.stamps()
        self._content = files.read()
        self._lock = threading.Lock()
        self._outdated: Content | None = None  # the one that was reported

    def current(self) -> Content:
        """Reads the files again when they have changed since; what is wrong is logged once for each change."""
        stamps = self.files.stamps()
        with self._lock:
            if stamps != self._stamps:
                self._stamps = stamps
                self._read_again()
            if self._clock() > self._content.expires and self._outdated is not self._content:
                self._outdated = self._content
                logger.warning("%s: our own certificate has expired, others will refuse it", self.files.cert)
            return self._content

    def _read_again(self) -> None:
        try:
            self._content = self.files.read()
        except errors.UsageError as error:
            logger.warning("%s; what was read before stays in use", error.message)
        else:
            files = ", ".join(file for _, file in self.files.named)
            logger.info("certificates were read again, good for new connections: %s", files)


class Contexts:
    """What Python's ssl makes connections secure with, made again when the files have changed; for any thread."""

    def __init__(self, files: Files, build: "Callable[[Content], ssl.SSLContext]") -> None:
        """`build` raises UsageError, as this does when a file is missing or wrong."""
        self._kept = Kept(files)
        self._build = build
        self._content = self._kept.current()
        self._context = build(self._content)
        self._lock = threading.Lock()

    def newest(self) -> "ssl.SSLContext":
        """From the files as they are now; where these are broken, as they were."""
        content = self._kept.current()
        with self._lock:
            if content is not self._content:
                self._content = content
                try:
                    self._context = self._build(content)
                except errors.UsageError as error:
                    logger.warning("%s; what was read before stays in use", error.message)
            return self._context


@contextmanager
def naming(setting: str, file: str) -> Iterator[None]:
    """What OpenSSL has against a file that was checked before becomes a UsageError that names it and its setting."""
    try:
        yield
    except (OSError, ValueError) as error:  # it has changed meanwhile, or is too weak
        raise errors.UsageError(f"{_variable(setting)}: {file}: {error}") from error


def kept(files: Files) -> Kept | None:
    """What the files hold, None when none is named; raises UsageError when one is missing or wrong."""
    return Kept(files) if files else None


def identity(uris: Iterable[str], dns_names: Iterable[str], common_names: Iterable[str]) -> tuple[str, ...]:
    """Who somebody is by his certificate: its URI and DNS names; without any of them its common name.

    The common name counts only where there is nothing better (RFC 9525 section 2), and `localhost` is everybody's.
    """
    alternatives = [*uris, *dns_names]
    return tuple(each for each in alternatives or common_names if each.lower() != "localhost")


def expiries(*parties: Files) -> dict[str, float]:
    """Setting -> when the first certificate in its file expires, in seconds since the epoch; sound files only."""
    found = {}
    for files in parties:
        for name, file in files.named:
            if name != files.settings[2]:
                try:
                    certificates = _certificates(name, file, _bytes(name, file))
                except errors.UsageError:  # said where the file is used
                    continue
                found[name] = min(each.not_valid_after_utc.timestamp() for each in certificates)
    return found


def refuse_exposed(what: str, bind: str, *, tls: bool, insecure: bool) -> None:
    """Raise UsageError when other machines could reach `what` on HOST:PORT without TLS, unless it was said aloud."""
    if tls or is_this_machine(bind.rpartition(":")[0].strip("[]")):
        return
    if not insecure:
        raise errors.UsageError(
            f"{what} would listen on {bind} without TLS, and everybody on the way could read and change what is sent:"
            " name its certificate (`ordersys certs init` makes some to try with), or listen on 127.0.0.1,"
            " or say --insecure or ORDERSYS_INSECURE=true"
        )
    logger.warning("INSECURE: %s has no TLS on %s: everybody on the way can read and change what is sent", what, bind)


def is_this_machine(host: str) -> bool:
    """True for a loopback address, and for the name that stands for it (RFC 6761 section 6.3)."""
    if host.lower().rstrip(".") == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _stamp(file: str) -> Stamp:
    try:
        found = Path(file).stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _variable(setting: str) -> str:
    return f"ORDERSYS_{setting.upper()}"


def _bytes(setting: str, file: str) -> bytes:
    if not file:
        return b""
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise errors.UsageError(f"{_variable(setting)}: cannot read {file}: {error.strerror}") from error


def _certificates(setting: str, file: str, pem: bytes) -> "list[Certificate]":
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise errors.UsageError(
            f"{_variable(setting)}: {file} holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)"
        ) from error


def _names(certificate: "Certificate") -> tuple[str, ...]:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        found = x509.SubjectAlternativeName([])
    uris, dns_names = (found.get_values_for_type(kind) for kind in (x509.UniformResourceIdentifier, x509.DNSName))
    common = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return identity(uris, dns_names, [str(each.value) for each in common])


def _refuse_outdated(setting: str, file: str, certificates: "Sequence[Certificate]") -> None:
    """Of several CAs one that is valid is enough: a bundle may hold old ones."""
    now = time.time()
    problems = []
    for each in certificates:
        if each.not_valid_after_utc.timestamp() <= now:
            problems.append(f"expired at {each.not_valid_after_utc:%Y-%m-%d %H:%M:%S} UTC")
        elif each.not_valid_before_utc.timestamp() > now:
            problems.append(f"is not valid before {each.not_valid_before_utc:%Y-%m-%d %H:%M:%S} UTC")
        else:
            return
    raise errors.UsageError(f"{_variable(setting)}: the certificate in {file} {problems[0]}")


def _refuse_stranger(what: str, pem: bytes, cert_file: str, leaf: "Certificate") -> None:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

    try:
        public = load_pem_private_key(pem, None).public_key()
    except TypeError as error:
        raise errors.UsageError(f"{what} is encrypted: a key without a password is needed") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise errors.UsageError(f"{what} holds no private key in PEM form (-----BEGIN PRIVATE KEY-----)") from error
    form = Encoding.DER, PublicFormat.SubjectPublicKeyInfo
    if public.public_bytes(*form) != leaf.public_key().public_bytes(*form):
        raise errors.UsageError(f"{what} is not the key of the certificate in {cert_file}")
