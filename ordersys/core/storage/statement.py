"""Statements on the path of every batch: put into an engine's SQL once, executed for what the driver takes.

SQLAlchemy builds, keys and looks up a statement each time (https://docs.sqlalchemy.org/en/20/core/connections.html
#sql-compilation-caching). For the dozen statements of a batch that took longer than the database did.
"""

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import sqlalchemy as sa

Row = Mapping[str, Any]
Build = Callable[[str], Any]
"""The statement for an engine by its name, "sqlite" or "postgresql"."""


class Statement:
    """One statement with named parameters; may be executed from any thread."""

    def __init__(self, build: Build, columns: Collection[str] | None = None) -> None:
        """`columns` are those that an INSERT is given; None = all."""
        self._build = build
        self._columns = columns
        self._texts: dict[str, tuple[str, Callable[[Row], Any]]] = {}

    def one(self, connection: sa.Connection, row: Row = {}) -> sa.CursorResult[Any]:  # noqa: B006 - only read
        """Execute it once."""
        text, parameters = self._text(connection)
        return connection.exec_driver_sql(text, parameters(row))

    def many(self, connection: sa.Connection, rows: Iterable[Row]) -> None:
        """Execute it once for each row; no rows are nothing to do."""
        text, parameters = self._text(connection)
        if given := list(map(parameters, rows)):
            connection.exec_driver_sql(text, given)

    def _text(self, connection: sa.Connection) -> tuple[str, Callable[[Row], Any]]:
        """Its SQL, and what makes a row what the driver takes."""
        found = self._texts.get(connection.dialect.name)
        if found is None:
            found = self._texts[connection.dialect.name] = self._made(connection.dialect)
        return found

    def _made(self, dialect: sa.Dialect) -> tuple[str, Callable[[Row], Any]]:
        made = self._build(dialect.name).compile(dialect=dialect, column_keys=self._columns, for_executemany=True)
        fixed = {name: value for name, value in made.params.items() if value is not None}
        if not made.positional:
            return str(made), lambda row: {**fixed, **row}
        order = tuple(made.positiontup)
        if fixed:
            return str(made), lambda row: tuple([{**fixed, **row}[name] for name in order])
        return str(made), lambda row: tuple([row[name] for name in order])


def among(column: "sa.Column[str]", name: str, engine: str) -> sa.ColumnElement[bool]:
    """The condition that a column's text is one of a list, which is a single parameter however long it is."""
    if engine == "sqlite":  # https://www.sqlite.org/json1.html#jeach
        return column.in_(sa.select(sa.func.json_each(sa.bindparam(name)).table_valued("value").c.value))
    return column == sa.any_(sa.bindparam(name, type_=sa.ARRAY(sa.Text)))


def listed(connection: sa.Connection, values: Iterable[str]) -> Any:
    """The parameter of `among`."""
    return json.dumps(list(values)) if connection.dialect.name == "sqlite" else list(values)
