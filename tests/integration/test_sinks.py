"""The sinks that tell others, each against a real receiver: what arrives, and which answer means what."""

import ssl
import subprocess
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from certificates import EXPIRED, Authority
from receivers import MailServer, Receiver, mail_server, receiver

from ordersys.core import errors, events, signatures
from ordersys.core.events import Change, Event
from ordersys.core.records import Line, Order, Status
from ordersys.core.tls import Files
from ordersys.notify.mail import MailSink
from ordersys.notify.program import ProgramSink
from ordersys.notify.sinks import Sink, Undeliverable
from ordersys.notify.webhook import WebhookSink

SECRETS = (b"s" * 32,)
EVENT = Event(
    id="0192f0c1-0000-7000-8000-000000000001",
    sequence=7,
    change=Change.CREATED,
    time=1_793_707_424_123_456,
    order=Order(
        id="0192f0c1-0000-7000-8000-00000000000a",
        customer_id="Zoë",
        status=Status.PLACED,
        lines=(Line("1", 2, 1999),),
        currency="EUR",
        version=1,
        created_at=1_793_707_000_000_000,
        updated_at=1_793_707_424_123_456,
    ),
)
BODY = events.encode(EVENT).encode()
LONG, SHORT = 30.0, 0.5  # seconds


def refusal(sink: Sink, kind: type[Exception], event: Event = EVENT) -> str:
    with pytest.raises(kind) as refused:
        sink.handle(event, BODY)
    assert type(refused.value) is kind
    return str(refused.value)


def serving(files: Files) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(files.cert, files.key)
    return context


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.at(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def trusting(authority: Authority) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=authority.ca)


# --- webhook ------------------------------------------------------------------------------------------------------


@pytest.fixture
def hook() -> Iterator[Receiver]:
    with receiver() as started:
        yield started


def webhook(
    said: Receiver, seconds: float = LONG, *, query: str = "", tls: ssl.SSLContext | None = None
) -> WebhookSink:
    return WebhookSink(said.url + query, SECRETS, seconds, tls)


def test_a_webhook_brings_the_body_as_it_came_with_a_signature_that_is_good(hook: Receiver) -> None:
    webhook(hook, query="?shop=1").handle(EVENT, BODY)
    [request] = hook.requests
    assert (request.path, request.body) == ("/hook?shop=1", BODY)
    assert request.headers["content-type"] == events.CONTENT_TYPE
    assert request.headers["webhook-id"] == EVENT.id
    assert abs(int(request.headers["webhook-timestamp"]) - time.time()) < 120
    id_, timestamp, signature = (request.headers[f"webhook-{name}"] for name in ("id", "timestamp", "signature"))
    signatures.verify(SECRETS, id_, timestamp, signature, request.body, time.time())


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
def test_every_2xx_means_that_it_arrived(hook: Receiver, status: int) -> None:
    hook.status = status
    webhook(hook).handle(EVENT, BODY)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 599])
def test_what_may_pass_is_tried_again(hook: Receiver, status: int) -> None:
    hook.status = status
    said = refusal(webhook(hook), errors.Unavailable)
    assert said.startswith(f"{hook.url.removesuffix('/hook')} answered {status} ")


GONE = "the receiver wants no more events: stop this notifier, or give it another ORDERSYS_WEBHOOK_URL"


@pytest.mark.parametrize(
    ("status", "hint"),
    [
        (400, "400 Bad Request"),
        (401, "401 Unauthorized: does it have the same secret?"),
        (404, "404 Not Found"),
        (
            410,
            "410 Gone: the receiver wants no more events: stop this notifier, or give it another ORDERSYS_WEBHOOK_URL",
        ),
        (499, "499 unknown status"),
        (302, "302 Found: redirects are not followed: ORDERSYS_WEBHOOK_URL names the last place"),
    ],
)
def test_every_other_no_is_final_and_says_why(hook: Receiver, status: int, hint: str) -> None:
    hook.status, hook.headers = status, {"Location": hook.url}
    assert refusal(webhook(hook), Undeliverable) == f"{hook.url.removesuffix('/hook')} answered {hint}"
    assert len(hook.requests) == 1


def test_a_reason_tells_nothing_of_path_and_query(hook: Receiver) -> None:
    hook.status = 500
    assert "hidden" not in refusal(webhook(hook, query="/hidden?x=hidden"), errors.Unavailable)


def test_a_receiver_that_says_nothing_is_given_up(hook: Receiver) -> None:
    hook.behave = lambda _: time.sleep(LONG)
    refusal(webhook(hook, SHORT), errors.Unavailable)


def drip(handler: BaseHTTPRequestHandler) -> None:
    """Always something, never the end of it."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
    while True:
        handler.wfile.write(b"x")
        handler.wfile.flush()
        time.sleep(0.05)


def test_a_receiver_that_never_ends_its_answer_is_given_up_too(hook: Receiver) -> None:
    hook.behave = drip
    assert refusal(webhook(hook, SHORT), errors.Unavailable).endswith("not done within 0.5 s")


def test_however_much_a_receiver_answers_its_status_counts(hook: Receiver) -> None:
    def flood(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:  # until we have left
            handler.wfile.write(b"x" * 65536)

    hook.behave = flood
    webhook(hook).handle(EVENT, BODY)


@pytest.mark.parametrize("answer", [b"", b"SMTP ready\r\n", b"HTTP/1.1 abc\r\n\r\n"])
def test_what_is_not_http_is_tried_again(hook: Receiver, answer: bytes) -> None:
    hook.behave = lambda handler: handler.wfile.write(answer) and None
    refusal(webhook(hook), errors.Unavailable)


def test_nobody_there_is_tried_again(hook: Receiver) -> None:
    with receiver() as gone:
        pass
    assert "refused" in refusal(webhook(gone), errors.Unavailable)


def test_an_id_that_no_header_can_hold_is_final(hook: Receiver) -> None:
    other = Event(id="évent", sequence=1, change=EVENT.change, time=EVENT.time, order=EVENT.order)
    assert refusal(webhook(hook), Undeliverable, other) == "the event's id cannot stand in an HTTP header"
    assert hook.requests == []


def test_https_goes_to_whom_we_trust_only(authority: Authority, trusting: ssl.SSLContext) -> None:
    with receiver(serving(authority.issue("receiver"))) as good:
        webhook(good, tls=trusting).handle(EVENT, BODY)
        assert "certificate verify failed" in refusal(
            webhook(good, tls=ssl.create_default_context()), errors.Unavailable
        )
        assert len(good.requests) == 1
    with receiver(serving(authority.issue("old", EXPIRED))) as old:
        assert "certificate verify failed" in refusal(webhook(old, tls=trusting), errors.Unavailable)
        assert old.requests == []


# --- smtp ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def post() -> Iterator[MailServer]:
    with mail_server() as started:
        yield started


def mail(
    said: MailServer, *, scheme: str = "smtp", user: str = "", tls: ssl.SSLContext | None = None, seconds: float = LONG
) -> MailSink:
    url = f"{scheme}://{user}{said.address}"
    return MailSink(url, "orders@shop.example", ("one@shop.example", "two@shop.example"), seconds, tls)


def test_a_mail_says_what_happened_and_has_the_event_with_it(post: MailServer) -> None:
    mail(post).handle(EVENT, BODY)
    [taken] = post.mails
    assert (taken["From"], taken["To"]) == ("orders@shop.example", "one@shop.example, two@shop.example")
    assert taken["Subject"] == f"Order {EVENT.order.id} was placed"
    assert taken["Message-ID"] == f"<{EVENT.id}@shop.example>"
    assert taken["Date"] == "Tue, 03 Nov 2026 12:03:44 +0000"
    assert taken["Auto-Submitted"] == "auto-generated"
    text, attached = taken.iter_parts()
    assert "Zoë" in text.get_content()
    assert "2 x 1 at 19.99 EUR" in text.get_content()
    assert (attached.get_content_type(), attached.get_content()) == ("application/cloudevents+json", BODY)
    assert post.verbs == ["EHLO", "MAIL", "RCPT", "RCPT", "DATA", "QUIT"]


def test_starttls_comes_before_the_password_and_everything_else(
    post: MailServer, authority: Authority, trusting: ssl.SSLContext
) -> None:
    post.tls = serving(authority.issue("mail"))
    mail(post, user="shop:s%40fe@", tls=trusting).handle(EVENT, BODY)
    assert post.verbs[:4] == ["EHLO", "STARTTLS", "EHLO", "AUTH"]
    assert post.logins == ["AHNob3AAc0BmZQ=="]  # \0shop\0s@fe
    assert len(post.mails) == 1


def test_without_starttls_nothing_is_said(post: MailServer, trusting: ssl.SSLContext) -> None:
    post.answers["STARTTLS"] = "502 what is that"
    assert "offers no STARTTLS" in refusal(mail(post, user="u:p@", tls=trusting), errors.Unavailable)
    assert post.verbs == ["EHLO", "STARTTLS"]


def test_a_mail_server_whom_we_do_not_trust_gets_nothing(post: MailServer, authority: Authority) -> None:
    post.tls = serving(authority.issue("mail"))
    said = refusal(mail(post, tls=ssl.create_default_context()), errors.Unavailable)
    assert "certificate verify failed" in said
    assert "MAIL" not in post.verbs


def test_smtps_speaks_tls_from_the_first_byte(authority: Authority, trusting: ssl.SSLContext) -> None:
    with mail_server(serving(authority.issue("mail"))) as post:
        mail(post, scheme="smtps", tls=trusting).handle(EVENT, BODY)
        assert len(post.mails) == 1
        assert "STARTTLS" not in post.verbs


@pytest.mark.parametrize(
    ("verb", "answer", "kind", "said"),
    [
        ("", "554 go away", Undeliverable, "answered 554 go away"),
        ("", "421 later", errors.Unavailable, "answered 421 later"),
        ("MAIL", "451 later", errors.Unavailable, "answered 451 later"),
        ("MAIL", "550 not you", Undeliverable, "answered 550 not you"),
        ("RCPT", "550 nobody", Undeliverable, "refused every recipient: one@shop.example: 550 nobody; two@"),
        ("RCPT", "450 busy", errors.Unavailable, "refused every recipient: one@shop.example: 450 busy; two@"),
        ("DATA", "452 full", errors.Unavailable, "answered 452 full"),
        (".", "554 spam", Undeliverable, "answered 554 spam"),
        ("AUTH", "535 who", errors.Unavailable, "refused the user or the password: 535"),
    ],
)
def test_a_4yz_is_tried_again_and_a_5yz_is_final(
    post: MailServer, verb: str, answer: str, kind: type[Exception], said: str
) -> None:
    post.answers[verb] = answer
    assert said in refusal(mail(post, user="u:secret@" if verb == "AUTH" else ""), kind)
    assert post.mails == []


def test_one_recipient_who_is_refused_does_not_keep_it_from_the_others(
    post: MailServer, caplog: pytest.LogCaptureFixture
) -> None:
    post.answers["rcpt TO:<one@shop.example>"] = "550 nobody"
    mail(post).handle(EVENT, BODY)
    assert len(post.mails) == 1
    assert f"the others have event {EVENT.id}, one@shop.example has not: 550 nobody" in caplog.text


def test_a_mail_server_that_hangs_up_or_is_not_there_is_tried_again(post: MailServer) -> None:
    post.answers["MAIL"] = "221 bye"
    refusal(mail(post), errors.Unavailable)
    with mail_server() as gone:
        pass
    assert "refused" in refusal(mail(gone), errors.Unavailable)


def test_a_mail_server_that_never_comes_to_the_point_is_given_up(post: MailServer) -> None:
    post.answers[""] = "\r\n".join(["220-wait"] * 1_000_000)  # more than fits between us
    post.answers["EHLO"] = "250-wait"
    assert refusal(mail(post, seconds=SHORT), errors.Unavailable).endswith("not done within 0.5 s")


# --- command ------------------------------------------------------------------------------------------------------


def program(script: str, *arguments: str, seconds: float = LONG, **environment: str) -> ProgramSink:
    return ProgramSink(["/bin/sh", "-c", script, "sh", *arguments], seconds, {"PATH": "/usr/bin:/bin", **environment})


def test_a_program_gets_the_event_on_stdin_and_the_ids_in_its_environment(tmp_path: Path) -> None:
    ids = "$CE_ID $CE_TYPE $CE_SUBJECT $CE_TIME $OWN"
    program(f'cat > "$1"; echo "{ids}" > "$2"', str(tmp_path / "in"), str(tmp_path / "ids"), OWN="x y").handle(
        EVENT, BODY
    )
    assert (tmp_path / "in").read_bytes() == BODY
    assert (tmp_path / "ids").read_text() == (
        f"{EVENT.id} ordersys.order.created.v1 {EVENT.order.id} 2026-11-03T12:03:44.123456Z x y\n"
    )


def test_no_shell_reads_the_arguments(tmp_path: Path) -> None:
    file = tmp_path / "$(id); * ~"
    ProgramSink(["touch", str(file)], LONG, {"PATH": "/usr/bin:/bin"}).handle(EVENT, BODY)
    assert list(tmp_path.iterdir()) == [file]


def test_a_program_need_not_read_and_may_say_much() -> None:
    program("head -c 3000000 /dev/zero; head -c 3000000 /dev/zero >&2").handle(EVENT, BODY + b" " * 3_000_000)


@pytest.mark.parametrize(
    ("script", "kind", "said"),
    [
        ("exit 75", errors.Unavailable, "/bin/sh ended with exit code 75"),
        ("echo first >&2; echo no disk >&2; exit 75", errors.Unavailable, "/bin/sh ended with exit code 75: no disk"),
        ("exit 1", Undeliverable, "/bin/sh ended with exit code 1"),
        ("printf 'a\\033b' >&2; exit 64", Undeliverable, "/bin/sh ended with exit code 64: a\\x1bb"),
        ("kill -9 $$", Undeliverable, "/bin/sh ended with signal 9"),
    ],
)
def test_75_is_tried_again_and_every_other_code_is_final(script: str, kind: type[Exception], said: str) -> None:
    assert refusal(program(script), kind) == said


def runs(pid: str) -> bool:
    """False for one that nobody has waited for yet, too."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", pid], check=False, capture_output=True, text=True).stdout
    return bool(state.strip()) and not state.startswith("Z")


def test_a_program_that_does_not_end_is_killed_with_all_that_it_started(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    sink = program('sleep 1000 & echo $! > "$1"; wait', str(file), seconds=SHORT)
    assert refusal(sink, errors.Unavailable) == "/bin/sh was not done within 0.5 s"
    pid = file.read_text().strip()
    deadline = time.monotonic() + LONG
    while runs(pid):
        assert time.monotonic() < deadline, "the child of the program lives"
        time.sleep(0.05)


def test_what_a_program_leaves_running_does_not_hold_us_up() -> None:
    begun = time.monotonic()
    program("sleep 60 & exit 0").handle(EVENT, BODY)
    assert time.monotonic() - begun < LONG


def test_a_program_that_has_gone_is_tried_again(tmp_path: Path) -> None:
    sink = ProgramSink([str(tmp_path / "gone")], LONG, {})
    assert refusal(sink, errors.Unavailable).endswith("gone cannot be run: No such file or directory")
