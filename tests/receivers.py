"""Real receivers of notifications, in threads of their own: an HTTP server and a small mail server."""

import email
import email.policy
import socketserver
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import EmailMessage
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass(frozen=True)
class Request:
    path: str
    headers: dict[str, str]  # names in lower case
    body: bytes


@dataclass
class Receiver:
    """Answers with `status`; `behave` may write whatever it likes in place of that."""

    url: str = ""
    status: int = 204
    headers: dict[str, str] = field(default_factory=dict)
    behave: Callable[[BaseHTTPRequestHandler], None] | None = None
    requests: list[Request] = field(default_factory=list)


@contextmanager
def receiver(tls: ssl.SSLContext | None = None) -> Iterator[Receiver]:
    """An HTTP server on a port of its own, with `tls` over it."""
    said = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            headers = {name.lower(): value for name, value in self.headers.items()}
            said.requests.append(Request(self.path, headers, body))
            if said.behave is not None:
                said.behave(self)
                return
            self.send_response(said.status)
            for name, value in {"Content-Length": "0", **said.headers}.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as it is called there
            """Nobody reads it."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, request: object, client_address: object) -> None:
            """A client that leaves in the middle is what some tests are about."""

    with Server(("127.0.0.1", 0), Handler) as server:
        if tls is not None:
            server.socket = tls.wrap_socket(server.socket, server_side=True)
        said.url = f"{'https' if tls else 'http'}://127.0.0.1:{server.server_port}/hook"
        serving = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        serving.start()
        try:
            yield said
        finally:
            server.shutdown()
            serving.join()


@dataclass
class MailServer:
    """Takes mail, or says what `answers` has for a verb; `tls` is what STARTTLS upgrades to."""

    address: str = ""
    tls: ssl.SSLContext | None = None
    answers: dict[str, str] = field(default_factory=dict)
    verbs: list[str] = field(default_factory=list)
    mails: list[EmailMessage] = field(default_factory=list)
    logins: list[str] = field(default_factory=list)

    def verb(self, line: str) -> str:
        """What is answered to one line of the client."""
        verb = line.split(" ", maxsplit=1)[0].upper()
        self.verbs.append(verb)
        for each in (line, verb):
            if each in self.answers:
                return self.answers[each]
        if verb == "EHLO":
            offers = ["here", *(["STARTTLS"] if self.tls else []), "AUTH PLAIN"]
            return "\r\n".join(f"250{'-' if each != offers[-1] else ' '}{each}" for each in offers)
        if verb == "AUTH":
            self.logins.append(line.rsplit(" ", maxsplit=1)[-1])
        return {"DATA": "354 go on", "STARTTLS": "220 go on", "AUTH": "235 welcome", "QUIT": "221 bye"}.get(
            verb, "250 fine"
        )


@contextmanager
def mail_server(at_once: ssl.SSLContext | None = None) -> Iterator[MailServer]:
    """A mail server on a port of its own; `at_once` is TLS from the first byte."""
    said = MailServer()

    class Handler(socketserver.StreamRequestHandler):
        def answer(self, text: str) -> None:
            self.wfile.write(f"{text}\r\n".encode())

        def handle(self) -> None:
            self.answer(said.answers.get("", "220 here"))
            while line := self.rfile.readline().decode().rstrip("\r\n"):
                answer = said.verb(line)
                self.answer(answer)
                if answer.startswith("354"):
                    self.mail()
                elif line == "STARTTLS" and answer.startswith("220") and said.tls is not None:
                    self.request = said.tls.wrap_socket(self.request, server_side=True)
                    self.rfile, self.wfile = self.request.makefile("rb"), self.request.makefile("wb", 0)
                elif answer.startswith("221"):
                    return

        def finish(self) -> None:
            super().finish()
            self.request.close()  # after STARTTLS it is another one than the server knows

        def mail(self) -> None:
            lines = []
            while (line := self.rfile.readline()) not in (b".\r\n", b""):
                lines.append(line.removeprefix(b"."))
            self.answer(said.answers.get(".", "250 taken"))
            if "." not in said.answers:
                said.mails.append(email.message_from_bytes(b"".join(lines), policy=email.policy.SMTP))

    class Server(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False
        allow_reuse_address = True

        def handle_error(self, request: object, client_address: object) -> None:
            """A client that leaves in the middle is what some tests are about."""

    with Server(("127.0.0.1", 0), Handler) as server:
        if at_once is not None:
            server.socket = at_once.wrap_socket(server.socket, server_side=True)
        said.address = f"127.0.0.1:{server.server_address[1]}"
        serving = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        serving.start()
        try:
            yield said
        finally:
            server.shutdown()
            serving.join()
