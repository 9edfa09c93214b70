"""The reference says what the code says."""

from pathlib import Path

import published_reference
import pytest

from ordersys import settings
from ordersys.api import problems
from ordersys.core.rpc import status


@pytest.mark.parametrize("page", published_reference.PAGES, ids=lambda page: page.stem)
def test_the_page_is_the_present_one(page: Path) -> None:
    assert page.read_text(encoding="utf-8") == published_reference.renewed(page), f"run {published_reference.RENEW}"


def test_every_command_is_there() -> None:
    paths = {path for path, _ in published_reference.commands()}
    assert {"ordersys up", "ordersys client place-order", "ordersys dlq replay", "ordersys doctor"} <= paths


def test_every_setting_is_there_with_the_default_of_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    made = published_reference.settings_table()
    monkeypatch.setenv("ORDERSYS_API_BIND", "127.0.0.1:1")
    assert published_reference.settings_table() == made
    assert [name for name, _, _ in settings.table(settings.Settings()) if f"`{name}`" not in made] == []
    assert "`sqlite:///$ORDERSYS_HOME/broker.db`" in made


def test_every_code_is_there() -> None:
    made = published_reference.errors_table()
    assert [code for code in {*problems.STATUS, *status.STATUS} if f"| `{code}` |" not in made] == []
