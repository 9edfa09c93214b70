from collections.abc import Mapping
from typing import Any

import pytest
from api_fakes import FakeChannel, FakeOrders, FakeProducts
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from ordersys.api import rates as api_rates
from ordersys.api.access import Access, Caller, Open, Scope
from ordersys.api.app import Options, create_app
from ordersys.api.rates import Rates, rates_of
from ordersys.core import errors

HOME, NEAR, FAR = "127.0.0.1", "192.0.2.1", "198.51.100.9"


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Keys:
    """Knows the keys a, b and c, and counts how often it was asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.revoked: set[str] = set()

    def identify(self, headers: Mapping[str, str], address: str) -> Caller:
        self.asked += 1
        key = headers.get("X-API-Key", "")
        if key not in ("a", "b", "c") or key in self.revoked:
            raise errors.Unauthenticated("who are you?")
        return Caller(f"key {key}", frozenset(Scope))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def keys() -> Keys:
    return Keys()


@pytest.fixture
def http(clock: Clock, keys: Keys) -> FlaskClient:
    """Takes three requests in a minute."""
    return gateway(Rates(3, 60, clock), keys)


def gateway(rates: Rates | None, access: Access) -> FlaskClient:
    options = Options(access=access, rates=rates)
    return create_app(FakeChannel(FakeProducts()), FakeChannel(FakeOrders()), options=options).test_client()


def ask(http: FlaskClient, key: str = "", address: str = NEAR, path: str = "/api/data", **given: Any) -> TestResponse:
    headers = {"X-API-Key": key} if key else {}
    return http.open(path, headers=headers, environ_base={"REMOTE_ADDR": address}, **given)


def statuses(http: FlaskClient, times: int, key: str = "", address: str = NEAR, path: str = "/api/data") -> list[int]:
    return [ask(http, key, address, path).status_code for _ in range(times)]


# --- the bucket -----------------------------------------------------------------------------------------------------


def test_a_full_bucket_gives_its_limit_at_once_and_then_as_it_fills(clock: Clock) -> None:
    rates = Rates(600, 60, clock)
    assert [rates.take("a").left for _ in range(600)] == list(range(599, -1, -1))
    refused = rates.take("a")
    assert (refused.allowed, refused.left) == (False, 0)
    assert refused.wait == pytest.approx(0.1)
    clock.now += 0.101
    assert rates.take("a").allowed
    assert not rates.take("a").allowed
    clock.now += 30
    assert sum(rates.take("a").allowed for _ in range(600)) == 300
    clock.now += 10_000
    assert sum(rates.take("a").allowed for _ in range(1000)) == 600


def test_a_refusal_costs_nothing(clock: Clock) -> None:
    rates = Rates(1, 10, clock)
    rates.take("a")
    for _ in range(9):
        clock.now += 1
        assert not rates.take("a").allowed
    clock.now += 1
    assert rates.take("a").allowed


def test_to_look_costs_nothing(clock: Clock) -> None:
    rates = Rates(1, 10, clock)
    assert [rates.peek("a").allowed for _ in range(3)] == [True] * 3
    rates.take("a")
    assert not rates.peek("a").allowed


def test_who_is_quiet_for_a_window_is_forgotten_because_the_bucket_is_full(clock: Clock) -> None:
    rates = Rates(5, 60, clock)
    for number in range(100):
        rates.take(f"caller {number}")
    assert rates.callers == 100
    clock.now += 60
    rates.take("other")
    assert rates.callers == 1
    assert rates.take("caller 1").left == 4


def test_there_are_never_more_callers_than_the_limit(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_rates, "MAX_CALLERS", 10)
    rates = Rates(2, 60, clock)
    rates.take("busy")
    for number in range(1000):
        clock.now += 0.001
        rates.take(f"caller {number}")
        assert not rates.take("busy").allowed or number == 0
        assert rates.callers <= 10


@pytest.mark.parametrize(("setting", "expected"), [("600/60", (600, 60)), ("1/86400", (1, 86400)), ("off", None)])
def test_the_setting_is_read(setting: str, expected: tuple[int, float] | None) -> None:
    rates = rates_of(setting)
    assert (rates and (rates.limit, rates.window)) == expected


# --- who is limited -------------------------------------------------------------------------------------------------


def test_a_caller_is_told_what_is_left_and_then_to_wait(http: FlaskClient, clock: Clock) -> None:
    for left in (2, 1, 0):
        response = ask(http, "a")
        assert response.status_code == 200
        assert response.headers["RateLimit-Policy"] == '"default";q=3;w=60'
        assert response.headers["RateLimit"] == f'"default";r={left};t=60'
        assert "Retry-After" not in response.headers
    clock.now += 0.5
    refused = ask(http, "a")
    assert (refused.status_code, refused.content_type) == (429, "application/problem+json")
    assert (refused.json["code"], refused.json["title"]) == ("rate_limited", "Too Many Requests")
    assert refused.headers["Retry-After"] == "20"
    assert refused.headers["RateLimit"] == '"default";r=0;t=60'
    assert refused.headers["RateLimit-Policy"] == '"default";q=3;w=60'
    clock.now += 20
    assert statuses(http, 2, "a") == [200, 429]


def test_each_key_has_its_own_bucket_from_wherever_it_is_used(http: FlaskClient) -> None:
    assert [ask(http, "a", address).status_code for address in (HOME, NEAR, FAR, HOME)] == [200, 200, 200, 429]
    assert statuses(http, 4, "b") == [200, 200, 200, 429]


def test_a_refusal_by_a_rule_counts_too(http: FlaskClient) -> None:
    assert statuses(http, 4, "a", path="/api/v1/products/9") == [404, 404, 404, 429]


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/openapi.json"])
def test_public_paths_are_not_limited(http: FlaskClient, path: str) -> None:
    assert statuses(http, 10, path=path) == [200] * 10
    assert "RateLimit" not in ask(http, path=path).headers


def test_a_path_that_does_not_exist_counts_for_the_address(http: FlaskClient) -> None:
    assert statuses(http, 4, path="/nothing") == [404, 404, 404, 429]
    assert statuses(http, 1, address=FAR, path="/nothing") == [404]
    assert statuses(http, 10, address=HOME, path="/nothing") == [404] * 10


def test_the_developer_on_this_machine_is_not_limited_but_others_are(clock: Clock) -> None:
    http = gateway(Rates(3, 60, clock), Open())
    assert statuses(http, 10, address=HOME) == [200] * 10
    assert statuses(http, 10, address="::1") == [200] * 10
    assert statuses(http, 4) == [200, 200, 200, 429]


def test_nobody_is_limited_when_it_is_off() -> None:
    http = gateway(None, Open())
    assert statuses(http, 10) == [200] * 10
    assert "RateLimit" not in ask(http).headers


def test_refusals_are_counted(http: FlaskClient) -> None:
    statuses(http, 5, "a")
    assert "ordersys_rate_limited_total 2.0" in ask(http, "b", path="/metrics").text


# --- floods of wrong credentials ------------------------------------------------------------------------------------


def test_after_too_many_wrong_credentials_an_address_is_not_listened_to(
    http: FlaskClient, keys: Keys, clock: Clock
) -> None:
    guesses = [ask(http, f"guess {number}") for number in range(5)]
    assert [each.status_code for each in guesses] == [401, 401, 401, 429, 429]
    assert [each.headers["RateLimit"] for each in guesses[:3]] == [f'"default";r={left};t=60' for left in (2, 1, 0)]
    assert guesses[4].headers["Retry-After"] == "20"
    assert keys.asked == 3
    assert statuses(http, 1, "guess", FAR) == [401]
    clock.now += 20
    assert statuses(http, 2, "guess") == [401, 429]


def test_no_credentials_at_all_are_wrong_ones(http: FlaskClient) -> None:
    assert statuses(http, 4) == [401, 401, 401, 429]


def test_who_was_let_in_before_is_not_locked_out_by_the_neighbours(http: FlaskClient, keys: Keys) -> None:
    assert statuses(http, 1, "a") == [200]
    statuses(http, 10, "guess")
    assert statuses(http, 1, "a") == [200]
    assert statuses(http, 1, "b") == [429]  # nobody has seen it yet
    assert statuses(http, 1, "b", FAR) == [200]
    assert statuses(http, 1, "b") == [200]
    keys.revoked.add("a")
    assert statuses(http, 2, "a") == [401, 429]


def test_one_subscriber_has_many_addresses_of_ipv6(http: FlaskClient) -> None:
    addresses = ("2001:db8:1:2::1", "2001:db8:1:2:ffff::7", "2001:db8:1:2::2", "2001:db8:1:2:a::3")
    assert [ask(http, address=each).status_code for each in addresses] == [401, 401, 401, 429]
    assert statuses(http, 1, address="2001:db8:1:3::1") == [401]


def test_an_ipv4_address_is_the_same_in_ipv6_clothes(http: FlaskClient) -> None:
    assert [ask(http, address=each).status_code for each in (NEAR, f"::ffff:{NEAR}") * 2] == [401, 401, 401, 429]
