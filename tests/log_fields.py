"""The fields of our log lines, and what Elasticsearch is told of them."""

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
TEMPLATE = ROOT / "deploy" / "observability" / "logs" / "index-template.json"


def mapped() -> dict[str, str]:
    """Field -> its type, of the index template."""
    template = json.loads(TEMPLATE.read_text(encoding="utf-8"))["template"]

    def fields(properties: dict[str, Any], within: str) -> Iterator[tuple[str, str]]:
        for name, about in properties.items():
            if "properties" in about:
                yield from fields(about["properties"], f"{within}{name}.")
            else:
                yield within + name, about["type"]

    return dict(fields(template["mappings"]["properties"], ""))


def logged() -> set[str]:
    """Every field that a log line may have: the keys with a dot where log lines are made, and those without one."""
    found = {"@timestamp", "message"}
    for path in (ROOT / "ordersys").rglob("*.py"):
        source = path.read_text(encoding="utf-8")
        if "extra=" in source or path.name == "logs.py":
            for node in ast.walk(ast.parse(source)):
                keys = node.keys if isinstance(node, ast.Dict) else [getattr(node, "slice", None)]
                found |= {key.value for key in keys if isinstance(key, ast.Constant) and "." in str(key.value)}
    return found
