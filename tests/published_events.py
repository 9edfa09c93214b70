"""What is published of the events: docs/schemas/, a JSON Schema per type, and docs/asyncapi.yaml, the ways they go.

`python tests/published_events.py` renews them. It refuses a break of an event, whatever the version: whoever means to
break one makes a new type beside it. It refuses a break of the topology while the version is the same.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import event_compatibility
import event_schemas
import published_api
import yaml

import ordersys
from ordersys.broker import broker, rabbitmq_topology
from ordersys.core import events, topology, users
from ordersys.core.events import Change, Event
from ordersys.core.records import Line, Order, Status
from ordersys.core.topology import Queue
from ordersys.core.watch import spans

Json = dict[str, Any]

SCHEMAS = published_api.PROJECT / "docs" / "schemas"
DOCUMENT = published_api.PROJECT / "docs" / "asyncapi.yaml"
RENEW = "python tests/published_events.py"

_MESSAGES = {events.CREATED: "orderCreated", events.UPDATED: "orderUpdated"}
_FAILED = "failed"
_VERSION = {"bindingVersion": "0.3.0"}
_ABOUT = """\
What ordersys announces, and the exchanges and queues it goes through on RabbitMQ (AMQP 0-9-1).

Another consumer declares a queue of its own and binds it to `orders.topic` (`order.#` is every event) or to
`orders.fanout` (every created order); `ordersys notify --queue NAME --bind PATTERN` does the same, with retries
and dead letters. Everything is durable. Delivery is at least once: drop what you have handled by its `id`, and
ignore an order older than the one you know by its `version`.

A consumer of ordersys that fails publishes the message, with headers that say why, to the next retry queue of its
queue, where it expires after its wait and returns; after the last try it goes to the dead letters.

Two forms are not of AsyncAPI's own bindings: `x-bindings` are the exchange and the routing key or pattern that a queue
is bound by, `x-arguments` are those it is declared with.
"""


def path(kind: str) -> Path:
    return SCHEMAS / f"{kind}.json"


def printed_schema(kind: str) -> str:
    return json.dumps(event_schemas.schema(kind), indent=2) + "\n"


def printed() -> str:
    document = json.loads(json.dumps(described()))  # nothing in it is more than JSON
    return yaml.dump(document, Dumper=_Readable, sort_keys=False, width=110, allow_unicode=True)


class _Readable(yaml.SafeDumper):
    """Texts of several lines as such, and no anchors for what occurs twice."""

    def ignore_aliases(self, _data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style="|" if "\n" in value else None)


_Readable.add_representer(str, _text)


def described() -> Json:
    """The AsyncAPI 3.0 document (https://www.asyncapi.com/docs/reference/specification/v3.0.0)."""
    made = topology.standard()
    exchanges = {each.name: each.kind.value for each in made.exchanges}
    channels: Json = {}
    operations: Json = {}
    for change in Change:
        for exchange, key in topology.routes(change):
            name = f"{exchange}.{key}"
            channels[name] = _exchange_channel(exchange, exchanges[exchange], key, change)
            operations[f"announce.{name}"] = _operation(
                "send", name, "order-service publishes, and waits for the confirm.", _PUBLISHED
            )
    for queue in made.queues:
        channels |= _queue_channels(queue)
        operations |= _queue_operations(queue)
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "ordersys events",
            "version": ordersys.__version__,
            "description": _ABOUT,
            "license": {"name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"},
        },
        "defaultContentType": events.CONTENT_TYPE,
        "servers": {
            "rabbitmq": {
                "host": "127.0.0.1:5672",
                "pathname": "/%2F",
                "protocol": "amqp",
                "protocolVersion": "0.9.1",
                "description": "What ORDERSYS_BROKER_URL names, for example; amqps is taken, too.",
            }
        },
        "channels": channels,
        "operations": operations,
        "components": {"messages": _messages(), "schemas": {"headers": _headers()}},
    }


_PUBLISHED = {"deliveryMode": 2, "mandatory": True, "timestamp": True}


def _exchange_channel(exchange: str, kind: str, key: str, change: Change) -> Json:
    message = _MESSAGES[events.CREATED if change is Change.CREATED else events.UPDATED]
    return {
        "address": key,
        "description": f"Every order that was {_WORDS[change]}.",
        "messages": {message: {"$ref": f"#/components/messages/{message}"}},
        "bindings": {
            "amqp": {
                "is": "routingKey",
                "exchange": {"name": exchange, "type": kind, "durable": True, "autoDelete": False, "vhost": "/"},
                **_VERSION,
            }
        },
    }


_WORDS = {
    Change.CREATED: "created",
    Change.LINES: "given other lines",
    Change.CANCELLED: "cancelled",
    Change.SHIPPED: "shipped",
    Change.DELIVERED: "delivered",
}


def _queue_channels(queue: Queue) -> Iterator[tuple[str, Json]]:
    """The queue, its retry queues and its dead letters."""
    for name, arguments in rabbitmq_topology.queue_arguments(queue).items():
        own = name == queue.name
        bindings = [(each.exchange, each.pattern) for each in queue.bindings] if own else [(users.FAILURES, name)]
        yield (
            name,
            {
                "address": name,
                "description": _purpose(queue, name),
                "messages": {each: {"$ref": f"#/components/messages/{each}"} for each in _in_queue(queue, name)},
                "bindings": {
                    "amqp": {
                        "is": "queue",
                        "queue": {"name": name, "durable": True, "exclusive": False, "autoDelete": False, "vhost": "/"},
                        **_VERSION,
                    }
                },
                "x-bindings": [{"exchange": exchange, "routingKey": pattern} for exchange, pattern in bindings],
                "x-arguments": arguments,
            },
        )


def _purpose(queue: Queue, name: str) -> str:
    if name == queue.name:
        return f"What `ordersys notify` handles; at most {queue.tries} tries."
    if name == queue.dead_letters:
        return f"What nobody will try again by itself; `ordersys dlq` shows it and sends it to {queue.name} again."
    wait = queue.waits[queue.retries.index(name)]
    return f"Rests for {wait:g} s, unless ORDERSYS_RETRY_WAITS says otherwise, and returns to {queue.name}."


def _in_queue(queue: Queue, name: str) -> list[str]:
    """The names of the messages that come there."""
    if name != queue.name:
        return [_FAILED]
    kinds = {
        events.CREATED if change is Change.CREATED else events.UPDATED
        for change in Change
        for exchange, key in topology.routes(change)
        for binding in queue.bindings
        if binding.exchange == exchange and (exchange == topology.FANOUT or topology.matches(binding.pattern, key))
    }
    return [_MESSAGES[kind] for kind in event_schemas.TYPES if kind in kinds]


def _queue_operations(queue: Queue) -> Iterator[tuple[str, Json]]:
    yield (
        f"handle.{queue.name}",
        _operation("receive", queue.name, "A notifier acknowledges what it has handled.", {"ack": True}),
    )
    for name, wait in zip(queue.retries, queue.waits, strict=True):
        failed = _PUBLISHED | {"expiration": int(wait * 1000)}
        yield f"retry.{name}", _operation("send", name, f"Through the exchange {users.FAILURES}.", failed)
    yield (
        f"giveUp.{queue.dead_letters}",
        _operation("send", queue.dead_letters, f"Through the exchange {users.FAILURES}.", _PUBLISHED),
    )


def _operation(action: str, channel: str, description: str, binding: Json) -> Json:
    return {
        "action": action,
        "channel": {"$ref": f"#/channels/{channel}"},
        "description": description,
        "bindings": {"amqp": {**binding, **_VERSION}},
    }


def _messages() -> Json:
    found: Json = {}
    for kind, name in _MESSAGES.items():
        found[name] = {
            "name": kind,
            "title": event_schemas.schema(kind)["title"],
            "contentType": events.CONTENT_TYPE,
            "headers": {"$ref": "#/components/schemas/headers"},
            "payload": {"$ref": f"./{SCHEMAS.name}/{path(kind).name}"},
            "examples": [
                {"name": change.value, "payload": example(change)} for change in Change if _kind(change) == kind
            ],
        }
    found[_FAILED] = {
        "name": _FAILED,
        "title": "A message that could not be handled",
        "description": "The body, the content type and the message_id are those that it came with, whatever they were.",
        "headers": {"$ref": "#/components/schemas/headers"},
        "payload": {},
    }
    return found


def _kind(change: Change) -> str:
    return events.CREATED if change is Change.CREATED else events.UPDATED


def example(change: Change) -> Json:
    """One event of each change, as it goes to the broker."""
    version = {Change.CREATED: 1, Change.DELIVERED: 3}.get(change, 2)
    status = {Change.CREATED: Status.PLACED, Change.LINES: Status.PLACED}.get(change) or Status(change.value)
    created_at = 1_732_695_300_000_000
    return events.to_json(
        Event(
            id=f"01936cb0-17a0-7000-8000-0000000000e{version}",
            sequence=41 + version,
            change=change,
            time=created_at + version,
            traceparent="00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            order=Order(
                id="01936cb0-17a0-7000-8000-000000000001",
                customer_id="c-alice",
                status=status,
                lines=(Line("1", 3 if change is Change.LINES else 2, 1999), Line("4", 1, 550)),
                currency="EUR",
                version=version,
                created_at=created_at,
                updated_at=created_at + version,
            ),
        )
    )


def _headers() -> Json:
    """All are optional: a message that the broker itself gave up, because nobody settled it, carries none of ours."""
    texts = {
        spans.TRACEPARENT: "W3C Trace Context of the publishing, when order-service traces.",
        broker.REASON: "Why it failed last, at most 1000 characters.",
        broker.FIRST_FAILED: "RFC 3339.",
        broker.LAST_FAILED: "RFC 3339.",
        broker.EXCHANGE: "Where it was published first; on messages that failed or were replayed.",
        broker.ROUTING_KEY: "With which key it was published first.",
        broker.QUEUE: "Whose consumer failed.",
    }
    tries = {"type": "integer", "minimum": 1, "description": "How often it was handled and failed so far."}
    named = {name: {"type": "string", "description": description} for name, description in texts.items()}
    return {"type": "object", "properties": {broker.TRIES: tries, **named}}


def breaks() -> list[str]:
    """What the present code breaks of what is published."""
    found = [
        f"{kind}: {each}"
        for kind in event_schemas.TYPES
        if path(kind).exists()
        for each in event_compatibility.schema_breaks(
            json.loads(path(kind).read_text(encoding="utf-8")), json.loads(printed_schema(kind))
        )
    ]
    found += [f"{old.stem}: is gone" for old in sorted(SCHEMAS.glob("*.json")) if old.stem not in event_schemas.TYPES]
    if DOCUMENT.exists():
        before, after = (yaml.safe_load(text) for text in (DOCUMENT.read_text(encoding="utf-8"), printed()))
        found += event_compatibility.topology_breaks(before, after)
    return found


def main() -> int:
    if found := breaks():
        print(
            "this breaks consumers; make a new event type beside the old one, or for the topology raise the version in"
            " ordersys/__init__.py first:",
            *found,
            sep="\n  ",
            file=sys.stderr,
        )
        return 1
    SCHEMAS.mkdir(exist_ok=True)
    for kind in event_schemas.TYPES:
        path(kind).write_text(printed_schema(kind), encoding="utf-8")
    DOCUMENT.write_text(printed(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
