"""Mails each event over SMTP (RFC 5321), with the CloudEvent attached."""

import logging
import smtplib
import socket
import ssl
from collections.abc import Sequence
from datetime import UTC, datetime
from email.message import EmailMessage
from urllib.parse import quote, unquote, urlsplit

from ordersys.core import display, errors
from ordersys.core.events import Event
from ordersys.notify.deadline import cut_off_after
from ordersys.notify.sinks import Undeliverable

logger = logging.getLogger(__name__)

_PORTS = {"smtp": 25, "smtps": 465}
_READY = 220


class MailSink:
    """One conversation per event, within `seconds`.

    With `tls`, smtps:// speaks it from the first byte, and smtp:// upgrades with STARTTLS (RFC 3207) and goes no
    further without. A URL with a user logs in.
    """

    def __init__(
        self, url: str, sender: str, recipients: Sequence[str], seconds: float, tls: ssl.SSLContext | None
    ) -> None:
        parts = urlsplit(url)
        self._at = parts.hostname or "", parts.port or _PORTS[parts.scheme]
        self._user, self._password = unquote(parts.username or ""), unquote(parts.password or "")
        self._from_start, self._tls = parts.scheme == "smtps", tls
        self._sender, self._recipients = sender, tuple(recipients)
        self._seconds = seconds
        self.name = f"{parts.scheme}://{self._at[0]}:{self._at[1]}"

    def handle(self, event: Event, body: bytes) -> None:
        """Raises Unavailable for what may pass (no answer, a 4yz, a wrong password), Undeliverable for a 5yz."""
        server = smtplib.SMTP(timeout=self._seconds)  # not connected yet
        try:
            with cut_off_after(self._seconds, lambda: server.sock):
                self._greet(server)
                refused = server.send_message(self._mail(event, body), self._sender, self._recipients)
                server.quit()
        except smtplib.SMTPRecipientsRefused as error:
            said = "; ".join(f"{to}: {_said(code, answer)}" for to, (code, answer) in error.recipients.items())
            final = all(code >= 500 for code, _ in error.recipients.values())
            raise self._failure(f"refused every recipient: {said}", final=final) from error
        except smtplib.SMTPAuthenticationError as error:  # not the event's fault
            raise self._failure(f"refused the user or the password: {error.smtp_code}", final=False) from error
        except smtplib.SMTPResponseException as error:
            said = _said(error.smtp_code, error.smtp_error)
            raise self._failure(f"answered {said}", final=error.smtp_code >= 500) from error
        except (OSError, smtplib.SMTPException) as error:  # an SMTPException is an OSError, and should that end
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise self._failure(reason, final=False) from error
        finally:
            server.close()
        for to, (code, answer) in refused.items():
            logger.warning("%s: the others have event %s, %s has not: %s", self.name, event.id, to, _said(code, answer))

    def _failure(self, what: str, *, final: bool) -> Exception:
        message = f"{self.name}: {what}"
        return Undeliverable(message) if final else errors.Unavailable(message)

    def _greet(self, server: smtplib.SMTP) -> None:
        """Connect by hand: smtplib would do it where `cut_off_after` does not see the socket."""
        server.sock = line = socket.create_connection(self._at, self._seconds)
        if self._tls and self._from_start:
            server.sock = self._tls.wrap_socket(line, server_hostname=self._at[0])
        code, said = server.getreply()
        if code != _READY:
            raise smtplib.SMTPConnectError(code, said)
        server.ehlo_or_helo_if_needed()
        if self._tls and not self._from_start:
            self._upgrade(server, self._tls, line)
        if self._user:
            server.login(self._user, self._password)

    def _upgrade(self, server: smtplib.SMTP, tls: ssl.SSLContext, line: socket.socket) -> None:
        code, _ = server.docmd("STARTTLS")
        if code != _READY:
            raise smtplib.SMTPNotSupportedError("offers no STARTTLS, and without it everybody could read along")
        server.sock = tls.wrap_socket(line, server_hostname=self._at[0])
        # What was said before is forgotten (RFC 3207 section 4.2).
        server.file = None
        server.helo_resp = server.ehlo_resp = None
        server.esmtp_features = {}
        server.does_esmtp = False
        server.ehlo_or_helo_if_needed()

    def _mail(self, event: Event, body: bytes) -> EmailMessage:
        order = event.order
        mail = EmailMessage()
        mail["From"] = self._sender
        mail["To"] = ", ".join(self._recipients)
        mail["Subject"] = f"Order {display.printable(order.id)} {_WORDS[event.change.value]}"
        mail["Date"] = datetime.fromtimestamp(event.time / 1e6, UTC)
        # The same at every try: mail programs show a repetition once.
        mail["Message-ID"] = f"<{quote(event.id, safe='')}@{self._sender.rpartition('@')[2]}>"
        mail["Auto-Submitted"] = "auto-generated"  # RFC 3834: nobody's holiday answers this
        mail.set_content("".join(text for text, _ in display.event_line(event)) + "\n\n" + _lines(event))
        mail.add_attachment(body, maintype="application", subtype="cloudevents+json", filename="event.json")
        return mail


_WORDS = {
    "created": "was placed",
    "lines": "was changed",
    "cancelled": "was cancelled",
    "shipped": "was shipped",
    "delivered": "was delivered",
}


def _lines(event: Event) -> str:
    order = event.order
    return "".join(
        f"{line.quantity} x {display.printable(line.product_id)} at {display.money(line.unit_price, order.currency)}\n"
        for line in order.lines
    )


def _said(code: int, answer: bytes | str) -> str:
    text = answer.decode(errors="replace") if isinstance(answer, bytes) else answer
    return f"{code} {display.printable(text)[:200]}"
