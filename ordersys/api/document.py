"""What the OpenAPI document says beyond what flask-openapi3 reads from the code (https://spec.openapis.org/oas/v3.1.0).

Everything here is derived from the views and the schemas: a new operation gets its security, its headers and its
error answers without being named. Only examples and words are tables.
"""

import re
from collections.abc import Iterator
from typing import Any

from flask import Flask

from ordersys.api import access, problems
from ordersys.api.examples import BODIES, PROBLEMS

Json = dict[str, Any]

API_KEY, BEARER = "ApiKeyAuth", "BearerAuth"
_METHODS = ("get", "put", "post", "delete", "options", "head", "patch", "trace")
_JSON = "application/json"
_PLACES = ("path", "query", "header")
_READ_IN_ORDER = ("tags", "summary", "description", "operationId", "security", "parameters", "requestBody", "responses")
_BOUNDS = ("minimum", "maximum")
_NAMED = ("properties", "patternProperties")

TAGS = {
    "data": "One line for people.",
    "products": "What can be sold, and how many units of it.",
    "orders": "An order through its whole life: placed, shipped, delivered, or cancelled.",
    "events": "Every change to an order, as it happens.",
    "flow": "How far events are on their way.",
    "health": "For load balancers and monitoring.",
    "pages": "For people, and the description of all this.",
}

_SUMMARIES = {"healthz": "Liveness", "readyz": "Readiness", "get_data": "Get the summary", "get_flow": "Get the flow"}

_HEADERS: Json = {
    "Age": {"description": "Seconds since the data was last known to be right; only with `stale`.", "type": "integer"},
    "ETag": {
        "description": "The version of what is answered: of an order `version` itself, to be sent as `If-Match`; of "
        "anything else a weak one. An answer with `stale` has none.",
        "type": "string",
        "example": '"3"',
    },
    "Idempotent-Replayed": {
        "description": "`true`: this is the first answer to an earlier request with the same `Idempotency-Key`.",
        "type": "string",
        "enum": ["true"],
    },
    "Location": {"description": "The path of the new order.", "type": "string", "format": "uri-reference"},
    "RateLimit": {
        "description": "How many more requests will pass, and within how many seconds; absent without a limit.",
        "type": "string",
        "example": '"default";r=598;t=60',
    },
    "RateLimit-Policy": {
        "description": "How many requests may be sent in how many seconds; absent without a limit.",
        "type": "string",
        "example": '"default";q=600;w=60',
    },
    "Retry-After": {"description": "Seconds to wait before the next try.", "type": "integer", "minimum": 1},
    "WWW-Authenticate": {
        "description": "Which credentials would do (RFC 6750).",
        "type": "string",
        "example": 'Bearer realm="ordersys"',
    },
    "Warning": {"description": "Only with `stale`.", "type": "string", "example": '111 ordersys "Revalidation Failed"'},
    "X-Request-Id": {"description": "That of the request, or one that was made for it.", "type": "string"},
}

_PROBLEM_HEADERS = {
    401: ("WWW-Authenticate",),
    429: ("Retry-After",),
    503: ("Retry-After",),
}

_IF_NONE_MATCH: Json = {
    "name": "If-None-Match",
    "in": "header",
    "required": False,
    "description": "the `ETag` of an answer that the caller has: if it is still the same, 304 without a body",
    "schema": {"type": "string"},
}

_ORDER_LINKS = ("get_order", "update_order", "cancel_order", "ship_order", "deliver_order")
"""What may be done with an order that was answered."""

_PAGES: Json = {
    "/metrics": (
        "get_metrics",
        "Get the metrics",
        "For Prometheus; in the OpenMetrics form for who accepts it.",
        "text/plain",
        {"type": "string"},
    ),
    "/openapi.json": ("get_openapi", "Get this document", "OpenAPI 3.1.", _JSON, {"type": "object"}),
    "/docs": ("get_docs", "Read this document", "The same for people.", "text/html", {"type": "string"}),
    "/": ("get_dashboard", "Watch the shop", "A live page for people.", "text/html", {"type": "string"}),
}


def complete(app: Flask, generated: Json) -> Json:
    """The whole document, made of what flask-openapi3 `generated`; the order of everything in it is stable."""
    document: Json = {
        "openapi": generated["openapi"],
        "info": {**generated["info"], "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"}},
        "servers": [{"url": "/"}],
        "security": [{API_KEY: []}, {BEARER: []}],
        "tags": [{"name": name, "description": text} for name, text in TAGS.items()],
        "paths": {**generated["paths"]},
        "components": {
            "schemas": {
                name: _plain_schema(schema) for name, schema in sorted(generated["components"]["schemas"].items())
            },
            "responses": {},
            "links": {name: _order_link(name) for name in _ORDER_LINKS},
            "headers": {name: _header(**about) for name, about in _HEADERS.items()},
            "parameters": {"IfNoneMatch": _IF_NONE_MATCH},
            "securitySchemes": generated["components"]["securitySchemes"],
        },
    }
    _add_pages(app, document)
    views = _views(app)
    statuses = set()
    for path, method, operation in operations(document):
        statuses |= _finish(document, method, operation, views[path, method])
    for schema in document["components"]["schemas"].values():
        schema.pop("example", None)  # it stands with the bodies now
    document["components"]["responses"] = {
        "NotModified": {
            "description": "What the caller has is still the same.",
            "headers": _headers("ETag", "X-Request-Id"),
        },
        **{f"Problem{status}": _problem(status) for status in sorted(statuses)},
    }
    return document


def operations(document: Json) -> Iterator[tuple[str, str, Json]]:
    """(path, method, operation) of everything that may be asked for."""
    for path, item in document["paths"].items():
        for method in _METHODS:
            if method in item:
                yield path, method, item[method]


def scope_of(document: Json, operation: Json) -> str:
    """The scope that an operation needs; "" = any credentials will do, "public" = none are needed."""
    needed = operation.get("security", document["security"])
    return str(next(iter(needed[0].values()), [""])[0] if any(needed[0].values()) else "") if needed else "public"


def _add_pages(app: Flask, document: Json) -> None:
    """What is served without flask-openapi3."""
    for path, (name, summary, text, content_type, schema) in _PAGES.items():
        if any(rule.rule == path for rule in app.url_map.iter_rules()):
            answer = {"description": "OK", "content": {content_type: {"schema": schema}}}
            tag = "health" if path == "/metrics" else "pages"
            document["paths"][path] = {
                "get": {
                    "tags": [tag],
                    "summary": summary,
                    "description": text,
                    "operationId": name,
                    "responses": {"200": answer, **problems.documented()},
                }
            }


def _views(app: Flask) -> dict[tuple[str, str], Any]:
    """The view behind every path, as OpenAPI writes it, and method."""
    return {
        (re.sub(r"<(?:[^<:]+:)?([^>]+)>", r"{\1}", rule.rule), method.lower()): app.view_functions[rule.endpoint]
        for rule in app.url_map.iter_rules()
        for method in rule.methods or ()
    }


def _finish(document: Json, method: str, operation: Json, view: Any) -> set[int]:
    """Complete one operation; the statuses of the problems that it may answer."""
    text = operation.get("description") or operation["summary"]
    if "description" not in operation:
        spoken = operation["operationId"].replace("_", " ")
        operation["summary"] = _SUMMARIES.get(operation["operationId"], spoken[:1].upper() + spoken[1:])
    operation["description"] = text.replace("<br/>", "\n")
    public = access.is_public(view)
    scope = getattr(view, "scope", None)
    refusals = {429, 401, 503, *((403,) if scope else ())}
    if public:
        operation["security"] = []
    else:
        needed = [str(scope)] if scope else []
        operation["security"] = [{API_KEY: needed}, {BEARER: needed}]
        operation["description"] += f"\n\nNeeds the scope `{scope}`." if scope else "\n\nNeeds any key or token."
    for parameter in operation.get("parameters", []):
        _plain_parameter(parameter)
    body = operation.get("requestBody")
    if body:
        _give_example(document, body["content"][_JSON])
    answers = operation["responses"]
    failed = {int(status) for status in answers if _is_problem(answers[status])}
    failed = failed - refusals if public else failed | refusals
    if not {"query", "path", "header", "body"} & set(getattr(view, "__annotations__", ())):
        failed.discard(400)  # there is nothing to get wrong
    if public:
        failed.discard(500)
    succeeded = {status: answer for status, answer in answers.items() if not _is_problem(answer)}
    names = {parameter["name"] for parameter in operation.get("parameters", [])}
    for status, answer in succeeded.items():
        _describe(document, method, operation, int(status), answer, names, public=public)
    answers = {**succeeded, **{str(s): {"$ref": f"#/components/responses/Problem{s}"} for s in failed}}
    parameters = sorted(operation.get("parameters", []), key=lambda each: _PLACES.index(each["in"]))
    if method == "get" and "ETag" in succeeded["200"]["headers"]:
        parameters.append({"$ref": "#/components/parameters/IfNoneMatch"})
        answers["304"] = {"$ref": "#/components/responses/NotModified"}
    operation["responses"] = dict(sorted(answers.items()))
    if parameters:
        operation["parameters"] = parameters
    _order(operation)
    return failed


def _order(operation: Json) -> None:
    """In the order in which one reads it."""
    for key in _READ_IN_ORDER:
        if key in operation:
            operation[key] = operation.pop(key)


def _describe(
    document: Json, method: str, operation: Json, status: int, answer: Json, names: set[str], *, public: bool
) -> None:
    """Headers and example of an answer that is no problem."""
    content = answer.get("content", {})
    reference = content.get(_JSON, {}).get("schema", {}).get("$ref", "").rpartition("/")[2]
    schema = document["components"]["schemas"].get(reference, {})
    said = ["X-Request-Id"]
    if not public:
        said += ["RateLimit", "RateLimit-Policy"]
    if _JSON in content:
        _give_example(document, content[_JSON])
        if status < 300 and (method == "get" or "version" in schema.get("properties", {})):
            said.append("ETag")
        if "stale" in schema.get("properties", {}):
            said += ["Age", "Warning"] if method == "get" else []
    elif "text/html" in content:
        said.append("ETag")
    if "Idempotency-Key" in names:
        said.append("Idempotent-Replayed")
    if status == 201:
        said.append("Location")
    if status < 300 and reference == "Order":
        answer["links"] = {name: {"$ref": f"#/components/links/{name}"} for name in _ORDER_LINKS}
    if status < 300 and "next_page_token" in schema.get("properties", {}):
        token = {"query.page_token": "$response.body#/next_page_token"}
        answer["links"] = {"next_page": {"operationId": operation["operationId"], "parameters": token}}
    answer["headers"] = {**answer.get("headers", {}), **_headers(*said)}


def _is_problem(answer: Json) -> bool:
    """Also the answer that flask-openapi3 adds where nothing is said of a 400."""
    return any("Problem" in str(each.get("schema")) for each in answer.get("content", {}).values())


def _problem(status: int) -> Json:
    about = PROBLEMS[status]
    return {
        "description": about.description,
        "headers": _headers(*_PROBLEM_HEADERS.get(status, ()), "X-Request-Id"),
        "content": {
            problems.CONTENT_TYPE: {
                "schema": {"$ref": "#/components/schemas/Problem"},
                "examples": {code: {"value": value} for code, value in about.examples().items()},
            }
        },
    }


def _order_link(operation_id: str) -> Json:
    precondition = {} if operation_id == "get_order" else {"header.If-Match": "$response.header.ETag"}
    return {"operationId": operation_id, "parameters": {"path.id": "$response.body#/id", **precondition}}


def _header(description: str, **schema: Any) -> Json:
    example = {"example": schema.pop("example")} if "example" in schema else {}
    return {"description": description, "schema": schema, **example}


def _headers(*names: str) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in sorted(names)}


def _give_example(document: Json, media: Json) -> None:
    """The example of a body is that of its schema, or the one in our table."""
    name = media["schema"].get("$ref", "").rpartition("/")[2]
    schema = document["components"]["schemas"].get(name, {})
    if "example" in schema:
        media["example"] = schema["example"]
    elif name in BODIES:
        media["example"] = BODIES[name]


def _plain_parameter(parameter: Json) -> None:
    schema = parameter["schema"] = _plain_schema(parameter["schema"])
    for told_twice in ("description", "example"):
        schema.pop(told_twice, None)
    if parameter["in"] == "header" and schema.get("default") == "":
        del schema["default"]  # it stands for a header that is absent, not for an empty one
    parameter.pop("examples", None)  # a list there; OpenAPI has a map


def _plain_schema(schema: Any, *, named: bool = False) -> Any:
    """Without what pydantic makes up: titles, and null for an absent field. `named`: its keys are names of fields."""
    if isinstance(schema, list):
        return [_plain_schema(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if named:
        return {name: _plain_schema(each) for name, each in schema.items()}
    plain = {
        key: value if key in ("default", "example", "examples", "enum") else _plain_schema(value, named=key in _NAMED)
        for key, value in schema.items()
        if key != "$defs" and (key != "title" or not isinstance(value, str))
    }
    choices = [each for each in plain.get("anyOf", []) if each != {"type": "null"}]
    if "anyOf" in plain and len(choices) == 1 and plain.get("default", "") is None:
        del plain["anyOf"], plain["default"]
        plain = {**choices[0], **plain}
    if plain.get("type") == "integer":
        plain.update({bound: int(plain[bound]) for bound in _BOUNDS if bound in plain})
    return plain
