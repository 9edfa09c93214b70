"""Makes docs/dashboard.png anew: `cd tests && python -m e2e.dashboard_picture`.

Needs Debian's chromium, pngquant, fonts-inter and fonts-jetbrains-mono.
"""

import argparse
import http.client
import json
import random
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import browser
from e2e.processes import Backend, until

TARGET = Path(__file__).resolve().parents[2] / "docs" / "dashboard.png"
CUSTOMERS = ("c-alice", "c-bob", "c-carol", "c-dmitri", "c-mei")
MOST_BYTES = 200_000


def post(backend: Backend, path: str, body: Any) -> Any:
    connection = http.client.HTTPConnection(backend.api_address, timeout=20)
    connection.request("POST", f"/api/v1/orders{path}", json.dumps(body), {"Content-Type": "application/json"})
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return answer


def trade(backend: Backend, count: int, seed: int) -> None:
    """Orders of several customers, some of them sent, delivered, changed or cancelled at once."""
    chance = random.Random(seed)  # noqa: S311 - a picture
    for _ in range(count):
        lines = [
            {"product_id": str(product), "quantity": chance.randint(1, 2)}
            for product in chance.sample(range(1, 8), chance.randint(1, 2))
        ]
        order = post(backend, "", {"customer_id": chance.choice(CUSTOMERS), "lines": lines})
        for step in chance.choice(((), (), ("ship",), ("ship", "deliver"), ("cancel",))):
            post(backend, f"/{order['id']}/{step}", {})


def picture(target: Path, *, width: int, scheme: str) -> None:
    """A shop that has been open for a while, with one notifier away: its queue fills."""
    with tempfile.TemporaryDirectory() as folder, Backend(Path(folder), {}) as backend, browser.chromium() as chromium:
        backend.start_all("serve-order", "serve-product", "api", "notify --mode fanout")
        trade(backend, 14, seed=4)
        page = chromium.new_context(
            viewport={"width": width, "height": 800}, color_scheme=scheme, locale="en-GB", timezone_id="UTC"
        ).new_page()
        page.goto(f"http://{backend.api_address}/")
        page.locator("#event-list .badge").first.wait_for()
        trade(backend, 3, seed=7)
        until(lambda: page.locator("#waiting").text_content() not in ("0", "–"), "the queue fills")  # noqa: RUF001
        page.wait_for_timeout(6_000)  # until nothing is fresh, and lit up, any more
        page.screenshot(path=target, full_page=True)
    subprocess.run(["pngquant", "--force", "--strip", "--output", str(target), "64", str(target)], check=True)
    assert target.stat().st_size < MOST_BYTES, target.stat().st_size


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--output", type=Path, default=TARGET)
    options.add_argument("--width", type=int, default=1200)
    options.add_argument("--scheme", choices=("light", "dark"), default="light")
    wanted = options.parse_args()
    picture(wanted.output, width=wanted.width, scheme=wanted.scheme)
