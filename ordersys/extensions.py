"""What others may add: sinks and rules of their own packages, found by entry points and chosen by settings.

https://packaging.python.org/en/latest/specifications/entry-points/
"""

import shlex
import shutil
import ssl
from collections.abc import Sequence
from importlib import metadata
from typing import TYPE_CHECKING, Any, TextIO
from urllib.parse import urlsplit

from ordersys import settings as environment
from ordersys.core import errors, signatures, tls
from ordersys.settings import Settings

if TYPE_CHECKING:
    from ordersys.notify.sinks import Sink
    from ordersys.product.rules import Rules

SINKS = "ordersys.sinks"
"""Each entry point is called without arguments when the notifier starts, and returns a `notify.sinks.Sink`."""

RULES = "ordersys.rules"
"""Each entry point is a `product.rules.Rule`."""

_LOG = "log"
_BATCH = 50
_OWN = (_LOG, "webhook", "smtp", "command")


def sink(settings: Settings, name: str, stream: TextIO, *, json: bool, label: str) -> "tuple[Sink, int]":
    """The sink of this name, and how many events it is given before they are noted as handled.

    For the log that is a batch. What others see is noted event by event: a crash then repeats one at most. Raises
    UsageError when there is no such sink, when it cannot be made, or when a setting that it needs is missing.
    """
    if name == _LOG:
        from ordersys.notify.sinks import LogSink

        return LogSink(stream, json=json, label=label), _BATCH
    if name not in _OWN:
        made = _made(SINKS, name, _OWN)
        if not callable(getattr(made, "handle", None)):
            raise errors.UsageError(f"the sink {name!r} has no method handle(event, body): it is {made!r}")
        own: Sink = made
        return own, 1
    return {"webhook": _webhook, "smtp": _mail, "command": _program}[name](settings), 1


def rules(settings: Settings) -> "Rules | None":
    """The shop's own rules, in the order of the setting; None without any. Raises UsageError for one that is none."""
    if not settings.rules:
        return None
    from ordersys.product.rules import Rules

    found = {name: _loaded(RULES, name) for name in settings.rules}
    for name, rule in found.items():
        if not callable(rule):
            raise errors.UsageError(f"the rule {name!r} cannot be called: it is {rule!r}")
    return Rules(found)


def _webhook(settings: Settings) -> "Sink":
    from ordersys.notify.webhook import WebhookSink

    _need(settings, "webhook", "webhook_url", "webhook_secret")
    secrets, url = signatures.secrets_of(settings.webhook_secret), urlsplit(settings.webhook_url)
    if url.scheme == "http" and not _may_be_plain(settings, url.hostname):
        raise errors.UsageError(
            "ORDERSYS_WEBHOOK_URL: without TLS everybody on the way could read the orders: use https://,"
            " or say ORDERSYS_INSECURE=true"
        )
    trusted = _trusted(settings) if url.scheme == "https" else None
    return WebhookSink(settings.webhook_url, secrets, settings.notify_timeout_seconds, trusted)


def _mail(settings: Settings) -> "Sink":
    from ordersys.notify.mail import MailSink

    _need(settings, "smtp", "smtp_url", "smtp_from", "smtp_to")
    url = urlsplit(settings.smtp_url)
    plain = url.scheme == "smtp" and _may_be_plain(settings, url.hostname)
    trusted = None if plain else _trusted(settings)
    return MailSink(settings.smtp_url, settings.smtp_from, settings.smtp_to, settings.notify_timeout_seconds, trusted)


def _may_be_plain(settings: Settings, host: str | None) -> bool:
    """Within one machine there is nobody on the way."""
    return settings.insecure or tls.is_this_machine(host or "")


def _trusted(settings: Settings) -> ssl.SSLContext:
    """Certificates of a public CA are good, and those of the services' CA."""
    made = ssl.create_default_context()
    if ca := settings.tls_files.read().ca:
        made.load_verify_locations(cadata=ca.decode("ascii", "ignore"))
    return made


def _program(settings: Settings) -> "Sink":
    from ordersys.notify.program import ProgramSink

    _need(settings, "command", "notify_command")
    try:
        arguments = shlex.split(settings.notify_command)
    except ValueError as error:
        raise errors.UsageError(f"ORDERSYS_NOTIFY_COMMAND: {error}") from None
    program = arguments[0] if arguments else ""
    if shutil.which(program) is None:
        raise errors.UsageError(f"ORDERSYS_NOTIFY_COMMAND: {program!r} is not a program that can be run")
    return ProgramSink(arguments, settings.notify_timeout_seconds, environment.environment_without_secrets())


def _need(settings: Settings, name: str, *needed: str) -> None:
    for each in needed:
        if not getattr(settings, each):
            raise errors.UsageError(f"the sink {name} needs {environment.PREFIX}{each.upper()}")


def _made(group: str, name: str, built_in: Sequence[str] = ()) -> Any:
    """What the entry point of this name gives when it is called."""
    factory = _loaded(group, name, built_in)
    try:
        return factory()
    except Exception as error:
        raise _broken(group, name, error) from error


def _loaded(group: str, name: str, built_in: Sequence[str] = ()) -> Any:
    found = metadata.entry_points(group=group)
    if name not in found.names:
        there = ", ".join([*built_in, *sorted(found.names)])
        raise errors.UsageError(f"there is no {name!r} in {group}; there are: {there or 'none'}")
    packages = sorted({each.dist.name if each.dist else "?" for each in found.select(name=name)})
    if len(packages) > 1:
        raise errors.UsageError(f"{name!r} in {group} is claimed by more than one package: {', '.join(packages)}")
    try:
        return found[name].load()
    except Exception as error:
        raise _broken(group, name, error) from error


def _broken(group: str, name: str, error: Exception) -> errors.UsageError:
    return errors.UsageError(f"{name!r} in {group} cannot be used: {type(error).__name__}: {error}")
