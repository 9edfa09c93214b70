"""What callers ask for and what they were told."""

import http.client
import itertools
import json
from dataclasses import dataclass, field
from typing import Literal

from ordersys.client.calls import Orders, Wanted
from ordersys.core import errors
from ordersys.core.records import Order

HTTP_SECONDS = 15.0

Refusal = str
"""The code of a refusal that a correct caller can meet: it is an answer like any other."""
REFUSALS = {errors.InsufficientStock.code}


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """One call that has a key, the same however often it is made."""

    kind: Literal["place", "update", "cancel"]
    key: str
    customer: str
    lines: tuple[Wanted, ...] = ()
    order_id: str = ""
    version: int = 0

    def ask(self, orders: Orders) -> Order | Refusal:
        """The order or the refusal; raises `Unavailable`, and whatever no caller should ever be told."""
        try:
            match self.kind:
                case "place":
                    answer = orders.place_order(self.customer, self.lines, self.key)
                case "update":
                    answer = orders.update_order(
                        self.order_id, self.lines, expected_version=self.version, idempotency_key=self.key
                    )
                case "cancel":
                    answer = orders.cancel_order(
                        self.order_id, "a fault test", expected_version=self.version, idempotency_key=self.key
                    )
        except errors.OrdersysError as error:
            if error.code in REFUSALS:
                return error.code
            raise
        return answer.order

    def place_over_http(self, address: str) -> str:
        """The id of the order placed through the REST API; raises the refusal, or `Unavailable`."""
        host, _, port = address.rpartition(":")
        lines = [{"product_id": product_id, "quantity": quantity} for product_id, quantity in self.lines]
        headers = {"Content-Type": "application/json", "Idempotency-Key": self.key}
        connection = http.client.HTTPConnection(host, int(port), timeout=HTTP_SECONDS)
        try:
            body = json.dumps({"customer_id": self.customer, "lines": lines})
            connection.request("POST", "/api/v1/orders", body, headers)
            response = connection.getresponse()
            document = json.loads(response.read())
        except (OSError, http.client.HTTPException) as error:
            raise errors.Unavailable(f"REST API: {error!r}") from error
        finally:
            connection.close()
        if response.status == 503:
            raise errors.Unavailable(document["detail"])
        if response.status != 201:
            raise errors.refusal(document["code"], document["detail"], {})
        return str(document["id"])


@dataclass
class Books:
    """What callers were told."""

    answers: list[tuple[Write, Order | Refusal]] = field(default_factory=list)
    told: dict[str, Order] = field(default_factory=dict)
    """Each order as its caller was told last."""
    advanced: int = 0
    """Answered calls that shipped or delivered an order: those have no key."""
    repeats: int = 0
    """Calls that were made again because they got no answer."""
    slowest: float = 0.0
    """Seconds that the slowest answer took, all its repetitions included."""
    moments: list[float] = field(default_factory=list)
    """When each answer came, by `time.monotonic`."""

    def add(self, other: "Books") -> None:
        self.answers += other.answers
        self.told.update(other.told)
        self.advanced += other.advanced
        self.repeats += other.repeats
        self.slowest = max(self.slowest, other.slowest)
        self.moments = sorted(self.moments + other.moments)

    def silence(self, since: float = 0.0, until: float = float("inf")) -> float:
        """The longest time in seconds without any answer, between two moments of `time.monotonic`."""
        seen = [moment for moment in self.moments if since <= moment <= until]
        marks = [*([since] if since else []), *seen, *([until] if until < float("inf") else [])]
        return max((later - earlier for earlier, later in itertools.pairwise(marks)), default=0.0)
