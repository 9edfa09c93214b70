"""The straightforward build of the same job, as most samples have it: the yardstick.

    python benchmarks/straightforward.py order   BIND DATABASE_URL AMQP_URL
    python benchmarks/straightforward.py product BIND DATABASE_URL ORDER_ADDRESS
    python benchmarks/straightforward.py notify  fanout|topic AMQP_URL

Thread-pool gRPC; per order one durable transaction that takes stock, one call to the other service, one durable
transaction that stores the order, one blocking publish with a confirm. It has no idempotency keys, no outbox, no
recovery: a crash loses events or stock. DATABASE_URL is sqlite:///FILE or postgresql://...
"""

import json
import queue
import sqlite3
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc
import pika

from ordersys.core.v1 import order_pb2, order_pb2_grpc, product_pb2, product_pb2_grpc

THREADS = 64
STOCK = 1_000_000_000


class Database:
    """One connection per thread, one transaction at a time on each."""

    def __init__(self, url: str, tables: str) -> None:
        self._url = url
        self._sqlite = url.startswith("sqlite:///")
        self._local = threading.local()
        with self.transaction() as execute:
            for table in tables.split(";"):
                execute(table)

    def _connection(self) -> Any:
        if not hasattr(self._local, "connection"):
            if self._sqlite:
                made: Any = sqlite3.connect(self._url.removeprefix("sqlite:///"), timeout=60, isolation_level=None)
                made.execute("PRAGMA journal_mode=WAL")
                made.execute("PRAGMA synchronous=FULL")
            else:
                import psycopg

                made = psycopg.connect(self._url, autocommit=True)
            self._local.connection = made
        return self._local.connection

    @contextmanager
    def transaction(self) -> Iterator[Any]:
        connection = self._connection()
        connection.execute("BEGIN IMMEDIATE" if self._sqlite else "BEGIN")
        try:
            yield lambda sql, *values: connection.execute(sql if self._sqlite else sql.replace("?", "%s"), values)
        except BaseException:
            connection.execute("ROLLBACK")
            raise
        connection.execute("COMMIT")


class Products(product_pb2_grpc.ProductServiceServicer):
    def __init__(self, database: str, orders: str) -> None:
        self._database = Database(
            database,
            "CREATE TABLE IF NOT EXISTS plain_stock (id TEXT PRIMARY KEY, price INTEGER, available BIGINT)",
        )
        with self._database.transaction() as execute:
            for number in range(1, 11):
                execute("INSERT INTO plain_stock VALUES (?, 1999, ?) ON CONFLICT DO NOTHING", str(number), STOCK)
        self._orders = order_pb2_grpc.OrderServiceStub(grpc.insecure_channel(orders))

    def PlaceOrder(self, request: Any, context: grpc.ServicerContext) -> product_pb2.PlaceOrderResponse:
        lines = []
        with self._database.transaction() as execute:
            for line in request.lines:
                taken = execute(
                    "UPDATE plain_stock SET available = available - ? WHERE id = ? AND available >= ? RETURNING price",
                    line.quantity,
                    line.product_id,
                    line.quantity,
                ).fetchone()
                if taken is None:
                    context.abort(grpc.StatusCode.FAILED_PRECONDITION, "insufficient stock")
                price = order_pb2.Money(currency="EUR", amount=taken[0])
                lines.append(order_pb2.OrderLine(product_id=line.product_id, quantity=line.quantity, unit_price=price))
        command = order_pb2.OrderCommand(command_id=str(uuid.uuid4()), order_id=str(uuid.uuid4()))
        command.place.customer_id = request.customer_id
        command.place.lines.extend(lines)
        answer = self._orders.ProcessOrders(order_pb2.ProcessOrdersRequest(commands=[command]), timeout=30)
        return product_pb2.PlaceOrderResponse(order=answer.results[0].accepted)


class Orders(order_pb2_grpc.OrderServiceServicer):
    def __init__(self, database: str, broker: str) -> None:
        self._database = Database(
            database,
            "CREATE TABLE IF NOT EXISTS plain_orders"
            " (id TEXT PRIMARY KEY, customer_id TEXT, lines TEXT, total BIGINT, created_at DOUBLE PRECISION)",
        )
        self._broker = pika.URLParameters(broker)
        self._broker.heartbeat = 0
        self._channels: queue.SimpleQueue[Any] = queue.SimpleQueue()

    def ProcessOrders(self, request: Any, context: grpc.ServicerContext) -> order_pb2.ProcessOrdersResponse:
        return order_pb2.ProcessOrdersResponse(results=[self._place(command) for command in request.commands])

    def _place(self, command: order_pb2.OrderCommand) -> order_pb2.OrderResult:
        lines = [[each.product_id, each.quantity, each.unit_price.amount] for each in command.place.lines]
        total = sum(quantity * price for _, quantity, price in lines)
        row = (command.order_id, command.place.customer_id, json.dumps(lines), total, time.time())
        with self._database.transaction() as execute:
            execute("INSERT INTO plain_orders VALUES (?, ?, ?, ?, ?)", *row)
        event = json.dumps(
            {"type": "created", "order_id": row[0], "customer_id": row[1], "lines": lines, "total": total}
        )
        with self._channel() as channel:
            for exchange in ("orders.fanout", "orders.topic"):
                properties = pika.BasicProperties(delivery_mode=2, content_type="application/json")
                channel.basic_publish(exchange, "order.created", event.encode(), properties, mandatory=True)
        order = order_pb2.Order(
            id=row[0],
            customer_id=row[1],
            status=order_pb2.ORDER_STATUS_PLACED,
            lines=command.place.lines,
            total=order_pb2.Money(currency="EUR", amount=total),
            version=1,
        )
        return order_pb2.OrderResult(command_id=command.command_id, accepted=order)

    @contextmanager
    def _channel(self) -> Iterator[Any]:
        """A channel of a connection that nobody else uses meanwhile; confirms make each publish wait."""
        try:
            channel = self._channels.get_nowait()
        except queue.Empty:
            channel = pika.BlockingConnection(self._broker).channel()
            channel.confirm_delivery()
        yield channel
        self._channels.put(channel)


def notify(kind: str, broker: str) -> None:
    channel = pika.BlockingConnection(pika.URLParameters(broker)).channel()
    channel.exchange_declare(f"orders.{kind}", kind, durable=True)
    channel.queue_declare(f"plain.{kind}", durable=True, arguments={"x-queue-type": "quorum"})
    channel.queue_bind(f"plain.{kind}", f"orders.{kind}", "#")
    channel.basic_qos(prefetch_count=1)
    for method, _, body in channel.consume(f"plain.{kind}"):
        print(json.loads(body)["order_id"], flush=True)
        channel.basic_ack(method.delivery_tag)


def serve(role: str, bind: str, database: str, other: str) -> None:
    server = grpc.server(futures.ThreadPoolExecutor(THREADS), options=[("grpc.so_reuseport", 0)])
    if role == "product":
        product_pb2_grpc.add_ProductServiceServicer_to_server(Products(database, other), server)
    else:
        order_pb2_grpc.add_OrderServiceServicer_to_server(Orders(database, other), server)
    server.add_insecure_port(bind)
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    notify(*sys.argv[2:]) if sys.argv[1] == "notify" else serve(*sys.argv[1:])
