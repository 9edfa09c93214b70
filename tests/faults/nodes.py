"""A RabbitMQ node and a PostgreSQL cluster of the tests' own, on free ports, to be stopped, killed and started again.

The servers of the machine are never touched: only their programs are used. Both run from a folder of their own that is
gone afterwards. As root PostgreSQL runs as the user `postgres`, because it refuses root.
"""

import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Self

import servers
from e2e.processes import free_port, until

from ordersys.core.tls import Files

START_SECONDS = 60.0
"""How long a node may take to answer; RabbitMQ takes 4 to 8 s of it."""


class Node:
    """One server process in a folder of its own; `port` is where it listens, up or down."""

    name = "node"

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def log(self) -> str:
        """What it wrote since it was made."""
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")

    def start(self) -> Self:
        """Bring it up on the data it has, and wait until it answers."""
        if not self.running:
            with (self.folder / "log").open("ab") as log:
                self._process = self._spawn(log)
        until(lambda: self._answers() or not self.running, f"{self.name} answers", START_SECONDS)
        assert self.running, f"{self.name} ended with {self._code()}:\n{self.log[-4_000:]}"
        return self

    def stop(self) -> None:
        """As its operator would: orderly, connections are told."""
        self._signal(self._orderly)
        until(lambda: not self.running, f"{self.name} stops", START_SECONDS)

    def kill(self) -> None:
        """kill -9: nothing is flushed, nobody is told."""
        self._signal(signal.SIGKILL)
        if self._process is not None:
            self._process.wait(START_SECONDS)

    def restart(self) -> None:
        self.stop()
        self.start()

    _orderly = signal.SIGTERM

    def _spawn(self, log: IO[bytes]) -> "subprocess.Popen[bytes]":
        raise NotImplementedError

    def _answers(self) -> bool:
        raise NotImplementedError

    def _signal(self, number: int) -> None:
        if self._process is not None and self.running:
            self._process.send_signal(number)

    def _code(self) -> int | None:
        return None if self._process is None else self._process.poll()


class RabbitNode(Node):
    """A RabbitMQ node without plugins; user guest, password guest.

    Every variable is named in https://www.rabbitmq.com/docs/configure#supported-environment-variables.
    """

    name = "private RabbitMQ"

    def __init__(self, folder: Path, programs: Path, tls: Files | None = None) -> None:
        super().__init__(folder)
        self._programs = programs
        self._names = free_port()  # of Erlang's name server, our own too
        self.tls_port = free_port()
        lines = ["log.console.level = warning", *(_rabbitmq_tls(tls, self.tls_port) if tls else ())]
        (folder / "rabbitmq.conf").write_text("\n".join((*lines, "")), encoding="utf-8")
        (folder / "enabled_plugins").write_text("[].\n", encoding="utf-8")
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),  # where the cookie is made
            "RABBITMQ_NODENAME": f"ordersys-{self.port}@localhost",
            "RABBITMQ_NODE_IP_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_CTL_DIST_PORT_MIN": str(free_port()),
            "RABBITMQ_CONF_ENV_FILE": os.devnull,  # the machine's own settings stay out
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(folder / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_LOG_BASE": str(folder),
            "RABBITMQ_LOGS": "-",
            "ERL_EPMD_PORT": str(self._names),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_FLAGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RUNNING_UNDER_SYSTEMD": "true",  # the script becomes the node instead of watching over it
        }

    def __enter__(self) -> Self:
        # In the foreground: the one that a node starts by itself would outlive it.
        self._epmd = subprocess.Popen(
            ["epmd", "-port", str(self._names), "-address", "127.0.0.1"],
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until(lambda: _listens(self._names), "Erlang's name server listens")
        return self

    def __exit__(self, *_: object) -> None:
        super().__exit__()
        self._epmd.kill()
        self._epmd.wait()

    def vhost(self) -> str:
        """The amqp:// URL of a new, empty vhost."""
        name = f"test-{uuid.uuid4().hex[:12]}"
        self.control("add_vhost", name)
        self.control("set_permissions", "-p", name, "guest", ".*", ".*", ".*")
        return self.url("guest", "guest", name)

    def url(self, user: str, password: str, vhost: str) -> str:
        return f"amqp://{user}:{password}@127.0.0.1:{self.port}/{vhost}"

    def tls_url(self, vhost: str, host: str = "localhost") -> str:
        return f"amqps://guest:guest@{host}:{self.tls_port}/{vhost}"

    def control(self, *arguments: str, typed: str = "") -> None:
        """A command of rabbitmqctl; `typed` is what it reads."""
        subprocess.run(
            [str(self._programs / "rabbitmqctl"), "-q", *arguments],
            env=self._environment,
            input=typed.encode(),
            capture_output=True,
            check=True,
            timeout=START_SECONDS,
        )

    def _spawn(self, log: IO[bytes]) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(
            [str(self._programs / "rabbitmq-server")],
            env=self._environment,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )

    def _answers(self) -> bool:
        import pika
        import pika.exceptions

        if not _listens(self.port):
            return False
        url = f"amqp://guest:guest@127.0.0.1:{self.port}/%2F?connection_attempts=1&socket_timeout=3"
        try:
            pika.BlockingConnection(pika.URLParameters(url)).close()
        except (pika.exceptions.AMQPError, OSError):
            return False
        return True


class PostgresCluster(Node):
    """A PostgreSQL cluster; user postgres, trusted on 127.0.0.1.

    With certificates everybody else has to come over TLS, with a certificate of that CA and with a password.
    """

    name = "private PostgreSQL"
    _orderly = signal.SIGINT  # "fast": sessions are ended, then a checkpoint

    def __init__(self, folder: Path, programs: Path, tls: Files | None = None) -> None:
        super().__init__(folder)
        self._programs = programs
        self._settings: dict[str, object] = {}
        # A program of its own changes the user: Popen would fork for it, and gRPC's threads do not survive that.
        self._as_user: list[str] = []
        if os.geteuid() == 0:
            os.chown(folder, pwd.getpwnam("postgres").pw_uid, -1)
            self._as_user = ["setpriv", "--reuid=postgres", "--regid=postgres", "--init-groups", "--"]
        self._run("initdb", "--pgdata", "data", "--username", "postgres", "--auth", "trust", "--no-sync", "--locale=C")
        if tls is not None:
            self._demand(tls)

    def _demand(self, tls: Files) -> None:
        """https://www.postgresql.org/docs/current/ssl-tcp.html: its key must be its own, and nobody else's to read."""
        names = {"ssl_ca_file": tls.ca, "ssl_cert_file": tls.cert, "ssl_key_file": tls.key}
        for name, file in names.items():
            own = self.folder / name
            own.touch(0o600)
            own.write_bytes(Path(file).read_bytes())
            if self._as_user:
                os.chown(own, pwd.getpwnam("postgres").pw_uid, -1)
        self._settings = {"ssl": "on", **{name: self.folder / name for name in names}}
        (self.folder / "data" / "pg_hba.conf").write_text(
            "host all postgres 127.0.0.1/32 trust\nhostssl all all 127.0.0.1/32 scram-sha-256 clientcert=verify-ca\n",
            encoding="utf-8",
        )

    def crash(self) -> None:
        """Every session is cut and nothing is checkpointed ("immediate"); the next start recovers from the log."""
        self._signal(signal.SIGQUIT)
        until(lambda: not self.running, f"{self.name} ends", START_SECONDS)

    def database(self, encoding: str = "UTF8", tablespace: Path | None = None) -> str:
        """The postgresql+psycopg:// URL of a new, empty database, kept in another folder if one is given."""
        name = f"test_{uuid.uuid4().hex[:12]}"
        options = f"ENCODING '{encoding}' TEMPLATE template0 LOCALE 'C'"
        if tablespace:
            self.ask(f"CREATE TABLESPACE {name} LOCATION '{tablespace}'")
            options += f" TABLESPACE {name}"
        self.ask(f"CREATE DATABASE {name} {options}")
        return f"{self._address.replace('postgresql://', 'postgresql+psycopg://')}/{name}"

    def ask(self, statement: str) -> None:
        """Carry out one statement as its administrator."""
        import psycopg

        with psycopg.connect(f"{self._address}/postgres", autocommit=True) as admin:
            admin.execute(statement)

    def psql(self, script: str) -> None:
        """Carry out a script of psql as its administrator; fails with its first error."""
        done = subprocess.run(
            [str(self._programs / "psql"), "-X", "-q", "-v", "ON_ERROR_STOP=1", f"{self._address}/postgres"],
            env=self._environment,
            input=script.encode(),
            capture_output=True,
            check=False,
            timeout=START_SECONDS,
        )
        assert (done.returncode, done.stderr) == (0, b""), done

    @property
    def _address(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}"

    def start(self) -> Self:
        """As `Node.start`; after kill -9 it waits for the sessions of the dead server to notice."""
        until(self._started, f"{self.name} takes its data over", START_SECONDS)
        return self

    def _started(self) -> bool:
        try:
            super().start()
        except AssertionError:
            if "is still in use" not in self.log[-2_000:]:
                raise
            return False
        return True

    def _spawn(self, log: IO[bytes]) -> "subprocess.Popen[bytes]":
        settings = {"listen_addresses": "127.0.0.1", "port": self.port, "unix_socket_directories": "", "fsync": "on"}
        settings |= self._settings
        options = [f"--{name}={value}" for name, value in settings.items()]
        return subprocess.Popen(
            [*self._as_user, str(self._programs / "postgres"), "-D", "data", *options],
            env=self._environment,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )

    def _answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(f"{self._address}/postgres", connect_timeout=3).close()
        except psycopg.OperationalError:
            return False
        return True

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [*self._as_user, str(self._programs / program), *arguments],
            env=self._environment,
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
            timeout=START_SECONDS,
        )

    @property
    def _environment(self) -> Mapping[str, str]:
        return {"PATH": os.environ["PATH"], "HOME": str(self.folder), "LC_ALL": "C"}


def _rabbitmq_tls(tls: Files, port: int) -> Iterator[str]:
    """A second listener, for those who show a certificate of this CA (https://www.rabbitmq.com/docs/ssl)."""
    yield f"listeners.ssl.1 = 127.0.0.1:{port}"
    for name, file in (("cacertfile", tls.ca), ("certfile", tls.cert), ("keyfile", tls.key)):
        yield f"ssl_options.{name} = {file}"
    yield "ssl_options.verify = verify_peer"
    yield "ssl_options.fail_if_no_peer_cert = true"


@contextmanager
def rabbitmq_node(tls: Files | None = None) -> Iterator[RabbitNode]:
    """A node that is up; gone with all it had afterwards. With certificates it listens on `tls_port`, too."""
    with _folder() as folder, RabbitNode(folder, _rabbitmq_programs(), tls) as node:
        yield node.start()


@contextmanager
def postgres_cluster(tls: Files | None = None) -> Iterator[PostgresCluster]:
    """A cluster that is up; gone with all it had afterwards."""
    with _folder() as folder, PostgresCluster(folder, _postgres_programs(), tls) as cluster:
        yield cluster.start()


@contextmanager
def _folder() -> Iterator[Path]:
    """Not one of pytest's: only their owner may enter those, and PostgreSQL runs as somebody else."""
    folder = Path(tempfile.mkdtemp(prefix="ordersys-node-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # a session of a killed server may be writing its last


def _rabbitmq_programs() -> Path:
    """The scripts themselves: those that Debian puts on the PATH switch to another user."""
    found = sorted(Path("/usr/lib/rabbitmq/lib").glob("rabbitmq_server-*/sbin"), key=_version)
    on_path = shutil.which("rabbitmq-server")
    if found:
        return found[-1]
    if on_path is None:
        servers.missing("no rabbitmq-server here to start a node with")
    return Path(str(on_path)).resolve().parent


def _postgres_programs() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=_version)
    on_path = shutil.which("initdb")
    if on_path is None and not found:
        servers.missing("no initdb here to make a PostgreSQL cluster with")
    return (Path(on_path).resolve() if on_path else found[-1]).parent


def _version(path: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", str(path))]


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
