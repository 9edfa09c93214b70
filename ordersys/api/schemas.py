"""The models that the resources share."""

import functools
from typing import Any

from pydantic import BaseModel, Field

from ordersys.core import pages


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


class Page(Parameters):
    page_size: int = Field(0, ge=0, le=pages.MAX_SIZE, description=f"0 means {pages.DEFAULT_SIZE}")
    page_token: str = Field("", description="next_page_token of the page before")
