"""Where the roles listen and are called: who is there, are they ready, and are they of one version?"""

import errno
import json
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial
from typing import TYPE_CHECKING

from ordersys import __version__
from ordersys.core import errors
from ordersys.operate import places, web
from ordersys.operate.doctor.findings import Check, Finding, ok, problem, warning
from ordersys.operate.side_by_side import Asked
from ordersys.settings import dialled

if TYPE_CHECKING:
    from ordersys.settings import Settings

_SECONDS = 1.5
_OTHER_NAME = "is for another name"  # core/rpc/handshakes.py
_SKEW_SECONDS = 5.0  # the API's clock is told in whole seconds


class NotOurs(errors.OrdersysError):
    """Somebody answers, and is not who was looked for."""


Ready = Callable[[str], str]
"""What keeps who listens there from being ready, "" for nothing; raises NoAnswer and `NotOurs`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Door:
    """One address that a role listens on; `setting` names it. Where another will do, nobody has to have it."""

    role: str
    setting: str
    bind: str
    another: bool = False
    ready: Ready


def doors(settings: "Settings") -> list[Door]:
    """Every address that the settings let a role listen on."""
    roles = ("product", "order")
    grpc = [
        Door(
            role=f"{name}-service",
            setting=f"{name}_bind",
            bind=getattr(settings, f"{name}_bind"),
            ready=partial(_grpc_ready, settings, f"ordersys.core.v1.{name.capitalize()}Service"),
        )
        for name in roles
    ]
    rest = Door(
        role="api",
        setting="api_bind",
        bind=settings.api_bind,
        ready=partial(_http_ready, settings, "https" if settings.api_tls_cert_file else "http"),
    )
    admin = [
        Door(
            role=f"{name} admin port",
            setting=f"{name}_admin_bind",
            bind=getattr(settings, f"{name}_admin_bind"),
            another=f"{name}_admin_bind" not in settings.model_fields_set,  # as core/watch/admin.py has it
            ready=partial(_http_ready, settings, "http"),
        )
        for name in (*roles, "notify")
    ]
    return [each for each in (*grpc, rest, *admin) if each.bind != "off"]


def checks(settings: "Settings") -> list[Check]:
    return [
        *(
            Check(f"port {door.role}", partial(_port, door), f"ss -ltnp 'sport = :{door.bind.rpartition(':')[2]}'")
            for door in doors(settings)
        ),
        Check("services", lambda: services(settings), "ordersys config"),
        Check("versions", lambda: versions(settings), "ordersys --version"),
    ]


# --- ports ------------------------------------------------------------------------------------------------------


def _port(door: Door) -> Iterator[Finding]:
    name = f"port {door.role}"
    variable = f"ORDERSYS_{door.setting.upper()}"
    port = door.bind.rpartition(":")[2]
    if port == "0":
        yield ok(name, f"{door.bind}: any that is free")
        return
    refused = bindable(door.bind)
    if refused is None:
        yield ok(name, f"{door.bind} is free")
    elif refused.errno != errno.EADDRINUSE:
        found = f"{door.bind} cannot be listened on: {refused.strerror or refused}"
        yield problem(name, found, f"export {variable}=127.0.0.1:{max(int(port), 1024)}")
    else:
        yield _holder(door, name)


def _holder(door: Door, name: str) -> Finding:
    who = f"ss -ltnp 'sport = :{door.bind.rpartition(':')[2]}'"
    try:
        missing = door.ready(dialled(door.bind))
    except (errors.NoAnswer, NotOurs) as error:
        if _OTHER_NAME in error.message:  # who calls by the right name gets through
            return ok(name, f"{door.bind} is taken by who has a certificate of our CA, for a name of its own")
        found = f"{door.bind} is taken, and nobody answers there as {door.role}: {error.message}"
        return (warning if door.another else problem)(name, found, who)
    if missing:
        return problem(name, f"{door.role} listens on {door.bind} and is not ready: {missing}", f"{who}  # and its log")
    return ok(name, f"{door.role} listens on {door.bind} and is ready")


def bindable(bind: str) -> OSError | None:
    """None when somebody could listen there, else why not; what is found out is undone at once."""
    host, _, port = bind.rpartition(":")
    try:
        found = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        return error
    problems = [_refusal(family, address) for family, _, _, _, address in found]
    return None if None in problems else problems[0]


def _refusal(family: socket.AddressFamily, address: object) -> OSError | None:
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        if sys.platform != "win32":  # there it would share a taken address
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)  # type: ignore[arg-type]
        except OSError as error:
            return error
    return None


# --- whom clients call --------------------------------------------------------------------------------------------


def services(settings: "Settings") -> Iterator[Finding]:
    """The addresses that clients call. Where nothing runs at all nobody is missed; one without the other is."""
    addresses = {"product": settings.product_address, "order": settings.order_address}
    questions = {
        role: partial(_refused, settings, f"ordersys.core.v1.{role.capitalize()}Service", address)
        for role, address in addresses.items()
    }
    answers = Asked().ask(questions, 3 * _SECONDS)
    nobody = all(isinstance(found, ConnectionRefusedError) for found in answers.values())
    for role, found in answers.items():
        name, start, address = f"call {role}-service", f"ordersys serve-{role}", addresses[role]
        if found is None:
            yield ok(name, f"{address} answers")
        elif isinstance(found, ConnectionRefusedError):
            yield (warning if nobody else problem)(name, f"nobody listens on {address}", start)
        else:
            said = found.message if isinstance(found, errors.OrdersysError) else f"{address}: {found}"
            yield problem(name, said, f"ordersys config  # ORDERSYS_{role.upper()}_ADDRESS")


def _refused(settings: "Settings", service: str, address: str) -> Exception | None:
    """Why nobody can call it, None when this service answers there; whether it is ready its own port says."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_SECONDS).close()
    except TimeoutError:
        return errors.NoAnswer(f"{address}: no connection within {_SECONDS:g} s: something swallows what is sent there")
    except OSError as error:
        return error
    try:
        _grpc_ready(settings, service, address)
    except (errors.NoAnswer, NotOurs) as error:
        return error
    return None


def _grpc_ready(settings: "Settings", service: str, address: str) -> str:
    from ordersys.core.rpc.channel import Channel

    with closing(Channel(address, retry=False, tls=settings.tls())) as channel:
        try:
            return channel.missing(service, deadline=_SECONDS)
        except errors.NoAnswer:
            raise
        except errors.OrdersysError as error:
            raise NotOurs(error.message) from error


def _http_ready(settings: "Settings", scheme: str, address: str) -> str:
    url = f"{scheme}://{address}/readyz"
    answer = web.get(url, _SECONDS, tls=web.own_api(settings))
    if answer.status == 400 and b"speaks HTTPS" in answer.body:  # of which the settings of who looks may know nothing
        url = f"https://{address}/readyz"
        answer = web.get(url, _SECONDS, tls=web.anyone(settings))
    try:
        document = json.loads(answer.body)
        status, found = document["status"], document["checks"]
        missing = [name for name, check in found.items() if check["status"] != "ready"]
    except (ValueError, KeyError, TypeError, AttributeError):
        raise NotOurs(f"{url} answers {answer.status}, and not as a role of ordersys does") from None
    return "" if answer.status == 200 and status == "ready" else ", ".join(missing) or status


# --- versions -----------------------------------------------------------------------------------------------------


def versions(settings: "Settings") -> Iterator[Finding]:
    """Does what runs have the version of this command, and the API the time of this machine?"""
    found: dict[str, set[str]] = {}
    https = web.own_api(settings)
    ask = partial(web.get, seconds=_SECONDS, api_key=settings.api_key, tls=https)
    answers = Asked().ask({url: partial(ask, url) for url in places.metrics(settings)}, 2 * _SECONDS)
    for answer in answers.values():
        if isinstance(answer, Exception):
            continue
        if answer.date:
            yield from _skew(answer.date)
        for service, version in running(answer):
            found.setdefault(version, set()).add(service)
    others = {version: services for version, services in found.items() if version != __version__}
    if others:
        told = ", ".join(f"{service} {version}" for version, names in others.items() for service in sorted(names))
        yield warning(
            "versions", f"this command is {__version__}, and there runs {told}", "pip install --upgrade ordersys"
        )
    elif found:
        yield ok("versions", f"{__version__}: {', '.join(sorted(found[__version__]))} and this command")
    else:
        yield ok("versions", f"{__version__}; no role that runs here says its own")


def running(answer: web.Answer) -> Iterator[tuple[str, str]]:
    """(service, version) of every role whose metrics these are; none in what are no metrics."""
    from prometheus_client.parser import text_string_to_metric_families

    if answer.status != 200:
        return
    try:
        for family in text_string_to_metric_families(answer.body.decode()):
            if family.name.startswith("ordersys_build"):
                yield from ((each.labels.get("service", "api"), each.labels["version"]) for each in family.samples)
    except (ValueError, KeyError):
        return


def _skew(date: str) -> Iterator[Finding]:
    try:
        ahead = parsedate_to_datetime(date).timestamp() - time.time()
    except ValueError:
        return
    if abs(ahead) > _SKEW_SECONDS:
        found = f"the API's clock is {abs(ahead):.0f} s {'ahead of' if ahead > 0 else 'behind'} ours"
        yield problem("clock of the API", found, "timedatectl set-ntp true  # on both machines")
