"""Posts each event to an HTTP receiver, signed as `core.signatures` says.

The body is the CloudEvent as it was on the broker (https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/http-webhook.md).
"""

import http.client
import ssl
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing, suppress
from http import HTTPStatus
from urllib.parse import urlsplit

from ordersys import __version__
from ordersys.core import errors, signatures
from ordersys.core.events import CONTENT_TYPE, Event
from ordersys.notify.deadline import cut_off_after
from ordersys.notify.sinks import Undeliverable

_MOST_ANSWER_BYTES = 64 * 1024
_AGAIN = (408, 425, 429)  # of the 4xx: nothing is wrong with the request, only with the moment
_HINTS = {
    401: "does it have the same secret?",
    403: "does it have the same secret?",
    410: "the receiver wants no more events: stop this notifier, or give it another ORDERSYS_WEBHOOK_URL",
    413: "the receiver takes smaller bodies only",
} | dict.fromkeys((301, 302, 303, 307, 308), "redirects are not followed: ORDERSYS_WEBHOOK_URL names the last place")


class WebhookSink:
    """Each event is one POST on a connection of its own; a 2xx within `seconds` means that it arrived."""

    def __init__(self, url: str, secrets: Sequence[bytes], seconds: float, tls: ssl.SSLContext | None) -> None:
        parts = urlsplit(url)
        self._secrets = secrets
        self._seconds = seconds
        self._tls = tls
        self._https = parts.scheme == "https"
        self._host, self._port = parts.hostname or "", parts.port
        self._target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        self.name = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        """The receiver without its path, which may hold a secret."""

    def handle(self, event: Event, body: bytes) -> None:
        """Raises Unavailable for what may pass (no answer, 408, 425, 429, 5xx), Undeliverable for every other no."""
        if not event.id.isascii():
            raise Undeliverable("the event's id cannot stand in an HTTP header")
        signed = signatures.headers(self._secrets, event.id, int(time.time()), body)
        try:
            status = self._post(body, signed)
        except (OSError, http.client.HTTPException) as error:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise errors.Unavailable(f"{self.name}: {reason}") from error
        if 200 <= status < 300:
            return
        known = HTTPStatus(status).phrase if status in HTTPStatus._value2member_map_ else "unknown status"
        answer = f"{self.name} answered {status} {known}" + (f": {_HINTS[status]}" if status in _HINTS else "")
        if status in _AGAIN or status >= 500:
            raise errors.Unavailable(answer)
        raise Undeliverable(answer)

    def _post(self, body: bytes, signed: dict[str, str]) -> int:
        agent = {"User-Agent": f"ordersys/{__version__}", "Connection": "close"}
        headers = {"Content-Type": CONTENT_TYPE, **agent, **signed}
        with ExitStack() as stack:
            opened = stack.enter_context(closing(self._connection()))
            with cut_off_after(self._seconds, lambda: opened.sock):
                opened.request("POST", self._target, body, headers)
                answer = stack.enter_context(opened.getresponse())
            with suppress(OSError, http.client.HTTPException):  # the status was the answer
                answer.read1(_MOST_ANSWER_BYTES)  # so that the receiver can finish
            return answer.status

    def _connection(self) -> http.client.HTTPConnection:
        if self._https:
            return http.client.HTTPSConnection(self._host, self._port, timeout=self._seconds, context=self._tls)
        return http.client.HTTPConnection(self._host, self._port, timeout=self._seconds)
