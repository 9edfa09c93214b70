"""What a role shows over HTTP, with contents of a test's own."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@contextmanager
def site(**answers: object) -> Iterator[str]:
    """HOST:PORT of a server that answers /readyz (a dict) and /metrics (a text, or what makes it) with these.

    `status` is that of every answer, `date` the time it says, in seconds from now, `key` the only API key it takes.
    """

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.strip("/")
            status = int(str(answers.get("status", 200))) if name in answers else 404
            if self.headers.get("X-API-Key", "") != answers.get("key", self.headers.get("X-API-Key", "")):
                status = 401
            self.send_response_only(status)
            if "date" in answers:
                self.send_header("Date", formatdate(time.time() + float(str(answers["date"])), usegmt=True))
            self.end_headers()
            found = answers.get(name, "")
            found = found() if callable(found) else found
            self.wfile.write((found if isinstance(found, str) else json.dumps(found)).encode())

        def log_message(self, *_: object) -> None:
            """Says nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
