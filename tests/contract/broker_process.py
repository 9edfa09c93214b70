"""What the broker's contract suite runs in processes of their own.

broker_process.py URL hold QUEUE COUNT        receive COUNT messages, say so, then ack them when a line comes on stdin
broker_process.py URL publish QUEUE NAME COUNT     publish COUNT messages with the ids NAME-0, NAME-1, ...
broker_process.py URL declare QUEUE           declare a queue bound to a fanout exchange of the same name
"""

import sys
from collections.abc import Callable

from ordersys.broker.broker import Broker, Delivery, Message, Outcome
from ordersys.core.topology import Binding, Exchange, Kind, Queue, Topology


def connect(url: str) -> Broker:
    if url.startswith("sqlite:"):
        from ordersys.broker.sqlite import SqliteBroker

        return SqliteBroker(url)
    from ordersys.broker.rabbitmq import RabbitBroker

    return RabbitBroker(url)


def hold(broker: Broker, queue: str, count: str) -> None:
    subscription = broker.subscribe(Queue(queue, ()), prefetch=int(count))
    held: list[Delivery] = []
    while len(held) < int(count):
        held += subscription.receive(int(count), 1.0)
    print("holding", flush=True)
    sys.stdin.readline()
    subscription.ack(held)
    print("acked", flush=True)


def publish(broker: Broker, queue: str, name: str, count: str) -> None:
    messages = [
        Message(exchange="", routing_key=queue, body=b"{}", message_id=f"{name}-{number}", content_type="text/plain")
        for number in range(int(count))
    ]
    publisher = broker.publisher()
    outcomes = [outcome for message in messages for outcome in publisher.publish([message], timeout=30.0)]
    if outcomes != [Outcome.CONFIRMED] * len(messages):
        sys.exit(f"not all confirmed: {outcomes}")


def declare(broker: Broker, queue: str) -> None:
    broker.declare(Topology((Exchange(queue, Kind.FANOUT),), (Queue(queue, (Binding(queue),)),)))


if __name__ == "__main__":
    _program, url, verb, *arguments = sys.argv
    verbs: dict[str, Callable[..., None]] = {"hold": hold, "publish": publish, "declare": declare}
    broker = connect(url)
    verbs[verb](broker, *arguments)
    broker.close()
