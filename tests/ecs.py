"""The fields of our log lines, and what Elasticsearch would make of them.

Names and types: https://www.elastic.co/docs/reference/ecs/ecs-field-reference and, where that has none (http.route,
rpc.*), https://opentelemetry.io/docs/specs/semconv/registry/attributes/; ordersys.* are our own.
"""

import re
from typing import Any

REQUIRED = {
    "@timestamp": "date",
    "log.level": "keyword",
    "message": "text",
    "log.logger": "keyword",
    "ecs.version": "keyword",
    "service.name": "keyword",
    "service.version": "keyword",
    "service.node.name": "keyword",
    "process.pid": "long",
}
OPTIONAL = {
    "trace.id": "keyword",
    "span.id": "keyword",
    "event.duration": "long",  # nanoseconds
    "event.outcome": "keyword",
    "error.type": "keyword",
    "error.code": "keyword",
    "error.message": "text",
    "error.stack_trace": "text",
    "http.request.id": "keyword",
    "http.request.method": "keyword",
    "http.response.status_code": "long",
    "http.route": "keyword",
    "url.path": "keyword",
    "client.address": "keyword",
    "rpc.system.name": "keyword",
    "rpc.method": "keyword",
    "rpc.response.status_code": "keyword",
    "ordersys.order.id": "keyword",
    "ordersys.event.id": "keyword",
    "ordersys.queue": "keyword",
    "ordersys.caller": "keyword",
}
FIELDS = {**REQUIRED, **OPTIONAL}
_CHOICES = {
    "log.level": {"debug", "info", "warning", "error", "critical"},
    "event.outcome": {"success", "failure", "unknown"},
}
_DATE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00")
_MOST = 32_766  # bytes of a keyword that Lucene takes


def complaints(line: dict[str, Any]) -> list[str]:
    """What Elasticsearch would not take, or not find again."""
    found = [f"{name} is missing" for name in REQUIRED.keys() - line.keys()]
    for name, value in line.items():
        if name not in FIELDS:
            found.append(f"{name} is no field")
        elif not _fits(FIELDS[name], value):
            found.append(f"{name}: {value!r} is no {FIELDS[name]}")
        elif name in _CHOICES and value not in _CHOICES[name]:
            found.append(f"{name}: {value!r} is none of {_CHOICES[name]}")
    return found


def _fits(kind: str, value: object) -> bool:
    if kind == "long":
        return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
    if kind == "date":
        return isinstance(value, str) and _DATE.fullmatch(value) is not None
    values = value if isinstance(value, list) else [value]  # any field may have several values
    return all(isinstance(each, str) and (kind == "text" or len(each.encode()) < _MOST) for each in values)
