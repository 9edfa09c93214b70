"""What the doctor finds, and how its checks run: side by side, each within a bound."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial

from ordersys.core import errors
from ordersys.operate.side_by_side import Asked


class Level(StrEnum):
    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line: what was looked at, how it is, what was found, and the command that mends it ("" = nothing to do)."""

    check: str
    level: Level
    found: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Check:
    """`look` returns one or more findings; `fix` is what to do when it does not come to an end, or fails."""

    name: str
    look: Callable[[], Iterable[Finding]]
    fix: str = ""


def ok(check: str, found: str) -> Finding:
    return Finding(check=check, level=Level.OK, found=found)


def warning(check: str, found: str, fix: str) -> Finding:
    return Finding(check=check, level=Level.WARNING, found=found, fix=fix)


def problem(check: str, found: str, fix: str) -> Finding:
    return Finding(check=check, level=Level.PROBLEM, found=found, fix=fix)


def examine(
    checks: Sequence[Check], seconds: float, waiting: Callable[[list[str]], None] = lambda _names: None
) -> list[Finding]:
    """The findings of all checks in their order; one that has not ended after `seconds` is left behind, a problem."""
    questions = {check.name: partial(_findings, check) for check in checks}
    answers = Asked().ask(questions, seconds, waiting)
    return [finding for check in checks for finding in _told(check, answers[check.name])]


def _findings(check: Check) -> list[Finding]:
    return list(check.look())


def _told(check: Check, answer: list[Finding] | Exception) -> list[Finding]:
    if isinstance(answer, errors.OrdersysError):
        return [problem(check.name, answer.message, check.fix)]
    if isinstance(answer, Exception):  # one check that fails must not hide what the others found
        return [problem(check.name, f"the check failed: {type(answer).__name__}: {answer}", check.fix)]
    return answer
