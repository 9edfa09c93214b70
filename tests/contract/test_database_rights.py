"""What `ordersys db permissions` prints, carried out on a PostgreSQL that wants TLS, certificates and passwords.

The stores' whole suites run as these roles, too: see `ROLE` there. Here is what else each may do, and what it may not.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlencode

import pytest
import sqlalchemy as sa
from certificates import Authority
from e2e.processes import Backend
from faults import nodes
from faults.nodes import PostgresCluster

from ordersys import databases
from ordersys.api.store import KeyStore
from ordersys.core import errors, ids
from ordersys.core.storage import migrations
from ordersys.core.storage.database import Database, NotPermitted
from ordersys.core.tls import Files
from ordersys.settings import Settings

PASSWORD = "s3cret-word"  # noqa: S105 - of roles that are gone with their server
OWNER = "shop_owner"
SERVICES = ("product", "order", "notify", "api")


@dataclass(frozen=True)
class Shop:
    """All services in one database, where nothing but rights keeps them apart."""

    cluster: PostgresCluster
    name: str
    own: Files
    stranger: Authority
    backend: Backend

    def url(self, user: str, name: str = "", host: str = "localhost", **changed: str) -> str:
        ssl = {"sslmode": "verify-full", "sslrootcert": self.own.ca, "sslcert": self.own.cert, "sslkey": self.own.key}
        query = urlencode({key: value for key, value in (ssl | changed).items() if value})
        return f"postgresql+psycopg://{user}:{PASSWORD}@{host}:{self.cluster.port}/{name or self.name}?{query}"

    def refusal(self, **changed: str) -> str:
        asking = closing(Database(self.url("shop_product", **changed)))
        with asking as database, pytest.raises(errors.Unavailable) as caught:
            database.read(lambda connection: connection.execute(sa.text("SELECT 1")))
        assert PASSWORD not in caught.value.message
        return caught.value.message

    def carry_out(self, role: str, statement: str) -> None:
        with closing(Database(self.url(role))) as database:
            database.write(lambda connection: connection.execute(sa.text(statement)))

    def permissions(self) -> str:
        printed = self.backend.run("db", "permissions", "--prefix", "shop")
        assert printed.code == 0, printed
        return printed.out


def everywhere(url: str) -> dict[str, str]:
    return {f"ORDERSYS_{service.upper()}_DATABASE_URL": url for service in SERVICES}


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    folder = tmp_path_factory.mktemp("shop")
    authority, stranger = Authority.at(folder / "ours"), Authority.at(folder / "theirs")
    own = authority.issue("shop")
    Path(own.key).chmod(0o600)  # libpq refuses a key that others can read
    with nodes.postgres_cluster(authority.issue("postgres", hosts=["localhost"])) as cluster:
        administrator = cluster.database()
        with Backend(folder, everywhere(administrator)) as backend:
            assert backend.run("db", "upgrade").code == 0
            shop = Shop(cluster, administrator.rpartition("/")[2], own, stranger, backend)
            cluster.psql(shop.permissions())
            for role in ("owner", *SERVICES):
                cluster.ask(f"ALTER ROLE shop_{role} PASSWORD '{PASSWORD}'")
            yield shop


# --- rights -----------------------------------------------------------------------------------------------------------


def test_the_rights_name_every_table_that_there_is(shop: Shop) -> None:
    named = {right.table for *_, chain in databases.chains(Settings()) for right in chain.least}
    with closing(Database(shop.url(OWNER))) as database:
        assert database.read(lambda connection: set(sa.inspect(connection).get_table_names())) == named


def test_the_script_can_be_repeated_and_takes_back_what_was_given_besides(shop: Shop) -> None:
    shop.cluster.psql(f'\\connect "{shop.name}"\nGRANT UPDATE ON stock_ledger TO shop_product;')
    shop.carry_out("shop_product", "UPDATE stock_ledger SET delta = 0")
    shop.cluster.psql(shop.permissions())
    with pytest.raises(NotPermitted, match="permission denied for table stock_ledger"):
        shop.carry_out("shop_product", "UPDATE stock_ledger SET delta = 0")


def test_no_password_is_printed(shop: Shop) -> None:
    assert PASSWORD not in shop.permissions()
    assert "PASSWORD" not in shop.permissions()


def test_the_services_start_with_their_own_roles_and_sell(shop: Shop) -> None:
    roles = {f"ORDERSYS_{each.upper()}_DATABASE_URL": shop.url(f"shop_{each}") for each in SERVICES}
    with Backend(shop.backend.folder, roles) as backend:
        backend.start_all("serve-order", "serve-product", "notify --mode topic --json")
        order = backend.place("1:2")
        assert order["status"] == "placed"
        backend.balances()
        assert backend.run("db", "current").code == 0
        refused = backend.run("keys", "create", "--name", "n", "--scope", "admin")
        assert (refused.code, PASSWORD in refused.err) == (2, False)
        assert "permission denied for table api_keys" in refused.complaint


FORBIDDEN = {
    "product": [
        "UPDATE stock_ledger SET delta = 0",
        "DELETE FROM stock_ledger",
        "TRUNCATE stock_ledger",
        "DROP TABLE stock_ledger",
        "UPDATE products SET price = 0",
        "DELETE FROM products",
        "UPDATE idempotency_keys SET fingerprint = ''",
        "SELECT * FROM orders",
        "SELECT * FROM notify_inbox",
        "SELECT * FROM api_keys",
        "UPDATE product_schema_version SET version_num = ''",
        "ALTER TABLE products ADD COLUMN x int",
        "CREATE TABLE x (y int)",
        "CREATE TEMPORARY TABLE x (y int)",
        "CREATE INDEX x ON products (name)",
        "SELECT nextval('notify_failures_id_seq')",
        "SELECT setval('stock_ledger_id_seq', 1)",
    ],
    "order": [
        "UPDATE order_events SET body = ''",
        "UPDATE order_commands SET refusal = ''",
        "DELETE FROM order_commands",
        "DELETE FROM orders",
        "INSERT INTO order_sequence VALUES (2, 0)",
        "SELECT * FROM stock_ledger",
        "DROP TABLE order_outbox",
    ],
    "notify": ["UPDATE notify_inbox SET queue = ''", "SELECT * FROM orders", "DROP TABLE notify_inbox"],
    "api": [
        "INSERT INTO api_keys VALUES ('x', 'x', 'x', 'admin', '', 0)",
        "UPDATE api_keys SET scopes = 'admin'",
        "UPDATE api_keys SET revoked_at = NULL",
        "DELETE FROM api_keys",
        "SELECT * FROM orders",
    ],
}


@pytest.mark.parametrize(("service", "statement"), [(role, each) for role, all_ in FORBIDDEN.items() for each in all_])
def test_it_is_refused_to(shop: Shop, service: str, statement: str) -> None:
    with pytest.raises(NotPermitted) as caught:
        shop.carry_out(f"shop_{service}", statement)
    assert "`ordersys db permissions` prints what each role needs" in caught.value.message
    assert PASSWORD not in caught.value.message


def test_the_gateway_can_use_keys_that_the_owner_made(shop: Shop) -> None:
    with closing(Database(shop.url(OWNER))) as database:
        key, _ = KeyStore(database).create("n", ["orders:read"])
    with closing(Database(shop.url("shop_api"))) as database:
        keys = KeyStore(database)
        assert keys.any()
        keys.note_uses({key.id: ids.now_us()})
        found = keys.find(key.id)
        assert found is not None
        assert found.last_used_at
    with closing(Database(shop.url(OWNER))) as database:
        assert KeyStore(database).revoke(key.id).revoked_at


def test_only_the_owner_upgrades_and_the_others_say_so(shop: Shop) -> None:
    empty = shop.cluster.database().rpartition("/")[2]
    done = shop.backend.run("serve-product", "--database-url", shop.url("shop_product", empty))
    assert done.code == 2
    for part in ("is not at revision product_0001", "run `ordersys db upgrade` as its owner", "permission denied"):
        assert part in done.complaint
    assert PASSWORD not in done.err

    shop.cluster.psql(f'\\connect "{empty}"\nGRANT CREATE ON SCHEMA public TO {OWNER};')
    assert shop.backend.run("db", "upgrade", **everywhere(shop.url(OWNER, empty))).code == 0
    [product, *_] = databases.chains(Settings())
    not_yet = pytest.raises(NotPermitted, match="permission denied for table product_schema_version")
    with closing(Database(shop.url("shop_product", empty))) as database, not_yet:
        migrations.upgrade(database, product[2])  # the script is to be carried out again


def test_permissions_are_for_one_server_at_a_time_and_for_postgresql(tmp_path: Path) -> None:
    with Backend(tmp_path, {}) as backend:
        assert "SQLite has no roles" in backend.run("db", "permissions").complaint
        two = {"ORDERSYS_ORDER_DATABASE_URL": "postgresql://u@a/x", "ORDERSYS_API_DATABASE_URL": "postgresql://u@b/x"}
        done = backend.run("db", "permissions", **two)
        assert (done.code, "say --service" in done.complaint) == (2, True)
        document = backend.run("db", "permissions", "--service", "api", "--json", **two).document
        assert document["roles"] == {"api": "ordersys_api"}
        assert [each["database"] for each in document["databases"]] == ["x"]
        assert "expected product, order" in backend.run("db", "permissions", "--service", "shop").err
        assert "expected a letter" in backend.run("db", "permissions", "--prefix", "a;b").err


# --- TLS --------------------------------------------------------------------------------------------------------------


def test_a_server_of_another_ca_is_refused(shop: Shop) -> None:
    assert "certificate verify failed" in shop.refusal(sslrootcert=shop.stranger.ca)


def test_a_server_under_another_name_is_refused(shop: Shop) -> None:
    assert 'does not match host name "127.0.0.1"' in shop.refusal(host="127.0.0.1")


def test_a_missing_ca_file_is_named(shop: Shop) -> None:
    assert 'root certificate file "/nowhere/ca.crt" does not exist' in shop.refusal(sslrootcert="/nowhere/ca.crt")


def test_the_server_wants_a_certificate(shop: Shop) -> None:
    refusal = shop.refusal(sslcert="/nowhere/own.crt", sslkey="")
    assert "connection requires a valid client certificate" in refusal


def test_a_certificate_of_another_ca_is_refused_by_the_server(shop: Shop) -> None:
    files = replace(shop.stranger.issue("shop"), ca=shop.own.ca)
    Path(files.key).chmod(0o600)
    assert "unknown ca" in shop.refusal(sslcert=files.cert, sslkey=files.key)


def test_nobody_gets_in_without_tls(shop: Shop) -> None:
    assert "no encryption" in shop.refusal(sslmode="disable")
