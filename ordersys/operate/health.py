"""`ordersys health`: for container probes. Exit code 0 ready, 1 not ready, 3 not reached."""

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ordersys.core import errors

if TYPE_CHECKING:
    from ordersys.settings import Settings

_SHORT = {
    "product": "product-service",
    "order": "order-service",
    "api": "api",
    "notify": "notification-service",
}


def health(
    service: Annotated[
        str,
        typer.Option(
            "--service",
            metavar="NAME",
            help=f"{', '.join(_SHORT.values())}; or {', '.join(_SHORT)}; default: whichever runs here.",
        ),
    ] = "",
    timeout: Annotated[float, typer.Option("--timeout", min=0.1, max=60, help="Seconds to wait for the answer.")] = 3.0,
    address: Annotated[
        str | None, typer.Option("--address", metavar="HOST:PORT", help="Where it is; by default as it was told to.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Ask a role of this machine whether it is ready: exit code 0 ready, 1 not ready, 3 not reached.

    Without --service all are asked, and those that answer count: in a container that is the one that runs there.
    """
    from ordersys import settings

    if service and _SHORT.get(service, service) not in _SHORT.values():
        raise errors.UsageError(f"--service {service!r}: expected {', '.join(_SHORT.values())}")
    if address and not service:
        raise errors.UsageError(f"--address {address}: say with --service which role is there")
    chosen = settings.load({})
    told, unreached = [], []
    for name in [_SHORT.get(service, service)] if service else _SHORT.values():
        asked = _grpc if name in ("product-service", "order-service") else _http
        try:
            status, missing = asked(chosen, name, address, timeout)
        except (errors.Unavailable, errors.UsageError) as error:
            if service:
                raise
            unreached.append(f"{name}: {error.message}")
            continue
        told.append(status)
        if as_json:
            typer.echo(json.dumps({"service": name, "status": status, "missing": missing}))
        else:
            typer.echo(f"{name}: {status.replace('_', ' ')}{': ' if missing else ''}{', '.join(missing)}")
    if not told:
        raise errors.Unavailable(f"no role answers on this machine: {'; '.join(unreached)}")
    raise typer.Exit(1 if "not_ready" in told else 0)


def _grpc(settings: "Settings", name: str, address: str | None, timeout: float) -> tuple[str, list[str]]:
    from ordersys.core.rpc.channel import Channel

    role = name.removesuffix("-service")
    where = address or _own(getattr(settings, f"{role}_bind"), getattr(settings, f"{role}_address"))
    channel = Channel(where, retry=False, tls=settings.tls())
    try:
        missing = channel.missing("", deadline=timeout)
    finally:
        channel.close()
    return ("not_ready", missing.split(", ")) if missing else ("ready", [])


def _http(settings: "Settings", name: str, address: str | None, timeout: float) -> tuple[str, list[str]]:
    bind = settings.api_bind if name == "api" else settings.notify_admin_bind
    if address is None and bind == "off":
        raise errors.UsageError("ORDERSYS_NOTIFY_ADMIN_BIND is off, and a notifier answers nowhere else")
    where = address or _own(bind, "")
    found = _readyz(settings, where, timeout, tls=name == "api" and bool(settings.api_tls_files))
    missing = [check for check, said in found["checks"].items() if said["status"] != "ready"]
    return found["status"], missing


def _own(bind: str, address: str) -> str:
    """Where what listens there is found from this machine: a probe asks its own container, and not the service."""
    from ordersys.settings import dialled

    if bind.rpartition(":")[2].strip("0"):
        return dialled(bind)
    if not address:
        raise errors.UsageError(f"{bind} is any port: say which with --address HOST:PORT")
    return address


def _readyz(settings: "Settings", where: str, timeout: float, *, tls: bool) -> dict[str, Any]:
    """What /readyz answers there; raises `Unavailable`."""
    from ordersys.operate import web

    answer = web.get(f"{'https' if tls else 'http'}://{where}/readyz", timeout, tls=web.own_api(settings))
    try:
        found = json.loads(answer.body)
    except ValueError as error:
        raise errors.Unavailable(f"{where}: {error}") from error
    if not (isinstance(found, dict) and isinstance(found.get("checks"), dict) and "status" in found):
        raise errors.Unavailable(f"{where} does not answer as a role of ordersys")
    return found
