"""The settings: do they make sense together, and are they safe?"""

import importlib.util
from collections.abc import Iterator
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

from ordersys.core import tls
from ordersys.core.display import counted, masked
from ordersys.operate.doctor.findings import Check, Finding, ok, problem, warning

if TYPE_CHECKING:
    from ordersys.settings import Settings

_NAME = "settings"
_BINDS = ("product_bind", "order_bind", "api_bind", "product_admin_bind", "order_admin_bind", "notify_admin_bind")
_DATABASES = ("product_database_url", "order_database_url", "notify_database_url", "api_database_url")
_ANY_HOST = ("0.0.0.0", "::")  # noqa: S104 - compared, not bound
_SAFE_MODES = ("require", "verify-ca", "verify-full")


def checks(settings: "Settings") -> list[Check]:
    return [
        Check(_NAME, lambda: configuration(settings), "ordersys config"),
        Check("seed data", lambda: _seed(settings), f"ls -l {settings.data}"),
    ]


def _seed(settings: "Settings") -> Iterator[Finding]:
    """Both services read it at every start."""
    from ordersys.core import seed

    found = seed.load(settings.data)
    yield ok("seed data", f"{settings.data}: {counted(len(found.products), 'product')}")


def configuration(settings: "Settings") -> Iterator[Finding]:
    found = [
        *_addresses(settings),
        *_exposed(settings),
        *_on_the_wire(settings),
        *_in_vain(settings),
        *_tokens(settings),
    ]
    given = len(settings.model_fields_set)
    yield from found or [ok(_NAME, f"{given} of {len(type(settings).model_fields)} differ from their defaults")]


def _addresses(settings: "Settings") -> Iterator[Finding]:
    taken: dict[tuple[str, str], str] = {}
    for name in _BINDS:
        bind = getattr(settings, name)
        host, port = _host(bind), bind.rpartition(":")[2] if ":" in bind else ""
        if port in ("", "0"):  # off, or any that is free
            continue
        for (other_host, other_port), other in taken.items():
            if port == other_port and (host == other_host or {host, other_host} & set(_ANY_HOST)):
                found = (
                    f"{_variable(other)} and {_variable(name)} are both port {port}: the second to start cannot listen"
                )
                yield problem(_NAME, found, f"export {_variable(name)}=127.0.0.1:{_next(taken, port)}")
                break
        taken[host, port] = name
    for role in ("product", "order"):
        bind, address = getattr(settings, f"{role}_bind"), getattr(settings, f"{role}_address")
        near = tls.is_this_machine(_host(address)) and (tls.is_this_machine(_host(bind)) or _host(bind) in _ANY_HOST)
        if near and not bind.endswith(":0") and bind.rpartition(":")[2] != address.rpartition(":")[2]:
            found = f"serve-{role} listens on {bind}, and clients look for it at {address}"
            yield warning(_NAME, found, f"export ORDERSYS_{role.upper()}_ADDRESS=127.0.0.1:{bind.rpartition(':')[2]}")
    far = [name for name in _DATABASES if _server(getattr(settings, name))]
    if settings.broker_url.startswith("sqlite:") and far:
        found = f"{_variable(far[0])} is on another machine, and the embedded broker is for the processes of one"
        yield warning(_NAME, found, "export ORDERSYS_BROKER_URL=amqps://USER:PASSWORD@HOST:5671/VHOST")


def _exposed(settings: "Settings") -> Iterator[Finding]:
    served = bool(settings.tls_cert_file)
    for name, protected in (
        ("product_bind", served),
        ("order_bind", served),
        ("api_bind", bool(settings.api_tls_cert_file)),
    ):
        if protected or tls.is_this_machine(_host(getattr(settings, name))):
            continue
        found = (
            f"{_variable(name)} is {getattr(settings, name)} without TLS: everybody on the way can read and change it"
        )
        if settings.insecure:
            yield warning(_NAME, f"{found} (ORDERSYS_INSECURE allows it)", "ordersys certs init")
        else:
            yield problem(_NAME, f"{found}, so it will not start", "ordersys certs init")
    for name in _BINDS[3:]:
        bind = getattr(settings, name)
        if bind != "off" and not tls.is_this_machine(_host(bind)):
            found = f"{_variable(name)} is {bind}: the metrics are there for everybody who can reach it"
            yield warning(_NAME, found, f"export {_variable(name)}=127.0.0.1:{bind.rpartition(':')[2]}")
    if served and settings.tls_client_cert == "none":
        found = "ORDERSYS_TLS_CLIENT_CERT is none: whoever reaches the services may place orders and adjust stock"
        yield warning(_NAME, found, "export ORDERSYS_TLS_CLIENT_CERT=required")


def _on_the_wire(settings: "Settings") -> Iterator[Finding]:
    """Passwords that everybody on the way can read."""
    broker = urlsplit(settings.broker_url)
    if broker.scheme == "amqp" and _server(settings.broker_url):
        found = "ORDERSYS_BROKER_URL is amqp:// to another machine: the password goes in the clear"
        yield warning(_NAME, found, f"export ORDERSYS_BROKER_URL=amqps://USER:PASSWORD@{broker.hostname}:5671/VHOST")
    if broker.scheme in ("amqp", "amqps") and broker.username in (None, "guest") and _server(settings.broker_url):
        found = "ORDERSYS_BROKER_URL has the user guest, who may do everything, where a server lets him in at all"
        yield warning(_NAME, found, "ordersys topology permissions")
    for name in _DATABASES:
        url = getattr(settings, name)
        if _server(url) and parse_qs(urlsplit(url).query).get("sslmode", [""])[-1] not in _SAFE_MODES:
            found = f"{_variable(name)} goes to another machine and does not ask for TLS"
            yield warning(_NAME, found, f"export {_variable(name)}='{_asking_for_tls(url)}'")


def _in_vain(settings: "Settings") -> Iterator[Finding]:
    """What was set and has no effect, or cannot have the one it was set for."""
    for name in ("broker_ca_file", "broker_cert_file", "broker_key_file"):
        if getattr(settings, name) and not settings.broker_url.startswith("amqps:"):
            found = f"{_variable(name)} has no effect: ORDERSYS_BROKER_URL is not amqps://"
            yield warning(_NAME, found, f"unset {_variable(name)}")
    if settings.tls_ca_file and not settings.tls_cert_file and settings.tls_client_cert == "required":
        found = "ORDERSYS_TLS_CA_FILE is set without a certificate of our own, and the services ask for one"
        yield warning(_NAME, found, "ordersys certs init")
    if settings.traces == "otlp" and not _installed("opentelemetry", "opentelemetry.sdk"):
        found = "ORDERSYS_TRACES is otlp, and what exports traces is not installed"
        yield problem(_NAME, found, "pip install 'ordersys[otel]'")


def _tokens(settings: "Settings") -> Iterator[Finding]:
    named = [name for name in ("api_jwt_jwks_url", "api_jwt_public_key_file") if getattr(settings, name)]
    needed = ("api_jwt_issuer", "api_jwt_audience")
    if len(named) > 1:
        found = "ORDERSYS_API_JWT_JWKS_URL and ORDERSYS_API_JWT_PUBLIC_KEY_FILE are both set: the API takes one of them"
        yield problem(_NAME, found, "unset ORDERSYS_API_JWT_PUBLIC_KEY_FILE")
    for name in needed:
        if named and not getattr(settings, name):
            found = f"{_variable(named[0])} is set without {_variable(name)}: the API will not start"
            yield problem(_NAME, found, f"export {_variable(name)}=...")
        if not named and getattr(settings, name):
            found = f"{_variable(name)} alone takes no tokens: the API will not start"
            yield problem(_NAME, found, "export ORDERSYS_API_JWT_JWKS_URL=https://...")


def _installed(*modules: str) -> bool:
    """Outer ones first: who asks for an inner one imports those around it."""
    return all(importlib.util.find_spec(each) is not None for each in modules)


def _variable(name: str) -> str:
    return f"ORDERSYS_{name.upper()}"


def _host(address: str) -> str:
    return address.rpartition(":")[0].strip("[]")


def _server(url: str) -> str:
    """The host of a server on another machine; "" for a file, a socket, and this machine."""
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        return ""
    return "" if not host or tls.is_this_machine(host) else host


def _asking_for_tls(url: str) -> str:
    return f"{masked(url)}{'&' if '?' in url else '?'}sslmode=verify-full"


def _next(taken: dict[tuple[str, str], str], port: str) -> int:
    ports = {int(each) for _, each in taken}
    return next(each for each in range(int(port) + 1, 65_536) if each not in ports)
