"""`ordersys ARGUMENT...`, killed (-9) before it acks for the N-th time: python killed_at_ack.py N ARGUMENT..."""

import itertools
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from ordersys import cli
from ordersys.broker.broker import Delivery
from ordersys.broker.rabbitmq_consumer import RabbitSubscription
from ordersys.broker.sqlite_consumer import SqliteSubscription

nth = int(sys.argv.pop(1))
acks = itertools.count(1)


def deadly(kind: type[Any]) -> None:
    ack = kind.ack

    def killed(self: Any, deliveries: Sequence[Delivery]) -> None:
        if next(acks) == nth:
            os.kill(os.getpid(), signal.SIGKILL)
        ack(self, deliveries)

    kind.ack = killed


deadly(RabbitSubscription)
deadly(SqliteSubscription)
cli.main()
