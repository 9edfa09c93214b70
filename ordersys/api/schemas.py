"""The models that the resources share."""

import functools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

from flask import Response, request
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field, model_validator

from ordersys.api import access
from ordersys.core import errors, fields, ids, pages

# `fields.text` as patterns of ECMA 262, for those who read the description.
_STEERING = r"\u0000-\u001f\u007f-\u009f\u2028\u2029"
_ANY = f"[^{_STEERING}]*"
_SOME = rf"{_ANY}[^\s{_STEERING}]{_ANY}"


def _checked(most: int, *, required: bool) -> Callable[[str], str]:
    def check(value: str) -> str:
        for complaint in fields.text("", value, most=most, required=required):
            raise ValueError(complaint.description)
        return value

    return check


def _some_or_none(most: int) -> Callable[[str], str]:
    check = _checked(most, required=True)
    return lambda value: check(value) if value else value


Id = Annotated[
    str,
    Field(min_length=1, max_length=fields.MAX_ID, json_schema_extra={"pattern": f"^{_SOME}$"}),
    AfterValidator(_checked(fields.MAX_ID, required=True)),
]
MaybeId = Annotated[
    str,
    Field(max_length=fields.MAX_ID, json_schema_extra={"pattern": f"^({_SOME})?$"}),
    AfterValidator(_some_or_none(fields.MAX_ID)),
]
MaybeKey = Annotated[
    str,
    Field(max_length=fields.MAX_KEY, json_schema_extra={"pattern": f"^({_SOME})?$"}),
    AfterValidator(_some_or_none(fields.MAX_KEY)),
]
Reason = Annotated[
    str,
    Field(max_length=fields.MAX_REASON, json_schema_extra={"pattern": f"^{_ANY}$"}),
    AfterValidator(_checked(fields.MAX_REASON, required=False)),
]


def _whole(value: Any) -> Any:
    return int(value) if isinstance(value, float) and value.is_integer() else value


Whole = Annotated[int, BeforeValidator(_whole)]
"""An integer as JSON Schema has it (2020-12, validation, 6.1.1): 5.0 is one, and some languages write it so."""


class Money(BaseModel):
    """An amount in minor units (cents): {"EUR", 1999} is 19.99 EUR."""

    currency: str = Field(description="ISO 4217", examples=["EUR"])
    amount: int = Field(examples=[1999])


class Parameters(BaseModel):
    """Headers or a query. flask-openapi3 asks for their schema with every request, which took half of its time."""

    @classmethod
    @functools.cache
    def model_json_schema(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        return super().model_json_schema(*args, **kwargs)


class Query(Parameters):
    """A query whose parameters are all known and stand once: a mistyped filter must not list everything."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_others(cls, given: Any) -> Any:
        known = ", ".join(cls.model_fields) or "none"
        found = [
            errors.FieldViolation(
                name[: fields.MAX_ID],
                "must stand only once"
                if name in cls.model_fields
                else f"is no query parameter here; there is: {known}",
            )
            for name, values in request.args.lists()
            if name not in cls.model_fields or len(values) > 1
        ]
        fields.refuse(found)
        return given


class NoQuery(Query):
    """Nothing may be asked for."""


def _digits(value: Any) -> Any:
    if isinstance(value, str) and re.fullmatch("-?[0-9]+", value) is None:  # pydantic would take " 5", "5.0" and "1_0"
        raise ValueError("must be a whole number")
    return value


class Page(Query):
    page_size: Annotated[int, BeforeValidator(_digits)] = Field(
        0, ge=0, le=pages.MAX_SIZE, description=f"0 means {pages.DEFAULT_SIZE}"
    )
    page_token: str = Field("", description="next_page_token of the page before")


class WriteHeader(Parameters):
    idempotency_key: MaybeKey = Field(
        "",
        alias="Idempotency-Key",
        description="the same key with the same body is applied once and answered alike; with another body it is 422",
    )

    @contextmanager
    def key(self) -> Iterator[str]:
        """The key for the service: the caller's own, apart from everybody else's, or a new one.

        A key of our own makes the retries inside this one request safe; it does not protect the caller's.
        """
        try:
            yield access.own_key(self.idempotency_key) or ids.uuid7()
        except errors.IdempotencyKeyReused as error:  # it names the key as the service knows it
            raise errors.IdempotencyKeyReused.of(self.idempotency_key) from error


def _describe_if_match(schema: dict[str, Any]) -> None:
    del schema["default"], schema["type"]  # an empty header is not the same as none: it is refused
    etag = {"type": "string", "pattern": '^"[1-9][0-9]{0,17}"$'}
    schema |= {"anyOf": [etag, {"type": "string", "const": "*"}], "example": '"3"'}


class ChangeHeader(WriteHeader):
    """A write to something that has a version; `http.expected_version` reads the header itself."""

    if_match: str = Field(
        "",
        alias="If-Match",
        description="the order's ETag: only this version is changed, and any other is 412; * or none: any version",
        json_schema_extra=_describe_if_match,
    )


class OptionalBody(BaseModel):
    """A body that may be missing."""

    model_config = {"openapi_extra": {"required": False}}  # type: ignore[typeddict-unknown-key]

    @model_validator(mode="before")
    @classmethod
    def _nothing(cls, given: Any) -> Any:
        return {} if given is None else given


def takes_body(view: Callable[..., Any]) -> bool:
    """Whether this operation has a body at all."""
    return "body" in view.__annotations__


def may_be_missing(view: Callable[..., Any]) -> bool:
    """Whether this operation may be asked for without a body."""
    return not takes_body(view) or issubclass(view.__annotations__["body"], OptionalBody)


def answered(response: Response, *, replayed: bool) -> Response:
    """The answer to a write; it says so when it is the first answer to an earlier request with the same key."""
    if replayed:
        response.headers["Idempotent-Replayed"] = "true"
    return response
