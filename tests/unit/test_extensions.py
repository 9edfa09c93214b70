"""Which sink a name chooses, what it needs, and what is said when a package of others cannot be used."""

import io
import sys
from pathlib import Path
from typing import Any

import pytest

from ordersys import extensions, settings
from ordersys.core import errors
from ordersys.notify.mail import MailSink
from ordersys.notify.program import ProgramSink
from ordersys.notify.sinks import LogSink, Sink
from ordersys.notify.webhook import WebhookSink

WEBHOOK = {"webhook_url": "https://shop.example/hook", "webhook_secret": f"whsec_{'A' * 32}"}
MAIL = {"smtp_url": "smtps://mail.example", "smtp_from": "a@shop.example", "smtp_to": "b@shop.example"}


def chosen(name: str, **given: object) -> tuple[Sink, int]:
    return extensions.sink(settings.load(given), name, io.StringIO(), json=False, label="")


def refusal(name: str, **given: object) -> str:
    with pytest.raises(errors.UsageError) as refused:
        chosen(name, **given)
    return refused.value.message


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a module and its entry points where Python finds them, as an installer does."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(name: str, source: str, **points: str) -> None:
        (tmp_path / f"{name}.py").write_text(source)
        about = tmp_path / f"{name}-1.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
        groups = "".join(f"[ordersys.{group}]\n{text}\n" for group, text in points.items())
        (about / "entry_points.txt").write_text(groups)

    return install


@pytest.mark.parametrize(
    ("name", "kind", "batch", "given"),
    [
        ("log", LogSink, 50, {}),
        ("webhook", WebhookSink, 1, WEBHOOK),
        ("smtp", MailSink, 1, MAIL),
        ("command", ProgramSink, 1, {"notify_command": "sh -c 'exit 0'"}),
    ],
)
def test_what_is_built_in_is_chosen_by_its_name(
    name: str, kind: type[object], batch: int, given: dict[str, object]
) -> None:
    made, size = chosen(name, **given)
    assert (type(made), size) == (kind, batch)


@pytest.mark.parametrize(
    ("name", "given", "said"),
    [
        ("webhook", {}, "the sink webhook needs ORDERSYS_WEBHOOK_URL"),
        ("webhook", {"webhook_url": "https://h"}, "the sink webhook needs ORDERSYS_WEBHOOK_SECRET"),
        ("smtp", MAIL | {"smtp_to": ""}, "the sink smtp needs ORDERSYS_SMTP_TO"),
        ("command", {}, "the sink command needs ORDERSYS_NOTIFY_COMMAND"),
        ("command", {"notify_command": "'sh"}, "ORDERSYS_NOTIFY_COMMAND: No closing quotation"),
        ("command", {"notify_command": " "}, "ORDERSYS_NOTIFY_COMMAND: '' is not a program that can be run"),
        (
            "command",
            {"notify_command": "no-such"},
            "ORDERSYS_NOTIFY_COMMAND: 'no-such' is not a program that can be run",
        ),
        (
            "fax",
            {},
            "there is no 'fax' in ordersys.sinks; there are: log, webhook, smtp, command",
        ),
    ],
)
def test_what_is_missing_is_named(name: str, given: dict[str, object], said: str) -> None:
    assert refusal(name, **given) == said


def test_orders_leave_this_machine_encrypted_unless_it_was_said_aloud() -> None:
    plain = WEBHOOK | {"webhook_url": "http://shop.example/hook"}
    assert "use https://, or say ORDERSYS_INSECURE=true" in refusal("webhook", **plain)
    chosen("webhook", **plain, insecure=True)
    for host in ("localhost", "127.0.0.1:8000", "[::1]"):
        chosen("webhook", **WEBHOOK | {"webhook_url": f"http://{host}/hook"})


@pytest.mark.parametrize(
    ("url", "insecure", "encrypted"),
    [
        ("smtp://mail.example:587", False, True),
        ("smtp://mail.example:587", True, False),
        ("smtp://127.0.0.1:25", False, False),
        ("smtps://127.0.0.1", True, True),
    ],
)
def test_mail_leaves_this_machine_encrypted_too(url: str, *, insecure: bool, encrypted: bool) -> None:
    made, _ = chosen("smtp", **MAIL | {"smtp_url": url, "insecure": insecure})
    assert isinstance(made, MailSink)
    assert (made._tls is not None) == encrypted


def test_a_sink_of_another_package_is_made_once_and_gets_one_event_at_a_time(package: Any) -> None:
    package("shop_fax", "class Fax:\n    def handle(self, event, body): pass\n", sinks="fax = shop_fax:Fax")
    made, batch = chosen("fax")
    assert (type(made).__name__, batch) == ("Fax", 1)
    assert refusal("phone").endswith("there are: log, webhook, smtp, command, fax")


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import no_such", "ModuleNotFoundError: No module named 'no_such'"),
        ("", "AttributeError: module 'shop_bad' has no attribute 'Fax'"),
        ("def Fax():\n    raise RuntimeError('no line')", "RuntimeError: no line"),
        ("Fax = 3", "TypeError: 'int' object is not callable"),
    ],
)
def test_a_package_that_cannot_be_used_is_named_with_the_reason(package: Any, source: str, said: str) -> None:
    package("shop_bad", source, sinks="fax = shop_bad:Fax")
    try:
        assert refusal("fax") == f"'fax' in ordersys.sinks cannot be used: {said}"
    finally:
        sys.modules.pop("shop_bad", None)


def test_what_cannot_handle_events_is_no_sink(package: Any) -> None:
    package("shop_none", "def fax(): return 7", sinks="fax = shop_none:fax")
    assert refusal("fax") == "the sink 'fax' has no method handle(event, body): it is 7"


def test_a_name_that_two_packages_claim_is_refused(package: Any) -> None:
    for name in ("shop_one", "shop_two"):
        package(name, "", sinks=f"fax = {name}:Fax")
    assert refusal("fax") == "'fax' in ordersys.sinks is claimed by more than one package: shop_one, shop_two"


def test_rules_are_those_that_the_setting_names_in_its_order(package: Any) -> None:
    package("shop_rules", "def one(p): pass\ndef two(p): pass\n", rules="one = shop_rules:one\ntwo = shop_rules:two")
    assert extensions.rules(settings.load()) is None
    found = extensions.rules(settings.load({"rules": "two, one"}))
    assert found is not None
    assert list(found._rules) == ["two", "one"]


def test_a_rule_that_is_none_is_named(package: Any) -> None:
    package("shop_seven", "seven = 7", rules="seven = shop_seven:seven")
    for name, said in (
        ("seven", "the rule 'seven' cannot be called: it is 7"),
        ("eight", "there is no 'eight' in ordersys.rules; there are: seven"),
    ):
        with pytest.raises(errors.UsageError) as refused:
            extensions.rules(settings.load({"rules": name}))
        assert refused.value.message == said
