"""Each service's database: its engine, its schema, and what has waited in it for too long."""

from collections.abc import Iterator
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

from ordersys.core.display import counted
from ordersys.operate.doctor.findings import Check, Finding, ok, problem, warning

if TYPE_CHECKING:
    from ordersys.core.storage.looked_into import LookedInto, PostgresFacts
    from ordersys.core.storage.migrations import Chain
    from ordersys.settings import Settings

_DAMAGE_SECONDS = 2.0
_SKEW_SECONDS = (1.0, 5.0)  # a warning, a problem: ages and expiries are told by more than one clock
_OUTBOX_SECONDS = (60.0, 300.0)
_UNSETTLED_SECONDS = (60.0, 600.0)
_FREE_CONNECTIONS = 16  # the most that one more role takes
_EXPIRY_DAYS = 7
_MOST = 1000
_US = 1_000_000


def checks(settings: "Settings") -> list[Check]:
    from ordersys import databases

    seen: set[str] = set()
    found = []
    for service, url, chain in databases.chains(settings):
        look = partial(_look, settings, service, url, chain, engine=url not in seen)
        found.append(Check(f"database {service}", look, f"ordersys config  # ORDERSYS_{service.upper()}_DATABASE_URL"))
        seen.add(url)
    return found


def _look(settings: "Settings", service: str, url: str, chain: "Chain", *, engine: bool) -> Iterator[Finding]:
    from ordersys.core.storage import migrations
    from ordersys.core.storage.looked_into import LookedInto, Missing

    name = f"database {service}"
    try:
        database = LookedInto(url)
    except Missing as error:
        yield ok(name, error.message)
        if service == "api":
            yield from _keys(settings, None)
        return
    with closing(database):
        if engine:
            yield from _sqlite(name, database) if database.is_sqlite else _postgres(name, database)
        current, newest = migrations.current(database, chain)
        yield _schema(service, current, newest)
        if current == newest:
            yield from _rows(settings, service, database)


def _sqlite(name: str, database: "LookedInto") -> Iterator[Finding]:
    from ordersys.core.storage import looked_into

    facts = looked_into.sqlite_facts(database, _DAMAGE_SECONDS)
    what = f"{database.file}, SQLite, {facts.bytes / 1e6:.1f} MB"
    if facts.damage:
        yield problem(name, f"{what}, is damaged: {facts.damage}", f"sqlite3 {database.file} .recover | sqlite3 NEW.db")
    elif not facts.wal:
        # Every role switches it on; without it a reader makes the writer wait.
        yield warning(name, f"{what}, without write-ahead log", f"sqlite3 {database.file} 'PRAGMA journal_mode=WAL'")
    elif facts.damage is None:
        yield ok(name, f"{what}, no damage found in {_DAMAGE_SECONDS:g} s, which did not do for all of it")
    else:
        yield ok(name, f"{what}, undamaged")


def _postgres(name: str, database: "LookedInto") -> Iterator[Finding]:
    from ordersys.core.storage import looked_into

    facts = looked_into.postgres_facts(database)
    own, wrong = database.url.database, []
    if facts.synchronous_commit in ("off", "local"):
        found = f"synchronous_commit is {facts.synchronous_commit}: what was answered can be lost with the server"
        wrong.append(problem(name, found, f'psql -c "ALTER DATABASE {own} SET synchronous_commit = on"'))
    if facts.fsync != "on":
        found = "fsync is off: a crash of the machine can damage it"
        wrong.append(problem(name, found, 'psql -c "ALTER SYSTEM SET fsync = on" -c "SELECT pg_reload_conf()"'))
    if facts.encoding != "UTF8":
        found = f"its encoding is {facts.encoding}, not UTF8"
        wrong.append(problem(name, found, f"createdb -E UTF8 -T template0 {own}_utf8"))
    if facts.standby:
        found = "it is a standby, which takes no writes"
        wrong.append(problem(name, found, f"ordersys config  # {name} must name the primary"))
    if facts.max_connections - facts.connections < _FREE_CONNECTIONS:
        found = f"{facts.connections} of {facts.max_connections} connections are taken, and a role takes up to 16"
        wrong.append(warning(name, found, 'psql -c "ALTER SYSTEM SET max_connections = 200"  # and restart it'))
    said = f"{database.label}, PostgreSQL {facts.version}, {facts.connections} of {facts.max_connections} connections"
    yield from wrong or [ok(name, said)]
    yield _skew(name, facts)


def _skew(name: str, facts: "PostgresFacts") -> Finding:
    much, far = _SKEW_SECONDS
    said = f"its clock is {abs(facts.skew):.1f} s {'ahead of' if facts.skew > 0 else 'behind'} ours"
    check = f"clock of {name}"
    if abs(facts.skew) < much:
        return ok(check, "as ours")
    return (problem if abs(facts.skew) >= far else warning)(check, said, "timedatectl set-ntp true  # on both machines")


def _schema(service: str, current: str, newest: str) -> Finding:
    name = f"schema {service}"
    if current == newest:
        return ok(name, f"{current}, the newest")
    if not current:
        return ok(name, "empty: the first start makes it")
    if current > newest:
        return problem(
            name, f"{current} is newer than this ordersys, which knows {newest}", "pip install --upgrade ordersys"
        )
    return warning(name, f"{current}: {newest} is due, and the next start brings it", "ordersys db upgrade")


def _rows(settings: "Settings", service: str, database: "LookedInto") -> Iterator[Finding]:
    match service:
        case "order":
            yield from _outbox(database)
        case "product":
            yield from _unsettled(database)
        case "api":
            yield from _keys(settings, database)


def _outbox(database: "LookedInto") -> Iterator[Finding]:
    from ordersys import databases
    from ordersys.core import ids

    count, oldest = databases.outbox(database)
    age = (ids.now_us() - oldest) / _US if count else 0.0
    waits, stuck = _OUTBOX_SECONDS
    if age < waits:
        yield ok("outbox", f"{counted(count, 'event')} on the way to the broker")
    else:
        found = f"{counted(count, 'event')} not confirmed by the broker, the oldest for {duration(age)}"
        fix = "ordersys serve-order  # its relay publishes them as soon as the broker answers"
        yield (problem if age >= stuck else warning)("outbox", found, fix)
    ahead = (databases.newest_order(database) - ids.now_us()) / _US
    if ahead > _SKEW_SECONDS[1]:
        found = f"the newest order was made {duration(ahead)} from now: our clock is behind, or was set back"
        yield problem("clock of the orders", found, "timedatectl set-ntp true")


def _unsettled(database: "LookedInto") -> Iterator[Finding]:
    from ordersys import databases
    from ordersys.core import ids

    now = ids.now_us()
    old, ancient = (int(seconds * _US) for seconds in _UNSETTLED_SECONDS)
    count = databases.unsettled(database, now - old, _MOST)
    if not count:
        yield ok("reservations", "none waits for its settlement")
        return
    stuck = databases.unsettled(database, now - ancient, 1) > 0
    some = f"{_MOST} or more commands" if count >= _MOST else counted(count, "command")
    found = (
        f"{some} unsettled for more than {duration(ancient / _US if stuck else old / _US)}: their stock is held back"
    )
    fix = "ordersys serve-product  # its recovery settles them as soon as the Order Service answers"
    yield (problem if stuck else warning)("reservations", found, fix)


def _keys(settings: "Settings", database: "LookedInto | None") -> Iterator[Finding]:
    from ordersys import databases
    from ordersys.core import ids, tls

    name, create = "API keys", "ordersys keys create --name NAME --scope admin"
    tokens = bool(settings.api_jwt_jwks_url or settings.api_jwt_public_key_file)
    keys = databases.keys_of(database) if database is not None else []
    if not keys and not tokens:
        if tls.is_this_machine(settings.api_bind.rpartition(":")[0].strip("[]")):
            yield warning(name, "none yet: the API is open to everybody on this machine", create)
        else:
            yield problem(name, f"none yet: the API refuses to listen on {settings.api_bind}", create)
        return
    now = ids.now_us()
    good = [each for each in keys if each.revoked_at is None and (each.expires_at is None or each.expires_at > now)]
    soon = [each for each in good if each.expires_at and each.expires_at < now + _EXPIRY_DAYS * 86_400 * _US]
    if keys and not good and not tokens:
        yield warning(name, "all are revoked or have expired: nobody can use the API", create)
    elif soon:
        first = min(soon, key=lambda each: each.expires_at or 0)
        yield warning(name, f"key {first.id} expires at {ids.rfc3339(first.expires_at or 0)}", create)
    else:
        yield ok(name, f"{counted(len(good), 'key')} good now" + (", and bearer tokens are taken" if tokens else ""))


def duration(seconds: float) -> str:
    """For people: "42 s", "7 min", "3 h", "2 days"."""
    for size, word in ((86_400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {word}"
    return f"{seconds:.0f} s"
