"""Every ORDERSYS_* variable and its default; the only reader of the environment. Flag > environment > default."""

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import Field, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from ordersys.core import errors
from ordersys.core.display import masked
from ordersys.core.redaction import redacted
from ordersys.core.tls import Files, Kept, kept
from ordersys.forms import (
    WEBHOOK,
    Address,
    AdminBind,
    Bind,
    BrokerUrl,
    DatabaseUrl,
    JwksUrl,
    Mailbox,
    RateLimit,
    SmtpUrl,
    WebhookSecret,
    WebhookUrl,
)

PREFIX = "ORDERSYS_"
_OF_THE_TESTS = f"{PREFIX}FAULT_"  # how long and where the fault suite runs: no setting, and no mistake
_WHOLE = ("api_key", "webhook_secret")  # secrets as a whole; others hold one
_PACKAGE = Path(__file__).resolve().parent
_ORIGIN = re.compile(r"https?://[^\s/]+")
_ALGORITHMS = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA")
_MOST_BYTES = 64 * 1024  # of a file that holds one setting


def default_data() -> Path:
    """The seed files: inside an installed wheel, or beside the package in a checkout and an editable install."""
    installed = _PACKAGE / "seed_data"
    return installed if installed.is_dir() else _PACKAGE.parent / "data"


class Settings(BaseSettings):
    """The settings of one process; immutable once loaded."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="forbid", validate_default=False, hide_input_in_errors=True
    )

    home: Path = Field(
        default_factory=lambda: platformdirs.user_data_path("ordersys", appauthor=False),
        description="folder of the embedded databases and broker",
    )
    broker_url: BrokerUrl = Field(
        default="", repr=False, description="sqlite:///FILE (one machine) or amqp://USER:PASSWORD@HOST:PORT/VHOST"
    )
    product_database_url: DatabaseUrl = Field(
        default="", repr=False, description="sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME"
    )
    order_database_url: DatabaseUrl = Field(default="", repr=False, description="the same for the orders")
    notify_database_url: DatabaseUrl = Field(default="", repr=False, description="the same for the notifiers' inbox")
    product_bind: Bind = Field(default="127.0.0.1:50051", description="where serve-product listens; port 0 = any")
    order_bind: Bind = Field(default="127.0.0.1:50052", description="where serve-order listens; port 0 = any")
    api_bind: Bind = Field(default="127.0.0.1:8080", description="where the REST API listens; port 0 = any")
    product_address: Address = Field(default="127.0.0.1:50051", description="where clients find the Product Service")
    order_address: Address = Field(default="127.0.0.1:50052", description="where clients find the Order Service")
    api_database_url: DatabaseUrl = Field(default="", repr=False, description="the same for the API's keys")
    api_rate_limit: RateLimit = Field(
        default="600/60", description="REQUESTS/SECONDS that one key, token or address may send to the API, or off"
    )
    api_max_streams: int = Field(default=100, ge=1, le=10_000, description="event streams that the API serves at once")
    api_cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="web origins that may call the API, for example https://shop.example; * = any"
    )
    api_jwt_jwks_url: JwksUrl = Field(
        default="", repr=False, description="https://... of the keys whose bearer tokens the API takes"
    )
    api_jwt_public_key_file: str = Field(default="", description="the same as one public key in a PEM file")
    api_jwt_issuer: str = Field(default="", description="who must have issued a bearer token: its claim iss")
    api_jwt_audience: str = Field(default="", description="whom a bearer token must be for: its claim aud")
    api_jwt_algorithms: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("RS256", "ES256"), description="the algorithms that a bearer token may be signed with"
    )
    api_jwt_customer_claim: str = Field(
        default="customer_id", min_length=1, description="the claim that ties a bearer token to one customer"
    )
    product_admin_bind: AdminBind = Field(
        default="127.0.0.1:9101", description="where serve-product answers /metrics, /healthz and /readyz, or off"
    )
    order_admin_bind: AdminBind = Field(default="127.0.0.1:9102", description="the same for serve-order")
    notify_admin_bind: AdminBind = Field(default="127.0.0.1:9103", description="the same for notify")
    tls_ca_file: str = Field(default="", description="PEM file of the CA that the services' certificates must be from")
    tls_cert_file: str = Field(default="", description="PEM file of this process's own certificate and its chain")
    tls_key_file: str = Field(default="", description="PEM file of the key of that certificate")
    tls_client_cert: Literal["required", "none"] = Field(
        default="required", description="whether gRPC callers must show a certificate from that CA"
    )
    tls_product_identity: str = Field(
        default="product-service", min_length=1, description="the name in the certificate of who may process orders"
    )
    tls_admin_identities: Annotated[tuple[str, ...], NoDecode] = Field(
        default=("operator", "api"), description="the names in the certificates of who may use the admin calls"
    )
    insecure: bool = Field(default=False, description="serve without TLS also beyond this machine")
    api_key: str = Field(
        default="", repr=False, description="the key that `top` and `bench` show to the API, once it asks for one"
    )
    api_tls_cert_file: str = Field(default="", description="PEM file of the API's certificate: it serves https")
    api_tls_key_file: str = Field(default="", description="PEM file of the key of that certificate")
    api_tls_client_ca_file: str = Field(
        default="", description="PEM file of the CA whose certificates the API's clients must show"
    )
    broker_ca_file: str = Field(default="", description="CA of an amqps:// broker; default: that of the services")
    broker_cert_file: str = Field(default="", description="certificate shown to it; default: this process's own")
    broker_key_file: str = Field(default="", description="PEM file of the key of that certificate")
    notify_sink: str = Field(
        default="log", min_length=1, description="what `notify` does: log, webhook, smtp, command, or one of your own"
    )
    notify_timeout_seconds: float = Field(
        default=10.0, gt=0, le=300, description="how long webhook, smtp and command may take for one event"
    )
    notify_command: str = Field(default="", description="the program of the sink command, with its arguments")
    webhook_url: WebhookUrl = Field(
        default="", repr=False, description="where the sink webhook posts to: https://HOST/PATH"
    )
    webhook_secret: WebhookSecret = Field(
        default="", repr=False, description="what webhooks are signed with: whsec_...; several: separated by commas"
    )
    smtp_url: SmtpUrl = Field(
        default="", repr=False, description="the mail server of the sink smtp: smtps://USER:PASSWORD@HOST or smtp://..."
    )
    smtp_from: Mailbox = Field(default="", description="whom the mails are from")
    smtp_to: Annotated[tuple[Mailbox, ...], NoDecode] = Field(
        default=(), description="whom they go to, separated by commas"
    )
    rules: Annotated[tuple[str, ...], NoDecode] = Field(
        default=(), description="rules of your own that an order must pass, by name, separated by commas"
    )
    traces: Literal["off", "otlp"] = Field(
        default="off", description="export traces with OTLP; the OTEL_* variables say where to"
    )
    data: Path = Field(default_factory=default_data, description="folder of the JSON seed files")
    log_level: Literal["debug", "info", "warning", "error"] = Field(default="info", description="least level logged")
    log_format: Literal["auto", "console", "json"] = Field(
        default="auto", description="auto = console on a terminal, json otherwise"
    )
    retry_waits: Annotated[tuple[float, ...], NoDecode] = Field(
        default=(1.0, 5.0, 30.0), description="seconds a failed message rests before each further try; then it is dead"
    )
    event_retention_days: float = Field(
        default=30.0, gt=0, le=36_500, description="how long sent events can be replayed"
    )
    key_retention_days: float = Field(
        default=7.0, gt=0, le=36_500, description="how long a repeated call gets its first answer"
    )
    deadline_seconds: float = Field(default=5.0, gt=0, le=3600, description="how long one call to a service may take")
    grace_seconds: float = Field(
        default=10.0, ge=0, le=3600, description="how long work in flight may take after SIGTERM"
    )

    @field_validator(
        *("retry_waits", "api_cors_origins", "api_jwt_algorithms", "tls_admin_identities", "smtp_to", "rules"),
        mode="before",
    )
    @classmethod
    def _split(cls, value: object) -> object:
        return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value

    @field_validator("retry_waits")
    @classmethod
    def _sane_waits(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if len(value) > 10 or any(not 0 <= wait <= 86_400 for wait in value):
            raise ValueError("at most 10 waits of 0 to 86400 seconds, separated by commas, for example 1,5,30")
        return value

    @field_validator("api_cors_origins")
    @classmethod
    def _sane_origins(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for origin in value:
            if origin != "*" and _ORIGIN.fullmatch(origin) is None:
                raise ValueError(f"{origin!r} is not an origin, for example https://shop.example, and not *")
        return value

    @field_validator("api_jwt_algorithms")
    @classmethod
    def _asymmetric(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        # With HS256 the public key would be the secret that signs, with `none` nothing would (RFC 8725 section 2.1).
        if wrong := [each for each in value if each not in _ALGORITHMS]:
            raise ValueError(f"{wrong[0]!r} is not taken: there are {', '.join(_ALGORITHMS)}")
        if not value:
            raise ValueError(f"names no algorithm: there are {', '.join(_ALGORITHMS)}")
        return value

    @field_validator("home", "data")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    def model_post_init(self, _context: Any) -> None:
        for name in ("broker", "product_database", "order_database", "notify_database", "api_database"):
            if not getattr(self, f"{name}_url"):
                file = self.home / f"{name.removesuffix('_database')}.db"
                object.__setattr__(self, f"{name}_url", f"sqlite:///{file}")

    @property
    def tls_files(self) -> Files:
        """This process's own certificate and its CA; false when none is named."""
        return Files(self.tls_ca_file, self.tls_cert_file, self.tls_key_file)

    @property
    def api_tls_files(self) -> Files:
        """The certificate files of the API, with the CA of its clients."""
        names = ("api_tls_client_ca_file", "api_tls_cert_file", "api_tls_key_file")
        return Files(self.api_tls_client_ca_file, self.api_tls_cert_file, self.api_tls_key_file, names)

    @property
    def broker_tls_files(self) -> Files:
        """The certificate files for the broker; where it has none of its own, those of this process."""
        ca = "broker_ca_file" if self.broker_ca_file else "tls_ca_file"
        own = "broker" if self.broker_cert_file or self.broker_key_file else "tls"
        names = (ca, f"{own}_cert_file", f"{own}_key_file")
        return Files(getattr(self, ca), getattr(self, names[1]), getattr(self, names[2]), names)

    def tls(self) -> Kept | None:
        """What they hold, None when none is named; raises UsageError when a file is missing or wrong."""
        return kept(self.tls_files)


def dialled(address: str) -> str:
    """Where to call what listens on this address: a wildcard is reached over loopback."""
    host, _, port = address.rpartition(":")
    if host in ("0.0.0.0", ""):  # noqa: S104 - compared, not bound
        return f"127.0.0.1:{port}"
    return f"[::1]:{port}" if host == "[::]" else address


def load(overrides: Mapping[str, object] | None = None) -> Settings:
    """The settings of this process; `overrides` are the flags that were given (None = not given).

    A setting that may hold a secret can stand in a file that ORDERSYS_..._FILE names. Raises UsageError naming the
    variable or flag and what would be right.
    """
    _refuse_unknown(os.environ)
    given = {name: value for name, value in (overrides or {}).items() if value is not None}
    files = _secret_files(os.environ)
    try:
        return Settings(**{**files, **given})  # type: ignore[arg-type]
    except ValidationError as error:
        problems = []
        for each in error.errors():
            name = str(each["loc"][0])
            variable = f"{PREFIX}{name.upper()}{'_FILE' if name in files and name not in given else ''}"
            problems.append(f"{variable}: {redacted(each['msg'].removeprefix('Value error, '))}")
        raise errors.UsageError("; ".join(problems)) from error


def environment_of(**chosen: object) -> dict[str, str]:
    """The environment of a process of our own that has these settings and no others: its command line tells none."""
    own = {name: value for name, value in os.environ.items() if not name.upper().startswith(PREFIX)}
    return own | {PREFIX + name.upper(): str(value) for name, value in chosen.items()}


def environment_without_secrets() -> dict[str, str]:
    """The environment of a program that is not ours: of the settings that may hold a secret, only their files."""
    secret = {PREFIX + name.upper() for name in _may_be_secret()}
    return {name: value for name, value in os.environ.items() if name.upper() not in secret}


def service_manager() -> tuple[str, float]:
    """Where systemd hears from this process ("" = nowhere), and within how many seconds again (0 = it need not).

    sd_notify(3) and sd_watchdog_enabled(3): the watchdog may be meant for another process than this one.
    """
    theirs = os.environ.get("WATCHDOG_PID", "") not in ("", str(os.getpid()))
    usec = os.environ.get("WATCHDOG_USEC", "")
    within = int(usec) / 1_000_000 if usec.isdecimal() and not theirs else 0.0
    return os.environ.get("NOTIFY_SOCKET", ""), within


def _may_be_secret() -> list[str]:
    return [name for name, field in Settings.model_fields.items() if not field.repr]


def _secret_files(environment: Mapping[str, str]) -> dict[str, str]:
    """What stands in the files that ORDERSYS_..._FILE name, by setting; an empty variable is none."""
    given = {name.upper() for name, value in environment.items() if value}
    found = {}
    for name, file in secret_files(environment).items():
        variable = f"{PREFIX}{name.upper()}"
        if variable in given:
            raise errors.UsageError(f"set {variable} or {variable}_FILE, not both")
        found[name] = _line_of(file, f"{variable}_FILE")
    return found


def secret_files(environment: Mapping[str, str] | None = None) -> dict[str, Path]:
    """The files that ORDERSYS_..._FILE name, by setting, there or not."""
    given = {name.upper(): value for name, value in (environment or os.environ).items()}
    files = {name: given.get(f"{PREFIX}{name.upper()}_FILE", "") for name in _may_be_secret()}
    return {name: Path(file).expanduser() for name, file in files.items() if file}


def _line_of(file: Path, variable: str) -> str:
    """The one line of this file; the errors quote nothing of it."""
    try:
        with file.open("rb") as opened:
            content = opened.read(_MOST_BYTES + 1)
        text = content.decode().removesuffix("\n").removesuffix("\r")
    except OSError as error:
        raise errors.UsageError(f"{variable}: {file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError:
        raise errors.UsageError(f"{variable}: {file} is not text in UTF-8") from None
    if not text or "\n" in text or len(content) > _MOST_BYTES:
        setting = variable.removesuffix("_FILE")
        raise errors.UsageError(f"{variable}: {file} must hold one line: the value of {setting}")
    return text


def _refuse_unknown(environment: Iterable[str]) -> None:
    known = [*(name.upper() for name in Settings.model_fields), *(f"{name.upper()}_FILE" for name in _may_be_secret())]
    for name in environment:
        if name.upper().startswith(_OF_THE_TESTS):
            continue
        if name.upper().startswith(PREFIX) and name.upper().removeprefix(PREFIX) not in known:
            close = difflib.get_close_matches(name.upper().removeprefix(PREFIX), known, 1)
            hint = f"; did you mean {PREFIX}{close[0]}?" if close else "; see `ordersys config` for those that exist"
            raise errors.UsageError(f"there is no setting {name}{hint}")


def table(settings: Settings) -> list[tuple[str, str, str]]:
    """Variable, value with its secrets masked, and what it is for."""
    return [
        (
            PREFIX + name.upper(),
            _shown(name, getattr(settings, name)),
            field.description or "",
        )
        for name, field in Settings.model_fields.items()
    ]


def _shown(name: str, value: object) -> str:
    if name in _WHOLE and value:
        return "***"
    if name == "webhook_url" and (found := WEBHOOK.fullmatch(str(value))):
        return f"{found[1]}/***"  # many receivers have their secret in the path
    if isinstance(value, tuple):
        return ",".join(part if isinstance(part, str) else f"{part:g}" for part in value)
    return masked(str(value))
