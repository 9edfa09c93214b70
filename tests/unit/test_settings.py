"""Settings: flag before environment before default, mistakes named, secrets shown to nobody."""

import json
import re
import time
import traceback
from pathlib import Path

import platformdirs
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ordersys import settings
from ordersys.core import display, errors, redaction


def shown(chosen: settings.Settings) -> dict[str, str]:
    return {name: value for name, value, _ in settings.table(chosen)}


def refusal(**flags: object) -> str:
    with pytest.raises(errors.UsageError) as refused:
        settings.load(flags)
    return refused.value.message


def test_a_flag_wins_over_the_environment_and_that_over_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings.load().log_level == "info"
    monkeypatch.setenv("ORDERSYS_LOG_LEVEL", "error")
    assert settings.load().log_level == "error"
    assert settings.load({"log_level": None}).log_level == "error"  # a flag that was not given
    assert settings.load({"log_level": "debug"}).log_level == "debug"


def test_everything_embedded_lives_in_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ORDERSYS_HOME", str(tmp_path))
    chosen = settings.load()
    assert (chosen.broker_url, chosen.product_database_url, chosen.order_database_url, chosen.notify_database_url) == (
        f"sqlite:///{tmp_path}/broker.db",
        f"sqlite:///{tmp_path}/product.db",
        f"sqlite:///{tmp_path}/order.db",
        f"sqlite:///{tmp_path}/notify.db",
    )


def test_the_default_home_is_the_users_data_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ORDERSYS_HOME")
    assert settings.load().home == platformdirs.user_data_path("ordersys", appauthor=False)


def test_folders_may_be_relative_or_start_with_the_users_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    assert settings.load({"home": Path("here")}).home == tmp_path / "here"
    assert settings.load({"data": "~/data"}).data == tmp_path / "user" / "data"


def test_one_url_alone_can_be_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ORDERSYS_ORDER_DATABASE_URL", "postgresql+psycopg://orders@db/orders")
    chosen = settings.load({"home": tmp_path})
    assert chosen.order_database_url == "postgresql+psycopg://orders@db/orders"
    assert chosen.product_database_url == f"sqlite:///{tmp_path}/product.db"


@pytest.mark.parametrize("name", ["BROKER_URL", "PRODUCT_DATABASE_URL", "ORDER_DATABASE_URL", "NOTIFY_DATABASE_URL"])
def test_an_empty_url_is_the_default(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    expected = shown(settings.load())
    monkeypatch.setenv(f"ORDERSYS_{name}", "")
    assert shown(settings.load()) == expected


def test_names_in_the_environment_may_be_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ordersys_log_level", "warning")
    assert settings.load().log_level == "warning"


@pytest.mark.parametrize(
    ("text", "waits"), [("1,5,30", (1, 5, 30)), ("0.5", (0.5,)), (" 1 , 2 ", (1, 2)), ("", ()), ("0", (0,))]
)
def test_waits_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch, text: str, waits: tuple[float, ...]) -> None:
    monkeypatch.setenv("ORDERSYS_RETRY_WAITS", text)
    assert settings.load().retry_waits == waits


@pytest.mark.parametrize("bind", ["127.0.0.1:0", "0.0.0.0:50051", "[::1]:50051", "[::]:0", "localhost:65535"])
def test_a_server_may_listen_anywhere(bind: str) -> None:
    assert settings.load({"product_bind": bind}).product_bind == bind


BAD = [
    *(("product_bind", value, "is not HOST:PORT, for example 127.0.0.1:50051") for value in (
        "", "50051", ":50051", "localhost", "localhost:", "localhost:http", "localhost:65536", "localhost:-1",
        "localhost:\u0663", "localhost:\u00b2", "::1:50051", "[::1]", "a b:1", "http://localhost:1", "u:p@host:1",
        "localhost:1\n", "localhost:" + "9" * 5000,
    )),
    ("order_bind", "x", "is not HOST:PORT"),
    ("api_bind", "x", "is not HOST:PORT"),
    ("product_address", "x", "is not HOST:PORT"),
    ("product_address", "localhost:0", "has port 0, which nobody can call"),
    ("order_address", "localhost:00", "has port 0, which nobody can call"),
    ("broker_url", "rabbit", "expected sqlite:///FILE, amqp://USER:PASSWORD@HOST:PORT/VHOST or amqps://"),
    ("broker_url", "redis://localhost", "expected sqlite:///FILE, amqp://"),
    ("product_database_url", "mysql://localhost/x", "expected sqlite:///FILE or postgresql+psycopg://USER@HOST/NAME"),
    ("order_database_url", "orders.db", "expected sqlite:///FILE or postgresql+psycopg://"),
    ("notify_database_url", "postgres://localhost/x", "expected sqlite:///FILE or postgresql+psycopg://"),
    ("log_level", "loud", "Input should be 'debug', 'info', 'warning' or 'error'"),
    ("log_format", "xml", "Input should be 'auto', 'console' or 'json'"),
    *(("retry_waits", value, problem) for value, problem in (
        ("1;5", "unable to parse"), ("1,x", "unable to parse"), ("-1", "at most 10 waits of 0 to 86400 seconds"),
        ("nan", "at most 10 waits"), ("inf", "at most 10 waits"), (",".join("1" * 11), "at most 10 waits"),
    )),
    *((name, value, "Input should be") for name in ("deadline_seconds", "grace_seconds") for value in (
        "soon", "-1", "nan", "inf", "1e300", "",
    )),
    ("deadline_seconds", "0", "Input should be greater than 0"),
    ("event_retention_days", "inf", "Input should be less than or equal to"),
    ("key_retention_days", "0", "Input should be greater than 0"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "problem"), BAD)
def test_a_bad_value_is_refused_by_the_name_of_its_variable(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, problem: str
) -> None:
    monkeypatch.setenv(f"ORDERSYS_{name.upper()}", value)
    message = refusal()
    assert message.startswith(f"ORDERSYS_{name.upper()}: ")
    assert problem in message


def test_all_bad_values_are_named_at_once() -> None:
    message = refusal(log_level="loud", deadline_seconds=-1)
    assert message.startswith("ORDERSYS_LOG_LEVEL: ")
    assert "; ORDERSYS_DEADLINE_SECONDS: " in message


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("ORDERSYS_BROKER_ULR", "did you mean ORDERSYS_BROKER_URL?"),
        ("ORDERSYS_LOGLEVEL", "did you mean ORDERSYS_LOG_LEVEL?"),
        ("ordersys_homes", "did you mean ORDERSYS_HOME?"),
        ("ORDERSYS_ZZZ", "see `ordersys config` for those that exist"),
    ],
)
def test_a_setting_that_does_not_exist_is_refused_with_one_that_does(
    monkeypatch: pytest.MonkeyPatch, name: str, hint: str
) -> None:
    monkeypatch.setenv(name, "1")
    assert refusal() == f"there is no setting {name}; {hint}"


def test_variables_of_others_are_none_of_our_business(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORDERS_LOG_LEVEL", "loud")
    monkeypatch.setenv("LOG_LEVEL", "loud")
    monkeypatch.setenv("HOME_URL", "x")
    assert settings.load().log_level == "info"


def test_a_flag_that_does_not_exist_is_refused() -> None:
    assert refusal(nonsense=1).startswith("ORDERSYS_NONSENSE: ")


def test_files_named_env_are_not_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (".env", ".env.local", "env"):
        Path(name).write_text("ORDERSYS_LOG_LEVEL=error\nORDERSYS_NONSENSE=1\n")
    assert settings.load().log_level == "info"


def test_settings_do_not_change_once_they_are_loaded() -> None:
    chosen = settings.load()
    with pytest.raises(ValidationError, match="frozen"):
        chosen.log_level = "debug"  # type: ignore[misc]


def test_the_table_has_every_setting_with_what_it_is_for() -> None:
    rows = settings.table(settings.load({"retry_waits": "0.5,2"}))
    assert [name for name, _, _ in rows] == [f"ORDERSYS_{name.upper()}" for name in settings.Settings.model_fields]
    assert all(description for _, _, description in rows)
    assert {name: value for name, value, _ in rows}["ORDERSYS_RETRY_WAITS"] == "0.5,2"


# --- secrets ----------------------------------------------------------------------------------------------------

SECRETS = ["hunter2", "a@b", "a:b", "a/b", "@:/", "p?q=1&r", "a@b:c/d@e", "%40", "://"]


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("scheme", ["amqp", "amqps"])
def test_a_password_is_not_shown_whatever_it_is_made_of(scheme: str, secret: str) -> None:
    chosen = settings.load({"broker_url": f"{scheme}://guest:{secret}@rabbit:5672/shop"})
    assert shown(chosen)["ORDERSYS_BROKER_URL"] == f"{scheme}://guest:***@rabbit:5672/shop"
    assert "rabbit" not in repr(chosen)
    assert "rabbit" not in str(chosen)


@given(st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S"]), min_size=1))
def test_no_part_of_a_password_is_ever_shown(secret: str) -> None:
    assert display.masked(f"amqp://guest:{secret}@rabbit/shop") == "amqp://guest:***@rabbit/shop"


@pytest.mark.parametrize(
    ("url", "masked"),
    [
        ("amqp://rabbit:5672/shop", "amqp://rabbit:5672/shop"),
        ("amqp://guest@rabbit/shop", "amqp://guest@rabbit/shop"),
        ("amqp://:secret@rabbit", "amqp://:***@rabbit"),
        ("postgresql+psycopg://u:secret@db:5432/x?sslmode=require", "postgresql+psycopg://u:***@db:5432/x?sslmode=require"),
        ("postgresql+psycopg://db/x?user=u&password=se%26cret&sslmode=off", "postgresql+psycopg://db/x?user=u&password=***&sslmode=off"),
        ("postgresql+psycopg://db/x?sslPassword=secret", "postgresql+psycopg://db/x?sslPassword=***"),
        ("sqlite:////home/me@example.org:x/product.db", "sqlite:////home/me@example.org:x/product.db"),
        ("127.0.0.1:50051", "127.0.0.1:50051"),
    ],
)  # fmt: skip
def test_only_secrets_are_masked(url: str, masked: str) -> None:
    assert display.masked(url) == masked


def test_a_password_is_not_in_any_error_and_not_in_its_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BROKER_URL", "ORDER_DATABASE_URL"):
        monkeypatch.setenv(f"ORDERSYS_{name}", f"mistyped://guest:{SECRETS[0]}@rabbit")
    with pytest.raises(errors.UsageError, match="ORDERSYS_BROKER_URL: expected sqlite") as refused:
        settings.load()
    told = "".join(traceback.format_exception(refused.value))
    assert isinstance(refused.value.__cause__, ValidationError)
    assert not re.search(SECRETS[0], told)


def test_what_steers_the_fault_suite_is_no_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORDERSYS_FAULT_ROUNDS", "50")
    assert settings.load().order_bind == "127.0.0.1:50052"


def test_the_key_for_the_api_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shown(settings.load())["ORDERSYS_API_KEY"] == ""
    monkeypatch.setenv("ORDERSYS_API_KEY", "ok_planted")
    assert settings.load().api_key == "ok_planted"
    assert "planted" not in repr(shown(settings.load())) + repr(settings.load())


@pytest.mark.parametrize(
    ("name", "value", "right"),
    [
        ("WEBHOOK_URL", "shop.example/hook", "https://HOST/PATH"),
        ("WEBHOOK_URL", "https://user:hunter2@shop.example/hook", "without a user"),
        ("WEBHOOK_URL", "https://shop.example:99999/hook", "https://HOST/PATH"),
        ("WEBHOOK_URL", "https://shop.example/a b", "https://HOST/PATH"),
        ("WEBHOOK_SECRET", "hunter2", "whsec_ and the base64 of 24 to 64 random bytes"),
        ("SMTP_URL", "http://mail.example", "smtps://"),
        ("SMTP_URL", "smtp://user:hunter2@mail.example:99999", "smtps://"),
        ("SMTP_FROM", "nobody", "is not an address like orders@shop.example"),
        ("SMTP_TO", "one@shop.example, Two <two@shop.example>", "is not an address like orders@shop.example"),
        ("NOTIFY_SINK", "", "at least 1 character"),
        ("NOTIFY_TIMEOUT_SECONDS", "0", "greater than 0"),
    ],
)
def test_a_setting_of_a_sink_that_is_wrong_says_what_would_be_right(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, right: str
) -> None:
    monkeypatch.setenv(f"ORDERSYS_{name}", value)
    said = refusal()
    assert said.startswith(f"ORDERSYS_{name}: ")
    assert right in said
    assert "hunter2" not in said


@pytest.mark.parametrize(
    ("name", "value", "seen"),
    [
        ("WEBHOOK_URL", "https://shop.example:8443/hooks/hunter2?x=hunter2", "https://shop.example:8443/***"),
        ("WEBHOOK_SECRET", f"whsec_{'hunter2x' * 4}", "***"),
        ("SMTP_URL", "smtps://shop:hunter2@mail.example", "smtps://shop:***@mail.example"),
        ("SMTP_TO", "one@shop.example, two@shop.example", "one@shop.example,two@shop.example"),
    ],
)
def test_what_sinks_know_is_shown_without_its_secrets(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, seen: str
) -> None:
    monkeypatch.setenv(f"ORDERSYS_{name}", value)
    assert shown(settings.load())[f"ORDERSYS_{name}"] == seen


def test_a_program_of_others_gets_no_setting_that_may_hold_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORDERSYS_BROKER_URL", "amqp://guest:hunter2@rabbit/shop")
    monkeypatch.setenv("ORDERSYS_WEBHOOK_SECRET_FILE", "/run/secrets/webhook")
    monkeypatch.setenv("ORDERSYS_ORDER_ADDRESS", "order:50052")
    given = settings.environment_without_secrets()
    assert "ORDERSYS_BROKER_URL" not in given
    assert (given["ORDERSYS_WEBHOOK_SECRET_FILE"], given["ORDERSYS_ORDER_ADDRESS"]) == (
        "/run/secrets/webhook",
        "order:50052",
    )


# --- secrets in files -------------------------------------------------------------------------------------------

MAY_BE_SECRET = [
    *(f"{name}_DATABASE_URL" for name in ("PRODUCT", "ORDER", "NOTIFY", "API")),
    "BROKER_URL",
    "API_JWT_JWKS_URL",
    "API_KEY",
    "WEBHOOK_URL",
    "WEBHOOK_SECRET",
    "SMTP_URL",
]


@pytest.mark.parametrize("name", MAY_BE_SECRET)
def test_what_may_hold_a_secret_can_stand_in_a_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    value = {
        "BROKER_URL": "amqp://u:p@h/v",
        "API_JWT_JWKS_URL": "https://u:p@h/keys",
        "API_KEY": "osk_1_2",
        "WEBHOOK_URL": "https://h/secret",
        "WEBHOOK_SECRET": f"whsec_{'A' * 32}",
        "SMTP_URL": "smtps://u:p@h",
    }.get(name, "postgresql+psycopg://u:p@h/d")
    (tmp_path / "secret").write_text(value + "\n")
    monkeypatch.setenv(f"ORDERSYS_{name}_FILE", str(tmp_path / "secret"))
    assert getattr(settings.load(), name.lower()) == value


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_the_line_break_at_the_end_of_a_file_is_not_part_of_the_secret(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, end: str
) -> None:
    (tmp_path / "secret").write_bytes(f"amqp://u: p @h/v {end}".encode())
    monkeypatch.setenv("ordersys_broker_url_file", str(tmp_path / "secret"))
    assert settings.load().broker_url == "amqp://u: p @h/v "


def test_a_flag_wins_over_a_file_and_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("amqp://file")
    monkeypatch.setenv("ORDERSYS_BROKER_URL_FILE", str(tmp_path / "secret"))
    monkeypatch.setenv("ORDERSYS_BROKER_URL", "")
    assert settings.load().broker_url == "amqp://file"
    assert settings.load({"broker_url": "amqp://flag"}).broker_url == "amqp://flag"
    monkeypatch.setenv("ORDERSYS_BROKER_URL_FILE", "")
    assert settings.load().broker_url.startswith("sqlite:///")


def test_a_secret_is_said_in_one_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("amqp://file")
    monkeypatch.setenv("ORDERSYS_BROKER_URL_FILE", str(tmp_path / "secret"))
    monkeypatch.setenv("ORDERSYS_BROKER_URL", "amqp://variable")
    assert refusal() == "set ORDERSYS_BROKER_URL or ORDERSYS_BROKER_URL_FILE, not both"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot be read: No such file or directory"),
        (b"", "must hold one line: the value of ORDERSYS_BROKER_URL"),
        (b"\n", "must hold one line"),
        (b"amqp://u:hunter2@h\namqp://u:hunter2@i\n", "must hold one line"),
        (b"amqp://u:hunter2@h" + b"x" * 100_000, "must hold one line"),
        (b"amqp://u:hunter2\xff@h", "is not text in UTF-8"),
        (b"kafka://u:hunter2@h", "expected sqlite:///FILE, amqp://"),
    ],
)
def test_a_file_that_will_not_do_is_named_with_its_variable_and_nothing_in_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: bytes | None, problem: str
) -> None:
    file = tmp_path / "secret"
    if content is not None:
        file.write_bytes(content)
    monkeypatch.setenv("ORDERSYS_BROKER_URL_FILE", str(file))
    with pytest.raises(errors.UsageError) as refused:
        settings.load()
    assert refused.value.message.startswith("ORDERSYS_BROKER_URL_FILE: ")
    assert problem in refused.value.message
    assert str(file) in refused.value.message or "expected" in problem
    assert "hunter2" not in "".join(traceback.format_exception(refused.value))


def test_a_folder_is_no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ORDERSYS_API_DATABASE_URL_FILE", str(tmp_path))
    assert refusal() == f"ORDERSYS_API_DATABASE_URL_FILE: {tmp_path} cannot be read: Is a directory"


@pytest.mark.parametrize("name", ["PRODUCT_BIND_FILE", "LOG_LEVEL_FILE", "BROKER_URL_FILES"])
def test_other_settings_come_from_no_file(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(f"ORDERSYS_{name}", "x")
    assert refusal().startswith(f"there is no setting ORDERSYS_{name}")


# --- the last net -------------------------------------------------------------------------------------------------


@given(st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S"]), min_size=1))
def test_no_part_of_a_password_in_a_url_is_ever_quoted(secret: str) -> None:
    assert redaction.redacted(f"is amqp://guest:{secret}@rabbit/shop") == "is amqp://guest:***@rabbit/shop"


@pytest.mark.parametrize(
    "piece",
    [
        *"x:/@=?&' -",
        "://",
        "://u:",
        "?pass",
        "&token",
        "pass ",
        "pass=",
        "osk_1",
        "eyJ",
        "eyJ-",
        "eyJ.",
        "-----BEGIN ",
        "Bearer ",
    ],
)
def test_a_long_text_does_not_take_long(piece: str) -> None:
    def seconds(pieces: int) -> float:
        began = time.process_time()
        redaction.redacted(piece * pieces)
        return time.process_time() - began

    assert min(seconds(20_000) for _ in range(3)) < 20 * min(seconds(2_000) for _ in range(3)) + 0.05


PIECES = [*"abc=: ?&", "://", "PASS=", "Bearer ", "osk_1_", "whsec_x", "eyJx.", "user:hunter2@", "-----"]


@given(st.lists(st.sampled_from(PIECES)).map("".join))
def test_what_is_not_searched_for_secrets_has_none(text: str) -> None:
    if not redaction.may_hold_secret(json.dumps(text)):
        assert redaction.redacted(text) == text


JWT = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJodW50ZXIyIn0.aHVudGVyMg"


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("see http://h:80/ and amqp://u:hunter2@h, twice", "see http://h:80/ and amqp://u:***@h, twice"),
        ("amqp://:hunter2@h", "amqp://:***@h"),
        ("GET /x?api_token=hunter2&page=2", "GET /x?api_token=***&page=2"),
        ("host=db password=hunter2 user=u", "host=db password=*** user=u"),
        ("host=db password = 'hunter 2' user=u", "host=db password = *** user=u"),
        ('{"Passwort": "x"}', '{"Passwort": "x"}'),
        ("PASSWORD=hunter2", "PASSWORD=***"),
        ("key osk_0123456789ab_hunter2-_x.", "key osk_0123456789ab_***."),
        ("signed with whsec_hunter2/+AA==, twice", "signed with whsec_***, twice"),
        (f"Authorization: Bearer {JWT}", "Authorization: Bearer ***"),
        (f"token={JWT}", "token=***"),
        ("bearer abcdefghijklmnop==", "bearer ***"),
        ("-----BEGIN RSA PRIVATE KEY-----\nhunter2\n-----END RSA PRIVATE KEY-----\n", "(a private key)\n"),
        ("-----BEGIN PRIVATE KEY-----\nhunter2\ncut", "(a private key)"),
        ("expected amqp://USER:PASSWORD@HOST:PORT/VHOST", "expected amqp://USER:PASSWORD@HOST:PORT/VHOST"),
        ('Bearer realm="ordersys"', 'Bearer realm="ordersys"'),
        ('password authentication failed for user "u"', 'password authentication failed for user "u"'),
        ("a bearer token; pass it on", "a bearer token; pass it on"),
        ("sqlite:////home/me/x.db", "sqlite:////home/me/x.db"),
    ],
)  # fmt: skip
def test_only_secrets_are_taken_out_of_a_text(text: str, redacted: str) -> None:
    assert redaction.redacted(text) == redacted
    assert redaction.redacted(redacted) == redacted
