"""Which queue a notifier reads: one of the two standard ones, or a subscriber of its own."""

import hashlib
import logging
import re
from collections.abc import Sequence

from ordersys.core import errors
from ordersys.core.events import Change
from ordersys.core.topology import FANOUT, NOTIFY_FANOUT, NOTIFY_TOPIC, TOPIC, Binding, Kind, Queue, matches, routes

logger = logging.getLogger(__name__)

_STANDARD = {Kind.FANOUT: NOTIFY_FANOUT, Kind.TOPIC: NOTIFY_TOPIC}
_EXCHANGE = {Kind.FANOUT: FANOUT, Kind.TOPIC: TOPIC}
_DERIVED = re.compile(r"\.(retry(\.\d+)?|dlq)$")
_WORD = re.compile(r"\*|#|[A-Za-z0-9_-]+")
_SHORT_STRING = 255  # bytes: AMQP 0-9-1 section 4.2.5.3
_ROUTING_KEYS = [key for change in Change for exchange, key in routes(change) if exchange == TOPIC]


def queue_for(mode: str, binds: Sequence[str], name: str, waits: Sequence[float]) -> Queue:
    """The queue of `ordersys notify --mode MODE [--bind PATTERN]... [--queue NAME]`; "" = no name given.

    Without patterns and name it is the standard queue of the mode. A name makes another subscriber, which gets every
    event on its own; patterns choose which events those are. Patterns without a name derive one from themselves
    (`notify.topic.<8 hex digits>`), so that the same patterns, in any order, are always the same queue, and the copies
    of one notifier share it. Bindings are kept by the broker: to take a pattern away from a named queue, delete the
    queue or choose a new name.

    Raises UsageError for an unknown mode, patterns in fanout mode (it has no routing keys to choose by), and names or
    patterns that AMQP or our own naming does not allow.
    """
    try:
        kind = Kind(mode)
    except ValueError:
        raise errors.UsageError(f"--mode {mode!r}: expected fanout or topic") from None
    if binds and kind is Kind.FANOUT:
        raise errors.UsageError("--bind chooses by routing key, and fanout has none: use --mode topic, or no --bind")
    for pattern in binds:
        _check_pattern(pattern)
    standard = _STANDARD[kind]
    if not binds and name in ("", standard.name):
        return Queue(standard.name, standard.bindings, tuple(waits))
    patterns = tuple(dict.fromkeys(binds))
    bindings = tuple(Binding(_EXCHANGE[kind], each) for each in patterns) or standard.bindings
    queue = Queue(name or _derived_name(patterns), bindings, tuple(waits))
    _check_name(queue)
    return queue


def _derived_name(patterns: Sequence[str]) -> str:
    digest = hashlib.sha256("\n".join(sorted(patterns)).encode()).hexdigest()
    return f"{NOTIFY_TOPIC.name}.{digest[:8]}"


def _check_name(queue: Queue) -> None:
    name = queue.name
    if name in (NOTIFY_FANOUT.name, NOTIFY_TOPIC.name):
        raise errors.UsageError(f"--queue {name!r} is a standard queue with bindings of its own: choose another name")
    if name.startswith("amq."):
        raise errors.UsageError(f"--queue {name!r}: names that begin with amq. belong to the broker")
    if _DERIVED.search(name):
        raise errors.UsageError(f"--queue {name!r}: .retry and .dlq are queues made beside it: leave that ending out")
    if {"*", "#"} & set(name.split(".")):
        raise errors.UsageError(f"--queue {name!r}: * and # stand for other words: choose a name without them")
    if not name.isprintable() or name != name.strip():
        raise errors.UsageError(f"--queue {name!r}: expected printable text without spaces at the ends")
    room = _SHORT_STRING - max(len(each) - len(name) for each in (*queue.retries, queue.dead_letters))
    if len(name.encode()) > room:
        raise errors.UsageError(f"--queue {name[:40]!r}... has {len(name.encode())} bytes: expected at most {room}")


def _check_pattern(pattern: str) -> None:
    if len(pattern.encode(errors="surrogatepass")) > _SHORT_STRING:
        raise errors.UsageError(f"--bind {pattern[:40]!r}... is longer than {_SHORT_STRING} bytes")
    if not all(_WORD.fullmatch(word) for word in pattern.split(".")):
        raise errors.UsageError(
            f"--bind {pattern!r}: expected words between dots, where * is exactly one whole word and # any number of"
            " them, for example order.created or order.updated.#"
        )
    if not any(matches(pattern, key) for key in _ROUTING_KEYS):
        logger.warning("--bind %r matches none of our routing keys: %s", pattern, ", ".join(_ROUTING_KEYS))
