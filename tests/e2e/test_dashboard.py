"""The page for people, in a real browser against the real command."""

import http.client
import json
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import browser as browsers
import pytest
from e2e.processes import Backend

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

HOSTILE = """<img src=x onerror="document.title='owned'"><script>document.title='owned'</script>"""
PRODUCTS = {"1": ("Espresso beans", 500), "2": (HOSTILE, 40), "3": ("Very" + "long" * 30, 12), "4": ("Sold out", 0)}
NETWORK = "Failed to load resource"
"""What Chromium itself writes about an answer of 400 or more, and about no answer."""
PATIENCE_MS = 20_000

Open = Callable[..., "Page"]


@pytest.fixture(scope="module")
def browser() -> "Iterator[Browser]":
    with browsers.chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """All roles, without keys, selling things with hostile names; every test shares it."""
    if reason := browsers.chromium_missing():
        browsers.servers.missing(reason)
    folder = tmp_path_factory.mktemp("shop")
    with Backend(folder, {"ORDERSYS_DATA": str(seed(folder / "data")), "ORDERSYS_API_RATE_LIMIT": "off"}) as backend:
        backend.start("up").ready()
        yield backend


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Backend]:
    """A deployment of the test's own; nothing runs yet."""
    if reason := browsers.chromium_missing():
        browsers.servers.missing(reason)
    settings = {"ORDERSYS_DATA": str(seed(tmp_path / "data")), "ORDERSYS_API_RATE_LIMIT": "off"}
    with Backend(tmp_path, settings) as backend:
        yield backend


def seed(folder: Path) -> Path:
    folder.mkdir()
    products = [
        {"id": id_, "name": name, "description": HOSTILE, "attributes": {}, "price": "12.50", "currency": "EUR"}
        for id_, (name, _) in PRODUCTS.items()
    ]
    inventory = [{"product_id": id_, "quantity": quantity} for id_, (_, quantity) in PRODUCTS.items()]
    for name, content in (("products", products), ("inventory", inventory), ("orders", [])):
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


@pytest.fixture
def open_page(browser: "Browser") -> Iterator[Open]:
    """Opens the page of a deployment; in the end nothing may have been complained of, and nobody else been asked."""
    complaints: list[str] = []
    asked: list[tuple[str, str]] = []
    contexts = []

    def open_(backend: Backend, *, network_fails: bool = False, **options: Any) -> "Page":
        origin = f"http://{backend.api_address}/"
        context = browser.new_context(locale="en-GB", timezone_id="UTC", **options)
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        page = context.new_page()

        def heard(message: Any) -> None:
            if message.type in ("error", "warning") and not (network_fails and message.text.startswith(NETWORK)):
                complaints.append(message.text)

        page.on("console", heard)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.append((origin, request.url)))
        page.goto(origin)
        return page

    yield open_
    for context in contexts:
        context.close()
    assert complaints == []
    assert [url for origin, url in asked if not url.startswith(origin)] == []


def request(backend: Backend, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any, bytes]:
    connection = http.client.HTTPConnection(backend.api_address, timeout=20)
    try:
        content = None if body is None else json.dumps(body)
        kind = {} if body is None else {"Content-Type": "application/json"}
        connection.request(method, path, content, {**kind, **headers})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


def place(backend: Backend, product: str = "1", quantity: int = 2, customer: str = "c-1") -> str:
    body = {"customer_id": customer, "lines": [{"product_id": product, "quantity": quantity}]}
    status, _, content = request(backend, "POST", "/api/v1/orders", body)
    assert status == 201, content
    return str(json.loads(content)["id"])


def live(page: "Page") -> "Page":
    expects(page.locator("#connection")).to_have_text("Live", timeout=PATIENCE_MS)
    return page


def expects(locator: Any) -> Any:
    from playwright.sync_api import expect

    return expect(locator)


def row(page: "Page", order: str) -> Any:
    return page.locator(f'#orders tr[data-order="{order}"]')


def entries(page: "Page", order: str) -> Any:
    """What the stream has shown of this order."""
    return page.locator("#event-list li", has=page.locator(f'[title="{order}"]'))


def units(page: "Page", product: str) -> int:
    text = page.locator(f'#products tr[data-product="{product}"] .units').text_content()
    return int(str(text).replace(",", ""))


# --- what it shows


def test_an_order_shows_up_by_itself_and_changes_before_your_eyes(shop: Backend, open_page: Open) -> None:
    page = live(open_page(shop))
    expects(page.locator("#products tbody tr")).to_have_count(len(PRODUCTS))
    page.evaluate("window.opened = 'once'")
    before = units(page, "1")

    order = place(shop, quantity=3, customer="c-ada")

    expects(row(page, order)).to_contain_text("c-ada")
    expects(row(page, order)).to_contain_text("placed")
    expects(row(page, order)).to_contain_text("€37.50")
    expects(entries(page, order)).to_contain_text(["Placed"])
    expects(entries(page, order)).to_contain_text(["3 \u00d7 Espresso beans"])
    page.wait_for_function(
        "wanted => document.querySelector('#products tr[data-product=\"1\"] .units').textContent === wanted",
        arg=f"{before - 3}",
    )
    status, _, content = request(shop, "POST", f"/api/v1/orders/{order}/ship", {})
    assert status == 200, content
    expects(row(page, order)).to_contain_text("shipped")
    expects(entries(page, order)).to_contain_text(["Shipped", "Placed"])
    assert page.evaluate("window.opened") == "once"


def test_what_happened_before_is_there_when_the_page_is_opened(shop: Backend, open_page: Open) -> None:
    orders = [place(shop, customer=f"c-{number}") for number in range(3)]
    page = live(open_page(shop))

    for order in orders:
        expects(entries(page, order)).to_have_count(1)
        expects(row(page, order)).to_have_count(1)


def test_services_outbox_queues_and_low_stock_are_shown(shop: Backend, open_page: Open) -> None:
    page = live(open_page(shop))

    expects(page.locator("#service-list")).to_contain_text("product-service")
    expects(page.locator("#service-list")).to_contain_text("order-service")
    expects(page.locator("#queues tbody tr")).to_contain_text(["notify.fanout", "notify.topic"])
    expects(page.locator("#outbox-depth")).to_have_text(re.compile(r"[0-9]+"))
    expects(page.locator('#products tr[data-product="3"]')).to_contain_text("low")
    expects(page.locator('#products tr[data-product="4"]')).to_contain_text("sold out")


def test_a_hostile_name_is_only_text(shop: Backend, open_page: Open) -> None:
    order = place(shop, product="2", quantity=1, customer=HOSTILE)
    page = live(open_page(shop))

    expects(page.locator('#products tr[data-product="2"]')).to_contain_text(HOSTILE)
    expects(row(page, order)).to_contain_text(HOSTILE)
    expects(entries(page, order)).to_contain_text([HOSTILE])
    assert page.title() == "ordersys"
    assert page.locator("main img, main script, main iframe").count() == 0


def test_a_paused_stream_holds_still_and_misses_nothing(shop: Backend, open_page: Open) -> None:
    before = place(shop)
    page = live(open_page(shop))
    expects(entries(page, before)).to_have_count(1)  # what happened before has come, and is not counted below
    page.click("#pause")
    order = place(shop)

    expects(page.locator("#events .note")).to_have_text("1 more since")
    expects(row(page, order)).to_have_count(1)
    expects(entries(page, order)).to_have_count(0)
    page.click("#pause")
    expects(entries(page, order)).to_have_count(1)


def test_a_test_order_is_placed_once_and_a_refusal_says_why(shop: Backend, open_page: Open) -> None:
    page = live(open_page(shop, network_fails=True))
    expects(page.locator("#product option")).to_have_count(len(PRODUCTS))
    page.select_option("#product", "1")
    with page.expect_request(lambda sent: sent.method == "POST") as sent:
        page.click("#place-form button")
    assert len(sent.value.headers["idempotency-key"]) == 32
    expects(page.locator("#placed")).to_have_text(re.compile("Placed …[0-9a-f]{8} for €12.50"))
    expects(page.locator("#orders tbody tr").first).to_contain_text("c-dashboard")

    page.select_option("#product", "4")
    page.click("#place-form button")
    expects(page.locator("#placed")).to_have_class("outcome problem")
    expects(page.locator("#placed")).to_contain_text("available")


# --- when something is away


def test_the_stream_goes_on_where_it_was_when_the_gateway_comes_back(own: Backend, open_page: Open) -> None:
    _, _, gateway = own.start_all("serve-order", "serve-product", "api")
    page = live(open_page(own, network_fails=True))
    first = place(own)
    expects(entries(page, first)).to_have_count(1)

    gateway.kill()
    expects(page.locator("#connection")).to_have_text("Reconnecting")
    for panel in ("services", "orders", "products", "flow", "events"):
        expects(page.locator(f"#{panel}")).to_have_attribute("data-state", "stale")
    expects(page.locator("#orders .note")).to_contain_text("Last known, from ")
    expects(row(page, first)).to_have_count(1)
    second = str(own.place("1:1")["id"])  # past the gateway
    own.start_all("api")

    live(page)
    expects(entries(page, second)).to_have_count(1)
    expects(entries(page, first)).to_have_count(1)
    for panel in ("services", "orders", "products", "flow", "events"):
        expects(page.locator(f"#{panel}")).to_have_attribute("data-state", "fresh")
    assert page.locator("#event-list li").count() == 2


def test_a_service_that_is_away_is_named_and_its_data_marked(own: Backend, open_page: Open) -> None:
    _, products, _ = own.start_all("serve-order", "serve-product", "api")
    page = live(open_page(own, network_fails=True))
    expects(page.locator("#products tbody tr")).to_have_count(len(PRODUCTS))

    products.stop(signal.SIGTERM)
    expects(page.locator("#services .note")).to_have_text("1 of 5 in trouble")
    expects(page.locator("#services li", has_text="product-service")).to_contain_text("unavailable")
    expects(page.locator("#products")).to_have_attribute("data-state", "stale")
    expects(page.locator("#products tbody tr")).to_have_count(len(PRODUCTS))
    expects(page.locator("#orders")).to_have_attribute("data-state", "fresh")
    page.reload()
    expects(page.locator("#products .note")).to_contain_text("Last known, from ")
    expects(page.locator("#products tbody tr")).to_have_count(len(PRODUCTS))

    own.start_all("serve-product")
    expects(page.locator("#services .note")).to_be_empty()
    expects(page.locator("#products")).to_have_attribute("data-state", "fresh")


# --- who may


def test_the_key_is_asked_for_kept_in_the_tab_and_forgotten(own: Backend, open_page: Open) -> None:
    admin = key(own, "admin")
    own.start_all("serve-order", "serve-product", "api")
    order = str(own.place("1:1", customer="c-secret")["id"])
    page = open_page(own, network_fails=True)

    expects(page.locator("#key-form")).to_be_visible()
    expects(page.locator("main")).to_be_hidden()
    expects(page.locator("#key")).to_be_focused()
    page.fill("#key", f"{admin[:-1]}x")
    page.press("#key", "Enter")
    expects(page.locator("#key-problem")).to_contain_text("not accepted")
    page.fill("#key", admin)
    page.press("#key", "Enter")
    live(page)
    expects(page.locator("#key-form")).to_be_hidden()
    expects(page.locator("h1")).to_be_in_viewport()
    expects(row(page, order)).to_have_count(1)
    page.reload()
    live(page)
    expects(row(page, order)).to_have_count(1)
    assert admin not in page.url

    page.click("#forget")
    expects(page.locator("#key-form")).to_be_visible()
    assert page.evaluate("sessionStorage.length") == 0
    assert "c-secret" not in page.content()
    assert admin not in page.content()


def test_a_key_sees_what_it_may_and_hears_why_not_the_rest(own: Backend, open_page: Open) -> None:
    reader = key(own, "orders:read", customer="c-1")
    own.start_all("serve-order", "serve-product", "api")
    mine, other = (str(own.place("1:1", customer=customer)["id"]) for customer in ("c-1", "c-2"))
    page = open_page(own, network_fails=True)
    page.fill("#key", reader)
    page.press("#key", "Enter")
    live(page)

    expects(row(page, mine)).to_have_count(1)
    expects(entries(page, mine)).to_have_count(1)
    expects(page.locator("#flow .note")).to_contain_text("admin")
    expects(page.locator("#flow .body")).to_be_hidden()
    expects(page.locator("#products tbody tr")).to_have_count(len(PRODUCTS))
    assert row(page, other).count() == entries(page, other).count() == 0
    page.click("#place-form button")
    expects(page.locator("#place .note")).to_contain_text("orders:write")
    expects(page.locator("#place .body")).to_be_hidden()


def key(backend: Backend, scope: str, customer: str = "") -> str:
    arguments = ["--name", "a test", "--scope", scope, *(("--customer", customer) if customer else ()), "--json"]
    done = backend.run("keys", "create", *arguments)
    assert done.code == 0, done
    return str(json.loads(done.out)["api_key"])


def test_page_and_files_are_for_everybody_and_kept(own: Backend) -> None:
    key(own, "admin")
    own.start_all("serve-order", "serve-product", "api")
    assert request(own, "GET", "/api/v1/flow")[0] == 401

    status, headers, content = request(own, "GET", "/")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert request(own, "GET", "/", **{"If-None-Match": headers["ETag"]})[0] == 304
    paths = sorted(set(re.findall(r'"(assets/[^"]+)"', content.decode())))
    assert [Path(path).name for path in paths] == ["dashboard.css", "dashboard.js", "icon.svg"]
    for path in paths:
        status, headers, content = request(own, "GET", f"/{path}")
        assert (status, bool(content)) == (200, True)
        assert headers["Cache-Control"] == "public, max-age=31536000, immutable"
    old = f"/assets/0123456789ab/{Path(paths[0]).name}"
    status, headers, _ = request(own, "GET", old)
    assert (status, headers["Cache-Control"]) == (200, "no-store")
    for path in ("/assets/x/dashboard.html", "/assets/x/..%2Fdashboard.py", "/assets/x/"):
        status, headers, _ = request(own, "GET", path)
        assert (status, headers["Content-Type"]) == (404, "application/problem+json")


# --- how it looks and how it is used


@pytest.mark.parametrize("width", [320, 375])
def test_a_phone_has_one_column_and_nothing_beside_it(shop: Backend, open_page: Open, width: int) -> None:
    place(shop, product="3", quantity=1, customer="c-" + "w" * 100)
    page = live(open_page(shop, viewport={"width": width, "height": 700}))
    expects(page.locator("#orders")).to_contain_text("c-" + "w" * 100)
    expects(page.locator("#products tbody tr")).to_have_count(len(PRODUCTS))

    assert page.evaluate("document.documentElement.scrollWidth") == width
    boxes = [page.locator(f"#{panel}").bounding_box() for panel in ("orders", "events", "products", "place")]
    assert len({box["x"] for box in boxes if box}) == 1
    assert all(box and box["x"] + box["width"] <= width for box in boxes)


def test_a_desk_has_two_columns(shop: Backend, open_page: Open) -> None:
    page = live(open_page(shop, viewport={"width": 1200, "height": 900}))
    orders, events = (page.locator(f"#{panel}").bounding_box() for panel in ("orders", "events"))

    assert orders
    assert events
    assert events["x"] > orders["x"] + orders["width"]


CONTRASTS = """() => {
  const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const rgba = (color) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    return canvas.getImageData(0, 0, 1, 1).data;
  };
  const light = ([r, g, b]) => [r, g, b].map((each) => each / 255)
    .map((each) => (each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4))
    .reduce((sum, each, at) => sum + each * [0.2126, 0.7152, 0.0722][at], 0);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = rgba(getComputedStyle(at).backgroundColor);
      if (color[3] === 255) return color;
    }
    return rgba("Canvas");
  };
  const found = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!own || !element.checkVisibility()) continue;
    const [a, b] = [light(rgba(getComputedStyle(element).color)), light(behind(element))];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), element.className || element.tagName]);
  }
  return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everything_can_be_read_in_light_and_in_dark(shop: Backend, open_page: Open, scheme: str) -> None:
    order = place(shop)
    page = live(open_page(shop, color_scheme=scheme, reduced_motion="reduce"))
    expects(row(page, order)).to_have_count(1)
    expects(entries(page, order)).to_have_count(1)
    expects(page.locator("#products tbody tr")).to_have_count(len(PRODUCTS))

    red, green, blue = re.findall(r"[0-9]+", page.evaluate("getComputedStyle(document.body).backgroundColor"))[:3]
    assert (int(red) + int(green) + int(blue) < 3 * 128) == (scheme == "dark")
    # WCAG 2.2, 1.4.3: text has at least 4.5 to 1
    contrasts = page.evaluate(CONTRASTS)
    assert len(contrasts) > 40
    assert [(round(ratio, 2), where) for ratio, where in contrasts if ratio < 4.5] == []


def test_the_keyboard_goes_through_in_the_order_of_the_page_and_places_an_order(shop: Backend, open_page: Open) -> None:
    page = live(open_page(shop))
    expects(page.locator("#product option")).to_have_count(len(PRODUCTS))
    reached = []
    for _ in range(9):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.textContent"))
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none", reached
    assert reached == [
        "Skip to the orders",
        "API docs",
        "pause",
        "event-list",
        "product",
        "customer",
        "quantity",
        "Place order",
        "readyz",
    ]
    page.focus("#quantity")
    page.keyboard.press("Enter")
    expects(page.locator("#placed")).to_contain_text("Placed")


def test_the_skip_link_goes_to_the_orders(shop: Backend, open_page: Open) -> None:
    page = live(open_page(shop))
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")

    expects(page.locator("main")).to_be_focused()


def test_every_part_has_a_name_and_news_are_told(shop: Backend, open_page: Open) -> None:
    page = live(open_page(shop))
    regions = ("Services", "Events on their way", "Newest orders", "As it happens", "Products and stock")

    for region in (*regions, "Place a test order"):
        expects(page.get_by_role("region", name=region, exact=True)).to_have_count(1)
    expects(page.get_by_role("log", name="As it happens")).to_have_attribute("aria-live", "polite")
    for field in ("Product", "Customer", "Quantity"):
        expects(page.get_by_label(field, exact=True)).to_have_count(1)
    for landmark in ("banner", "main", "contentinfo", "navigation"):
        expects(page.get_by_role(landmark)).to_have_count(1)
