"""Who may do what at RabbitMQ, as data: one user per role, with the least that the role needs.

Rights are those of https://www.rabbitmq.com/docs/access-control#authorisation: `configure` makes and deletes, `write`
publishes to an exchange and binds a queue, `read` consumes a queue and binds to an exchange. A passive declare needs
none: whoever may not declare can still see whether the topology is there, and count what waits in its queues.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from ordersys.core.topology import Queue, Topology

DEFAULT_EXCHANGE = "amq.default"
"""What the rights call the exchange without a name, which leads to every queue of the vhost."""
FAILURES = "amq.topic"
"""Where a notifier publishes what failed: a topic exchange that every vhost has, because only on such an exchange can
a user's routing keys be limited. Retry queues and dead letters are bound to it, each by its own name."""

_RETRY = ".retry"


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """What one user may do in the vhost: names of exchanges and queues per right; none means nothing.

    The name of a first retry queue stands for those of the longer waits, too: how many there are is a setting.
    """

    name: str
    purpose: str
    configure: tuple[str, ...] = ()
    write: tuple[str, ...] = ()
    read: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()  # the routing keys that it may publish to FAILURES

    def commands(self, vhost: str) -> list[list[str]]:
        """The rabbitmqctl commands that make this user; the password is read from standard input.

        The first one fails, and changes nothing, for a user who exists (https://www.rabbitmq.com/docs/man/rabbitmqctl.8).
        """
        rights = [pattern(names) for names in (self.configure, self.write, self.read)]
        made = [
            ["rabbitmqctl", "add_user", self.name],
            ["rabbitmqctl", "set_permissions", "-p", vhost, self.name, *rights],
        ]
        if self.failures:
            keys = pattern(self.failures)
            made.append(["rabbitmqctl", "set_topic_permissions", "-p", vhost, self.name, FAILURES, keys, "^$"])
        return made


def users(topology: Topology, prefix: str = "ordersys") -> list[User]:
    """The users of a deployment whose queues are those of the topology."""
    exchanges = tuple(each.name for each in topology.exchanges)
    queues = tuple(name for queue in topology.queues for name in (queue.name, *_failures(queue)))
    admin = User(
        name=f"{prefix}-admin",
        purpose="declares: ordersys topology declare",
        configure=exchanges + queues,
        # To bind is to write to the queue and to read the exchange; to dead-letter the other way round.
        write=(*queues, DEFAULT_EXCHANGE),
        read=(*exchanges, FAILURES, *queues),
    )
    order = User(name=f"{prefix}-order", purpose="ordersys serve-order", write=exchanges)
    operator = User(
        name=f"{prefix}-operator",
        purpose="ordersys dlq, ordersys events replay: may write to every queue of the vhost",
        write=(DEFAULT_EXCHANGE,),
        read=tuple(queue.dead_letters for queue in topology.queues),
    )
    return [admin, order, *(notifier(queue, prefix) for queue in topology.queues), operator]


def notifier(queue: Queue, prefix: str = "ordersys") -> User:
    """The user of the notifiers of one queue."""
    return User(
        name=f"{prefix}-notifier-{queue.name}",
        purpose=f"ordersys notify, on the queue {queue.name}",
        write=(FAILURES,),
        read=(queue.name,),
        failures=_failures(queue),
    )


def pattern(names: Sequence[str]) -> str:
    """The anchored regular expression (PCRE) of exactly these names."""
    alternatives = "|".join(re.escape(name) + (r"(\.[0-9]+)?" if name.endswith(_RETRY) else "") for name in names)
    return f"^({alternatives})$" if names else "^$"


def _failures(queue: Queue) -> tuple[str, ...]:
    return f"{queue.name}{_RETRY}", queue.dead_letters
