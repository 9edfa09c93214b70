"""A Flask view that answers at once, under the server of our gateway: what that server alone takes.

python benchmarks/flask_hello.py HOST:PORT
"""

import signal
import sys

from flask import Flask, request

from ordersys.api.server import ApiServer


def main(bind: str) -> None:
    app = Flask("hello")

    @app.post("/api/v1/orders")
    def hello() -> tuple[dict[str, object], int]:
        return {"hello": request.get_json()["customer_id"]}, 201

    server = ApiServer(app, bind)
    server.start()
    signal.pause()


if __name__ == "__main__":
    main(*sys.argv[1:])
