"""/docs in a real browser that reaches the gateway and nobody else."""

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import browser as browsers
import pytest
from e2e.processes import Backend

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PATIENCE_MS = 30_000


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    with browsers.chromium() as browser:
        yield browser


@pytest.fixture
def gateway(tmp_path: Path) -> Iterator[Backend]:
    """The gateway alone: what it shows of itself takes no service."""
    if reason := browsers.chromium_missing():
        browsers.servers.missing(reason)
    with Backend(tmp_path, {}) as backend:
        backend.start("api").ready()
        yield backend


@pytest.mark.parametrize(
    "look", [{"color_scheme": "light"}, {"color_scheme": "dark"}, {"viewport": {"width": 390, "height": 800}}]
)
def test_the_page_shows_an_operation_and_asks_nobody_else(browser: "Browser", gateway: Backend, look: Any) -> None:
    origin = f"http://{gateway.api_address}/"
    context = browser.new_context(**look)
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    asked, complaints = watch(page)
    page.goto(f"{origin}docs#tag/orders/POST/api/v1/orders")
    page.get_by_role("heading", name="Place order").first.wait_for()
    assert "Idempotency-Key" in page.content()
    assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
    assert asked
    assert [url for url in asked if not url.startswith((origin, "data:", "blob:"))] == []
    assert complaints == []
    context.close()


def test_the_policy_of_the_page_keeps_others_out(browser: "Browser", gateway: Backend) -> None:
    """What the page's code might come to ask for one day is not even tried."""
    context = browser.new_context()
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    page.goto(f"http://{gateway.api_address}/docs")
    page.get_by_text("Products, orders and their events").first.wait_for()
    with socket.create_server(("127.0.0.1", 0)) as elsewhere:
        refused = page.evaluate(
            """async (elsewhere) => {
                const broken = []
                addEventListener('securitypolicyviolation', event => broken.push(event.effectiveDirective))
                await fetch(elsewhere).catch(() => {})
                for (const [kind, name] of [['script', 'src'], ['img', 'src'], ['link', 'href']]) {
                    const element = document.createElement(kind)
                    element.rel = 'stylesheet'
                    await new Promise(done => {
                        element.onerror = element.onload = done
                        element[name] = elsewhere
                        document.head.append(element)
                    })
                }
                return broken
            }""",
            f"http://127.0.0.1:{elsewhere.getsockname()[1]}/",
        )
        elsewhere.setblocking(False)
        with pytest.raises(BlockingIOError):  # nobody has come
            elsewhere.accept()
    assert sorted(refused) == ["connect-src", "img-src", "script-src-elem", "style-src-elem"]
    context.close()


def watch(page: "Page") -> tuple[list[str], list[str]]:
    """What is asked for from now on, and what the browser complains of."""
    asked: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    return asked, complaints
