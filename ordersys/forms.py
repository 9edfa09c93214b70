"""How a setting may be written: each form is a type that takes nothing else, and says what would be right."""

import re
from typing import Annotated

from pydantic import AfterValidator

from ordersys.core import signatures

_RATE = re.compile(r"[1-9][0-9]{0,8}/[1-9][0-9]{0,4}")
WEBHOOK = re.compile(r"(https?://(?:\[[0-9a-fA-F:.]+\]|[\w.-]+)(?::([0-9]{1,5}))?)(?:[/?][!-~]*)?", re.ASCII)
_SMTP = re.compile(r"smtps?://(?:[!-.0-~]+@)?(?:\[[0-9a-fA-F:.]+\]|[\w.-]+)(?::([0-9]{1,5}))?/?", re.ASCII)
_MAILBOX = re.compile(r"[^\s@<>,]+@[^\s@<>,]+")
_HOST_PORT = re.compile(r"(?:\[[^\s\[\]/@]+\]|[^\s:\[\]/@]+):([0-9]{1,5})")


def _bind(value: str) -> str:
    found = _HOST_PORT.fullmatch(value)
    if found is None or int(found[1]) > 65535:
        raise ValueError(f"{value!r} is not HOST:PORT, for example 127.0.0.1:50051 or [::1]:50051")
    return value


def _address(value: str) -> str:
    if _bind(value).rpartition(":")[2].strip("0") == "":
        raise ValueError(f"{value!r} has port 0, which nobody can call")
    return value


def _admin_bind(value: str) -> str:
    return value if value == "off" else _bind(value)


def _broker_url(value: str) -> str:
    if value and not value.startswith(("sqlite:///", "amqp://", "amqps://")):
        raise ValueError("expected sqlite:///FILE, amqp://USER:PASSWORD@HOST:PORT/VHOST or amqps://...")
    return value


def _rate_limit(value: str) -> str:
    if value != "off" and _RATE.fullmatch(value) is None:
        raise ValueError(f"{value!r} is not REQUESTS/SECONDS, for example 600/60, and not off")
    return value


def _jwks_url(value: str) -> str:
    if value and (re.fullmatch(r"https?://[^\s/]\S*", value) is None):
        raise ValueError("expected https://HOST/PATH of a JSON Web Key Set")
    return value


def _database_url(value: str) -> str:
    if value and not value.startswith(("sqlite:///", "postgresql://", "postgresql+")):
        raise ValueError("expected sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME")
    return value


def _webhook_url(value: str) -> str:
    if value and ((found := WEBHOOK.fullmatch(value)) is None or int(found[2] or 1) > 65535):
        raise ValueError("expected https://HOST/PATH, without a user: the signature says who it is")
    return value


def _webhook_secret(value: str) -> str:
    if value:
        signatures.secrets_of(value)
    return value


def _smtp_url(value: str) -> str:
    if value and ((found := _SMTP.fullmatch(value)) is None or int(found[1] or 1) > 65535):
        raise ValueError("expected smtps://USER:PASSWORD@HOST:PORT or smtp://HOST, special characters as %XX")
    return value


def _mailbox(value: str) -> str:
    if value and _MAILBOX.fullmatch(value) is None:
        raise ValueError(f"{value!r} is not an address like orders@shop.example")
    return value


Bind = Annotated[str, AfterValidator(_bind)]
Address = Annotated[str, AfterValidator(_address)]
AdminBind = Annotated[str, AfterValidator(_admin_bind)]
DatabaseUrl = Annotated[str, AfterValidator(_database_url)]
BrokerUrl = Annotated[str, AfterValidator(_broker_url)]
RateLimit = Annotated[str, AfterValidator(_rate_limit)]
JwksUrl = Annotated[str, AfterValidator(_jwks_url)]
WebhookUrl = Annotated[str, AfterValidator(_webhook_url)]
WebhookSecret = Annotated[str, AfterValidator(_webhook_secret)]
SmtpUrl = Annotated[str, AfterValidator(_smtp_url)]
Mailbox = Annotated[str, AfterValidator(_mailbox)]
