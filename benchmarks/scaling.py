"""What more machines would do: a small model of the whole, and a simulation of the batches that it stands on.

    python benchmarks/scaling.py [--rates 278,2778,27778,100000] [--cores 8] [--busy 0.6]

What an order costs each process comes from RESULTS.md (the column of gRPC, PostgreSQL, RabbitMQ). The model multiplies:
it is right as long as nothing but CPU is short, and says what else becomes the limit. docs/scaling.md explains it.
"""

import argparse
import heapq
import math
import random
import statistics
from collections import deque
from dataclasses import dataclass
from pathlib import Path

RESULTS = Path(__file__).with_name("RESULTS.md")
COLUMN = "gRPC, PostgreSQL, RabbitMQ"
PROCESSES = {
    "product-service": "product-service",
    "order-service": "order-service",
    "notify.fanout": "notifiers, fanout",
    "notify.topic": "notifiers, topic",
    "rabbitmq": "RabbitMQ",
    "postgresql": "PostgreSQL",
}
OURS = ("product-service", "order-service", "notify.fanout", "notify.topic")


@dataclass(frozen=True)
class Results:
    """What RESULTS.md says: microseconds of CPU per order, and events per second that one relay publishes."""

    costs: dict[str, float]
    relay: float

    @staticmethod
    def read(text: str) -> "Results":
        rows = [[cell.strip() for cell in line.strip("| \n").split("|")] for line in text.splitlines() if "|" in line]
        head = next(row for row in rows if COLUMN in row)
        place = head.index(COLUMN) - len(head)  # counted from the end: the first cell of the head is empty
        costs = {row[0]: float(row[place]) for row in rows if row[0] in PROCESSES}
        relay = next(row[1] for row in rows if row[0] == "relay" and "raw" in row[1])
        return Results(costs, float(relay.rpartition("relay ")[2]))


def plan(results: Results, rate: float, cores: int, busy: float) -> dict[str, int]:
    """How many processes of ours and how many cores of the servers `rate` orders per second ask for.

    A Python process makes use of one core; `busy` is how much of a core is planned with, the rest is for bad moments.
    """
    needed = {name: rate * results.costs[name] / 1e6 / busy for name in PROCESSES}
    found = {PROCESSES[name]: max(1, math.ceil(each)) for name, each in needed.items()}
    # Of the replicas on one database one relays at a time, and an order has one event that is published twice.
    by_relay = rate / (results.relay * busy)
    by_database = needed["postgresql"] / cores
    by_broker = needed["rabbitmq"] / cores
    return found | {"shards": max(1, math.ceil(max(by_relay, by_database, by_broker)))}


def batches(
    rate: float, replicas: int, fixed: float, each: float, most: int, *, hot: bool, seed: int = 1
) -> list[float]:
    """How long 20,000 simulated orders wait, in seconds; those that come at random moments, `rate` per second.

    A replica does one batch at a time, which takes `fixed` seconds and `each` for every order in it; what comes
    meanwhile is the next batch, at most so many orders. When all ask for one `hot` product its row lets one batch of
    all replicas in at a time.
    """
    dice = random.Random(seed)  # noqa: S311 - a simulation
    waiting: list[deque[float]] = [deque() for _ in range(replicas)]
    working = [False] * replicas
    ends: list[tuple[float, int, list[float]]] = []
    waits: list[float] = []
    left, row_free = 20_000, 0.0
    arrival = dice.expovariate(rate)
    while left or ends:
        if left and (not ends or arrival <= ends[0][0]):
            moment, left = arrival, left - 1
            chosen = dice.randrange(replicas)
            waiting[chosen].append(moment)
            arrival += dice.expovariate(rate)
        else:
            moment, chosen, done = heapq.heappop(ends)
            waits += [moment - since for since in done]
            working[chosen] = False
        if waiting[chosen] and not working[chosen]:
            taken = [waiting[chosen].popleft() for _ in range(min(most, len(waiting[chosen])))]
            begins = max(moment, row_free) if hot else moment
            end = begins + fixed + each * len(taken)
            row_free = end if hot else row_free
            working[chosen] = True
            heapq.heappush(ends, (end, chosen, taken))
    return sorted(waits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", default="278,2778,27778,100000", help="orders per second")
    parser.add_argument("--cores", type=int, default=8, help="of one database or broker machine")
    parser.add_argument("--busy", type=float, default=0.6, help="how much of a core is planned with")
    parser.add_argument("--fixed", type=float, default=0.004, help="seconds that a batch takes however small it is")
    parser.add_argument("--each", type=float, default=0.0006, help="seconds for each order in it")
    parser.add_argument("--most", type=int, default=256, help="orders in a batch")
    given = parser.parse_args()
    results = Results.read(RESULTS.read_text(encoding="utf-8"))
    rates = [float(each) for each in given.rates.split(",")]
    plans = [plan(results, rate, given.cores, given.busy) for rate in rates]
    print(f"| orders per second | {' | '.join(f'{rate:,.0f}' for rate in rates)} |\n|---|{'---|' * len(rates)}")
    print(f"| orders per hour | {' | '.join(f'{rate * 3600 / 1e6:,.0f} million' for rate in rates)} |")
    for name in plans[0]:
        print(f"| {name} | {' | '.join(f'{each[name]:,}' for each in plans)} |")
    print("\n| load of a replica | 1 replica | 4 replicas | 4 replicas, one hot product |\n|---|---|---|---|")
    most = given.most / (given.fixed + given.each * given.most)
    for load in (0.25, 0.5, 0.75, 0.95):
        cells = []
        for replicas, hot in ((1, False), (4, False), (4, True)):
            rate = load * most * (1 if hot else replicas)
            waits = batches(rate, replicas, given.fixed, given.each, given.most, hot=hot)
            p50, p99 = statistics.median(waits), waits[int(len(waits) * 0.99)]
            cells.append(f"{rate:,.0f}/s, p50 {p50 * 1000:.0f} ms, p99 {p99 * 1000:.0f} ms")
        print(f"| {load:.0%} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
