"""An identity provider for the tests: the tokens it signs, and its key set on a real HTTP server."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa

ISSUER = "https://id.example/"
AUDIENCE = "ordersys"
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def claims(**changes: Any) -> dict[str, Any]:
    """Those of a good token; None leaves one out."""
    now = int(time.time())
    all_claims = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ann", "exp": now + 300, "scope": "orders:read", **changes}
    return {name: value for name, value in all_claims.items() if value is not None}


def signed(key: Any = RSA, algorithm: str = "RS256", kid: str | None = "1", **changes: Any) -> str:
    return jwt.encode(claims(**changes), key, algorithm, headers={"kid": kid} if kid else None)


def jwk(key: Any, kid: str | None = "1", **more: Any) -> dict[str, Any]:
    kind: Any = {rsa.RSAPrivateKey: jwt.algorithms.RSAAlgorithm, ec.EllipticCurvePrivateKey: jwt.algorithms.ECAlgorithm}
    algorithm = next((made for of, made in kind.items() if isinstance(key, of)), jwt.algorithms.OKPAlgorithm)
    return {**algorithm.to_jwk(key.public_key(), as_dict=True), **({"kid": kid} if kid else {}), **more}


class Provider:
    """A real HTTP server with a key set; counts who asks, and may be told to misbehave."""

    def __init__(self, *known: dict[str, Any]) -> None:
        self.document: Any = {"keys": list(known)}
        self.status = 200
        self.asked = 0
        self.flows = threading.Event()
        self.flows.set()
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.asked += 1
                provider.flows.wait(20)
                body = (
                    provider.document
                    if isinstance(provider.document, bytes)
                    else json.dumps(provider.document).encode()
                )
                self.send_response(provider.status)
                self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/jwks"

    def go_away(self) -> None:
        self.flows.set()
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()
