"""The API keys in the gateway's own database."""

from collections.abc import Iterable, Mapping
from typing import Any

import sqlalchemy as sa

from ordersys.api import keys
from ordersys.api.keys import Key, Scope
from ordersys.api.tables import RIGHTS, api_keys
from ordersys.core import errors, fields, ids
from ordersys.core.storage.database import Database
from ordersys.core.storage.migrations import Chain

CHAIN = Chain("ordersys.api", RIGHTS)


class KeyStore:
    """Every key there has ever been. Blocking; raises `Unavailable` when the database cannot be reached or written."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(
        self, name: str, scopes: Iterable[str], *, customer_id: str = "", expires_at: int | None = None, text: str = ""
    ) -> tuple[Key, str]:
        """A new key and its text, which cannot be had again.

        With the `text` of a key that was made elsewhere that one: repeating it changes nothing.
        Raises UsageError for unknown scopes, a time that has passed, a text that is no key's and an id that is taken,
        InvalidArgument for the name or the customer.
        """
        fields.refuse([*fields.text("name", name), *fields.text("customer_id", customer_id, required=False)])
        now = ids.now_us()
        if expires_at is not None and expires_at <= now:
            raise errors.UsageError(f"a key that expires at {ids.rfc3339(expires_at)} would be good for nothing")
        found = keys.parts(text) if text else keys.draw()
        if found is None:
            raise errors.UsageError("that is no key: expected osk_, 12 hexadecimal digits, _ and 43 of A-Z a-z 0-9 _ -")
        key_id, secret = found
        key = Key(
            id=key_id,
            name=name,
            digest=keys.digest(secret),
            scopes=keys.scopes(scopes),
            customer_id=customer_id,
            created_at=now,
            expires_at=expires_at,
        )
        row = {
            "id": key.id,
            "name": key.name,
            "digest": key.digest,
            "scopes": " ".join(sorted(key.scopes)),
            "customer_id": key.customer_id,
            "created_at": key.created_at,
            "expires_at": key.expires_at,
        }

        def work(connection: sa.Connection) -> Key:
            there = connection.execute(api_keys.select().where(api_keys.c.id == key_id)).one_or_none()
            if there is None:
                connection.execute(api_keys.insert(), row)
            return key if there is None else _key(there)

        kept = self._database.write(work)
        if not kept.opens_with(secret):
            raise errors.UsageError(f"there is another key with the id {key_id}: draw a new one")
        return kept, keys.text(key_id, secret)

    def all(self) -> list[Key]:
        """Oldest first, revoked and expired ones too."""
        query = api_keys.select().order_by(api_keys.c.created_at, api_keys.c.id)
        return self._database.read(lambda connection: [_key(row) for row in connection.execute(query)])

    def find(self, key_id: str) -> Key | None:
        query = api_keys.select().where(api_keys.c.id == key_id)

        def work(connection: sa.Connection) -> Key | None:
            row = connection.execute(query).one_or_none()
            return None if row is None else _key(row)

        return self._database.read(work)

    def any(self) -> bool:
        """Has there ever been a key?"""
        query = sa.select(sa.exists().select_from(api_keys))
        return self._database.read(lambda connection: bool(connection.execute(query).scalar_one()))

    def revoke(self, key_id: str) -> Key:
        """The key, good for nothing any more; one that was revoked before stays as it is. Raises KeyNotFound."""
        revoked = (
            api_keys.update()
            .where(api_keys.c.id == key_id, api_keys.c.revoked_at.is_(None))
            .values(revoked_at=ids.now_us())
        )
        query = api_keys.select().where(api_keys.c.id == key_id)

        def work(connection: sa.Connection) -> Key:
            connection.execute(revoked)
            row = connection.execute(query).one_or_none()
            if row is None:
                raise errors.KeyNotFound.of(key_id)
            return _key(row)

        return self._database.write(work)

    def note_uses(self, at: Mapping[str, int]) -> None:
        """Remember when each of these keys was used last, unless a later use is known."""
        used: sa.BindParameter[int] = sa.bindparam("used")
        noted = (
            api_keys.update()
            .where(api_keys.c.id == sa.bindparam("key"))
            .where(sa.or_(api_keys.c.last_used_at.is_(None), api_keys.c.last_used_at < used))
            .values(last_used_at=used)
        )
        rows = [{"key": key_id, "used": us} for key_id, us in sorted(at.items())]  # one order: no deadlock
        if rows:
            self._database.write(lambda connection: connection.execute(noted, rows))


def _key(row: Any) -> Key:
    # A scope that a newer ordersys knows and this one does not is good for nothing here.
    known = frozenset(Scope(each) for each in row.scopes.split() if each in set(Scope))
    return Key(**{**row._mapping, "scopes": known})  # noqa: SLF001 - SQLAlchemy's name for a row as a mapping
