"""Makes docs/demo.svg anew, from a real run on a terminal: `cd tests && python -m e2e.demo_picture`."""

import io
import re
import tempfile
from pathlib import Path

from e2e.processes import Backend
from e2e.terminal import Terminal
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.text import Text

TARGET = Path(__file__).resolve().parents[2] / "docs" / "demo.svg"
WIDTH = 108
_MOVE = re.compile(r"\x1b\[(?P<count>\d*)(?P<what>[AK])|(?P<back>\r)|(?P<down>\n)|\x1b\[\?\d+[hl]")
_FONT_FACE = re.compile(r"@font-face \{\{.*?\}\}", re.DOTALL)


def screen(written: str) -> str:
    """What stands there in the end, with its colours: a live view goes up, erases its lines and writes them again."""
    lines, row, at = [""], 0, 0
    for move in _MOVE.finditer(written):
        lines[row] += written[at : move.start()]
        at = move.end()
        if move["down"]:
            row += 1
            lines += [""] * (row == len(lines))
        elif move["what"] == "A":
            row -= int(move["count"] or 1)
        elif move["what"] == "K":
            lines[row] = ""
    return "\n".join(lines)


def drawn(text: str) -> str:
    console = Console(record=True, file=io.StringIO(), width=WIDTH, force_terminal=True)
    console.print(Text("$ ordersys demo", "bold"))
    console.print(Text.from_ansi(text.rstrip("\n")))
    # No fonts from elsewhere: a README shows pictures that load nothing.
    template = _FONT_FACE.sub("", CONSOLE_SVG_FORMAT).replace("Fira Code", "ui-monospace, Menlo, Consolas")
    return console.export_svg(title="ordersys demo", code_format=template, unique_id="ordersys-demo")


def picture() -> str:
    with tempfile.TemporaryDirectory() as folder, Backend(Path(folder), {}) as backend:
        backend.environment = {"PATH": backend.environment["PATH"], "HOME": folder}
        with Terminal(backend, "demo", COLUMNS=str(WIDTH)) as terminal:
            assert terminal.ends() == 0, terminal.text
        return drawn(screen(terminal.shown))


if __name__ == "__main__":
    TARGET.write_text(picture(), encoding="utf-8")
