"""The API keys keep the same promises on SQLite and on PostgreSQL, and go on for a while without the database."""

import hashlib
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace

import pytest
import sqlalchemy as sa
from contract.tcp_proxy import TcpProxy
from e2e.processes import until

from ordersys.api import keyring, keys
from ordersys.api.keyring import KeyRing
from ordersys.api.keys import Scope
from ordersys.api.store import CHAIN, KeyStore
from ordersys.api.tables import api_keys
from ordersys.core import errors, ids
from ordersys.core.storage import migrations
from ordersys.core.storage.database import Database

QUICK = replace(keyring.PATIENCE, fresh=0.2, pause=0.0)
WRONG = "x" * 43


@pytest.fixture
def database(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    migrations.upgrade(database, CHAIN)
    yield database
    database.close()


@pytest.fixture
def store(database: Database) -> KeyStore:
    return KeyStore(database)


@pytest.fixture
def ring(store: KeyStore) -> Iterator[KeyRing]:
    ring = KeyRing(store, QUICK)
    yield ring
    ring.close()


def everything(database: Database) -> str:
    return database.read(lambda connection: str(connection.execute(api_keys.select()).all()))


# --- the store --------------------------------------------------------------------------------------------------


def test_a_key_is_found_again_and_its_secret_is_nowhere(store: KeyStore, database: Database) -> None:
    expires = ids.now_us() + 1_000_000_000
    key, text = store.create("Ann's shop", ["orders:read", "admin"], customer_id="c-1", expires_at=expires)
    key_id, secret = keys.parts(text) or ("", "")

    assert store.find(key_id) == key
    assert store.all() == [key]
    assert (key.name, key.scopes, key.customer_id) == ("Ann's shop", {Scope.ORDERS_READ, Scope.ADMIN}, "c-1")
    assert (key.expires_at, key.last_used_at, key.revoked_at) == (expires, None, None)
    assert abs(key.created_at - ids.now_us()) < 60_000_000
    assert secret not in everything(database) + repr(key)
    assert key.digest == hashlib.sha256(secret.encode()).hexdigest()
    assert key.digest not in repr(key)
    assert key.opens_with(secret)
    assert not key.opens_with(secret[:-1])
    assert not key.opens_with(WRONG)


def test_no_two_keys_are_alike_and_a_secret_has_256_bits(store: KeyStore) -> None:
    made = [store.create("n", ["admin"]) for _ in range(50)]
    assert len({key.id for key, _ in made}) == len({key.digest for key, _ in made}) == 50
    assert all(len((keys.parts(text) or ("", ""))[1]) == 43 for _, text in made)  # 43 * 6 bits
    assert [key.id for key in store.all()] == [key.id for key, _ in made]


@pytest.mark.parametrize(
    ("name", "scopes", "customer", "complaint"),
    [
        ("", ["admin"], "", "name: must not be empty"),
        ("n" * 129, ["admin"], "", "name: has 129 characters"),
        ("a\nb", ["admin"], "", "name: must not contain control characters"),
        ("n", ["admin"], "c" * 129, "customer_id: has 129 characters"),
        ("n", ["admin"], "c\x00", "customer_id: must not contain control characters"),
        ("n", [], "", "at least one scope"),
        ("n", ["orders:read", "orders"], "", "there is no scope 'orders'; there are orders:read, orders:write,"),
    ],
)
def test_what_cannot_be_a_key(store: KeyStore, name: str, scopes: list[str], customer: str, complaint: str) -> None:
    with pytest.raises((errors.InvalidArgument, errors.UsageError), match=complaint):
        store.create(name, scopes, customer_id=customer)
    assert store.all() == []


def test_a_key_that_has_expired_already_is_not_made(store: KeyStore) -> None:
    with pytest.raises(errors.UsageError, match="would be good for nothing"):
        store.create("n", ["admin"], expires_at=ids.now_us())


def test_a_key_that_was_drawn_elsewhere_is_taken_once(store: KeyStore) -> None:
    text = f"osk_0123456789ab_{'s' * 43}"
    key, same = store.create("first", ["admin"], text=text)
    assert same == text
    assert key.id == "0123456789ab"
    assert key.opens_with("s" * 43)
    revoked = store.revoke(key.id)
    assert store.create("again", ["orders:read"], text=text) == (revoked, text)
    assert store.all() == [revoked]
    with pytest.raises(errors.UsageError, match="another key with the id 0123456789ab"):
        store.create("first", ["admin"], text=text[:-1] + "t")
    with pytest.raises(errors.UsageError, match="no key: expected osk_") as raised:
        store.create("first", ["admin"], text="osk_short_secret")
    assert "secret" not in str(raised.value)
    assert store.all() == [revoked]


def test_revoking_twice_keeps_the_first_time(store: KeyStore) -> None:
    key, _ = store.create("n", ["admin"])
    revoked = store.revoke(key.id)
    assert revoked.revoked_at is not None
    assert store.revoke(key.id) == revoked == store.find(key.id)
    assert store.all() == [revoked]


def test_what_was_never_there_cannot_be_revoked_or_found(store: KeyStore) -> None:
    with pytest.raises(errors.KeyNotFound, match="there is no API key 'nobody'"):
        store.revoke("nobody")
    assert store.find("nobody") is None


def test_there_has_been_a_key_even_when_it_is_revoked(store: KeyStore) -> None:
    assert store.any() is False
    store.revoke(store.create("n", ["admin"])[0].id)
    assert store.any() is True


def test_the_last_use_only_moves_forward(store: KeyStore) -> None:
    one, other = (store.create("n", ["admin"])[0].id for _ in range(2))
    store.note_uses({one: 2000, other: 1000, "nobody": 1})
    store.note_uses({one: 1000, other: 3000})
    store.note_uses({})
    assert [key.last_used_at for key in store.all()] == [2000, 3000]


def test_a_scope_of_a_newer_release_is_good_for_nothing_here(store: KeyStore, database: Database) -> None:
    key, _ = store.create("n", ["orders:read"])
    database.write(lambda connection: connection.execute(api_keys.update().values(scopes="orders:read future:all")))
    found = store.find(key.id)
    assert found is not None
    assert found.scopes == {Scope.ORDERS_READ}


# --- the keys as requests meet them -----------------------------------------------------------------------------


def refused(ring: KeyRing, text: str) -> str:
    with pytest.raises(errors.Unauthenticated) as raised:
        ring.find(text)
    secret = text.split("_", 2)[-1]
    assert len(secret) < 20 or secret not in raised.value.message
    return raised.value.message


def test_a_key_opens_and_nothing_like_it_does(store: KeyStore, ring: KeyRing) -> None:
    key, text = store.create("n", ["admin"])
    _, other = store.create("n", ["admin"])
    assert ring.find(text).id == key.id
    mixed = keys.text(key.id, (keys.parts(other) or ("", ""))[1])
    likes = [
        *(text[:-1], text + "x", text.upper(), f" {text}", text.replace("osk_", "osk-"), mixed),
        *(keys.text(key.id, WRONG), keys.text("0" * 12, WRONG), keys.text(key.id, key.digest[:43])),
        *("", "osk_", "osk__", "osk_ä_ö", "x" * 100_000),
    ]
    assert {refused(ring, like) for like in likes} == {"there is no such API key"}


def test_a_revoked_key_is_refused_within_seconds(store: KeyStore, ring: KeyRing) -> None:
    key, text = store.create("n", ["admin"])
    ring.find(text)
    store.revoke(key.id)
    began = time.monotonic()

    def is_refused() -> bool:
        try:
            ring.find(text)
        except errors.Unauthenticated:
            return True
        return False

    until(is_refused, "the revoked key is refused", 3)
    assert time.monotonic() - began < QUICK.fresh + 2
    assert refused(ring, text) == f"the API key {key.id} was revoked"


def test_a_key_expires_on_time_however_it_is_remembered(store: KeyStore) -> None:
    ring = KeyRing(store, replace(QUICK, fresh=600))
    try:
        key, text = store.create("n", ["admin"], expires_at=ids.now_us() + 500_000)
        ring.find(text)
        time.sleep(0.5)
        assert refused(ring, text).startswith(f"the API key {key.id} expired at 20")
    finally:
        ring.close()


def test_the_first_key_is_noticed_and_never_forgotten(store: KeyStore, database: Database, ring: KeyRing) -> None:
    assert ring.in_use() is False
    store.create("n", ["admin"])
    until(ring.in_use, "the first key is noticed", 3)
    database.write(lambda connection: connection.execute(api_keys.delete()))
    assert ring.in_use() is True


def test_the_real_patience_takes_seconds_not_minutes() -> None:
    assert keyring.PATIENCE.fresh <= 3
    assert keyring.PATIENCE.stale <= 300


def statements(database: Database) -> list[str]:
    seen: list[str] = []
    sa.event.listen(
        database.engine, "before_cursor_execute", lambda _c, _cursor, statement, *_: seen.append(statement.split()[0])
    )
    return seen


def test_many_requests_ask_the_database_once_and_write_once(store: KeyStore, database: Database) -> None:
    ring = KeyRing(store, replace(QUICK, fresh=600))
    key, text = store.create("n", ["admin"])
    seen = statements(database)
    try:
        with ThreadPoolExecutor(20) as callers:
            assert {found.id for found in callers.map(ring.find, [text] * 500)} == {key.id}

        def used() -> bool:
            found = store.find(key.id)
            return found is not None and found.last_used_at is not None

        until(used, "the use is written down")
        assert seen.count("UPDATE") == 1
    finally:
        ring.close()
    found = store.find(key.id)
    assert found is not None
    assert abs((found.last_used_at or 0) - ids.now_us()) < 60_000_000


def test_a_use_of_the_last_minute_is_not_written_again(store: KeyStore, database: Database, ring: KeyRing) -> None:
    key, text = store.create("n", ["admin"])
    noted = ids.now_us() - 30_000_000
    store.note_uses({key.id: noted})
    seen = statements(database)
    ring.find(text)
    old, old_text = store.create("n", ["admin"])
    store.note_uses({old.id: ids.now_us() - 61_000_000})
    before = seen.count("UPDATE")
    ring.find(old_text)
    until(lambda: seen.count("UPDATE") == before + 1, "the use after more than a minute is written down")
    found = store.find(key.id)
    assert found is not None
    assert found.last_used_at == noted


def test_a_database_that_cannot_be_written_lets_the_key_in(store: KeyStore, database: Database) -> None:
    """A full disk or a read-only replica: the last use is lost, the request is not."""
    _, text = store.create("n", ["admin"])

    def refuse(_connection: object, _cursor: object, statement: str, *_: object) -> None:
        if statement.startswith("UPDATE"):
            raise RuntimeError("cannot be written")

    sa.event.listen(database.engine, "before_cursor_execute", refuse)
    ring = KeyRing(store, QUICK)
    try:
        for _ in range(3):
            ring.find(text)
    finally:
        ring.close()


def test_a_store_that_is_locked_for_writing_delays_no_request(tmp_path_factory: pytest.TempPathFactory) -> None:
    database = Database(f"sqlite:///{tmp_path_factory.mktemp('locked') / 'api.db'}")
    blocker = Database(str(database.url))
    migrations.upgrade(database, CHAIN)
    store = KeyStore(database)
    _, text = store.create("n", ["admin"])
    ring = KeyRing(store, QUICK)

    def hold(_connection: sa.Connection) -> float:
        began = time.monotonic()
        for _ in range(20):
            ring.find(text)
        return time.monotonic() - began

    try:
        assert blocker.write(hold) < 1
    finally:
        ring.close()
        blocker.close()
        database.close()


# --- the database is away ---------------------------------------------------------------------------------------


@pytest.fixture
def proxied(postgres_url: str) -> Iterator[tuple[TcpProxy, KeyStore]]:
    """A store whose connections go through a proxy."""
    url = sa.make_url(postgres_url)
    with ExitStack() as opened:
        proxy = opened.enter_context(TcpProxy(url.host or "127.0.0.1", url.port or 5432))
        through = url.set(host="127.0.0.1", port=proxy.port).render_as_string(hide_password=False)
        database = Database(through)
        opened.callback(database.close)
        migrations.upgrade(database, CHAIN)
        yield proxy, KeyStore(database)


def test_without_the_database_known_keys_go_on_for_a_while(proxied: tuple[TcpProxy, KeyStore]) -> None:
    proxy, store = proxied
    _, text = store.create("n", ["admin"])
    _, unknown = store.create("n", ["admin"])
    ring = KeyRing(store, replace(QUICK, fresh=0.0, stale=1.5))
    try:
        known = ring.find(text)
        since = time.monotonic()
        proxy.refuse()
        assert ring.find(text) == known
        with pytest.raises(errors.Unavailable):
            ring.find(unknown)
        assert refused(ring, keys.text(known.id, WRONG)) == "there is no such API key"
        time.sleep(max(0.0, since + 1.6 - time.monotonic()))
        with pytest.raises(errors.Unavailable):
            ring.find(text)
        proxy.flow()
        assert ring.find(text).id == known.id
    finally:
        ring.close()


def test_a_database_that_is_silent_does_not_hold_up_those_who_are_known(proxied: tuple[TcpProxy, KeyStore]) -> None:
    proxy, store = proxied
    _, text = store.create("n", ["admin"])
    _, unknown = store.create("n", ["admin"])
    ring = KeyRing(store, replace(QUICK, fresh=0.0, patient=0.5))
    try:
        ring.find(text)
        proxy.fall_silent()
        began = time.monotonic()
        for _ in range(50):
            ring.find(text)
        assert time.monotonic() - began < 1
        with pytest.raises(errors.Unavailable, match="no answer within"):
            ring.find(unknown)
        assert time.monotonic() - began < 2
    finally:
        proxy.flow()
        ring.close()


def test_a_restart_of_the_database_is_not_noticed(proxied: tuple[TcpProxy, KeyStore]) -> None:
    proxy, store = proxied
    texts = [store.create("n", ["admin"])[1] for _ in range(3)]
    ring = KeyRing(store, QUICK)
    try:
        ring.find(texts[0])
        proxy.cut()
        for text in texts:
            ring.find(text)
    finally:
        ring.close()


def test_whether_the_door_is_open_is_remembered_for_a_while(proxied: tuple[TcpProxy, KeyStore]) -> None:
    proxy, store = proxied
    ring = KeyRing(store, replace(QUICK, fresh=0.0, stale=0.5))
    try:
        assert ring.in_use() is False
        proxy.refuse()
        assert ring.in_use() is False
        time.sleep(0.6)
        with pytest.raises(errors.Unavailable):
            ring.in_use()
    finally:
        ring.close()
