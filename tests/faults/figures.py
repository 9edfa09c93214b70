"""The figures of the fault suite: printed in one line per row, and kept as JSON for whoever makes a table of them.

`ORDERSYS_FAULT_FIGURES=F pytest tests/faults`, then `python tests/faults/figures.py F` prints the table.
"""

import json
import os
import sys
from pathlib import Path

Figure = int | float | str


def record(row: int | str, engine: str, **figures: Figure) -> None:
    """Print `row 1 embedded: answered 812, lost 0, ...`; append it as JSON to $ORDERSYS_FAULT_FIGURES, if set."""
    shown = ", ".join(f"{name.replace('_', ' ')} {_short(figure)}" for name, figure in figures.items())
    print(f"row {row} {engine}: {shown}")
    if file := os.environ.get("ORDERSYS_FAULT_FIGURES"):
        with Path(file).open("a", encoding="utf-8") as lines:
            lines.write(json.dumps({"row": row, "engine": engine, **figures}) + "\n")


def _short(figure: Figure) -> str:
    return f"{figure:.2f}" if isinstance(figure, float) else str(figure)


def table(lines: list[str]) -> str:
    """The recorded figures as a Markdown table, by row and engine."""
    rows = [json.loads(line) for line in lines]
    rows.sort(key=lambda row: (not isinstance(row["row"], int), str(row["row"]).rjust(3), row["engine"]))
    made = ["| row | engine | figures |", "|---|---|---|"]
    for row in rows:
        figures = (f"{name.replace('_', ' ')} {_short(row[name])}" for name in row if name not in ("row", "engine"))
        made.append(f"| {row['row']} | {row['engine']} | {', '.join(figures)} |")
    return "\n".join(made)


if __name__ == "__main__":
    print(table(Path(sys.argv[1]).read_text(encoding="utf-8").splitlines()))
