"""The OpenAPI document, the page that shows it, and what is published of both."""

import copy
import json
import re
import socket
from collections.abc import Callable, Iterator
from typing import Any

import api_compatibility
import published_api
import pytest
from api_fakes import FakeChannel, FakeOrders, FakeProducts
from flask import Flask
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012
from typer.testing import CliRunner

import ordersys
from ordersys import cli
from ordersys.api import access, docs, document, problems
from ordersys.api.app import create_app
from ordersys.api.keys import Scope

Json = dict[str, Any]


@pytest.fixture(scope="module")
def app() -> Flask:
    return create_app(FakeChannel(FakeProducts()), FakeChannel(FakeOrders()))


@pytest.fixture(scope="module")
def described(app: Flask) -> Json:
    found = app.test_client().get("/openapi.json").json
    assert isinstance(found, dict)
    return found


def all_operations(described: Json) -> list[tuple[str, str, Json]]:
    found = list(document.operations(described))
    assert len(found) >= 15
    return found


def nodes(node: Any) -> Iterator[Json]:
    """Every object in the document."""
    if isinstance(node, dict):
        yield node
        for each in node.values():
            yield from nodes(each)
    elif isinstance(node, list):
        for each in node:
            yield from nodes(each)


# --- the document ---------------------------------------------------------------------------------------------------


def test_it_is_valid_openapi_3_1(described: Json) -> None:
    assert described["openapi"].startswith("3.1.")
    OpenAPIV31SpecValidator(described).validate()


def test_it_says_which_version_it_describes_under_which_license_and_where(described: Json) -> None:
    assert described["info"]["version"] == ordersys.__version__
    assert described["info"]["license"]["identifier"] == "Apache-2.0"
    assert described["servers"] == [{"url": "/"}]


def test_every_operation_has_its_words(described: Json) -> None:
    found = all_operations(described)
    tags = {tag["name"] for tag in described["tags"]}
    for path, method, operation in found:
        where = f"{method} {path}"
        assert re.fullmatch("[a-z_]+", operation["operationId"]), where
        assert operation["summary"], where
        assert len(operation["summary"]) < 40, where
        assert operation["description"], where
        assert operation["tags"], where
        assert set(operation["tags"]) <= tags, where
    assert len({operation["operationId"] for *_, operation in found}) == len(found)


def test_everything_that_is_served_is_described(app: Flask, described: Json) -> None:
    served = {
        (re.sub("<([^>]+)>", r"{\1}", rule.rule), method.lower())
        for rule in app.url_map.iter_rules()
        for method in (rule.methods or set()) - {"HEAD", "OPTIONS"}
        if not rule.rule.startswith(("/assets/", "/docs/"))  # what belongs to a page
    }
    assert {(path, method) for path, method, _ in all_operations(described)} == served


def test_every_operation_says_who_may(app: Flask, described: Json) -> None:
    scopes = {
        operation["operationId"]: document.scope_of(described, operation) for *_, operation in all_operations(described)
    }
    assert scopes["place_order"] == scopes["update_order"] == "orders:write"
    assert scopes["list_orders"] == scopes["watch_events"] == "orders:read"
    assert scopes["adjust_stock"] == "stock:write"
    assert scopes["get_flow"] == scopes["get_metrics"] == "admin"
    assert scopes["list_products"] == scopes["get_data"] == ""
    assert {name for name, scope in scopes.items() if scope == "public"} == {
        *("healthz", "readyz", "get_openapi", "get_docs", "get_dashboard"),
    }
    for *_, operation in all_operations(described):
        scope, errors = scopes[operation["operationId"]], {int(status) for status in operation["responses"]}
        assert ({401, 429} <= errors) == (scope != "public"), operation["operationId"]
        assert (403 in errors) == (scope in set(Scope)), operation["operationId"]


def test_the_security_schemes_are_those_that_are_taken(described: Json) -> None:
    schemes = described["components"]["securitySchemes"]
    assert (schemes["ApiKeyAuth"]["in"], schemes["ApiKeyAuth"]["name"]) == ("header", access.KEY_HEADER)
    assert (schemes["BearerAuth"]["type"], schemes["BearerAuth"]["scheme"]) == ("http", "bearer")
    assert all(scope in schemes["ApiKeyAuth"]["description"] for scope in Scope)


def test_every_failure_is_a_problem(described: Json) -> None:
    for *_, operation in all_operations(described):
        for status, answer in operation["responses"].items():
            if int(status) >= 400 and operation["operationId"] != "readyz":
                assert answer == {"$ref": f"#/components/responses/Problem{status}"}
    answers = described["components"]["responses"]
    for status in (400, 401, 403, 404, 409, 412, 413, 415, 422, 429, 500, 503):
        assert list(answers[f"Problem{status}"]["content"]) == [problems.CONTENT_TYPE]


def test_every_code_of_a_problem_is_shown_with_its_status(described: Json) -> None:
    shown: dict[str, set[int]] = {}
    for name, answer in described["components"]["responses"].items():
        for media in answer.get("content", {}).values():
            for code, example in media["examples"].items():
                value = example["value"]
                assert (value["code"], value["type"]) == (code, f"urn:ordersys:problem:{code}")
                assert name == f"Problem{value['status']}"
                shown.setdefault(code, set()).add(value["status"])
    # These three answer to no operation: the path, the method or the request itself is none.
    told = {code: status for code, status in problems.STATUS.items() if code not in _OF_NO_OPERATION}
    assert set(shown) == set(told)
    assert all(status in shown[code] for code, status in told.items())


_OF_NO_OPERATION = ("not_found", "method_not_allowed", "request_timeout")


def test_every_body_has_an_example_that_is_right(described: Json) -> None:
    registry = Registry().with_resource("urn:api", Resource(contents=described, specification=DRAFT202012))
    seen = 0
    for *_, operation in all_operations(described):
        bodies = [operation.get("requestBody", {}), *operation["responses"].values()]
        for body in bodies:
            found = resolved(described, body)
            for kind, media in found.get("content", {}).items():
                if not kind.endswith("json") or operation["operationId"] == "get_openapi":
                    continue
                examples = [each["value"] for each in media.get("examples", {}).values()] or [media["example"]]
                schema = json.loads(json.dumps(media["schema"]).replace('"#/', '"urn:api#/'))
                for example in examples:
                    OAS31Validator(schema, registry=registry).validate(example)
                    seen += 1
    assert seen > 100


def test_the_headers_that_matter_are_described(described: Json) -> None:
    operations = {operation["operationId"]: operation for *_, operation in all_operations(described)}

    def headers(name: str, status: str) -> set[str]:
        return set(resolved(described, operations[name]["responses"][status])["headers"])

    assert {"ETag", "Location", "Idempotent-Replayed", "RateLimit", "X-Request-Id"} <= headers("place_order", "201")
    assert {"ETag", "Idempotent-Replayed"} <= headers("ship_order", "200")
    assert {"Age", "Warning", "ETag"} <= headers("list_products", "200")
    assert "Location" not in headers("update_order", "200")
    assert {"Retry-After", "X-Request-Id"} == headers("get_data", "503")
    assert "WWW-Authenticate" in headers("get_data", "401")
    sent = {
        name: {resolved(described, each)["name"] for each in operation.get("parameters", [])}
        for name, operation in operations.items()
    }
    assert {"Idempotency-Key", "If-Match"} <= sent["update_order"]
    assert "If-None-Match" in sent["get_order"]
    assert "Last-Event-ID" in sent["watch_events"]
    assert list(operations["watch_events"]["responses"]["200"]["content"]) == ["text/event-stream"]


def test_nothing_is_described_that_nobody_refers_to(described: Json) -> None:
    used = {node["$ref"] for node in nodes(described) if isinstance(node.get("$ref"), str)}
    for kind, components in described["components"].items():
        if kind != "securitySchemes":
            assert {f"#/components/{kind}/{name}" for name in components} <= used


def test_a_field_that_may_be_absent_is_not_said_to_be_null(described: Json) -> None:
    assert {"type": "null"} not in list(nodes(described["components"]["schemas"]))
    assert "title" in described["components"]["schemas"]["Problem"]["properties"]


def test_two_gateways_describe_themselves_alike(described: Json) -> None:
    again = create_app(FakeChannel(FakeProducts()), FakeChannel(FakeOrders()))
    assert json.dumps(docs.of(again)) == json.dumps(described)


def resolved(described: Json, node: Json) -> Json:
    return described["components"][node["$ref"].split("/")[2]][node["$ref"].split("/")[3]] if "$ref" in node else node


# --- /docs ----------------------------------------------------------------------------------------------------------


def test_the_page_loads_nothing_from_elsewhere(app: Flask) -> None:
    http = app.test_client()
    page = http.get("/docs")
    assert page.content_type == "text/html; charset=utf-8"
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe-eval" not in policy
    assert not re.search(r"https?:|\*", policy)
    assert not re.search(r'(src|href)="(https?:)?//', page.text)
    assets = re.findall(r'src="([^"]+)"', page.text)
    assert len(assets) == 2
    for asset in assets:
        answer = http.get(f"/{asset}")
        assert (answer.status_code, answer.mimetype) == (200, "text/javascript")
        assert "immutable" in answer.headers["Cache-Control"]
        packed = http.get(f"/{asset}", headers={"Accept-Encoding": "gzip"})
        assert packed.headers["Content-Encoding"] == "gzip"
        assert len(packed.data) < len(answer.data) or len(answer.data) < 1024


def test_an_asset_of_another_version_is_not_kept(app: Flask) -> None:
    assert app.test_client().get("/docs/another/docs.js").headers["Cache-Control"] == "no-store"


def test_an_unknown_asset_is_a_problem(app: Flask) -> None:
    answer = app.test_client().get("/docs/another/none.js")
    assert (answer.status_code, answer.content_type) == (404, problems.CONTENT_TYPE)


# --- what is published ----------------------------------------------------------------------------------------------


def published() -> Json:
    found = json.loads(published_api.DOCUMENT.read_text(encoding="utf-8"))
    assert isinstance(found, dict)
    return found


def test_the_command_prints_the_document_and_connects_to_nothing(
    described: Json, monkeypatch: pytest.MonkeyPatch
) -> None:
    def connect(*_: object) -> None:
        raise AssertionError("it must not connect")

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(socket.socket, "bind", connect)
    done = CliRunner().invoke(cli.app, ["api", "--print-openapi"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == described


def test_callers_are_not_broken_without_a_new_version() -> None:
    found = published_api.breaks(published(), json.loads(docs.printed()))
    assert found == [], "the API breaks its callers: raise the version in ordersys/__init__.py, or do not"


def test_the_published_document_is_the_present_one() -> None:
    assert published_api.DOCUMENT.read_text(encoding="utf-8") == docs.printed(), f"renew it: {published_api.RENEW}"


def test_the_reference_has_every_endpoint() -> None:
    page = published_api.PAGE.read_text(encoding="utf-8")
    rows = published_api.table(json.loads(docs.printed()))
    assert published_api.with_table(page, rows) == page, f"renew it: {published_api.RENEW}"


@pytest.mark.parametrize("page", ["", "<!-- endpoints -->", "<!-- /endpoints --><!-- endpoints -->"])
def test_a_page_without_a_place_for_the_table_is_refused(page: str) -> None:
    with pytest.raises(ValueError, match="endpoints"):
        published_api.with_table(page, "")


# --- the rules of compatibility, tried on documents that break them ------------------------------------------------

PLACE = ("paths", "/api/v1/orders", "post")
READ = ("paths", "/api/v1/orders/{id}", "get")
LIST = ("paths", "/api/v1/orders", "get")
SCHEMAS = ("components", "schemas")
Change = Callable[[Json], None]


def at(document_: Json, *path: str | int) -> Any:
    found: Any = document_
    for part in path:
        found = found[part]
    return found


def put(*path: Any) -> Change:
    """Set what stands at the path but its last part to that."""
    return lambda found: at(found, *path[:-2]).__setitem__(path[-2], path[-1])


def drop(*path: str | int) -> Change:
    return lambda found: at(found, *path[:-1]).__delitem__(path[-1])


def remove(value: Any, *path: str | int) -> Change:
    return lambda found: at(found, *path).remove(value)


def add(value: Any, *path: str | int) -> Change:
    return lambda found: at(found, *path).append(value)


def parameter(place: tuple[str, ...], name: str, change: Callable[[Json], object]) -> Change:
    def changed(found: Json) -> None:
        (each,) = (each for each in at(found, *place, "parameters") if each.get("name") == name)
        change(each)

    return changed


BREAKS: dict[str, tuple[Change, str]] = {
    "a path": (drop("paths", "/api/data"), "/api/data is gone"),
    "an operation": (drop(*PLACE), "POST /api/v1/orders is gone"),
    "a server": (put("servers", [{"url": "/v2"}]), "servers"),
    "an operationId": (put(*PLACE, "operationId", "create_order"), "operationId"),
    "a success": (drop(*PLACE, "responses", "201"), "the status 201 is gone"),
    "a content type": (drop(*READ, "responses", "200", "content", "application/json"), "application/json is gone"),
    "a header": (drop(*PLACE, "responses", "201", "headers", "Location"), "the header Location is gone"),
    "a field": (drop(*SCHEMAS, "Order", "properties", "total"), "GET /api/v1/orders/{id} 200.total: is gone"),
    "a field in a list": (drop(*SCHEMAS, "Line", "properties", "quantity"), "orders[].lines[].quantity: is gone"),
    "a field of a problem": (drop(*SCHEMAS, "Problem", "properties", "code"), "400.code: is gone"),
    "a certain field": (remove("version", *SCHEMAS, "Order", "required"), ".version: may be absent"),
    "a type in an answer": (put(*SCHEMAS, "Order", "properties", "version", "type", "string"), "may be string"),
    "null in an answer": (put(*SCHEMAS, "Order", "properties", "id", "type", ["string", "null"]), "may be null"),
    "a format": (drop(*SCHEMAS, "Order", "properties", "created_at", "format"), "format is gone"),
    "a value in an answer": (remove("shipped", *SCHEMAS, "Status", "enum"), "the value 'shipped' is gone"),
    "a code": (
        drop(
            "components", "responses", "Problem409", "content", problems.CONTENT_TYPE, "examples", "insufficient_stock"
        ),
        "the code insufficient_stock",
    ),
    "a new required parameter": (
        add({"name": "shop", "in": "query", "required": True, "schema": {}}, *LIST, "parameters"),
        "query parameter shop is new and required",
    ),
    "a required parameter": (
        parameter(LIST, "status", lambda each: each.update(required=True)),
        "query parameter status is required",
    ),
    "a parameter": (parameter(LIST, "status", lambda each: each.update(name="state")), "parameter status is gone"),
    "a type in a request": (
        parameter(LIST, "page_size", lambda each: each["schema"].update(type="string")),
        "no longer taken as integer",
    ),
    "a limit": (parameter(LIST, "page_size", lambda each: each["schema"].update(maximum=10)), "maximum fell"),
    "a value in a request": (
        parameter(LIST, "status", lambda each: each["schema"]["enum"].remove("shipped")),
        "the value 'shipped' is gone",
    ),
    "values where there was anything": (
        parameter(LIST, "customer_id", lambda each: each["schema"].update(enum=["c-1"])),
        "only some values",
    ),
    "a pattern": (parameter(PLACE, "Idempotency-Key", lambda each: each["schema"].update(pattern="^a$")), "pattern"),
    "a new required field": (add("shop", *SCHEMAS, "WantedOrder", "required"), "body.shop: is required"),
    "a field in a request": (drop(*SCHEMAS, "WantedOrder", "properties", "customer_id"), "customer_id: is gone"),
    "a shorter list": (put(*SCHEMAS, "WantedOrder", "properties", "lines", "maxItems", 5), "maxItems fell"),
    "a higher minimum": (put(*SCHEMAS, "WantedLine", "properties", "quantity", "minimum", 2), "minimum rose"),
    "a new limit": (put(*SCHEMAS, "WantedLine", "properties", "quantity", "exclusiveMaximum", 9), "exclusiveMaximum"),
    "a closed object": (put(*SCHEMAS, "Money", "additionalProperties", False), ""),
    "a body": (drop(*PLACE, "requestBody"), "takes no body"),
    "a body that may be missing": (
        put("paths", "/api/v1/orders/{id}/cancel", "post", "requestBody", "required", True),
        "the body is required",
    ),
    "a body where there was none": (
        put("paths", "/api/v1/orders/{id}/ship", "post", "requestBody", {"required": True, "content": {}}),
        "needs a body",
    ),
    "a body's content type": (drop(*PLACE, "requestBody", "content", "application/json"), "takes no application/json"),
    "security": (put("paths", "/healthz", "get", "security", [{"ApiKeyAuth": []}]), "needs credentials"),
    "a scope": (
        put("paths", "/api/data", "get", "security", [{"ApiKeyAuth": ["admin"]}, {"BearerAuth": []}]),
        "scope admin",
    ),
    "a kind of credentials": (put(*PLACE, "security", [{"ApiKeyAuth": ["orders:write"]}]), "BearerAuth is no longer"),
    "the name of the key's header": (put("components", "securitySchemes", "ApiKeyAuth", "name", "X-Key"), "ApiKeyAuth"),
}
KEEPS: dict[str, Change] = {
    "a closed answer": BREAKS.pop("a closed object")[0],
    "a new path": lambda found: put("paths", "/api/v2/data", found["paths"]["/api/data"])(found),
    "a new field": put(*SCHEMAS, "Order", "properties", "note", {"type": "string"}),
    "a new value in an answer": add("returned", *SCHEMAS, "Status", "enum"),
    "a new optional parameter": add({"name": "sort", "in": "query", "schema": {"type": "string"}}, *LIST, "parameters"),
    "a new optional field": put(*SCHEMAS, "WantedOrder", "properties", "note", {"type": "string"}),
    "a wider limit": put(*SCHEMAS, "WantedLine", "properties", "quantity", "maximum", 10**9),
    "no limit": drop(*SCHEMAS, "WantedOrder", "properties", "lines", "maxItems"),
    "a number for an integer": put(*SCHEMAS, "WantedLine", "properties", "quantity", "type", ["integer", "number"]),
    "another error": put(*READ, "responses", "418", {"$ref": "#/components/responses/Problem400"}),
    "less security": put(*PLACE, "security", []),
    "other words": put(*PLACE, "description", "something else"),
}


@pytest.mark.parametrize("what", BREAKS)
def test_a_break_is_found(what: str) -> None:
    change, words = BREAKS[what]
    old = published()
    new = copy.deepcopy(old)
    change(new)
    found = api_compatibility.breaking(old, new)
    assert any(words in each for each in found), found
    assert published_api.breaks(old, new) == found


@pytest.mark.parametrize("what", KEEPS)
def test_an_addition_is_no_break(what: str) -> None:
    old = published()
    new = copy.deepcopy(old)
    KEEPS[what](new)
    assert new != old
    assert api_compatibility.breaking(old, new) == []


@pytest.mark.parametrize(
    ("before", "after", "may"),
    [
        ("0.1.0", "0.2.0", True),
        ("0.1.0", "1.0.0", True),
        ("1.2.0", "2.0.0", True),
        ("0.1.0", "0.1.1", False),
        ("1.1.0", "1.2.0", False),
        ("0.2.0", "0.1.0", False),
        ("2.0.0", "1.0.0", False),
    ],
)
def test_a_break_is_allowed_when_the_version_says_so(before: str, after: str, may: bool) -> None:
    old = published()
    new = copy.deepcopy(old)
    del new["paths"]["/api/data"]
    old["info"]["version"], new["info"]["version"] = before, after
    assert (published_api.breaks(old, new) == []) is may
