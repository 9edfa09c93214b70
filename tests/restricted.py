"""PostgreSQL as the services' own roles see it: a database with every schema, and roles with the least each needs."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import servers
from sqlalchemy import make_url

from ordersys import databases
from ordersys.core.storage import migrations, roles
from ordersys.core.storage.database import Database
from ordersys.core.storage.roles import Place, Service
from ordersys.settings import Settings

PASSWORD = "a-password"  # noqa: S105 - of roles that are gone with the tests


@dataclass(frozen=True)
class Restricted:
    """Roles of this test run's own, and a database to be copied."""

    prefix: str
    template: str

    @classmethod
    @contextmanager
    def made(cls) -> "Iterator[Restricted]":
        prefix = f"ordersys_test_{uuid.uuid4().hex[:12]}"
        with servers.postgres_database() as url:
            name = str(make_url(url).database)
            services = []
            for service, _, chain in databases.chains(Settings()):
                database = Database(url)
                migrations.upgrade(database, chain)
                database.close()
                services.append(Service(service, chain.least))
            names = [roles.owner(prefix), *(roles.role(prefix, service.name) for service in services)]
            servers.administer(*roles.creation(prefix, [service.name for service in services]))
            servers.administer(*(f"ALTER ROLE \"{each}\" PASSWORD '{PASSWORD}'" for each in names))
            servers.administer(*roles.grants(prefix, Place(name, tuple(services))), database=name)
            try:
                yield cls(prefix, name)
            finally:
                # Databases have been dropped with all that these own, but for the one they were copied from.
                everybody = ", ".join(f'"{each}"' for each in names)
                servers.administer(f"DROP OWNED BY {everybody}", database=name)
                servers.administer(f"DROP ROLE {everybody}")

    @contextmanager
    def database(self, service: str) -> Iterator[str]:
        """The URL of a new database as this service's role, or as "owner"."""
        with servers.postgres_database(self.template) as url:
            role = make_url(url).set(username=roles.role(self.prefix, service), password=PASSWORD)
            yield role.render_as_string(hide_password=False)
