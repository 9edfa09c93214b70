"""Every `ordersys ...` that README, docs and deploy speak of is a command, and has the options that stand there."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import published_reference
import pytest
from typer.main import get_command

from ordersys import cli

ROOT = Path(__file__).resolve().parents[1]
MADE = {ROOT / "docs" / "reference" / "cli.md"}
FOUND = {*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md")}
PAGES = sorted(FOUND - MADE - {ROOT / "CHANGELOG.md"})
_BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(?<!`)`(ordersys [^`\n]+)`")
_CALL = re.compile(r"(?:^\s*|[(/;&|]\s*|\w=\S*\s+)ordersys\s+([^;&|)>\n]*)")


def calls(page: str) -> Iterator[str]:
    """What stands after `ordersys` in blocks of shell and in code between words."""
    shell = "\n".join(_BLOCK.findall(page)).replace("\\\n", " ")
    lines = [line.partition(" #")[0] for line in shell.splitlines() if not line.lstrip().startswith("#")]
    for line in [*lines, *_INLINE.findall(page)]:
        yield from _CALL.findall(line)


def wrong(call: str) -> str:
    """What is wrong with this command line; "" when nothing is."""
    command: Any = get_command(cli.app)
    words = shlex.split(call.replace("'", "").replace('"', ""))
    options = {"--help", "-h", *(each for parameter in command.params for each in parameter.opts)}
    for word in words:
        if word.startswith("--"):
            if word.partition("=")[0] not in options:
                return f"ordersys {call}: there is no option {word}"
        elif hasattr(command, "commands"):
            if word not in command.commands:
                return "" if word.isupper() or word == "..." else f"ordersys {call}: there is no command {word}"
            command = command.commands[word]
            options |= {each for parameter in command.params for each in (*parameter.opts, *parameter.secondary_opts)}
    return ""


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_what_a_page_speaks_of_is_there(path: Path) -> None:
    assert [found for call in calls(path.read_text(encoding="utf-8")) if (found := wrong(call))] == []


def test_the_check_knows_the_commands() -> None:
    assert all(wrong(path.removeprefix("ordersys ")) == "" for path, _ in published_reference.commands())


@pytest.mark.parametrize("call", ["sell", "client sell", "client place-order --colour red", "dlq replay --every"])
def test_the_check_finds_what_is_wrong(call: str) -> None:
    assert wrong(call)


def test_a_call_is_found_wherever_it_stands() -> None:
    page = "```sh\nX=1 ordersys up\nordersys a | ordersys b && ordersys c --d\nORDER=$(ordersys e)\n```\n`ordersys f`"
    assert [each.strip() for each in calls(page)] == ["up", "a", "b", "c --d", "e", "f"]
