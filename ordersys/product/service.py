"""The Product Service's use cases: one writer, batches, and the order of things between stock and orders.

A command flies through three steps, each for a whole batch at once: take the stock (one transaction), ask
order-service (one call), settle (with the next transaction). Stock is taken before order-service is asked and given
back only after it has answered; a command that got no answer stays pending until recovery has settled it.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

from ordersys.core import errors, fields, ids, pages
from ordersys.core.batch import Batcher, Entry
from ordersys.core.display import counted
from ordersys.core.records import Product, StockAudit, StockMove
from ordersys.core.v1 import order_pb2
from ordersys.core.watch.metrics import Registry
from ordersys.product import authority, model
from ordersys.product.metrics import ProductMetrics

logger = logging.getLogger(__name__)

PATIENCE_US = 1_000_000
"""How long another process may be at work on a command before we ask order-service what became of it."""


class Summary(Protocol):
    @property
    def products(self) -> int: ...
    @property
    def units(self) -> int: ...
    @property
    def pending(self) -> int: ...


Command = model.OrderCommand | model.AdjustStock
Result = model.Answered | model.Settled
Waiting = Entry[Command | model.Settlement, Result]


class Store(Protocol):
    async def decide(self, commands: Sequence[Command | model.Settlement], now: int) -> Sequence[model.Decision]: ...
    async def product(self, product_id: str) -> Product | None: ...
    async def list_products(self, after: str, limit: int) -> list[Product]: ...
    async def summary(self) -> Summary: ...
    async def audit(self) -> tuple[list[StockAudit], int]: ...
    async def moves(self, order_id: str) -> list[StockMove]: ...


class _Flight:
    """One command on its way, the callers who wait for its answer, and the commands on its order that come after."""

    __slots__ = ("behind", "callers", "command", "over", "taken")

    def __init__(self, entry: Waiting, command: Command) -> None:
        self.command = command
        self.callers = [entry]
        self.behind: deque[Waiting] = deque()
        self.taken: model.Taken | None = None
        self.over = False  # nobody may join it any more


_Joining = tuple[_Flight, Waiting]


class ProductService:
    """`deadline` is how many seconds a command may take until its caller is told that the outcome is not known.

    It has to be one for the whole way: commands queue while order-service hangs, and a deadline for each call to it
    would add up.
    """

    def __init__(
        self,
        store: Store,
        orders: authority.Authority,
        *,
        clock: Callable[[], int] = ids.now_us,
        max_waiting: int = 10_000,
        deadline: float | None = None,
        metrics: ProductMetrics | None = None,
    ) -> None:
        self._store = store
        self._orders = orders
        self._clock = clock
        self._deadline = deadline
        self._max_waiting = max_waiting
        self._callers = 0
        self._metrics = metrics or ProductMetrics(Registry())
        self._writer: Batcher[Command | model.Settlement, Result] = Batcher(
            "product-writer", self._write, max_waiting=max_waiting, observer=self._metrics.writer
        )
        self._asker: Batcher[_Flight, None] = Batcher(
            "order-asker", self._ask, in_flight=2, observer=self._metrics.asker
        )
        self._by_key: dict[str, _Flight] = {}
        self._by_order: dict[str, _Flight] = {}
        self._waits: set[asyncio.Task[None]] = set()

    # --- reading ------------------------------------------------------------------------------------------------

    async def get_data(self) -> str:
        summary = await self._store.summary()
        return (
            f"Product Service: {counted(summary.products, 'product')}, {counted(summary.units, 'unit')} available,"
            f" {counted(summary.pending, 'reservation')} pending"
        )

    async def product(self, product_id: str) -> Product:
        fields.refuse(fields.text("product_id", product_id))
        product = await self._store.product(product_id)
        if product is None:
            raise errors.ProductNotFound.of(product_id)
        return product

    async def list_products(self, page_size: int, page_token: str) -> tuple[list[Product], str]:
        """One page by product id, and the token of the next one ("" on the last)."""
        limit = pages.size(page_size)
        position = pages.position(page_token, (str,))
        found = await self._store.list_products(str(position[0]) if position else "", limit + 1)
        page = found[:limit]
        return page, pages.token(page[-1].id) if len(found) > limit else ""

    async def audit(self) -> tuple[list[StockAudit], int]:
        """Every product's books, and how many commands are pending."""
        return await self._store.audit()

    async def moves(self, order_id: str) -> list[StockMove]:
        """The ledger's lines for one order, oldest first; none for an order that never held stock."""
        fields.refuse(fields.text("order_id", order_id))
        return await self._store.moves(order_id)

    # --- writing ------------------------------------------------------------------------------------------------

    async def execute(self, command: Command) -> tuple[bytes, bool]:
        """Carry out one command; the order (or product) as serialized protobuf, and whether it is a replay.

        Raises the refusal, or `Unavailable` when the outcome is not known: repeat it with its key. `Unavailable` at
        once, with nothing done, when too many wait: whichever way they do, and flights whose callers have left too.
        """
        if max(self._callers, len(self._by_order)) >= self._max_waiting:
            raise errors.Unavailable(f"product-service is overloaded: {self._max_waiting} commands are at work")
        self._callers += 1
        try:
            async with asyncio.timeout(self._deadline):
                result = await self._writer.submit(command)
        except TimeoutError:
            raise errors.Unavailable(f"not done within {self._deadline} s; repeat it with the same key") from None
        finally:
            self._callers -= 1
        assert isinstance(result, model.Answered)  # noqa: S101 - what _write resolves commands with
        if isinstance(result.answer, errors.OrdersysError):
            raise result.answer
        return result.answer, result.replayed

    async def settle(self, pending: Sequence[tuple[str, str]]) -> int:
        """Ask order-service what became of these (order id, command id) and act on it; how many were settled by us.

        Safe at any time and from any process: what order-service has not executed it will refuse from then on.
        """
        order_ids = {command_id: order_id for order_id, command_id in pending}
        results = await self._orders.settle(list(order_ids))
        settlements = [
            authority.settlement_of(order_ids[result.command_id], result)
            for result in results
            if result.WhichOneof("outcome")
        ]
        applied = await asyncio.gather(*[self._settle(each, recovered=True) for each in settlements])
        return sum(isinstance(each, model.Settled) and each.applied for each in applied)

    def is_flying(self, order_id: str) -> bool:
        """True while this process itself is at work on a command on the order."""
        return order_id in self._by_order

    async def drain(self) -> None:
        """Refuse new commands and return when those taken before are answered and settled."""
        while self._writer.busy or self._asker.busy or self._waits:
            await self._writer.drain()
            await self._asker.drain()
            if self._waits:
                await asyncio.wait(self._waits)
        await self._writer.drain()

    # --- step one: take the stock -------------------------------------------------------------------------------

    async def _write(self, entries: Sequence[Waiting]) -> None:
        flights: dict[int, _Flight] = {}
        own_keys: dict[str, _Flight] = {}
        own_orders: dict[str, _Flight] = {}
        run: list[Waiting] = []
        followers: list[_Joining] = []
        later: list[_Joining] = []
        for entry in entries:
            command = entry.item
            if isinstance(command, model.Settlement):
                run.append(entry)
                continue
            same_key = (self._by_key.get(command.key) or own_keys.get(command.key)) if command.key else None
            order_id = _order_id(command)
            same_order = self._by_order.get(order_id) or own_orders.get(order_id)
            if same_key is not None:
                followers.append((same_key, entry))
            elif same_order is not None:
                later.append((same_order, entry))
            else:
                flight = flights[len(run)] = _Flight(entry, command)
                if command.key:
                    own_keys[command.key] = flight
                if order_id:
                    own_orders[order_id] = flight
                run.append(entry)
        decisions = await self._store.decide([entry.item for entry in run], self._clock()) if run else []
        # Only now, with the transaction durable, does anything become visible to the next batch.
        self._by_key.update(own_keys)
        self._by_order.update(own_orders)
        rivals = self._join(followers, later)
        for index, (entry, decision) in enumerate(zip(run, decisions, strict=True)):
            if isinstance(decision, model.Settled):
                entry.resolve(decision)
            else:
                self._go_on(flights[index], decision)
        for flight, entry in rivals:
            if flight.over:  # answered at once, and perhaps because the key is another's: the store knows whose it is
                self._writer.requeue([entry])
            else:
                entry.resolve(model.Answered(errors.IdempotencyKeyReused.of(flight.command.key), replayed=False))

    def _join(self, followers: Sequence[_Joining], later: Sequence[_Joining]) -> list[_Joining]:
        """Let them wait for the flights they found; those that ask for something else with a flight's key are left.

        A flight that ended meanwhile answers nobody any more: who found it looks again.
        """
        rivals: list[_Joining] = []
        for flight, entry in followers:
            if flight.over:
                self._writer.requeue([entry])
            elif _fingerprint(entry) == flight.command.fingerprint:
                flight.callers.append(entry)
            else:
                rivals.append((flight, entry))
        for flight, entry in later:
            if flight.over:
                self._writer.requeue([entry])
            else:
                flight.behind.append(entry)
        return rivals

    def _go_on(self, flight: _Flight, decision: model.Taken | model.Answered | model.Unsettled) -> None:
        match decision:
            case model.Answered(answer, replayed):
                if isinstance(answer, errors.OrdersysError) and not replayed:
                    self._metrics.refused(answer)
                self._land(flight, decision)
            case model.Unsettled():
                wait = asyncio.get_running_loop().create_task(self._wait_and_repeat(flight, decision))
                self._waits.add(wait)
                wait.add_done_callback(self._waits.discard)
            case model.Taken():
                flight.taken = decision
                self._asker.enqueue(flight)

    # --- step two: ask order-service, step three: settle --------------------------------------------------------

    async def _ask(self, entries: Sequence[Entry[_Flight, None]]) -> None:
        flights = [entry.item for entry in entries]
        for entry in entries:
            entry.resolve(None)
        try:
            results = await self._orders.process([_order_command(flight) for flight in flights])
        except errors.OrdersysError:
            for flight in flights:
                self._land(flight, errors.Unavailable("order-service did not answer; repeat with the same key"))
            return
        for flight, result in zip(flights, results, strict=True):
            self._answer(flight, result)

    def _answer(self, flight: _Flight, result: order_pb2.OrderResult) -> None:
        if not result.WhichOneof("outcome"):
            self._land(flight, errors.Internal())  # it stays pending: recovery settles it
            return
        settlement = authority.settlement_of(_order_id(flight.command), result)
        settled = self._settle(settlement, recovered=False)
        if settlement.answer is None:
            answer: Result | errors.OrdersysError = errors.Unavailable("the command was given up meanwhile; repeat it")
        else:
            answer = model.Answered(settlement.answer, replayed=False)
        if isinstance(flight.command, model.PlaceOrder) and settlement.fate is model.Fate.ACCEPTED:
            self._land(flight, answer)  # nothing a caller can see changes with the settlement: do not wait for it
            settled.add_done_callback(_log_unsettled)
        else:
            settled.add_done_callback(_log_unsettled)
            settled.add_done_callback(lambda _: self._land(flight, answer))

    def _settle(self, settlement: model.Settlement, *, recovered: bool) -> "asyncio.Future[Result]":
        settled = self._writer.enqueue(settlement)

        def count(done: "asyncio.Future[Result]") -> None:
            if not done.cancelled() and done.exception() is None:
                result = done.result()
                if isinstance(result, model.Settled) and result.applied:
                    self._metrics.settled(settlement.fate, recovered=recovered)

        settled.add_done_callback(count)
        return settled

    async def _wait_and_repeat(self, flight: _Flight, unsettled: model.Unsettled) -> None:
        """Another process, or one that died, had taken this key or order: wait a little, then settle it ourselves."""
        try:
            if self._clock() - unsettled.since < PATIENCE_US:
                await asyncio.sleep(0.05)
            else:
                await self.settle([(unsettled.order_id, unsettled.command_id)])
        except errors.OrdersysError:
            self._land(
                flight,
                errors.Unavailable(
                    "an earlier command on this order is not settled yet: order-service does not answer"
                ),
            )
        else:
            self._leave(flight)
            self._writer.requeue([*flight.callers, *flight.behind])

    def _land(self, flight: _Flight, answer: Result | errors.OrdersysError) -> None:
        self._leave(flight)
        for index, caller in enumerate(flight.callers):
            if isinstance(answer, errors.OrdersysError):
                caller.fail(answer)
            elif index and isinstance(answer, model.Answered):
                caller.resolve(model.Answered(answer.answer, replayed=True))
            else:
                caller.resolve(answer)
        if flight.behind:
            self._writer.requeue(flight.behind)

    def _leave(self, flight: _Flight) -> None:
        flight.over = True
        if self._by_key.get(flight.command.key) is flight:
            del self._by_key[flight.command.key]
        order_id = _order_id(flight.command)
        if self._by_order.get(order_id) is flight:
            del self._by_order[order_id]


def _order_id(command: Command) -> str:
    return "" if isinstance(command, model.AdjustStock) else command.order_id


def _fingerprint(entry: Waiting) -> str:
    return "" if isinstance(entry.item, model.Settlement) else entry.item.fingerprint


def _order_command(flight: _Flight) -> order_pb2.OrderCommand:
    assert flight.taken is not None  # noqa: S101 - only flights that took their stock are asked for
    return authority.command_of(flight.taken)


def _log_unsettled(settled: "asyncio.Future[Result]") -> None:
    """The order stands as order-service said; only our own books are behind, and recovery brings them up."""
    if not settled.cancelled() and settled.exception() is not None:
        logger.warning("a settlement could not be written, recovery will repeat it: %s", settled.exception())
