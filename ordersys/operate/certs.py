"""`ordersys certs`: certificates to try with, and what the certificates say that are in use."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ordersys.operate import printing
from ordersys.operate.printing import Json

if TYPE_CHECKING:
    from cryptography.x509 import Certificate

    from ordersys.operate.issuing import Pair
    from ordersys.settings import Settings

certificates = typer.Typer(help="TLS: make certificates to try with, renew them, look at those in use.")

_CA_DAYS = 3650
_DAY = 86_400.0

Folder = Annotated[Path | None, typer.Option("--dir", metavar="DIR", help="Where; default: certs in the home.")]
Days = Annotated[int, typer.Option("--days", min=1, max=36_500, help="How long they are good.")]


@certificates.command("init")
def init(
    folder: Folder = None,
    days: Days = 365,
    host: Annotated[
        list[str] | None,
        typer.Option("--host", metavar="NAME", help="A further name or address of the servers; repeatable."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a certificate authority and a certificate for each role; what is there stays as it is.

    For development and tests: the authority's key lies beside the certificates, and whoever has it can be anybody.
    """
    from ordersys.core import errors
    from ordersys.operate import issuing

    folder = _folder(folder)
    hosts = list(dict.fromkeys((*issuing.LOOPBACK, *(host or ()))))
    issuing.check_hosts(hosts)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        signer, rows = _authority(folder, max(days, _CA_DAYS))
        for role in issuing.ROLES:
            cert, key = _files(folder, role.name)
            if made := _missing(cert, key):
                valid = issuing.lasting(days, signer.certificate)
                issuing.save(issuing.issue(signer, role, hosts, valid), cert, key)
            rows.append(_row(cert, issuing.load(cert, key).certificate, made=made))
    except OSError as error:
        raise errors.UsageError(f"cannot write to {folder}: {error.strerror}") from error
    environments = {role.name: _environment(folder, role.name) for role in issuing.ROLES}
    if as_json:
        printing.document({"certificates": rows, "environments": environments})
        return
    _print_rows(rows, ("made", "file", "names", "not_after", "days_left"))
    for row in rows:
        lacking = [each for each in host or () if each not in row["names"] and "localhost" in row["names"]]
        if lacking:
            print(f"{row['file']} is kept and lacks {', '.join(lacking)}: move the pair away first", file=sys.stderr)
    for name, lines in environments.items():
        print(f"\n# {name}")
        print("\n".join(lines))


@certificates.command("show")
def show(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="FILE", help="PEM files; default: those that the settings name.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print whose a certificate is, who issued it, and until when it is good; exit code 1 when one has expired."""
    from ordersys import settings
    from ordersys.core import errors

    rows = []
    for file in files or _configured(settings.load()):
        rows += [_row(file, each) for each in _read(file)]
    if not rows:
        raise errors.UsageError(
            "the settings name no certificates: give files, or make some with `ordersys certs init`"
        )
    if as_json:
        printing.document({"certificates": rows})
    else:
        _print_rows(rows, ("file", "subject", "issuer", "names", "not_after", "days_left"))
    if any(row["expired"] for row in rows):
        raise typer.Exit(1)


@certificates.command("renew")
def renew(
    roles: Annotated[
        list[str] | None, typer.Argument(metavar="ROLE", help="Whose; default: all that `certs init` made there.")
    ] = None,
    folder: Folder = None,
    days: Days = 365,
    as_json: Json = False,
) -> None:
    """Let the authority of `certs init` sign certificates again: same names, same keys, another time.

    Running services take them for their next connections; nothing is to be restarted.
    """
    from cryptography.hazmat.primitives.serialization import Encoding

    from ordersys.core import errors
    from ordersys.operate import issuing

    folder = _folder(folder)
    signer = issuing.load(*_files(folder, issuing.CA))
    known = [role.name for role in issuing.ROLES if all(each.exists() for each in _files(folder, role.name))]
    for each in roles or ():
        if each not in known:
            raise errors.UsageError(f"there is no certificate of {each!r} in {folder}: {', '.join(known) or 'none'}")
    rows = []
    for name in roles or known:
        cert, key = _files(folder, name)
        new = issuing.renewed(signer, issuing.load(cert, key).certificate, issuing.lasting(days, signer.certificate))
        beside = cert.with_suffix(".new")
        try:
            beside.write_bytes(new.public_bytes(Encoding.PEM))
            beside.replace(cert)  # in one step: nobody reads half a certificate
        except OSError as error:
            raise errors.UsageError(f"cannot write {cert}: {error.strerror}") from error
        rows.append(_row(cert, new))
    if as_json:
        printing.document({"certificates": rows})
    else:
        _print_rows(rows, ("file", "names", "not_after", "days_left"))


def _folder(given: Path | None) -> Path:
    from ordersys import settings

    return (given or settings.load().home / "certs").expanduser().absolute()


def _files(folder: Path, name: str) -> tuple[Path, Path]:
    return folder / f"{name}.crt", folder / f"{name}.key"


def _missing(cert: Path, key: Path) -> bool:
    """True when there is neither; raises UsageError when there is only one: it might be somebody's."""
    from ordersys.core import errors

    if cert.exists() != key.exists():
        there, gone = (cert, key) if cert.exists() else (key, cert)
        raise errors.UsageError(f"{there} is there and {gone} is not: nothing is written over; move it away first")
    return not cert.exists()


def _authority(folder: Path, days: int) -> "tuple[Pair, list[dict[str, Any]]]":
    """The authority that is there, or a new one, and its row."""
    from ordersys.operate import issuing

    cert, key = _files(folder, issuing.CA)
    if made := _missing(cert, key):
        issuing.save(issuing.authority("ordersys development CA", issuing.lasting(days)), cert, key)
    pair = issuing.load(cert, key)
    return pair, [_row(cert, pair.certificate, made=made)]


def _environment(folder: Path, role: str) -> list[str]:
    """What the role is to be told, in the form that it reads."""
    ca, (cert, key) = folder / "ca.crt", _files(folder, role)
    if role == "rabbitmq":  # https://www.rabbitmq.com/docs/ssl
        return [
            "# rabbitmq.conf; the broker's user must be able to read the key",
            "listeners.ssl.default = 5671",
            f"ssl_options.cacertfile = {ca}",
            f"ssl_options.certfile = {cert}",
            f"ssl_options.keyfile = {key}",
            "ssl_options.verify = verify_peer",
            "ssl_options.fail_if_no_peer_cert = true",
        ]
    if role == "postgresql":  # https://www.postgresql.org/docs/current/ssl-tcp.html
        return [
            "# postgresql.conf; the key must belong to the server's user",
            "ssl = on",
            f"ssl_ca_file = '{ca}'",
            f"ssl_cert_file = '{cert}'",
            f"ssl_key_file = '{key}'",
        ]
    named = [("TLS_CA_FILE", ca), ("TLS_CERT_FILE", cert), ("TLS_KEY_FILE", key)]
    if role == "api":
        named += [("API_TLS_CERT_FILE", cert), ("API_TLS_KEY_FILE", key)]
    return [f"export ORDERSYS_{name}={_quoted(file)}" for name, file in named]


def _quoted(file: Path) -> str:
    import shlex

    return shlex.quote(str(file))


def _configured(chosen: "Settings") -> list[Path]:
    """The certificate files that the settings name, each once."""
    names = [name for name in type(chosen).model_fields if name.endswith(("_ca_file", "_cert_file"))]
    return list(dict.fromkeys(Path(value) for name in names if (value := getattr(chosen, name))))


def _read(file: Path) -> "Sequence[Certificate]":
    from cryptography import x509

    from ordersys.core import errors

    try:
        return x509.load_pem_x509_certificates(file.read_bytes())
    except OSError as error:
        raise errors.UsageError(f"cannot read {file}: {error.strerror}") from error
    except ValueError as error:
        raise errors.UsageError(f"{file} holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)") from error


def _row(file: Path, certificate: "Certificate", *, made: bool | None = None) -> dict[str, Any]:
    from ordersys.core import ids
    from ordersys.operate import issuing

    ends = certificate.not_valid_after_utc.timestamp()
    left = ends - time.time()
    row = {
        "file": str(file),
        "subject": certificate.subject.rfc4514_string(),
        "issuer": certificate.issuer.rfc4514_string(),
        "names": issuing.names_of(certificate),
        "not_before": ids.rfc3339(int(certificate.not_valid_before_utc.timestamp() * 1_000_000)),
        "not_after": ids.rfc3339(int(ends * 1_000_000)),
        "days_left": round(left / _DAY),
        "expired": left <= 0,
    }
    return row if made is None else {**row, "made": made}


def _print_rows(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> None:
    cells = [[_cell(row, each) for each in columns] for row in rows]
    printing.table([each.replace("_", " ") for each in columns], cells)


def _cell(row: dict[str, Any], column: str) -> str:
    value = row[column]
    if column == "made":
        return "made" if value else "kept"
    if column == "days_left" and row["expired"]:
        return "EXPIRED"
    return ", ".join(value) if column == "names" else str(value)
