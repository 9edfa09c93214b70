"""What of published events and of the topology their consumers rely on, and whether another version still keeps it.

A consumer reads what is in its queue when it comes, and sends to the dead letters what it does not understand. So it
relies on every event still being right by the schema that it knows: a field more is no break, another value is one.
"""

from collections.abc import Iterator
from typing import Any

from api_compatibility import may_break

Json = dict[str, Any]

WORDS = ("title", "description", "examples", "$id", "$schema")
"""What may change about a schema: it is for people."""
PLACES = ("address", "bindings", "messages", "x-arguments", "x-bindings")
"""What belongs to a channel for good: a queue with other arguments cannot even be declared again."""


def schema_breaks(old: Json, new: Json) -> list[str]:
    """What those who read by the schema `old` would stumble over in what is written by `new`, in words."""
    return list(_schema("event", (old, old), (new, new)))


def topology_breaks(old: Json, new: Json) -> list[str]:
    """What of the AsyncAPI document `old` those who publish and consume miss in `new` that did not say so."""
    return [] if may_break(old["info"]["version"], new["info"]["version"]) else list(_topology(old, new))


def _schema(where: str, old: tuple[Json, Json], new: tuple[Json, Json]) -> Iterator[str]:
    """Each schema comes with the document that its references lead into."""
    before, after = _resolved(*old), _resolved(*new)
    required = set(before.get("required", [])) - set(after.get("required", []))
    yield from (f"{where}.{name}: may be absent now" for name in sorted(required))
    for name, schema in before.get("properties", {}).items():
        now = after.get("properties", {}).get(name)
        if now is None:
            yield f"{where}.{name}: is gone"
        else:
            yield from _schema(f"{where}.{name}", (schema, old[1]), (now, new[1]))
    if "items" in before:
        yield from _schema(f"{where}[]", (before["items"], old[1]), (after.get("items", {}), new[1]))
    for key in sorted(before.keys() - {*WORDS, "required", "properties", "items", "$defs"}):
        if not _kept(key, before[key], after.get(key)):
            yield f"{where}: {key} was {before[key]!r}, is {after.get(key)!r}"


def _kept(key: str, before: Any, after: Any) -> bool:
    """Whether this limit holds as before; a tighter one holds, too. Nobody compares two patterns."""
    if key.startswith("min") and after is not None:
        return bool(after >= before)
    if key.startswith("max") and after is not None:
        return bool(after <= before)
    return bool(before == after)


def _topology(old: Json, new: Json) -> Iterator[str]:
    for name, channel in old["channels"].items():
        now = new["channels"].get(name)
        if now is None:
            yield f"{name} is gone"
            continue
        for key in PLACES:
            if channel.get(key) != now.get(key):
                yield f"{name}: {key} changed"
    for name, operation in old["operations"].items():
        now = new["operations"].get(name, {})
        if any(operation.get(key) != now.get(key) for key in ("action", "channel", "messages")):
            yield f"{name} is gone or changed"
    for name, message in old["components"]["messages"].items():
        now = new["components"]["messages"].get(name)
        if now is None:
            yield f"the message {name} is gone"
            continue
        if message.get("contentType") != now.get("contentType") or message["payload"] != now["payload"]:
            yield f"the message {name}: its content changed"
        yield from _schema(f"the message {name}: headers", (message["headers"], old), (now["headers"], new))


def _resolved(schema: Json, document: Json) -> Json:
    while "$ref" in schema:
        found: Any = document
        for part in schema["$ref"].removeprefix("#/").split("/"):
            found = found[part]
        schema = {**found, **{key: value for key, value in schema.items() if key != "$ref"}}
    return schema
