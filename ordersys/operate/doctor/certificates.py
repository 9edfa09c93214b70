"""The certificate files that the settings name: sound, each with its key, from their CA, and good for a while."""

import time
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from ordersys.core import errors, tls
from ordersys.operate.doctor.findings import Check, Finding, ok, problem, warning

if TYPE_CHECKING:
    from ordersys.settings import Settings

_SOON_DAYS, _VERY_SOON_DAYS = 21, 3  # as the alerts have it
_DAY = 86_400
_RENEW = "ordersys certs renew  # where it is of certs init; else ask your CA"


def checks(settings: "Settings") -> list[Check]:
    """One for each party that has files."""
    parties = {
        "of the services": settings.tls_files,
        "of the API": settings.api_tls_files,
    }
    if settings.broker_url.startswith("amqps:") and settings.broker_tls_files != settings.tls_files:
        parties["for the broker"] = settings.broker_tls_files
    return [
        Check(f"certificates {whose}", partial(look, f"certificates {whose}", files), "ordersys certs show")
        for whose, files in parties.items()
        if files
    ]


def look(name: str, files: tls.Files) -> Iterator[Finding]:
    try:
        content = files.read()
    except errors.UsageError as error:
        yield problem(name, error.message, _RENEW)
        return
    if files.cert and files.ca and files.settings[0] == "tls_ca_file" and not _issued(content.cert, content.ca):
        yield problem(name, f"{files.cert} is not from the CA in {files.ca}: the others will refuse it", _RENEW)
        return
    expiries = tls.expiries(files)
    first = min(expiries, key=expiries.__getitem__)
    left = expiries[first] - time.time()
    until = time.strftime("%Y-%m-%d", time.gmtime(expiries[first]))
    if left < _SOON_DAYS * _DAY:
        yield (problem if left < _VERY_SOON_DAYS * _DAY else warning)(
            name, f"{dict(files.named)[first]} expires on {until}", _RENEW
        )
    else:
        yield ok(name, f"{', '.join(content.names) or 'a CA'}, good until {until}")


def _issued(chain: bytes, ca: bytes) -> bool:
    """Does the first certificate lead to one of these, through those that came with it?"""
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature

    leaf, *between = x509.load_pem_x509_certificates(chain)
    roots = x509.load_pem_x509_certificates(ca)
    for _ in range(len(between) + 1):
        for issuer in (*roots, *between):
            try:
                leaf.verify_directly_issued_by(issuer)
            except (ValueError, TypeError, InvalidSignature):
                continue
            if issuer in roots:
                return True
            leaf = issuer
            break
    return False
