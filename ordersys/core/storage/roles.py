"""Who may do what in PostgreSQL: one role per service with the least it needs, and an owner who changes the schemas.

What a service does with its tables stands as data beside them; here it becomes SQL for psql. An owner is needed because
only who owns a table may change it (https://www.postgresql.org/docs/current/ddl-priv.html).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Right:
    """What a service does with one table, in the words of GRANT; `sequence` is where new rows take their ids from."""

    table: str
    may: str
    sequence: str = ""


@dataclass(frozen=True, slots=True)
class Service:
    """A service, and all that it does in its database."""

    name: str
    rights: tuple[Right, ...]


@dataclass(frozen=True, slots=True)
class Place:
    """A database, and the services that have their tables there."""

    name: str
    services: tuple[Service, ...]


def owner(prefix: str) -> str:
    """The role that owns every table: `ordersys db upgrade` and `ordersys keys` are its work."""
    return f"{prefix}_owner"


def role(prefix: str, service: str) -> str:
    return f"{prefix}_{service}"


def creation(prefix: str, services: Sequence[str]) -> Iterator[str]:
    """Make the roles of the cluster that are not there; they have no password yet."""
    for name in (owner(prefix), *(role(prefix, service) for service in services)):
        yield f"DO $$ BEGIN CREATE ROLE {quoted(name)} LOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$;"


def grants(prefix: str, place: Place) -> Iterator[str]:
    """Within the database: nobody may do anything there but these roles, and these no more than they need."""
    own, database = quoted(owner(prefix)), quoted(place.name)
    roles = ", ".join(quoted(role(prefix, service.name)) for service in place.services)
    yield f"REVOKE ALL ON DATABASE {database} FROM PUBLIC;"
    yield f"GRANT CONNECT ON DATABASE {database} TO {own}, {roles};"
    yield "REVOKE ALL ON SCHEMA public FROM PUBLIC;"
    yield f"GRANT USAGE, CREATE ON SCHEMA public TO {own};"
    yield f"GRANT USAGE ON SCHEMA public TO {roles};"
    # What an older ordersys needed may be more.
    yield f"REVOKE ALL ON ALL TABLES IN SCHEMA public FROM {roles};"
    yield f"REVOKE ALL ON ALL SEQUENCES IN SCHEMA public FROM {roles};"
    for service in place.services:
        to = quoted(role(prefix, service.name))
        for right in service.rights:
            yield f"ALTER TABLE public.{right.table} OWNER TO {own};"
            yield f"GRANT {right.may} ON public.{right.table} TO {to};"
            if right.sequence:
                yield f"GRANT USAGE ON SEQUENCE public.{right.sequence} TO {to};"


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
