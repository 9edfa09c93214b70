"""The shell blocks of a page, and the bash script that follows the page as a newcomer would.

A comment before a block says what to do with it: `<!-- run -->`, `<!-- run, exit code 1 -->`, or
`<!-- run in another terminal, until: TEXT -->`, which leaves it running once it has printed TEXT. A block after
`<!-- shows -->` is what the last one prints: line for line, where `...` in a line stands for anything and a line `...`
for any number of lines.
"""

import re
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

_MARKED = re.compile(r"^<!-- (?P<what>run\b[^\n]*?|shows) -->\n+```(?P<language>\w+)\n(?P<text>.*?)^```$", re.M | re.S)
_RUN = re.compile(r"run(?:, exit code (?P<code>\d+)| in another terminal, until: (?P<until>.+))?")
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
SECONDS = 60
"""How long a block in another terminal may take until it has said what it is to say."""


@dataclass(slots=True)
class Block:
    """Some lines of shell; `until` is what they print when they keep running, `shown` what they are said to print."""

    text: str
    code: int = 0
    until: str = ""
    shown: str | None = None


def blocks(page: str) -> list[Block]:
    """What there is to run; raises ValueError for a comment that nobody understands."""
    found: list[Block] = []
    for marked in _MARKED.finditer(page):
        if marked["what"] == "shows":
            found[-1].shown = marked["text"]
            continue
        run = _RUN.fullmatch(marked["what"])
        if run is None or marked["language"] != "sh":
            raise ValueError(f"{marked[0].partition(chr(10))[0]}: expected {_RUN.pattern} before a block of sh")
        found.append(Block(marked["text"], int(run["code"] or 0), run["until"] or ""))
    if page.count("\n<!-- run") + page.count("\n<!-- shows") != len(found) + sum(
        each.shown is not None for each in found
    ):
        raise ValueError("a comment <!-- run --> or <!-- shows --> has no block right after it")
    return found


def _begins(number: int) -> str:
    return f"=== block {number} ==="


def script(found: Sequence[Block]) -> str:
    """One bash for the whole page, so that variables live on; what runs in another terminal ends with it."""
    lines = ["trap 'kill $(jobs -p) 2>/dev/null || true; wait || true' EXIT"]
    for number, block in enumerate(found):
        lines.append(f"echo '{_begins(number)}'")
        if block.until:
            log = f"terminal-{number}.log"
            wait = f"! grep -qF {shlex.quote(block.until)} {log}"
            lines += [f"bash -euo pipefail -c {shlex.quote(_replacing(block.text))} > {log} 2>&1 &", "started=$!"]
            lines.append(f"for _ in $(seq {SECONDS * 10}); do {wait} && kill -0 $started || break; sleep 0.1; done")
            lines.append(f"if {wait}; then cat {log}; exit 99; fi")
        elif block.code:
            lines += ["set +e", block.text, "code=$?", "set -e", f"test $code = {block.code} || exit 98"]
        else:
            lines.append(block.text)
    lines.append(f"echo '{_begins(len(found))}'")
    return "\n".join(["set -euo pipefail", *lines])


def _replacing(text: str) -> str:
    """The last command in the place of its shell, so that whoever ends the one ends the other."""
    head, _, last = text.rstrip("\n").rpartition("\n")
    return f"{head}\nexec {last}"


def printed(output: str, count: int) -> list[list[str]]:
    """The lines of each block, without colours and the spaces at their ends."""
    lines = [line.rstrip() for line in _ESCAPE.sub("", output).splitlines()]
    places = [lines.index(_begins(number)) for number in range(count + 1) if _begins(number) in lines]
    ends = [*places, len(lines)] if len(places) <= count else places
    return [lines[begin + 1 : end] for begin, end in pairwise(ends)]


def shows(lines: Sequence[str], shown: str) -> bool:
    """Whether these lines are what the page says; empty ones do not count."""

    def expressions() -> Iterator[str]:
        for line in filter(None, (each.rstrip() for each in shown.splitlines())):
            yield r"(?:.*\n)*" if line == "..." else ".*".join(map(re.escape, line.split("..."))) + r"\n"

    return re.fullmatch("".join(expressions()), "".join(f"{line}\n" for line in lines if line)) is not None
