"""amqps:// on a real node that asks for certificates: it works, each refusal says why, and renewed files are used."""

import os
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import pytest
from certificates import EXPIRED, FUTURE, Authority
from contract.broker_site import eventually, message_ids, publish_until_confirmed, take, to
from e2e.processes import Backend
from faults import nodes
from faults.nodes import RabbitNode

from ordersys import wiring
from ordersys.broker.broker import Outcome
from ordersys.broker.rabbitmq import RabbitBroker
from ordersys.core import errors
from ordersys.core.tls import Files
from ordersys.core.topology import Queue, Topology
from ordersys.settings import Settings

QUEUE = Queue("q", ())
BROKERS = ("broker_ca_file", "broker_cert_file", "broker_key_file")


@dataclass(frozen=True)
class Site:
    node: RabbitNode
    vhost: str
    authority: Authority
    stranger: Authority

    @property
    def url(self) -> str:
        return self.node.tls_url(self.vhost)

    def broker(self, files: Files, url: str = "") -> RabbitBroker:
        return RabbitBroker(url or self.url, replace(files, settings=BROKERS))

    def refusal(self, files: Files, url: str = "") -> str:
        with closing(self.broker(files, url)) as broker, pytest.raises(errors.Unavailable) as caught:
            broker.ping()
        return caught.value.message


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("certificates")
    authority, stranger = Authority.at(folder / "ours"), Authority.at(folder / "theirs")
    own = authority.issue("rabbitmq", hosts=["localhost"])
    with nodes.rabbitmq_node(own) as node:
        yield Site(node, node.vhost().rpartition("/")[2], authority, stranger)


def test_messages_come_and_go_over_tls(site: Site) -> None:
    with closing(site.broker(site.authority.issue("order"))) as broker:
        assert broker.declare(Topology((), (QUEUE,))) is True
        assert broker.publisher().publish([to(QUEUE, "1")]) == [Outcome.CONFIRMED]
        subscription = broker.subscribe(QUEUE, 10)
        deliveries = take(subscription, 1)
        assert message_ids(deliveries) == ["1"]
        subscription.ack(deliveries)
        assert eventually(lambda: broker.depths([QUEUE])[QUEUE.name].ready == 0)


def test_a_command_finds_the_files_in_the_settings_of_the_process(site: Site, tmp_path: Path) -> None:
    own = site.authority.issue("admin")
    tls = {"ORDERSYS_BROKER_URL": site.url, "ORDERSYS_TLS_CERT_FILE": own.cert, "ORDERSYS_TLS_KEY_FILE": own.key}
    with Backend(tmp_path, tls) as backend:
        done = backend.run("topology", "declare", ORDERSYS_BROKER_CA_FILE=own.ca)
        assert (done.code, done.err) == (0, ""), done
        done = backend.run("topology", "declare", ORDERSYS_BROKER_CA_FILE=site.stranger.ca)
        assert done.code == 3
        assert "the broker's certificate is refused: self-signed certificate in certificate chain" in done.complaint
        done = backend.run("topology", "declare", ORDERSYS_TLS_CA_FILE=own.ca, ORDERSYS_BROKER_CERT_FILE=own.cert)
        assert done.code == 2
        assert "ORDERSYS_BROKER_CERT_FILE is set and ORDERSYS_BROKER_KEY_FILE is not" in done.complaint


def test_what_the_broker_has_of_its_own_goes_before_what_the_process_has() -> None:
    settings = Settings(
        broker_url="amqps://h", tls_ca_file="a", tls_cert_file="b", tls_key_file="c", broker_cert_file="d"
    )
    assert settings.broker_tls_files == Files("a", "d", "", ("tls_ca_file", "broker_cert_file", "broker_key_file"))
    settings = Settings(broker_url="amqps://h", tls_cert_file="b", tls_key_file="c", broker_ca_file="d")
    assert settings.broker_tls_files == Files("d", "b", "c", ("broker_ca_file", "tls_cert_file", "tls_key_file"))


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_who_shows_no_certificate_is_told_to(site: Site, version: str) -> None:
    with closing(site.broker(Files(site.authority.ca))) as broker:
        broker._parameters.ssl_options.context.maximum_version = ssl.TLSVersion[version]
        with pytest.raises(errors.Unavailable) as caught:
            broker.ping()
    assert "ask for a certificate" in caught.value.message.replace("asks", "ask")
    assert "ORDERSYS_BROKER_CERT_FILE" in caught.value.message


def test_a_certificate_of_another_ca_is_refused_by_the_broker(site: Site) -> None:
    files = replace(site.stranger.issue("order"), ca=site.authority.ca)
    assert "the broker does not know the CA of our certificate" in site.refusal(files)


def test_an_expired_certificate_is_refused_by_the_broker(site: Site) -> None:
    with closing(site.broker(site.authority.issue("order"))) as broker:
        old = site.authority.issue("old", EXPIRED)  # our own check of the files would have refused it
        broker._parameters.ssl_options.context.load_cert_chain(old.cert, old.key)
        with pytest.raises(errors.Unavailable, match="the broker says that our certificate has expired"):
            broker.ping()


def test_a_broker_of_another_ca_is_refused(site: Site) -> None:
    refusal = site.refusal(replace(site.authority.issue("order"), ca=site.stranger.ca))
    assert "the broker's certificate is refused: self-signed certificate in certificate chain" in refusal
    assert "ORDERSYS_BROKER_CA_FILE" in refusal


def test_without_a_ca_file_those_of_the_system_are_asked(site: Site) -> None:
    refusal = site.refusal(replace(site.authority.issue("order"), ca=""))
    assert "the broker's certificate is refused: self-signed certificate in certificate chain" in refusal


def test_a_broker_under_another_name_is_refused(site: Site) -> None:
    refusal = site.refusal(site.authority.issue("order"), site.node.tls_url(site.vhost, "127.0.0.1"))
    assert "the broker's certificate is refused: IP address mismatch" in refusal
    assert "127.0.0.1" in refusal


def test_a_broker_without_tls_on_the_port_is_no_broker(site: Site) -> None:
    url = site.url.replace(str(site.node.tls_port), str(site.node.port))
    assert "does not speak TLS on this port" in site.refusal(site.authority.issue("order"), url)


@pytest.mark.parametrize("valid", [EXPIRED, FUTURE], ids=["expired", "not yet valid"])
def test_a_broker_whose_time_is_not_now_is_refused(site: Site, valid: tuple[datetime, datetime]) -> None:
    own = site.authority.issue("outdated", valid)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(own.cert, own.key)

    def refuse(server: socket.socket) -> None:
        connection, _ = server.accept()
        with connection, pytest.raises(ssl.SSLError, match="ALERT"):
            context.wrap_socket(connection, server_side=True)

    with socket.create_server(("127.0.0.1", 0)) as server:
        answering = threading.Thread(target=refuse, args=(server,), daemon=True)
        answering.start()
        port = server.getsockname()[1]
        refusal = site.refusal(site.authority.issue("order"), f"amqps://guest:guest@127.0.0.1:{port}/")
        answering.join(20)
    assert f"127.0.0.1:{port}: the broker's certificate is refused: certificate " in refusal
    assert "expired" in refusal or "not yet valid" in refusal


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        (Files(ca="/nowhere/ca.crt"), "ORDERSYS_BROKER_CA_FILE: cannot read /nowhere/ca.crt"),
        (Files(ca=os.devnull), "ORDERSYS_BROKER_CA_FILE: /dev/null holds no certificate"),
        (Files(key="/nowhere/own.key"), "ORDERSYS_BROKER_KEY_FILE is set and ORDERSYS_BROKER_CERT_FILE is not"),
    ],
)
def test_a_wrong_file_is_named_by_its_setting(files: Files, complaint: str) -> None:
    settings = dict(zip(BROKERS, (files.ca, files.cert, files.key), strict=True))
    with pytest.raises(errors.UsageError) as caught:
        wiring.broker(Settings(broker_url="amqps://guest:guest@localhost/", **settings))
    assert complaint in caught.value.message


def test_what_the_url_says_of_tls_goes_first(site: Site) -> None:
    own = site.authority.issue("order")
    options = {"ca_certs": own.ca, "certfile": own.cert, "keyfile": own.key}
    with closing(site.broker(Files(), f"{site.url}?ssl_options={options}")) as broker:
        broker.ping()


def test_a_renewed_certificate_is_used_with_the_next_connection(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    files = replace(site.stranger.issue("order", file="renewed"), ca=site.authority.ca)
    with closing(site.broker(files)) as broker, closing(site.broker(site.authority.issue("admin"))) as admin:
        admin.declare(Topology((), (QUEUE,)))
        publisher = broker.publisher()
        assert publisher.publish([to(QUEUE, "before")], timeout=0.5) == [Outcome.FAILED]
        assert eventually(lambda: "(the broker does not know the CA of our certificate" in caplog.text)

        renewed = site.authority.issue("order")
        for old, new in ((files.key, renewed.key), (files.cert, renewed.cert)):
            Path(old).write_bytes(Path(new).read_bytes())
        publish_until_confirmed(publisher, [to(QUEUE, "after")])
        deliveries = take(broker.subscribe(QUEUE, 10), 1)
        assert message_ids(deliveries) == ["after"]
    assert not [record for record in caplog.records if record.name.startswith("ordersys") and record.exc_info]
