"""gRPC with certificates, in one process: who comes in, who does not and why, and files that change meanwhile."""

import asyncio
import gc
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from certificates import EXPIRED, Authority
from fake_services import FakeServices
from integration.grpc_site import SERVICE, Orders, run

from ordersys.core import errors
from ordersys.core.rpc import callers
from ordersys.core.rpc.channel import AsyncChannel, Channel
from ordersys.core.rpc.server import GrpcServer
from ordersys.core.tls import Content, Files, Kept, kept
from ordersys.core.v1 import order_pb2, order_pb2_grpc, product_pb2

PRODUCT, ADMINS = "product-service", ("operator", "api")


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.at(tmp_path / "ca")


@asynccontextmanager
async def serving(files: Files | Kept | None, *, client_cert: bool = True) -> AsyncIterator[tuple[str, Orders]]:
    """A server with this certificate; its address, and what it is asked."""
    orders = Orders()
    server = GrpcServer(
        "127.0.0.1:0",
        [SERVICE],
        lambda to: order_pb2_grpc.add_OrderServiceServicer_to_server(orders, to),
        tls=files if isinstance(files, Kept) else kept(files or Files()),
        rules=callers.rules(PRODUCT, ADMINS) if client_cert else None,
    )
    await server.start()
    try:
        yield server.address, orders
    finally:
        await server.stop(0)


async def get(channel: AsyncChannel, order_id: str = "x") -> str:
    stub: order_pb2_grpc.OrderServiceAsyncStub = order_pb2_grpc.OrderServiceStub(channel.raw)  # type: ignore[assignment]
    request = order_pb2.GetOrderRequest(order_id=order_id)
    return (await channel.call(stub.GetOrder, request, deadline=10)).order.id


async def get_once(address: str, files: Files | None, *, blocking: bool = False) -> str:
    """One call with this certificate on a connection of its own."""
    own = kept(files or Files())
    if not blocking:
        channel = AsyncChannel(address, retry=False, tls=own)
        try:
            return await get(channel)
        finally:
            await channel.close()

    def call() -> str:
        channel = Channel(address, retry=False, tls=own)
        try:
            stub = order_pb2_grpc.OrderServiceStub(channel.raw)
            answer = channel.call(stub.GetOrder, order_pb2.GetOrderRequest(order_id="x"), deadline=10).order.id
            assert channel.healthy(SERVICE, deadline=10)
            return answer
        finally:
            channel.close()

    return await asyncio.to_thread(call)


async def refusal(address: str, files: Files | None, *, blocking: bool = False) -> str:
    with pytest.raises(errors.NoAnswer) as caught:
        await get_once(address, files, blocking=blocking)
    return caught.value.message


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    while not await condition():  # noqa: ASYNC110 - nobody could set an event
        await asyncio.sleep(0.02)


# --- who comes in -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocking", [False, True])
def test_both_sides_show_a_certificate_and_the_call_is_answered(authority: Authority, blocking: bool) -> None:
    async def main() -> None:
        async with serving(authority.issue("order-service")) as (address, _):
            assert await get_once(address, authority.issue("client"), blocking=blocking) == "x"

    run(main())


def test_callers_need_no_certificate_where_none_is_required(authority: Authority) -> None:
    async def main() -> None:
        async with serving(authority.issue("order-service"), client_cert=False) as (address, orders):
            assert await get_once(address, Files(authority.ca)) == "x"
            assert orders.calls == ["x"]

    run(main())


@pytest.mark.parametrize("blocking", [False, True])
def test_who_shows_no_certificate_of_our_ca_is_refused_and_told_why(
    authority: Authority, tmp_path: Path, blocking: bool
) -> None:
    other = Authority.at(tmp_path / "other")
    stranger, client = other.issue("client", ca=authority.ca), authority.issue("client")

    async def main() -> None:
        async with serving(authority.issue("order-service")) as (address, orders):
            for files, reason in (
                (stranger, f"it refuses our certificate in {stranger.cert}"),
                (Files(authority.ca), "it asks for a certificate: set ORDERSYS_TLS_CERT_FILE"),
                (
                    Files(other.ca, client.cert, client.key),
                    "unknown CA: its certificate is not from a CA",
                ),
                (None, "it speaks TLS: set ORDERSYS_TLS_CA_FILE"),
            ):
                message = await refusal(address, files, blocking=blocking)
                assert message.startswith(f"{address}: UNAVAILABLE: no TLS connection: {reason}")
            assert orders.calls == []

    run(main())


class Outdated(Kept):
    """What a process still holds that began before its certificate expired."""

    def __init__(self, files: Files) -> None:
        self.files = files
        ca, cert, key = (Path(file).read_bytes() for _, file in files.named)
        self._only = Content(ca, cert, key, (), EXPIRED[1].timestamp())

    def current(self) -> Content:
        return self._only


def test_a_certificate_that_has_expired_meanwhile_opens_no_door_on_either_side(authority: Authority) -> None:
    async def main() -> None:
        client, server = (authority.issue(name) for name in ("client", "order-service"))
        old_client, old_server = (Outdated(authority.issue(f"old-{name}", EXPIRED)) for name in ("client", "server"))
        async with serving(server) as (address, orders):
            channel = AsyncChannel(address, retry=False, tls=old_client)
            with pytest.raises(errors.NoAnswer, match=r"our certificate has expired: see .*old-client\.crt"):
                await get(channel)
            await channel.close()
            assert orders.calls == []
        async with serving(old_server) as (address, _):
            assert "no TLS connection: its certificate has expired" in await refusal(address, client)

    run(main())


def test_a_server_under_another_name_is_not_the_one_that_was_called(authority: Authority) -> None:
    async def main() -> None:
        async with serving(authority.issue("order-service", hosts=["elsewhere.example"])) as (address, _):
            assert "for another name than the one that was called" in await refusal(address, authority.issue("client"))

    run(main())


def test_who_speaks_tls_to_a_server_without_is_told_so(authority: Authority) -> None:
    async def main() -> None:
        async with serving(None) as (address, _):
            assert "it does not speak TLS" in await refusal(address, authority.issue("client"))

    run(main())


def test_nobody_there_is_no_matter_of_certificates(authority: Authority) -> None:
    async def main() -> None:
        with socket.socket() as unheard:
            unheard.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{unheard.getsockname()[1]}"
            for files in (None, authority.issue("client")):
                message = await refusal(address, files)
                assert "TLS" not in message
                assert "Connection refused" in message

    run(main())


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_tls_1_1_is_refused_and_1_2_and_1_3_are_not(authority: Authority) -> None:
    def greet(address: str, files: Files, version: ssl.TLSVersion) -> str | None:
        context = ssl.create_default_context(cafile=files.ca)
        context.load_cert_chain(files.cert, files.key)
        context.set_alpn_protocols(["h2"])
        context.set_ciphers("ALL:@SECLEVEL=0")  # else OpenSSL itself would not offer the old ones
        context.minimum_version = context.maximum_version = version
        host, _, port = address.rpartition(":")
        with (
            socket.create_connection((host, int(port)), 10) as plain,
            context.wrap_socket(plain, server_hostname=host) as connection,
        ):
            assert connection.recv(1)  # the server has taken our certificate, too
            return connection.version()

    async def main() -> None:
        client = authority.issue("client")
        async with serving(authority.issue("order-service")) as (address, _):
            for version, expected in ((ssl.TLSVersion.TLSv1_2, "TLSv1.2"), (ssl.TLSVersion.TLSv1_3, "TLSv1.3")):
                assert await asyncio.to_thread(greet, address, client, version) == expected
            for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
                with pytest.raises((ssl.SSLError, ConnectionResetError)):
                    await asyncio.to_thread(greet, address, client, version)

    run(main())


def lone(made: Authority) -> Files:
    files = made.issue("a")
    return Files("", files.cert, files.key)


@pytest.mark.parametrize(
    ("client_cert", "files_of", "message"),
    [
        (True, lambda made: Files(made.ca), "a service needs a certificate of its own: ORDERSYS_TLS_CA_FILE is set"),
        (True, lone, "ORDERSYS_TLS_CLIENT_CERT=required needs the CA"),
        (False, lone, ""),
    ],
)
def test_a_server_says_which_file_it_lacks(
    client_cert: bool, files_of: Callable[[Authority], Files], message: str, authority: Authority
) -> None:
    async def main() -> None:
        async with serving(files_of(authority), client_cert=client_cert):
            assert not message

    if message:
        with pytest.raises(errors.UsageError, match=message):
            run(main())
    else:
        run(main())


# --- who may do what --------------------------------------------------------------------------------------------

SERVICES = {
    each.full_name: each
    for each in (
        order_pb2.DESCRIPTOR.services_by_name["OrderService"],
        product_pb2.DESCRIPTOR.services_by_name["ProductService"],
    )
}
LET_IN = {
    "tls_product_identity": {"product-service"},
    "tls_admin_identities": {"operator", "api"},
    "": {"product-service", "operator", "api", "client"},
}


def test_every_rule_is_about_a_method_that_there_is() -> None:
    methods = {f"/{name}/{method.name}" for name, each in SERVICES.items() for method in each.methods}
    assert set(callers.ONLY) <= methods


@pytest.mark.parametrize("name", ["product-service", "operator", "api", "client", "order-service"])
def test_each_method_is_for_those_whom_the_table_names(name: str, authority: Authority) -> None:
    async def main() -> None:
        fake = FakeServices()
        server = GrpcServer(
            "127.0.0.1:0",
            list(SERVICES),
            fake._add_servicers,
            tls=Kept(authority.issue("server")),
            rules=callers.rules(PRODUCT, ADMINS),
        )
        await server.start()
        who = authority.issue(name)
        channel = AsyncChannel(server.address, retry=False, tls=Kept(who))
        seen = {}
        for service in SERVICES.values():
            for method in service.methods:
                path = f"/{service.full_name}/{method.name}"
                if method.server_streaming:
                    continue
                call: Any = channel.raw.unary_unary(path)
                try:
                    await channel.call(call, b"", deadline=10)
                except errors.PermissionDenied as error:
                    seen[path] = error
                except errors.OrdersysError:  # it was let in, and asked for nothing that makes sense
                    pass
        await channel.close()
        await server.stop(0)
        expected = {path for path, setting in callers.ONLY.items() if name not in LET_IN[setting]}
        assert set(seen) == expected
        for path, error in seen.items():
            variable = f"ORDERSYS_{callers.ONLY[path].upper()}"
            assert error.metadata == {"identity": name, "setting": variable}
            assert f"{path.rpartition('/')[2]} is not for {name}: the service's {variable} is" in error.message

    run(main())


@pytest.mark.parametrize(
    ("shown", "names"),
    [
        ({"peer_uri": [b"urn:x"], "peer_dns": [b"api"], "x509_common_name": [b"cn"]}, ("urn:x", "api")),
        ({"peer_dns": [b"localhost", b"api"], "x509_common_name": [b"cn"]}, ("api",)),
        ({"x509_common_name": [b"cn"]}, ("cn",)),
        ({"peer_dns": [b"localhost"], "x509_common_name": [b"cn"]}, ()),
        ({"x509_common_name": [b"localhost"]}, ()),
        ({}, ()),
    ],
)
def test_the_common_name_counts_only_where_there_is_nothing_better(
    shown: dict[str, list[bytes]], names: tuple[str, ...]
) -> None:
    assert callers.seen(shown) == names


# --- certificates that change -----------------------------------------------------------------------------------


def shown_by(address: str, files: Files) -> int:
    """The serial number of the certificate that the server shows now."""
    context = ssl.create_default_context(cafile=files.ca)
    context.load_cert_chain(files.cert, files.key)
    host, _, port = address.rpartition(":")
    with (
        socket.create_connection((host, int(port)), 10) as plain,
        context.wrap_socket(plain, server_hostname=host) as connection,
    ):
        return int(connection.getpeercert()["serialNumber"], 16)  # type: ignore[index,arg-type]


def test_a_servers_certificate_changes_under_load_and_no_call_fails(authority: Authority) -> None:
    async def main() -> None:
        client = authority.issue("client")
        done = 0

        async def load(address: str, stop: asyncio.Event) -> None:
            nonlocal done
            channel = AsyncChannel(address, retry=False, tls=Kept(client))
            while not stop.is_set():
                await get(channel)
                done += 1
            await channel.close()

        async with serving(authority.issue("order-service")) as (address, orders):
            release = asyncio.Event()
            orders.actions["slow"] = release.wait  # type: ignore[assignment]
            slow_channel = AsyncChannel(address, retry=False, tls=Kept(client))
            slow = asyncio.create_task(get(slow_channel, "slow"))
            stop = asyncio.Event()
            loads = [asyncio.create_task(load(address, stop)) for _ in range(4)]
            serials = {await asyncio.to_thread(shown_by, address, client)}
            for renewal in range(1, 4):
                authority.issue("order-service")
                serials.add(await asyncio.to_thread(shown_by, address, client))
                assert len(serials) == renewal + 1  # the very next connection sees it
                before = done
                await until(lambda before=before: asyncio.sleep(0, done > before + 20))  # type: ignore[misc]
                assert await get_once(address, client) == "x"
            stop.set()
            await asyncio.gather(*loads)
            release.set()
            assert await slow == "slow"
            await slow_channel.close()

    run(main())


def test_a_client_uses_its_new_certificate_and_finishes_what_it_began_with_the_old(authority: Authority) -> None:
    async def main() -> None:
        files = authority.issue("first", file="client")
        async with serving(authority.issue("order-service")) as (address, orders):
            release = asyncio.Event()
            orders.actions |= {"slow": release.wait, "": release.wait}  # type: ignore[dict-item]
            channel = AsyncChannel(address, retry=False, tls=Kept(files))
            stub: Any = order_pb2_grpc.OrderServiceStub(channel.raw)

            async def who() -> str:
                """As whom the service sees us."""
                with pytest.raises(errors.PermissionDenied) as caught:
                    await channel.call(stub.ListEvents, order_pb2.ListEventsRequest(), deadline=10)
                return caught.value.metadata["identity"]

            slow = asyncio.create_task(get(channel, "slow"))
            stream = channel.stream(stub.WatchOrders, order_pb2.WatchOrdersRequest())
            assert (await anext(stream)).sequence == 1
            assert await who() == "first"
            authority.issue("second", file="client")
            await until(lambda: became(who, "second"))
            gc.collect()
            assert len(channel.raw._opened) == 2  # type: ignore[attr-defined]
            assert (await anext(stream)).sequence == 2
            assert not slow.done()
            release.set()
            assert await slow == "slow"
            assert [each async for each in stream] == []
            del stream, slow
            await until(lambda: closed(channel))
            assert await who() == "second"
            await channel.close()

    async def became(who: Callable[[], Awaitable[str]], name: str) -> bool:
        return await who() == name

    async def closed(channel: AsyncChannel) -> bool:
        gc.collect()
        return len(channel.raw._opened) == 1  # type: ignore[attr-defined]

    run(main())


def test_a_blocking_client_does_so_too_and_no_call_fails_under_load(authority: Authority) -> None:
    def load(address: str, kept: Kept) -> int:
        channel = Channel(address, retry=False, tls=kept)
        stub = order_pb2_grpc.OrderServiceStub(channel.raw)
        stream = channel.stream(stub.WatchOrders, order_pb2.WatchOrdersRequest())
        assert next(stream).sequence == 1
        started = time.monotonic()
        renewed = done = 0
        while len(channel.raw._opened) < 3:  # type: ignore[attr-defined]
            assert time.monotonic() < started + 25
            if done % 50 == 0 and renewed == len(channel.raw._opened) - 1:  # type: ignore[attr-defined]
                authority.issue("client")
                renewed += 1
                keep = channel.stream(stub.WatchOrders, order_pb2.WatchOrdersRequest())
                assert next(keep).sequence == 1
            request = order_pb2.GetOrderRequest(order_id="x")
            assert channel.call(stub.GetOrder, request, deadline=10).order.id == "x"
            done += 1
        assert next(stream).sequence == 2
        channel.close()
        with pytest.raises(errors.OrdersysError):  # closing ends what is under way, as that of any channel
            next(stream)
        return done

    async def main() -> None:
        async with serving(authority.issue("order-service")) as (address, orders):
            orders.actions[""] = asyncio.Event().wait  # type: ignore[assignment]
            assert await asyncio.to_thread(load, address, Kept(authority.issue("client"))) > 0

    run(main())


def copy(source: Files, target: Files) -> None:
    for old, new in ((target.key, source.key), (target.cert, source.cert)):
        Path(old).write_bytes(Path(new).read_bytes())


def test_a_new_ca_is_taken_over_by_both_sides_without_a_restart(authority: Authority, tmp_path: Path) -> None:
    """As one does it: first both trust both, then they show the new certificates, then the old CA goes."""

    async def main() -> None:
        new = Authority.at(tmp_path / "new")

        def trust(*those: Authority) -> None:
            Path(authority.ca).write_bytes(b"".join(each.pair.cert_pem for each in those))

        server_files, client_files = authority.issue("order-service"), authority.issue("client")
        async with serving(server_files) as (address, _):
            channel = AsyncChannel(address, retry=False, tls=Kept(client_files))
            assert await get(channel) == "x"
            trust(authority, new)
            for name, files in (("order-service", server_files), ("client", client_files)):
                copy(new.issue(name), files)
                assert await get_once(address, client_files) == "x"
            trust(new)
            assert await get(channel) == "x"
            assert await get_once(address, client_files) == "x"
            await channel.close()

    run(main())


def test_without_tls_nothing_stands_between_a_stub_and_its_channel() -> None:
    async def main() -> None:
        channel = AsyncChannel("127.0.0.1:1")
        assert type(channel.raw).__module__.startswith("grpc.")
        await channel.close()

    run(main())
    blocking = Channel("127.0.0.1:1")
    assert isinstance(blocking.raw, grpc.Channel)
    blocking.close()
