"""Real servers for the tests: a RabbitMQ vhost and PostgreSQL databases of our own on the machine's servers.

Without a server the tests that need it are skipped, and say so; with CI=true that is a failure.
Other addresses: set RABBITMQ_TEST_URL (amqp://user:password@host:port) or POSTGRES_TEST_URL (postgresql://user@host:port).
"""

import functools
import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import quote, urlsplit

import pytest

RABBITMQ = os.environ.get("RABBITMQ_TEST_URL", "amqp://guest:guest@127.0.0.1:5672")
POSTGRES = os.environ.get("POSTGRES_TEST_URL", "postgresql://postgres@127.0.0.1:5432")


def missing(reason: str) -> None:
    """Skip the test that needs a server, or fail it where a skip would hide a hole."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason} (CI=true: a missing server is a failure)", pytrace=False)
    pytest.skip(reason)


@functools.cache
def rabbitmq_missing() -> str:
    import pika
    import pika.exceptions

    if shutil.which("rabbitmqctl") is None:
        return "no rabbitmqctl here: it makes the tests a vhost of their own"
    try:
        pika.BlockingConnection(pika.URLParameters(RABBITMQ + "/%2F?connection_attempts=1&socket_timeout=3")).close()
    except (pika.exceptions.AMQPError, OSError) as error:
        return f"no RabbitMQ at {urlsplit(RABBITMQ).hostname}:{urlsplit(RABBITMQ).port}: {error!r}"
    return ""


@functools.cache
def postgres_missing() -> str:
    try:
        import psycopg
    except ImportError:
        return "psycopg is not installed: pip install 'ordersys[postgres]'"
    try:
        psycopg.connect(f"{POSTGRES}/postgres", connect_timeout=3).close()
    except psycopg.OperationalError as error:
        return f"no PostgreSQL at {urlsplit(POSTGRES).hostname}:{urlsplit(POSTGRES).port}: {error}"
    return ""


@contextmanager
def vhost() -> Iterator[str]:
    """The amqp:// URL of a new, empty vhost."""
    if reason := rabbitmq_missing():
        missing(reason)
    name = f"ordersys-test-{uuid.uuid4().hex[:12]}"
    user = urlsplit(RABBITMQ).username
    # In one: each rabbitmqctl takes a second of CPU for itself.
    allowed = f'rabbit_auth_backend_internal:set_permissions(<<"{user}">>, V, A, A, A, <<"ordersys">>)'
    _rabbitmqctl("eval", f'V = <<"{name}">>, A = <<".*">>, ok = rabbit_vhost:add(V, <<"ordersys">>), {allowed}.')
    try:
        yield f"{RABBITMQ}/{quote(name, safe='')}"
    finally:
        _rabbitmqctl("delete_vhost", name)


def _rabbitmqctl(*arguments: str) -> None:
    subprocess.run(["rabbitmqctl", "-q", *arguments], check=True, capture_output=True, timeout=60)


@contextmanager
def postgres_database(template: str = "template1") -> Iterator[str]:
    """The postgresql+psycopg:// URL of a new database, empty or a copy of another."""
    if reason := postgres_missing():
        missing(reason)
    name = f"ordersys_test_{uuid.uuid4().hex[:12]}"
    administer(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
    try:
        yield f"{POSTGRES.replace('postgresql://', 'postgresql+psycopg://')}/{name}"
    finally:
        administer(f'DROP DATABASE "{name}" WITH (FORCE)')


def administer(*statements: str, database: str = "postgres") -> None:
    """Carry them out as the administrator, each in a transaction of its own."""
    import psycopg

    with psycopg.connect(f"{POSTGRES}/{database}", autocommit=True) as admin:
        for statement in statements:
            admin.execute(statement)
