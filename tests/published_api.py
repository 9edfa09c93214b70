"""What is published of the API: docs/openapi.json, and the table of endpoints in docs/reference/rest.md.

`python tests/published_api.py` renews both. It refuses a break with the file that is there while the version is the
same: whoever means to break something says so with the version.
"""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import api_compatibility

from ordersys.api import docs, document

PROJECT = Path(__file__).resolve().parents[1]
DOCUMENT = PROJECT / "docs" / "openapi.json"
PAGE = PROJECT / "docs" / "reference" / "rest.md"
RENEW = "python tests/published_api.py"
HOST = "http://127.0.0.1:8080"


def breaks(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """What `new` breaks without saying so in its version."""
    if api_compatibility.may_break(old["info"]["version"], new["info"]["version"]):
        return []
    return api_compatibility.breaking(old, new)


def table(described: dict[str, Any]) -> str:
    """Every endpoint, what it is for, the scope it needs, and how to ask for it."""
    rows = ["| endpoint | | scope | curl |", "|---|---|---|---|"]
    for path, method, operation in document.operations(described):
        scope = {"": "any key", "public": "none"}.get(needed := document.scope_of(described, operation), f"`{needed}`")
        endpoint = f"`{method.upper()} {path}`"
        rows.append(f"| {endpoint} | {operation['summary']} | {scope} | `{curl(path, method, operation, needed)}` |")
    return "\n".join(rows)


def curl(path: str, method: str, operation: Mapping[str, Any], scope: str) -> str:
    """One line that does it; `$KEY` is an API key, `$ORDER` the id of an order."""
    said = ["curl"]
    if "text/event-stream" in operation["responses"]["200" if "200" in operation["responses"] else "201"]["content"]:
        said.append("-N")
    if method != ("post" if "requestBody" in operation else "get"):
        said.append(f"-X {method.upper()}")
    if scope != "public":
        said.append('-H "X-API-Key: $KEY"')
    if any(parameter.get("name") == "Idempotency-Key" for parameter in operation.get("parameters", [])):
        said.append('-H "Idempotency-Key: $(uuidgen)"')
    if body := operation.get("requestBody"):
        said.append(f"--json '{json.dumps(body['content']['application/json']['example'])}'")
    where = path.replace("{id}", "1" if "products" in path else "$ORDER")
    return " ".join([*said, HOST + where])


def with_table(page: str, rows: str, name: str = "endpoints") -> str:
    """The page with these rows between the two comments of this name; raises ValueError without them, once each."""
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    head, begins, rest = page.partition(begin)
    _, ends, tail = rest.partition(end)
    if not begins or not ends or begin in tail or end in tail:
        raise ValueError(f"expected {begin} and then {end}, once each")
    return f"{head}{begin}\n{rows}\n{end}{tail}"


def main() -> int:
    text = docs.printed()
    described = json.loads(text)
    if DOCUMENT.exists() and (found := breaks(json.loads(DOCUMENT.read_text(encoding="utf-8")), described)):
        print(
            "this breaks callers; raise the version in ordersys/__init__.py first:", *found, sep="\n  ", file=sys.stderr
        )
        return 1
    DOCUMENT.write_text(text, encoding="utf-8")
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8"), table(described)), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
