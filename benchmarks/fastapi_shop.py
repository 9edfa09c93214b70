"""The same job in FastAPI, FastStream and asyncpg: one service, no outbox; a yardstick for the REST gateway.

    python benchmarks/fastapi_shop.py HOST:PORT POSTGRES_URL AMQP_URL

Needs: pip install fastapi 'faststream[rabbit]' asyncpg uvicorn httptools
"""

import contextlib
import json
import sys
import uuid
from collections.abc import AsyncIterator

import asyncpg
import uvicorn
from fastapi import FastAPI, HTTPException
from faststream.rabbit import ExchangeType, RabbitBroker, RabbitExchange, RabbitQueue
from pydantic import BaseModel, Field

FANOUT = RabbitExchange("orders.fanout", type=ExchangeType.FANOUT, durable=True)
TOPIC = RabbitExchange("orders.topic", type=ExchangeType.TOPIC, durable=True)
STOCK = 1_000_000_000


class Line(BaseModel):
    product_id: str
    quantity: int = Field(gt=0)


class Wanted(BaseModel):
    customer_id: str = Field(min_length=1)
    lines: list[Line] = Field(min_length=1)


def application(database: str, amqp: str) -> FastAPI:
    broker = RabbitBroker(amqp)
    pools: list[asyncpg.Pool] = []

    @broker.subscriber(RabbitQueue("shop.fanout", durable=True), FANOUT)
    async def hear_fanout(message: dict[str, object]) -> None:
        print(message["order_id"])

    @broker.subscriber(RabbitQueue("shop.topic", durable=True, routing_key="order.#"), TOPIC)
    async def hear_topic(message: dict[str, object]) -> None:
        print(message["order_id"])

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        pool = await asyncpg.create_pool(database, min_size=4, max_size=16)
        pools.append(pool)
        await pool.execute("CREATE TABLE IF NOT EXISTS shop_stock (id TEXT PRIMARY KEY, price INT, available BIGINT)")
        await pool.execute("CREATE TABLE IF NOT EXISTS shop_orders (id TEXT PRIMARY KEY, customer_id TEXT, lines TEXT)")
        for number in range(1, 11):
            await pool.execute(
                "INSERT INTO shop_stock VALUES ($1, 1999, $2) ON CONFLICT DO NOTHING", str(number), STOCK
            )
        await broker.start()
        yield
        await broker.stop()
        await pool.close()

    app = FastAPI(lifespan=lifespan)

    @app.post("/api/v1/orders", status_code=201)
    async def place(wanted: Wanted) -> dict[str, object]:
        order_id = str(uuid.uuid4())
        lines = []
        async with pools[0].acquire() as connection, connection.transaction():
            for line in wanted.lines:
                price = await connection.fetchval(
                    "UPDATE shop_stock SET available = available - $1"
                    " WHERE id = $2 AND available >= $1 RETURNING price",
                    line.quantity,
                    line.product_id,
                )
                if price is None:
                    raise HTTPException(409, "insufficient stock")
                lines.append({**line.model_dump(), "unit_price": price})
            await connection.execute(
                "INSERT INTO shop_orders VALUES ($1, $2, $3)", order_id, wanted.customer_id, json.dumps(lines)
            )
        event = {"order_id": order_id, "customer_id": wanted.customer_id, "lines": lines}
        await broker.publish(event, exchange=FANOUT, persist=True)
        await broker.publish(event, exchange=TOPIC, routing_key="order.created", persist=True)
        return {"id": order_id, "customer_id": wanted.customer_id, "lines": lines, "status": "placed"}

    return app


if __name__ == "__main__":
    host, _, port = sys.argv[1].rpartition(":")
    uvicorn.run(application(*sys.argv[2:]), host=host, port=int(port), log_level="warning", access_log=False)
