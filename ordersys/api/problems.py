"""Every failure as `application/problem+json` (RFC 9457), with the same stable `code` that gRPC callers get."""

import math
from collections.abc import Iterable, Mapping
from http import HTTPStatus

from flask import Flask, Response, g, json, request
from flask_openapi3.types import ResponseDict
from pydantic import BaseModel, Field, ValidationError
from pydantic_core import ErrorDetails
from werkzeug.exceptions import HTTPException

from ordersys.api import http, request_log
from ordersys.api.request_log import Failure
from ordersys.core import errors, fields

CONTENT_TYPE = "application/problem+json"

STATUS: dict[str, int] = {
    "invalid_argument": 400,
    "unauthenticated": 401,
    "permission_denied": 403,
    "product_not_found": 404,
    "order_not_found": 404,
    "not_found": 404,
    "method_not_allowed": 405,
    "request_timeout": 408,
    "insufficient_stock": 409,
    "order_refused": 409,
    "invalid_transition": 409,
    "version_conflict": 412,
    "payload_too_large": 413,
    "unsupported_media_type": 415,
    "idempotency_key_reused": 422,
    "rate_limited": 429,
    "internal": 500,
    "unavailable": 503,
}
"""ONE table code -> HTTP status."""

_OF_HTTP = {
    STATUS[code]: code
    for code in (
        "unauthenticated",
        "permission_denied",
        "not_found",
        "method_not_allowed",
        "request_timeout",
        "payload_too_large",
        "unsupported_media_type",
        "rate_limited",
        "internal",
        "unavailable",
    )
}
MOST_ERRORS = 100  # of what is wrong with one request
MOST_DETAIL = 2000  # characters

# What these two say of the inside stays in our log.
_INTERNAL = "internal error"
_UNAVAILABLE = "the order backend cannot answer now; repeat the request later, a write with the same Idempotency-Key"


class FieldError(BaseModel):
    field: str = Field(examples=["lines[0].quantity"])
    description: str


class Problem(BaseModel):
    """RFC 9457, extended by `code`, by `errors` for bad input and by `metadata` for what a program may want to know."""

    type: str = Field(examples=["urn:ordersys:problem:insufficient_stock"])
    title: str = Field(examples=["Conflict"])
    status: int = Field(examples=[409])
    detail: str
    code: str = Field(examples=["insufficient_stock"])
    trace_id: str = Field(description="W3C Trace Context; our log has it, too", examples=["8b3fd1c7" * 4])
    errors: list[FieldError] | None = None
    metadata: dict[str, str] | None = None


def documented(*statuses: int) -> ResponseDict:
    """For an operation's OpenAPI description: these answers, beside those that every one may give."""
    content = {CONTENT_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {
        str(status): {"description": HTTPStatus(status).phrase, "content": content}
        for status in sorted({400, 401, 429, 500, 503, *statuses})
    }


def register(app: Flask) -> None:
    """From here on the app answers no error in any other form."""
    app.register_error_handler(errors.OrdersysError, _of_ours)
    app.register_error_handler(HTTPException, _of_http)
    app.register_error_handler(Exception, _of_bug)


def refuse(error: ValidationError) -> None:
    """Raise pydantic's complaints as InvalidArgument, one entry per field."""
    found = error.errors(include_url=False, include_context=False, include_input=False)[:MOST_ERRORS]
    raise errors.InvalidArgument([errors.FieldViolation(_path(each["loc"]), _words(each)) for each in found]) from error


def _words(error: ErrorDetails) -> str:
    if error["type"] == "extra_forbidden":
        return "is not known here"
    return error["msg"].removeprefix("Value error, ")


def _path(location: Iterable[str | int]) -> str:
    """`lines[0].quantity`, as the services write it."""
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else part
    return path or "body"


def _of_ours(error: errors.OrdersysError) -> Response:
    headers = {}
    if isinstance(retry_after := getattr(error, "retry_after", None), int | float):
        headers["Retry-After"] = str(max(1, math.ceil(retry_after)))
    if isinstance(error, errors.Unavailable):
        request_log.explain(Failure(error.code, error.message))
        return _answer(error.code, _UNAVAILABLE, headers=headers)
    status = STATUS.get(error.code, 500)
    if status == 500:
        return _of_bug(error)
    if isinstance(error, errors.VersionConflict) and "If-Match" not in request.headers:
        status = 409  # 412 answers a precondition (RFC 9110 section 15.5.13), and there was none
    extra: dict[str, object] = {}
    if isinstance(error, errors.InvalidArgument):
        extra["errors"] = [
            {"field": each.field[: fields.MAX_ID], "description": each.description}
            for each in error.violations[:MOST_ERRORS]
        ]
    if error.metadata:
        extra["metadata"] = error.metadata
    if challenge := _challenge(error):
        headers["WWW-Authenticate"] = challenge
    return _answer(error.code, error.message[:MOST_DETAIL], status, headers, extra)


def _challenge(error: errors.OrdersysError) -> str:
    """Which credentials would do (RFC 6750 section 3); "" where none would help."""
    realm = 'Bearer realm="ordersys"'
    if isinstance(error, errors.Unauthenticated):
        sent = request.headers.get("Authorization", "").lower().startswith("bearer ")
        return f'{realm}, error="invalid_token"' if sent else realm
    if isinstance(error, errors.PermissionDenied) and "scope" in error.metadata:
        return f'{realm}, error="insufficient_scope", scope="{error.metadata["scope"]}"'
    return ""


def _of_http(error: HTTPException) -> Response | HTTPException:
    if error.code is None or error.code < 400:  # a redirect
        return error
    if error.code >= 500 and error.code != STATUS["unavailable"]:
        return _of_bug(error)
    headers = {name: value for name, value in error.get_headers() if name.lower() != "content-type"}
    return _answer(code_of(error.code), error.description or "", error.code, headers)


def _of_bug(error: Exception) -> Response:
    request_log.explain(Failure("internal", f"{type(error).__name__}: {error}", error))
    return _answer("internal", _INTERNAL)


def _answer(
    code: str,
    detail: str,
    status: int | None = None,
    headers: Mapping[str, str] | None = None,
    extra: Mapping[str, object] | None = None,
) -> Response:
    status = STATUS[code] if status is None else status
    if "failure" not in g:
        request_log.explain(Failure(code))
    g.refusal = code  # for the trace
    response = Response(document(code, detail, status, **(extra or {})), status, headers, content_type=CONTENT_TYPE)
    if status == 401:  # RFC 9110 section 15.5.2 wants it
        response.headers.setdefault("WWW-Authenticate", 'Bearer realm="ordersys"')
    return response


def code_of(status: int) -> str:
    """The code of a failure that HTTP itself names by this status."""
    return _OF_HTTP.get(status, "invalid_argument")


def document(code: str, detail: str, status: int, **extra: object) -> str:
    """The problem as JSON text."""
    problem = {
        "type": f"urn:ordersys:problem:{code}",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "code": code,
        "trace_id": http.trace_id(),
        **extra,
    }
    return json.dumps(problem)
